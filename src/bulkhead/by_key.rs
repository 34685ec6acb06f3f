//! A limiter for each key.

use std::{fmt, sync::Arc};

use crate::{
    bulkhead::{common::Common, door::Admission, limiter::Limiter},
    key::{Keys, Whose},
    keyed::{Keyed, State},
    protocol::Protocol,
    rejection::Reason,
    stripe::{Shared, Striped},
};

/// The limiters of a layer with keys, each with the limit and the queue of the settings.
pub(crate) struct ByKey {
    keys: Keys,
    /// Of plain services, and of requests without a key that are to share one.
    pub(crate) keyless: Arc<Striped<Limiter>>,
    keyed: Keyed<Shared<Limiter>, Arc<Common>>,
}

/// Where a request goes.
pub(crate) enum Goes {
    /// Through this limiter.
    To(Shared<Limiter>),
    /// It has no key, and the layer was told to refuse it, or else to let it pass.
    Nowhere { refuse: bool },
}

impl ByKey {
    pub(crate) fn new(keys: Keys, common: &Arc<Common>) -> Self {
        let limiter = || Shared::alone(Limiter::new(Arc::clone(common)));
        ByKey {
            keyless: Arc::new(Striped::new(Limiter::new(Arc::clone(common)))),
            keyed: Keyed::new(keys.most, Arc::clone(common), limiter),
            keys,
        }
    }

    /// Finds the limiter of a request. A user's function runs before, and outside of every lock.
    pub(crate) fn find<P, Req, Res, Err>(&self, request: &mut Req, now: u64) -> Goes
    where
        P: Protocol<Req, Res, Err>,
    {
        let own = self.keys.ask_of::<P, Req, Res, Err>(request);
        self.keys.look(P::head(request), own, |whose| match whose {
            Whose::Keyless => Goes::To(self.keyless.share()),
            Whose::Key(key) => Goes::To(self.keyed.with(key, now, |_, limiter| limiter.clone())),
            Whose::Nobodys { refuse } => Goes::Nowhere { refuse },
        })
    }

    /// How many keys have a limiter of their own.
    pub(crate) fn keys(&self) -> usize {
        self.keyed.len()
    }

    /// Looks at each limiter. A lock is held meanwhile: nothing may be woken in there.
    pub(crate) fn look_at_each(&self, mut look: impl FnMut(&Limiter)) {
        look(&self.keyless);
        self.keyed.for_each(|limiter| look(limiter));
    }

    /// All limiters, to do something that wakes others. Such as are made from now on know the settings of now.
    pub(crate) fn all(&self) -> Vec<Shared<Limiter>> {
        let mut all = vec![self.keyless.share()];
        self.keyed.for_each(|limiter| all.push(limiter.clone()));
        all
    }
}

/// Whoever is in, waits, or has a stream there holds the limiter, so one that nobody holds is as new.
impl State<Arc<Common>> for Shared<Limiter> {
    fn idle_at(&self, _common: &Arc<Common>) -> Option<u64> {
        self.is_the_only_one().then_some(0)
    }

    fn promoted(_overflow: &Self, common: &Arc<Common>, _now: u64) -> Self {
        // Whose calls those in the overflow are is not known: they stay there.
        Shared::alone(Limiter::new(Arc::clone(common)))
    }
}

impl Limiter {
    /// The limiter in front of the others, of a layer with keys: nobody passes there without being asked for a key.
    pub(crate) fn in_front(common: Arc<Common>, keys: Keys) -> Self {
        let by_key = ByKey::new(keys, &common);
        Limiter { by_key: Some(Box::new(by_key)), ..Limiter::of(0, common) }
    }

    /// What a request without a key comes to, which has been booked then.
    #[cold]
    pub(crate) fn admit_nobody(&self, refuse: bool) -> Admission {
        if refuse {
            if !self.common.in_shadow() {
                return Admission::Refused(Reason::KeyMissing);
            }
            self.common.would_refuse(Reason::KeyMissing);
        }
        // Counted here, and by nobody else.
        self.room.push_in();
        Admission::In
    }
}

impl fmt::Debug for ByKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByKey").field("keys", &self.keys).field("keyed", &self.keyed).finish_non_exhaustive()
    }
}
