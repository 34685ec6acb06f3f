//! The window of a breaker: of one kind or the other, emptied in one step, changeable while it runs.

use std::sync::OnceLock;

use crate::{
    circuit_breaker::machine::limits::Layout,
    sync::{AtomicU32, AtomicU64, Ordering::SeqCst},
    window::{
        Sample, Sums,
        count::CountRing,
        time::{self, Tick, TimeRing},
        word,
    },
};

#[derive(Debug)]
pub(crate) struct Calls {
    /// The epoch, and behind it the number of calls of a count window or zero for a time window.
    shape: AtomicU64,
    /// The length of a tick, and what is added to its number. They change only together with the epoch.
    tick: AtomicU64,
    offset: AtomicU32,
    count: CountRing,
    time: OnceLock<TimeRing>,
    /// Of a ring of time.
    stripes: usize,
    /// Failures since the last success, tagged with the epoch.
    consecutive: AtomicU64,
}

/// What the window is at one moment. A caller that finds the gate the same and not busy *before and after* it read this
/// knows that it is of one piece, and of the generation of that gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    epoch: u32,
    offset: u32,
    layout: Layout,
}

impl Shape {
    #[cfg(feature = "http")]
    pub(crate) fn layout(self) -> Layout {
        self.layout
    }

    pub(crate) fn has_ticks(self) -> bool {
        matches!(self.layout, Layout::Time(_))
    }

    /// The length of the ticks. A window of calls has none.
    pub(crate) fn tick_length(self) -> Option<u64> {
        if let Layout::Time(length) = self.layout { Some(length) } else { None }
    }

    /// The tick of this number.
    pub(crate) fn tick(self, number: u64) -> Tick {
        Tick::numbered(self.offset, number)
    }
}

/// What a result does to the run of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    GoesOn,
    Ends,
    Keeps,
}

impl Calls {
    /// Successes are counted by so many threads without a fight. With one, what is not needed is not made.
    pub(crate) fn new(layout: Layout, stripes: usize) -> Self {
        let calls = Calls {
            shape: AtomicU64::new(0),
            tick: AtomicU64::new(1),
            offset: AtomicU32::new(0),
            count: CountRing::new(),
            time: OnceLock::new(),
            stripes,
            consecutive: AtomicU64::new(0),
        };
        calls.set(Shape { epoch: 1, offset: time::ANEW, layout });
        calls
    }

    pub(crate) fn shape(&self) -> Shape {
        let (epoch, n) = word::unpack(self.shape.load(SeqCst));
        let layout = if n == 0 { Layout::Time(self.tick.load(SeqCst)) } else { Layout::Count(n) };
        Shape { epoch, offset: self.offset.load(SeqCst), layout }
    }

    fn set(&self, shape: Shape) {
        let n = match shape.layout {
            Layout::Count(n) => {
                if self.stripes > 1 {
                    self.count.be_there();
                }
                self.count.begin(shape.epoch, n);
                n
            }
            Layout::Time(tick) => {
                self.time.get_or_init(|| TimeRing::new(self.stripes));
                self.tick.store(tick, SeqCst);
                0
            }
        };
        self.offset.store(shape.offset, SeqCst);
        self.shape.store(word::pack(shape.epoch, n), SeqCst);
    }

    pub(crate) fn has_ticks(&self) -> bool {
        self.shape.load(SeqCst) as u32 == 0
    }

    #[inline(always)]
    pub(crate) fn count(&self) -> &CountRing {
        &self.count
    }

    #[inline(always)]
    pub(crate) fn time(&self) -> Option<&TimeRing> {
        self.time.get()
    }

    /// Is there something that a success must not pass by?
    pub(crate) fn has_others(&self, shape: Shape) -> bool {
        self.consecutive(shape) != 0 || !shape.has_ticks() && !self.count.is_all_good(shape.epoch)
    }

    pub(crate) fn has_run(&self) -> bool {
        // Zero is zero under every tag.
        self.consecutive.load(SeqCst) as u32 != 0
    }

    /// The figures, now that they are to be judged.
    pub(crate) fn add_up(&self, shape: Shape, now: u64, minimum: u64) -> Sums {
        match shape.layout {
            Layout::Count(_) => self.sums(shape, now),
            Layout::Time(length) => {
                let tick = Tick::new(shape.offset, length, now);
                self.time.get().map(|ring| ring.add_up(tick, minimum)).unwrap_or_default()
            }
        }
    }

