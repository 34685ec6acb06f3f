//! Counters, gauges and a histogram for every policy, by way of the [`metrics`](https://docs.rs/metrics) facade
//! (feature `metrics`).
//!
//! Whatever recorder the program installs gets them; there is nothing to be wired. Handles are registered once a layer,
//! at its first call after a recorder is there, so it does not matter which of the two was made first. What happened
//! before there was a recorder is not counted.
//!
//! Every series has the labels `policy` (`circuit_breaker`, ...) and `name` (that of the layer). Give layers names: two
//! layers with the same policy and name write to the same series, and only a [`Registry`](crate::Registry) keeps names
//! apart.
//!
//! | metric | kind | more labels | what | when |
//! |---|---|---|---|---|
//! | `buttress_calls_total` | counter | `outcome` | calls of circuit breakers that have ended, by what they meant | at once |
//! | `buttress_admitted_total` | counter | | calls that were let in, by bulkheads (in shadow all of them) and rate limits (in shadow those that would be) | at once |
//! | `buttress_rejected_total` | counter | `reason` | calls refused or cut short, timeouts included | at once |
//! | `buttress_would_have_rejected_total` | counter | `reason` | calls that went on only because of shadow | at once |
//! | `buttress_attempts_total` | counter | `outcome` | attempts of retries and hedges that ended, the first ones included | at once |
//! | `buttress_further_attempts_total` | counter | `outcome` | of these, the ones after the first of their call; a hedge that won is a success | at once |
//! | `buttress_attempts_stopped_total` | counter | `by` | attempts that were not made: `budget` or `deadline` | at once |
//! | `buttress_fallbacks_total` | counter | `outcome` | answers given in the place of the backend's, by what its own meant | at once |
//! | `buttress_permits_expired_total` | counter | | permits that stopped counting because their reader stalled | at once |
//! | `buttress_state_changes_total` | counter | `state` | changes of a breaker's state, by the new one; of a breaker for each key one for each, and one more where all were moved by hand | at once |
//! | `buttress_observer_panics_total` | counter | | panics of observers that were contained | at once |
//! | `buttress_circuit_breaker_state` | gauge | `state` | 1 for the state a breaker is in, 0 for the four others | at once |
//! | `buttress_limit` | gauge | | the limit on calls in flight | at once |
//! | `buttress_queue_wait_seconds` | histogram | | how long calls waited for a bulkhead that had to, whatever became of them; to the millisecond, and modulo 24.8 days | at once |
//! | `buttress_in_flight` | gauge | | calls in flight | published |
//! | `buttress_waiting` | gauge | | calls that wait for their turn | published |
//! | `buttress_oldest_wait_seconds` | gauge | | for how long the one has waited who has waited longest | published |
//! | `buttress_failure_rate` | gauge | | the share of failed calls in a breaker's window | published |
//! | `buttress_slow_call_rate` | gauge | | the share of slow calls in a breaker's window | published |
//! | `buttress_probes_out` | gauge | | probes that are running | published |
//! | `buttress_rate` | gauge | | calls a second that an adaptive rate allows | published |
//! | `buttress_held_seconds` | gauge | | for how long an adaptive rate sends nothing, because the backend asked for that | published |
//! | `buttress_budget_left` | gauge | | further attempts that a budget would give, or the tokens it has | published |
//! | `buttress_keys` | gauge | | keys with a state of their own | published |
//! | `buttress_open_keys` | gauge | | keys whose breaker is open or forced open | published |
//! | `buttress_shadow` | gauge | | 1 in shadow | published |
//!
//! *At once*: right at every moment, with nothing to be done. *Published*: these move with every call, and a recorder
//! is no place to write to twice a call; they are read from the policies when [`publish`] is called. Call it where you
//! render, as the gateway example does, or every few seconds where an exporter has a listener of its own:
//!
//! ```
//! # let handle = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
//! use axum::{Router, routing::get};
//!
//! let app: Router = Router::new().route("/metrics", get(|| async move {
//!     buttress::observe::metrics::publish();
//!     handle.render()
//! }));
//! # drop(app);
//! ```
//!
//! No series has a key for a label: keys have no bound that a recorder would like. The state of breakers by key is the
//! worst that one of them is in; where that one is forgotten for want of calls, it shows when another changes or is
//! published. Which one opened is told by its [event](super::Event).
//!
//! Without it those gauges are absent, never stale; those of a layer that was dropped are set to 0 by it. A gauge that
//! nobody can tell (a rate of too few calls, the age of an empty queue) is NaN. Histograms of the Prometheus recorder
//! grow until they are rendered or `run_upkeep` is called.
//!
//! `dashboards/buttress.json` is a Grafana dashboard over these.
//!
//! # Cost
//!
//! One counter for an admitted call of a breaker, a bulkhead, a rate limit, a retry or a hedge, and no allocation. All
//! threads add to that one counter of the recorder, so two of them fight over its cache line (together 28 million calls
//! a second of a breaker, where one alone makes 30). Timeouts, deadlines, adaptive rates and fallbacks cost nothing
//! before they act.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Recorder, with_recorder};

use super::{Kind, Sight, StoppedBy, Watched, contain};
use crate::{outcome::Outcome, rejection::Reason};

mod handles;
pub(super) mod layers;
mod series;

use self::{handles::Handles, layers::Trace};

/// Brings the gauges of every layer that lives up to date; without a recorder there are none. A layer lives as long as
/// one of its calls runs.
///
/// The facade can't take a gauge away. So those of a layer that was dropped are set to 0 (every state of a breaker
/// too), once, by the first of these calls after that, unless there is another layer of that policy and name, whose
/// they are then.
///
/// Takes as long as taking a snapshot of each layer. Not for the path of calls.
pub fn publish() {
    if with_recorder(series::is_noop) {
        return;
    }
    for trace in layers::gone() {
        contain(|| handles::show_gone(&trace));
    }
    // Asked after, for one of those names may have a new layer by now.
    for layer in layers::living() {
        layer.reporter().publish(&*layer);
    }
}

