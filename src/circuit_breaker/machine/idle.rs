//! Machines that nobody asks any more.

use super::{Machine, NOT_YET, limits::Layout};
use crate::{circuit_breaker::State, sync::Ordering::SeqCst, window::time};

/// For so long it is remembered of a backend that nobody calls that it was down, in nanoseconds.
const LONG: u64 = 60 * 60 * 1_000_000_000;
/// For so long it is remembered that a count window had successes.
const SHORT: u64 = 60 * 1_000_000_000;

impl Machine {
    /// From when on it says the same as one that was just made, or nothing that matters any more, if nobody asks it and
    /// no call of it runs. `used` is when it was asked last, `begins` the state in which new ones begin. `None`: never
    /// by itself, for it was moved by hand.
    pub(crate) fn idle_at(&self, begins: State, used: u64, now: impl FnOnce() -> u64) -> Option<u64> {
        let state = self.gate().state();
        if state != begins && (state.is_forced() || begins.is_forced()) {
            return None;
        }
        // A call may have opened it that had begun long before.
        let used = used.max(self.since.load(SeqCst));
        let long = used.saturating_add(LONG);
        Some(match state {
            // Whoever calls it then would begin with a probe.
            State::Open => long.max(Some(self.open_until.load(SeqCst)).filter(|u| *u != NOT_YET).unwrap_or(0)),
            State::HalfOpen => long,
            _ => self.empty_at(used, long, now).max(self.ramp_until.load(SeqCst)),
        })
    }

    /// From when on nothing is left in the window of a closed one; `long` where that is not before.
    fn empty_at(&self, used: u64, long: u64, now: impl FnOnce() -> u64) -> u64 {
        let shape = self.calls.shape();
        match shape.layout() {
            // It does not age. Where all were good calls it says hardly more than none.
            Layout::Count(_) if self.calls.has_others(shape) => long,
            Layout::Count(_) => used.saturating_add(SHORT),
            // A run does not age either, where one is asked for.
            Layout::Time(_) if self.calls.has_run() && self.limits.asks_for_runs() => long,
            Layout::Time(tick) => {
                let empty = used.saturating_add(tick.saturating_mul(time::EMPTY_AFTER));
                if empty > long {
                    return long;
                }
                let now = now();
                // A call that had run for long may have ended just now.
                if now >= empty && self.calls.sums(shape, now).calls > 0 { now.saturating_add(tick) } else { empty }
            }
        }
    }
}
