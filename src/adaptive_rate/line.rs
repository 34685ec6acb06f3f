//! Who waits, in the order in which they came.
//!
//! Nobody who waits has taken anything yet: a rate that drops is theirs too, and so is one that climbs. The first looks
//! for its turn, and whoever leaves the front calls the next.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

use crate::wake::wake_all;

#[derive(Debug, Default)]
pub(crate) struct Line {
    /// How many there are, for those who come by.
    len: AtomicUsize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    waiting: VecDeque<(u64, Option<Waker>)>,
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Line {
    pub(crate) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    pub(crate) fn join(&self) -> Place {
        let mut places = self.lock();
        places.next += 1;
        let id = places.next;
        places.waiting.push_back((id, None));
        self.len.store(places.waiting.len(), Relaxed);
        Place(id)
    }

    /// Is it the first? The waker is called when it becomes that, or when the first should look again.
    pub(crate) fn is_first(&self, place: Place, waker: &Waker) -> bool {
        // A waker is the task's own code: it is cloned and dropped outside the lock.
        let mut waker = Some(waker.clone());
        let mut places = self.lock();
        if let Some(at) = places.find(place) {
            std::mem::swap(&mut places.waiting[at].1, &mut waker);
        }
        let first = places.waiting.front().is_some_and(|(id, _)| *id == place.0);
        drop(places);
        drop(waker);
        first
    }

    /// It does not wait any longer, for whatever reason.
    pub(crate) fn leave(&self, place: Place) {
        let mut places = self.lock();
        let Some(at) = places.find(place) else { return };
        let gone = places.waiting.remove(at);
        self.len.store(places.waiting.len(), Relaxed);
        let next = if at == 0 { places.call_first() } else { None };
        drop(places);
        drop(gone);
        wake_all(next);
    }

    /// The first looks again.
    pub(crate) fn call_first(&self) {
        // Behind the lock, whatever `len` says: whoever comes just now sees what is new, or is called.
        let first = self.lock().call_first();
        wake_all(first);
    }

    /// All look again.
    pub(crate) fn call_all(&self) {
        let all: Vec<_> = self.lock().waiting.iter_mut().filter_map(|(_, waker)| waker.take()).collect();
        wake_all(all);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn find(&self, place: Place) -> Option<usize> {
        self.waiting.binary_search_by_key(&place.0, |(id, _)| *id).ok()
    }

    fn call_first(&mut self) -> Option<Waker> {
        self.waiting.front_mut()?.1.take()
    }
}
