//! A wall for each key.

use std::{fmt, sync::Arc};

use crate::{
    bulkhead::{door::Admission, hull::Hull, wall::Wall},
    key::{Keys, Whose},
    keyed::{Keyed, State},
    protocol::Protocol,
    rejection::Reason,
    stripe::{Shared, Striped},
};

/// The walls of a layer with keys, each with the limit and the queue of the settings.
pub(crate) struct Rooms {
    keys: Keys,
    /// Of plain services, and of requests without a key that are to share one.
    pub(crate) common: Arc<Striped<Wall>>,
    keyed: Keyed<Shared<Wall>, Arc<Hull>>,
}

/// Where a request goes.
pub(crate) enum Goes {
    /// Behind this wall.
    To(Shared<Wall>),
    /// It has no key, and the layer was told to refuse it, or else to let it pass.
    Nowhere { refuse: bool },
}

impl Rooms {
    pub(crate) fn new(keys: Keys, hull: &Arc<Hull>) -> Self {
        let wall = || Shared::alone(Wall::new(Arc::clone(hull)));
        Rooms {
            common: Arc::new(Striped::new(Wall::new(Arc::clone(hull)))),
            keyed: Keyed::new(keys.most, Arc::clone(hull), wall),
            keys,
        }
    }

    /// Finds the wall of a request. A user's function runs before, and outside of every lock.
    pub(crate) fn find<P, Req, Res, Err>(&self, request: &mut Req, now: u64) -> Goes
    where
        P: Protocol<Req, Res, Err>,
    {
        let own = self.keys.ask_of::<P, Req, Res, Err>(request);
        self.keys.look(P::head(request), own, |whose| match whose {
            Whose::Common => Goes::To(self.common.share()),
            Whose::Key(key) => Goes::To(self.keyed.with(key, now, |_, wall| wall.clone())),
            Whose::Nobodys { refuse } => Goes::Nowhere { refuse },
        })
    }

    /// How many keys have a wall of their own.
    pub(crate) fn keys(&self) -> usize {
        self.keyed.len()
    }

    /// Looks at each wall. A lock is held meanwhile: nothing may be woken in there.
    pub(crate) fn look_at_each(&self, mut look: impl FnMut(&Wall)) {
        look(&self.common);
        self.keyed.for_each(|wall| look(wall));
    }

    /// All walls, to do something that wakes others. Such as are made from now on know the settings of now.
    pub(crate) fn all(&self) -> Vec<Shared<Wall>> {
        let mut all = vec![self.common.share()];
        self.keyed.for_each(|wall| all.push(wall.clone()));
        all
    }
}

/// Whoever is in, waits, or has a stream there holds the wall, so one that nobody holds is as new.
impl State<Arc<Hull>> for Shared<Wall> {
    fn idle_at(&self, _hull: &Arc<Hull>) -> Option<u64> {
        self.is_the_only_one().then_some(0)
    }

    fn promoted(_overflow: &Self, hull: &Arc<Hull>, _now: u64) -> Self {
        // Whose calls those in the overflow are is not known: they stay there.
        Shared::alone(Wall::new(Arc::clone(hull)))
    }
}

impl Wall {
    /// The wall in front of the others, of a layer with keys: nobody passes there without being asked for a key.
    pub(crate) fn in_front(hull: Arc<Hull>, keys: Keys) -> Self {
        let rooms = Rooms::new(keys, &hull);
        Wall { rooms: Some(Box::new(rooms)), ..Wall::of(0, hull) }
    }

    /// What a request without a key comes to, which has been booked then.
    #[cold]
    pub(crate) fn admit_nobody(&self, refuse: bool) -> Admission {
        if refuse {
            if !self.hull.in_shadow() {
                return Admission::Refused(Reason::KeyMissing);
            }
            self.hull.would_refuse(Reason::KeyMissing);
        }
        // Counted here, and by nobody else.
        self.room.push_in();
        Admission::In
    }
}

impl fmt::Debug for Rooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").field("keys", &self.keys).field("keyed", &self.keyed).finish_non_exhaustive()
    }
}
