//! Which names are taken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use super::Seat;

/// Names and who has them. A name is taken as long as its seat lives, and nobody says when that ends.
pub(super) struct Names {
    seats: BTreeMap<Arc<str>, Weak<Seat>>,
    /// So many there may be before those that are free again are forgotten.
    most: usize,
}

/// Below that there is nothing to be saved.
const FEW: usize = 16;

impl Default for Names {
    fn default() -> Self {
        Names { seats: BTreeMap::new(), most: FEW }
    }
}

impl Names {
    /// Gives a name to somebody new, if nobody has it.
    pub(super) fn take(&mut self, name: &Arc<str>, seat: impl FnOnce() -> Seat) -> Option<Arc<Seat>> {
        if self.seats.get(name).is_some_and(|seat| seat.strong_count() > 0) {
            return None;
        }
        // Names that are free again would stay for ever where each is used once. Not looked for each time, for then
        // many names would take the square of the time.
        if self.seats.len() >= self.most {
            self.seats.retain(|_, seat| seat.strong_count() > 0);
            self.most = FEW.max(self.seats.len() * 2);
        }
        let seat = Arc::new(seat());
        self.seats.insert(Arc::clone(name), Arc::downgrade(&seat));
        Some(seat)
    }

    /// Those that are taken, in the order of the names.
    pub(super) fn taken(&self) -> Vec<Arc<Seat>> {
        self.seats.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Hub;

    fn take(names: &mut Names, n: usize) -> Option<Arc<Seat>> {
        let name: Arc<str> = n.to_string().into();
        names.take(&name, || Seat::new("timeout", Arc::clone(&name), &Arc::new(Hub::default())))
    }

    #[test]
    fn many_names_are_rarely_looked_through() {
        let mut names = Names::default();
        let mut kept = Vec::new();
        let mut mosts = vec![names.most];
        for n in 0..10_000 {
            kept.extend(take(&mut names, n));
            mosts.push(names.most);
        }
        mosts.dedup();
        assert_eq!((kept.len(), names.taken().len()), (10_000, 10_000));
        assert_eq!(mosts, [16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384]);
        // Each that lives keeps its name, and that of one that is gone is free at once.
        assert!(take(&mut names, 7).is_none());
        kept.swap_remove(7);
        assert!(take(&mut names, 7).is_some());
    }

    #[test]
    fn names_that_were_used_once_are_forgotten() {
        let mut names = Names::default();
        let kept: Vec<_> = (0..100).filter_map(|n| take(&mut names, n)).collect();
        for n in 100..10_000 {
            drop(take(&mut names, n));
            assert!(names.seats.len() <= 2 * kept.len() + FEW);
        }
        drop(kept);
        for n in 10_000..11_000 {
            drop(take(&mut names, n));
        }
        assert!(names.seats.len() <= FEW);
    }
}
