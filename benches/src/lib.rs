//! Compares `buttress` with its peers. See README.md.
#![forbid(unsafe_code)]

pub mod callgrind;
pub mod case;
pub mod cases;
pub mod drive;
pub mod pair;

/// The runtime whose context is entered wherever cases run: some peers make their timer in every call.
///
/// Nothing ever drives it, so no timer fires. It is never paused; the clock is the real one.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime needs no more than memory")
}
