//! A breaker for each key.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    circuit_breaker::{
        CircuitBreakerConfig, IllegalMove, State,
        breaker::{Breaker, Role},
        common::Common,
        for_all::badness,
        machine::{Change, Machine},
    },
    key::Whose,
    keyed::{self, Keyed},
    observe::Kind,
    protocol::Protocol,
    rejection::{Reason, Told},
    stripe::{Shared, Striped},
    time::Span,
};

/// The breakers of a layer with keys.
pub(crate) struct ByKey {
    common: Arc<Common>,
    /// Of plain services, and of requests without a key that are to share one.
    pub(crate) keyless: Arc<Striped<Breaker>>,
    keyed: Keyed<Shared<Breaker>, Arc<Common>>,
    /// One hand at a time, so that of two at once all breakers end with what the same one wanted.
    steering: Mutex<()>,
}

/// Where a request goes.
pub(crate) enum Goes {
    /// Through this breaker.
    To(Shared<Breaker>),
    /// Through none, uncounted.
    Past,
    Nowhere(Told),
}

/// What a breaker knows of its key.
#[derive(Debug)]
pub(crate) struct OfKey {
    /// As it stands in events. There from the first call on.
    name: OnceLock<Arc<str>>,
    used: AtomicU64,
}

impl OfKey {
    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.name.get()
    }

    /// It is in use at this time.
    pub(super) fn touch(&self, now: u64) {
        self.used.store(now, Relaxed);
    }
}

impl ByKey {
    fn new(common: &Arc<Common>) -> Self {
        let shared = || Breaker::for_key(common, Role::Shared, 0);
        ByKey {
            common: Arc::clone(common),
            keyless: Arc::new(Striped::new(shared())),
            keyed: Keyed::new(common.fixed.keys.most, Arc::clone(common), || Shared::alone(shared())),
            steering: Mutex::new(()),
        }
    }

    // === calls ===

    /// Is every call refused now, whatever its key?
    pub(crate) fn is_shut(&self) -> Option<Told> {
        let all = &self.common.for_all;
        let is_shut = all.are_forced_open() && !all.in_shadow();
        is_shut.then(|| Told::new(Reason::ForcedOpen, Span::NONE))
    }

    /// Finds the breaker of a request. A user's function runs before, and outside of every lock.
    pub(crate) fn find<P, Req, Res, Err>(&self, request: &mut Req) -> Goes
    where
        P: Protocol<Req, Res, Err>,
    {
        let keys = &self.common.fixed.keys;
        let own = keys.ask_of::<P, Req, Res, Err>(request);
        keys.look(P::head(request), own, |whose| match whose {
            Whose::Keyless => Goes::To(self.keyless.share()),
            Whose::Key(key) => {
                let now = self.common.clock.now();
                Goes::To(self.keyed.with(key, now, |_, breaker| {
                    breaker.mark_used(key, now);
                    breaker.clone()
                }))
            }
            Whose::Nobodys { refuse } => self.nobodys(refuse),
        })
    }

    fn nobodys(&self, refuse: bool) -> Goes {
        let reason = match self.common.for_all.begins() {
            _ if refuse => Reason::KeyMissing,
            State::ForcedOpen => Reason::ForcedOpen,
            _ => return Goes::Past,
        };
        if !self.common.for_all.in_shadow() {
            return Goes::Nowhere(Told::new(reason, Span::NONE));
        }
        self.common.would_refuse(reason);
        Goes::Past
    }

    // === by hand ===

    /// The breaker of this key, if it has one of its own.
    pub(crate) fn of(&self, key: &[u8]) -> Option<Shared<Breaker>> {
        self.keyed.get(key, Shared::clone)
    }

    /// Moves all, and those to come. Only what is open can be half-opened: that is an error where nothing is.
    pub(crate) fn move_to(&self, to: State) -> Result<(), IllegalMove> {
        let mut has_moved = false;
        let begin = || {
            if to.is_forced() {
                self.common.for_all.begin(to);
            }
        };
        self.steer(begin, |breaker| {
            let moved = breaker.machine.move_by_hand(to, breaker.now());
            has_moved |= moved.is_ok();
            moved.ok().flatten()
        });
        if has_moved { Ok(()) } else { Err(IllegalMove { from: self.common.for_all.worst(), to }) }
    }

    pub(crate) fn reset(&self) {
        let begin = || self.common.for_all.begin(State::Closed);
        self.steer(begin, |breaker| breaker.machine.reset(breaker.now()));
    }

    pub(crate) fn update(&self, config: CircuitBreakerConfig) {
        // New keys take what is there from here on.
        let begin = || self.common.configure(config.clone(), |_| ());
        self.steer(begin, |breaker| {
            breaker.machine.update(&config, breaker.now());
            None
        });
    }

