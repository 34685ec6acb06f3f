//! The waiting room in front of a limit: who runs, who waits, who is next, who is turned away.
//!
//! [`Room`] is all of it: a [`Gate`](gate::Gate), one atomic word that holds the count and the limit, so that a call
//! that finds room touches nothing else; a [`Line`] behind a mutex, which is locked only while somebody waits; and the
//! [`Leases`](lease::Leases) of responses that are being streamed.
//!
//! The limit comes from outside: a bulkhead's is set by hand, an adaptive one will move by itself. So does the time:
//! nothing in here reads a clock, and every instant is a number of nanoseconds.

mod gate;
mod lease;
mod line;
#[cfg(test)]
mod model;
mod patience;
mod room;

pub(crate) use self::{
    gate::MOST,
    lease::Lease,
    line::Entrant,
    patience::Patience,
    room::{Entry, Left, Room},
};
