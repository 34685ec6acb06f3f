//! What is learnt from the wait for a first attempt.

use std::thread;

use crate::{
    hedge::hedger::Hedger,
    stripe::Shared,
    time::{self, Instant},
};

/// The wait for a first attempt that runs, where the delay is measured.
///
/// Dropped without a word it was given up, mostly by a caller that had enough. That it took longer is known where the
/// next attempt's turn had come, and there it counts: else a backend that has become slow under a timeout further out
/// would never be seen to be. A caller that left sooner says nothing.
pub(super) struct Waited(Option<Wait>);

struct Wait {
    shared: Shared<Hedger>,
    since: Instant,
}

impl Waited {
    pub(super) const NONE: Waited = Waited(None);

    /// Somebody has to wait from now on.
    pub(super) fn begin(&mut self, shared: &Shared<Hedger>, since: Instant) {
        if shared.delay.is_measured() {
            self.0 = Some(Wait { shared: shared.clone(), since });
        }
    }

    /// It took so long, or at least so long. Nothing is learnt from the other attempts: those that win are short, that
    /// is why they win.
    pub(super) fn learn(&mut self) {
        if let Some(Wait { shared, since }) = self.0.take() {
            let now = time::now();
            shared.delay.record(now, now.saturating_duration_since(since));
        }
    }

    /// How long it took says nothing.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        let Some(Wait { shared, since }) = &self.0 else { return };
        // One that panics has failed, and says nothing.
        if thread::panicking() {
            return;
        }
        let now = time::now();
        let waited = now.saturating_duration_since(*since);
        if shared.delay.current(now).is_some_and(|delay| waited >= delay) {
            shared.delay.record(now, waited);
        }
    }
}