    /// Records a call. Figures come back where they could cross a threshold; and how long the run of failures is.
    pub(crate) fn record(
        &self,
        shape: Shape,
        now: u64,
        stripe: usize,
        sample: Sample,
        run: Run,
        minimum: u64,
    ) -> (Option<Sums>, u32) {
        let failures = match run {
            Run::Ends if !self.has_run() => None,
            Run::Ends => word::update(&self.consecutive, shape.epoch, |_| Some(0)),
            Run::GoesOn => word::update(&self.consecutive, shape.epoch, |n| Some(n.saturating_add(1))),
            Run::Keeps => None,
        };
        let sums = match shape.layout {
            Layout::Count(_) => self.count.record(shape.epoch, sample),
            Layout::Time(tick) => {
                let tick = Tick::new(shape.offset, tick, now);
                self.time.get().and_then(|ring| ring.record(tick, stripe, sample, minimum))
            }
        };
        (sums, failures.unwrap_or(0))
    }

    pub(crate) fn sums(&self, shape: Shape, now: u64) -> Sums {
        match shape.layout {
            Layout::Count(_) => self.count.sums(shape.epoch),
            Layout::Time(tick) => {
                let tick = Tick::new(shape.offset, tick, now);
                self.time.get().map(|ring| ring.sums(tick)).unwrap_or_default()
            }
        }
    }

    pub(crate) fn consecutive(&self, shape: Shape) -> u32 {
        word::value(&self.consecutive, shape.epoch)
    }

    /// Begins an empty window. Only by whoever holds the gate.
    pub(crate) fn empty(&self) {
        let shape = self.shape();
        let (epoch, offset) = (shape.epoch.wrapping_add(1), shape.offset.wrapping_add(time::ANEW));
        self.set(Shape { epoch, offset, ..shape });
    }

    /// Changes the window and keeps what it knows, as far as the new one has room for it. Only by whoever holds the
    /// gate.
    pub(crate) fn change(&self, layout: Layout, now: u64) {
        let old = self.shape();
        if old.layout == layout {
            return;
        }
        let kept = self.all(old, now);
        let run = self.consecutive(old);
        let offset = match (old.layout, layout) {
            (Layout::Time(from), Layout::Time(to)) => Tick::new(old.offset, from, now).offset_after(to, now),
            // Whatever the ring of time was left with when it was last in use, its tags went by this offset.
            (Layout::Count(_), Layout::Time(to)) => {
                Tick::new(old.offset, self.tick.load(SeqCst), now).offset_after(to, now)
            }
            _ => old.offset,
        };
        let new = Shape { epoch: old.epoch.wrapping_add(1), offset, layout };
        self.set(new);
        word::update(&self.consecutive, new.epoch, |_| (run > 0).then_some(run));
        match layout {
            Layout::Count(n) => self.refill_count(new, n, &kept),
            Layout::Time(length) => {
                if let Some(ring) = self.time.get() {
                    for k in &kept {
                        ring.refill(Tick::new(new.offset, length, k.at), k.sums);
                    }
                }
            }
        }
    }

    /// The newest `n` of what was kept.
    fn refill_count(&self, shape: Shape, n: u32, kept: &[Kept]) {
        let mut surplus = kept.iter().map(|k| k.sums.calls).sum::<u64>().saturating_sub(u64::from(n));
        for k in kept {
            let skip = surplus.min(k.sums.calls);
            surplus -= skip;
            k.samples(skip).for_each(|s| {
                self.count.record(shape.epoch, s);
            });
        }
    }

    /// Judge the next call, whatever it is.
    pub(crate) fn judge_again(&self) {
        self.time.get().into_iter().for_each(TimeRing::judge_again);
    }

    /// All that the window holds, oldest first. Calls of a count window count as of now.
    fn all(&self, shape: Shape, now: u64) -> Vec<Kept> {
        match shape.layout {
            Layout::Count(_) => {
                let one = |s: Sample| Sums { calls: 1, failures: s.failed.into(), slow: s.slow.into() };
                self.count.samples(shape.epoch).map(|s| Kept { at: now, sums: one(s) }).collect()
            }
            Layout::Time(length) => {
                let ticks = self.time.get().map(|ring| ring.ticks(Tick::new(shape.offset, length, now)));
                let at = |back: u64| now.saturating_sub(back * length);
                ticks.into_iter().flatten().map(|(back, sums)| Kept { at: at(back), sums }).collect()
            }
        }
    }
}

/// Calls that were in the window at about one time.
struct Kept {
    at: u64,
    sums: Sums,
}

impl Kept {
    /// Their order within the tick is lost. Failures and slow calls are spread evenly, so that any part has the share
    /// of all, to the nearest.
    fn samples(&self, skip: u64) -> impl Iterator<Item = Sample> {
        let Sums { calls, failures, slow } = self.sums;
        let wide = u128::from;
        let before = move |some: u64, i: u64| (2 * wide(i) * wide(some) + wide(calls)) / (2 * wide(calls));
        let is_one_of = move |some: u64, i: u64| before(some, i + 1) > before(some, i);
        (skip..calls).map(move |i| Sample { failed: is_one_of(failures, i), slow: is_one_of(slow, i) })
    }
}
