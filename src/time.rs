//! The only reader of the clock.
//!
//! It is tokio's clock, so that under `tokio::time::pause` every policy follows virtual time. `clippy.toml` keeps
//! every other file from reading a clock.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

pub(crate) use tokio::time::{Instant, Sleep, sleep_until};

mod epoch;

pub(crate) use self::epoch::Epoch;

/// The longest duration a setting accepts: one year. tokio's timer wheel turns once in a little over two.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time of day, for dates that a server sent. tokio has no such clock to pause, so it is moved as far as the paused
/// clock is from the real one.
#[cfg(feature = "http")]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn wall() -> std::time::SystemTime {
    let (clock, real, day) = (now().into_std(), std::time::Instant::now(), std::time::SystemTime::now());
    let moved = match clock.checked_duration_since(real) {
        Some(ahead) => day.checked_add(ahead),
        None => day.checked_sub(real.saturating_duration_since(clock)),
    };
    moved.unwrap_or(day)
}

/// Now. One clock read; the callers keep it to one per call.
#[inline]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Is it that time? The timer is made with the first look, moved where the time is another one now, and gone once it
/// was.
pub(crate) fn poll_at(mut timer: Pin<&mut Option<Sleep>>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
    match timer.as_mut().as_pin_mut() {
        None => timer.set(Some(sleep_until(at))),
        Some(sleep) if sleep.deadline() != at => sleep.reset(at),
        Some(_) => {}
    }
    if let Some(sleep) = timer.as_mut().as_pin_mut() {
        ready!(sleep.poll(cx));
    }
    timer.set(None);
    Poll::Ready(())
}

/// Instants as numbers, for callers who mostly want less than a number: in which tick an instant lies, or that some end
/// has not come yet. Such an answer stays right for a while, so each thread remembers the last one, with the instant
/// that ends it: then a look costs one comparison. What was asked goes by a number of the caller's, which no other
/// question to this clock has.
#[derive(Debug)]
pub(crate) struct Clock {
    epoch: Epoch,
    /// Which clock this is, in steps of one memory's size.
    id: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Clock::of(Epoch::new())
    }

    /// Another one with the same numbers. What a caller remembers of one is not known of the other.
    pub(crate) fn another(&self) -> Self {
        Clock::of(self.epoch)
    }

    fn of(epoch: Epoch) -> Self {
        // From one step: zero is the number of no clock.
        static LAST: AtomicU64 = AtomicU64::new(0);
        Clock { epoch, id: LAST.fetch_add(STEP, Relaxed) + STEP }
    }

    /// This instant as a number.
    #[inline]
    pub(crate) fn at(&self, instant: Instant) -> u64 {
        self.epoch.at(instant)
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.epoch.now()
    }

    /// What was [worked out](Self::work_out_tick) of the tick that runs, if it is at hand.
    #[inline(always)]
    pub(crate) fn tick(&self, about: u64, now: Instant) -> Option<u64> {
        self.known(about, now)
    }

    /// The number of the tick that runs, where all ticks have this length, and what is worked out of it. `about` stands
    /// for the length and for all else that the answer depends on.
    #[inline(never)]
    pub(crate) fn work_out_tick(&self, about: u64, length: u64, now: Instant, answer: impl FnOnce(u64) -> u64) -> u64 {
        let number = self.at(now) / length;
        let answer = answer(number);
        self.remember(about, number.saturating_add(1).saturating_mul(length), answer);
        answer
    }

    #[inline(always)]
    fn known(&self, about: u64, now: Instant) -> Option<u64> {
        // All of it inside: what comes out of `with` is first looked at by `with`.
        KNOWN.with(|known| {
            let known = &known[self.place()];
            if known.asked.get() == self.id
                && known.about.get() == about
                && let Some(until) = known.until.get()
                && now < until
            {
                return Some(known.answer.get());
            }
            None
        })
    }

    fn remember(&self, about: u64, until: u64, answer: u64) {
        let until = self.epoch.instant(until);
        KNOWN.with(|known| {
            let known = &known[self.place()];
            known.asked.set(self.id);
            known.about.set(about);
            known.answer.set(answer);
            known.until.set(until);
        });
    }

    #[inline(always)]
    fn place(&self) -> usize {
        (self.id / STEP) as usize % REMEMBERED
    }
}

