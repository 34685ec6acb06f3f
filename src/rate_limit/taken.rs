//! What comes of asking a bucket.

use crate::rate_limit::{
    bucket::Place,
    gcra::{Left, Meter},
};

/// What came of asking for units. Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// They are taken.
    Yes(Left),
    /// They are there at that instant.
    NotBefore(u64, Left),
    /// The burst is less.
    Never(Left),
}

impl Taken {
    /// They would be there at this tick, where `full_at` is the one at which all are.
    #[cold]
    pub(super) fn not(meter: &Meter, at: u64, cost: u64, full_at: u64, now: u64) -> Taken {
        let left = Left::new(full_at, now, meter);
        if cost > meter.burst { Taken::Never(left) } else { Taken::NotBefore(meter.instant(at), left) }
    }
}

/// What came of asking for a place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The units are taken at once.
    Now(Left),
    Waits(Place, Left),
    /// It would be too late: not before that instant.
    TooLate(u64, Left),
    Never(Left),
}

/// What one sees who looks after its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Its place is given up, its units are its own.
    Now,
    At(u64),
}