    pub(crate) fn shadow(&self, on: bool) {
        let begin = || self.common.for_all.set_shadow(on);
        self.steer(begin, |breaker| {
            breaker.machine.shadow(on);
            None
        });
    }

    /// Says what begins with new keys, then does it to all that are there, and tells of it when no lock is held. A key
    /// that comes meanwhile is among the ones or the others: it is made under the lock of its shard.
    fn steer(&self, begin: impl FnOnce(), mut act: impl FnMut(&Breaker) -> Option<Change>) {
        let steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        begin();
        let changes = self.all().into_iter().filter_map(|breaker| act(&breaker).map(|change| (breaker, change)));
        let changes: Vec<_> = changes.collect();
        drop(steering);
        // All are counted before the first is told of, so that whoever looks then sees what the hand wanted.
        changes.iter().for_each(|(breaker, change)| breaker.book(*change));
        self.tell_of_a_hand(&changes);
    }

    /// One move is one event, from the worst state that it ended, and one more for each key with a breaker of its own.
    /// Those that are shared are many, made for nobody in particular, and have nothing to add.
    fn tell_of_a_hand(&self, changes: &[(Shared<Breaker>, Change)]) {
        let worst = changes.iter().map(|(_, change)| *change).min_by_key(|change| badness(change.from));
        let Some(Change { from, to, .. }) = worst else { return };
        self.common.reporter.report(Kind::StateChanged { from, to });
        let of_keys = changes.iter().filter(|(breaker, _)| matches!(breaker.role, Role::Key(_)));
        of_keys.for_each(|(breaker, change)| breaker.tell(*change));
    }

    fn all(&self) -> Vec<Shared<Breaker>> {
        let mut all = vec![self.keyless.share()];
        self.keyed.for_each(|breaker| all.push(breaker.clone()));
        all
    }

    // === figures ===

    /// How many keys have a breaker of their own.
    pub(crate) fn keys(&self) -> usize {
        self.keyed.len()
    }

    /// Looks at the breakers of keys, those beyond the bound too. A lock is held meanwhile.
    pub(crate) fn look_at_keyed(&self, mut look: impl FnMut(&Breaker)) {
        self.keyed.for_each(|breaker| look(breaker));
    }
}

impl Breaker {
    /// The breaker in front of the others, of a layer with keys. Nobody passes there in one of the short ways, so that
    /// calls of other layers need not look for the others.
    pub(crate) fn in_front(common: Arc<Common>) -> Self {
        let by_key = ByKey::new(&common);
        let mut front = Breaker::alone(common, false);
        let _ = front.machine.move_by_hand(State::ForcedClosed, 0);
        front.role = Role::Front(Box::new(by_key));
        front
    }

    /// One that begins as all do now.
    fn for_key(common: &Arc<Common>, role: Role, now: u64) -> Self {
        let all = &common.for_all;
        let machine = match role {
            Role::Key(_) => Machine::small(&common.config(), now),
            _ => Machine::new(&common.config(), now),
        };
        machine.shadow(all.in_shadow());
        let begins = all.begins();
        if begins.is_forced() {
            let _ = machine.move_by_hand(begins, now);
        }
        all.add(begins);
        Breaker { machine, clock: common.clock.another(), common: Arc::clone(common), role }
    }

    fn mark_used(&self, key: &[u8], now: u64) {
        if let Role::Key(of_key) = &self.role {
            of_key.touch(now);
            of_key.name.get_or_init(|| shown(key));
        }
    }
}

/// Whoever runs or is steered holds it.
impl keyed::State<Arc<Common>> for Shared<Breaker> {
    fn idle_at(&self, common: &Arc<Common>) -> Option<u64> {
        let Role::Key(of_key) = &self.role else { return None };
        if !self.is_the_only_one() {
            return None;
        }
        self.machine.idle_at(common.for_all.begins(), of_key.used.load(Relaxed), || common.clock.now())
    }

    /// What those in the overflow did together says nothing of one of them.
    fn promoted(_overflow: &Self, common: &Arc<Common>, now: u64) -> Self {
        let of_key = OfKey { name: OnceLock::new(), used: AtomicU64::new(now) };
        Shared::alone(Breaker::for_key(common, Role::Key(of_key), now))
    }
}

/// A key as it is shown: at most so many bytes of it.
const SHOWN: usize = 256;

fn shown(key: &[u8]) -> Arc<str> {
    // A character may begin before the end and reach beyond it.
    let text = String::from_utf8_lossy(&key[..key.len().min(SHOWN + 3)]);
    let end = (0..=text.len().min(SHOWN)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].into()
}

impl fmt::Debug for ByKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByKey").field("keyed", &self.keyed).finish_non_exhaustive()
    }
}