/// So that the place of a memory is a number without a shift.
const STEP: u64 = size_of::<Known>() as u64;

/// What was asked of which clock; with the answer, which is right until then. Not from when
/// on: time does not go back.
#[derive(Debug)]
#[repr(align(64))]
struct Known {
    asked: Cell<u64>,
    about: Cell<u64>,
    answer: Cell<u64>,
    until: Cell<Option<Instant>>,
}

impl Known {
    const fn nothing() -> Self {
        Known { asked: Cell::new(0), about: Cell::new(0), answer: Cell::new(0), until: Cell::new(None) }
    }
}

/// A thread remembers for so many clocks; of those that meet in one place, for the one that was asked last.
const REMEMBERED: usize = 8;

thread_local! {
    static KNOWN: [Known; REMEMBERED] = const { [const { Known::nothing() }; REMEMBERED] };
}

/// Saturates after 584 years. By halves, because a division of 128 bits is no work for every call.
#[inline]
pub(crate) fn nanos(d: Duration) -> u64 {
    d.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(d.subsec_nanos()))
}

/// A duration or none, in one word: nanoseconds, which last for 292 years. What is longer is none.
#[derive(Clone, Copy)]
pub(crate) struct Span(pub(crate) u64);

impl Span {
    pub(crate) const NONE: Span = Span(u64::MAX);
    pub(crate) const ZERO: Span = Span(0);

    /// This duration, or the longest there is.
    pub(crate) fn at_most(d: Duration) -> Span {
        Span(nanos(d).min(FOREVER - 1))
    }

    #[inline]
    pub(crate) fn duration(self) -> Option<Duration> {
        (self.0 < FOREVER).then(|| Duration::from_nanos(self.0))
    }
}

/// What is none is the same, however it came about.
impl PartialEq for Span {
    fn eq(&self, other: &Span) -> bool {
        self.0.min(FOREVER) == other.0.min(FOREVER)
    }
}

impl Eq for Span {}

/// From so many nanoseconds on.
const FOREVER: u64 = 1 << 63;

impl From<Option<Duration>> for Span {
    fn from(d: Option<Duration>) -> Self {
        d.and_then(|d| u64::try_from(d.as_nanos()).ok()).map_or(Span::NONE, Span)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.duration().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    fn tick(clock: &Clock, length: u64) -> u64 {
        let now = now();
        clock.tick(length, now).unwrap_or_else(|| clock.work_out_tick(length, length, now, |number| number))
    }

    #[tokio::test(start_paused = true)]
    async fn a_tick_changes_at_its_very_bound() {
        let clock = Clock::new();
        let tick = |length| tick(&clock, length);
        advance(Duration::from_nanos(2_999)).await;
        assert_eq!((tick(1_000), tick(1_000)), (2, 2));
        advance(Duration::from_nanos(1)).await;
        assert_eq!((tick(1_000), tick(100), tick(1_000)), (3, 30, 3));
    }

    proptest! {
        /// Many clocks, whose memories meet, are all the same for the answers.
        #[test]
        fn what_is_remembered_is_what_would_be_worked_out(
            steps in proptest::collection::vec((0..20usize, 0..3u64, 0..4_000_000u64), 1..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let clocks: Vec<_> = (0..20).map(|_| Clock::new()).collect();
                for (which, kind, step) in steps {
                    advance(Duration::from_nanos(step)).await;
                    let (clock, now) = (&clocks[which], clocks[which].now());
                    let length = 1_000_000 << kind;
                    assert_eq!(tick(clock, length), now / length);
                }
            });
        }
    }
}
