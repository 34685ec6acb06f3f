//! One thing to measure.

/// Runs one whole call. `true`: it was answered with `Ok`.
///
/// Boxed, so that the compiler can neither merge the calls of a loop nor move work out of it.
pub type Call = Box<dyn FnMut() -> bool>;

/// Makes a [`Call`] over an own clone of one service. Each thread asks for its own, on the thread that will use it.
pub type Clients = Box<dyn Fn() -> Call + Send + Sync>;

/// One thing to measure: `group/name`.
#[derive(Debug, Clone)]
pub struct Case {
    pub id: &'static str,
    /// Its bare service, whose cost is subtracted: what is left is the cost of the layer.
    pub bare: &'static str,
    pub judge: Judge,
    /// What every call has to answer. A breaker that was meant to be open and is not would be measured all the same.
    pub answers_ok: bool,
    /// Does it run on two threads too?
    pub on_threads: bool,
    pub make: fn() -> Clients,
}

/// What net instructions are held against.
#[derive(Debug, Clone, Copy)]
pub enum Judge {
    Nothing,
    /// A target.
    AtMost(f64),
    /// A target: `factor` times the net instructions of another case, and `plus` more.
    AtMostOf {
        case: &'static str,
        factor: f64,
        plus: f64,
    },
    /// No target: says how many times the net instructions of another case (ours) this is.
    RatioTo(&'static str),
}

impl Case {
    /// A case over the bare plain service, with nothing to be held against.
    pub fn new(id: &'static str, make: fn() -> Clients) -> Self {
        let bare = crate::cases::bare::PLAIN;
        Case { id, bare, judge: Judge::Nothing, answers_ok: true, on_threads: false, make }
    }

    pub fn over(self, bare: &'static str) -> Self {
        Case { bare, ..self }
    }

    pub fn judged(self, judge: Judge) -> Self {
        Case { judge, ..self }
    }

    /// Every call is refused.
    pub fn refuses(self) -> Self {
        Case { answers_ok: false, ..self }
    }

    pub fn on_threads(self) -> Self {
        Case { on_threads: true, ..self }
    }

    pub fn group(&self) -> &'static str {
        self.id.split_once('/').map_or(self.id, |(group, _)| group)
    }
}