/// The meters of one layer: nothing until there is a recorder, then its handles for ever.
pub(super) struct Meters {
    who: Who,
    handles: OnceLock<Handles>,
    /// May a recorder have its gauges?
    is_shown: Arc<AtomicBool>,
}

/// Whose meters they are.
#[derive(Clone)]
pub(super) struct Who {
    policy: &'static str,
    name: Arc<str>,
    reasons: &'static [Reason],
}

type Layer = Option<Arc<dyn Watched>>;

impl Meters {
    pub(super) fn new(policy: &'static str, name: Arc<str>, reasons: &'static [Reason]) -> Self {
        Meters { who: Who { policy, name, reasons }, handles: OnceLock::new(), is_shown: Arc::default() }
    }

    // === on the path of calls ===

    #[inline(always)]
    pub(super) fn ended(&self, outcome: Outcome, layer: impl FnOnce() -> Layer) {
        if let Some(handles) = self.handles(layer) {
            handles.calls.of(&self.who, outcome as usize);
        }
    }

    #[inline(always)]
    pub(super) fn attempted(&self, outcome: Outcome, layer: impl FnOnce() -> Layer) {
        if let Some(handles) = self.handles(layer) {
            handles.attempts.of(&self.who, outcome as usize);
        }
    }

    #[inline(always)]
    pub(super) fn admitted(&self, layer: impl FnOnce() -> Layer) {
        if let Some(handles) = self.handles(layer) {
            handles.admitted.of(&self.who, 0);
        }
    }

    #[inline(always)]
    fn handles(&self, layer: impl FnOnce() -> Layer) -> Option<&Handles> {
        match self.handles.get() {
            Some(handles) => Some(handles),
            None => self.look_for_recorder(layer),
        }
    }

    /// A handle that was taken before there is a recorder would be of no use for ever, so none is taken then.
    #[cold]
    fn look_for_recorder(&self, layer: impl FnOnce() -> Layer) -> Option<&Handles> {
        // Not by `get_or_init`: the recorder is other people's code, which may come back here by a call of its own.
        contain(|| {
            let handles = with_recorder(|r| (!series::is_noop(r)).then(|| Handles::new(r, &self.who)));
            if handles.is_some_and(|handles| self.handles.set(handles).is_ok())
                && let Some(layer) = layer()
            {
                self.is_shown.store(true, Relaxed);
                handles::show_lasting(&self.who, &*layer);
            }
        });
        self.handles.get()
    }

    // === off the path ===

    pub(super) fn event(&self, kind: &Kind, layer: impl Fn() -> Layer) {
        let Some(handles) = self.handles(&layer) else { return };
        let who = &self.who;
        match kind {
            Kind::Rejected { reason } => handles.rejected.of(who, *reason as usize),
            Kind::TimedOut => handles.rejected.of(who, Reason::Timeout as usize),
            Kind::WouldHaveRejected { reason } => handles.would_have_rejected.of(who, *reason as usize),
            Kind::Attempt { number, outcome, .. } => {
                handles.attempts.of(who, *outcome as usize);
                if *number > 1 {
                    handles.further_attempts.of(who, *outcome as usize);
                }
            }
            Kind::FellBack { outcome } => handles.fallbacks.of(who, *outcome as usize),
            Kind::PermitExpired => handles.permits_expired.of(who, 0),
            Kind::LimitChanged { to, .. } => handles::show_limit(who, *to, layer().as_deref()),
            Kind::StateChanged { to, .. } => {
                handles.state_changes.of(who, *to as usize);
                layer().iter().for_each(|l| handles::show_state(who, &**l));
            }
            Kind::WouldHaveFallenBack { .. } => {}
        }
    }

    pub(super) fn observer_panicked(&self, layer: impl FnOnce() -> Layer) {
        if let Some(handles) = self.handles(layer) {
            handles.observer_panics.of(&self.who, 0);
        }
    }

    pub(super) fn stopped(&self, by: StoppedBy, layer: impl FnOnce() -> Layer) {
        if let Some(handles) = self.handles(layer) {
            handles.attempts_stopped.of(&self.who, by as usize);
        }
    }

    pub(super) fn waited(&self, time: Duration, layer: impl FnOnce() -> Layer) {
        if let Some(handles) = self.handles(layer) {
            handles.queue_wait(&self.who).record(time.as_secs_f64());
        }
    }

    pub(super) fn publish(&self, layer: &dyn Watched) {
        // Takes no handles for good: the recorder may be one of this thread alone, and the layer be another one's.
        if self.handles.get().is_none() && !with_recorder(|r| self.begin(r)) {
            return;
        }
        self.is_shown.store(true, Relaxed);
        handles::show_lasting(&self.who, layer);
        handles::show_fleeting(&self.who, layer);
    }

    pub(super) fn trace(&self, layer: &dyn Watched) -> Trace {
        let mut figures = Vec::new();
        layer.figures(&mut |name, _| figures.push(name));
        let is_shown = Arc::clone(&self.is_shown);
        Trace { who: self.who.clone(), is_shown, figures, has_state: layer.state().is_some() }
    }

    /// Lets the counters that a layer is sure to have begin at zero.
    fn begin(&self, recorder: &dyn Recorder) -> bool {
        let is_there = !series::is_noop(recorder);
        if is_there {
            drop(Handles::new(recorder, &self.who));
        }
        is_there
    }
}
