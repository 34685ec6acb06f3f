//! What is written to: names, labels, and handles that are registered when they are first used.

use std::sync::OnceLock;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString, with_recorder};

use super::{Who, contain};

/// One metric with one more label, of which every value has a counter of its own.
pub(super) struct Counters<const N: usize> {
    name: &'static str,
    label: Option<&'static str>,
    values: [&'static str; N],
    each: [OnceLock<Counter>; N],
}

impl<const N: usize> Counters<N> {
    pub(super) fn new(name: &'static str, label: Option<&'static str>, values: [&'static str; N]) -> Self {
        Counters { name, label, values, each: [const { OnceLock::new() }; N] }
    }

    /// A counter that begins at zero is seen to move at its first step; one that begins with that step is not.
    pub(super) fn begin(&self, recorder: &dyn Recorder, who: &Who, value: usize) {
        if let (Some(cell), Some(value)) = (self.each.get(value), self.values.get(value)) {
            let key = who.key(self.name, self.label.map(|label| (label, *value)));
            let _ = cell.set(recorder.register_counter(&key, &METADATA));
        }
    }

    /// Counts one more of this value. A recorder is somebody else's code, and permits are given back behind this.
    #[inline(always)]
    pub(super) fn of(&self, who: &Who, value: usize) {
        match self.each.get(value).and_then(OnceLock::get) {
            Some(counter) => _ = contain(|| counter.increment(1)),
            None => self.first(who, value),
        }
    }

    /// Of the words that stand for what came of a call all begin at once, of reasons only those that are given.
    #[cold]
    fn first(&self, who: &Who, value: usize) {
        contain(|| {
            with_recorder(|r| match N {
                ..=5 => (0..N).for_each(|each| self.begin(r, who, each)),
                _ => self.begin(r, who, value),
            });
            self.each.get(value).and_then(OnceLock::get).into_iter().for_each(|counter| counter.increment(1));
        });
    }
}

pub(super) const METADATA: Metadata<'static> = Metadata::new("buttress", Level::INFO, None);

impl Who {
    pub(super) fn key(&self, metric: &'static str, label: Option<(&'static str, &'static str)>) -> Key {
        let mut labels = vec![
            Label::from_static_parts("policy", self.policy),
            Label::new("name", SharedString::from_shared(std::sync::Arc::clone(&self.name))),
        ];
        labels.extend(label.map(|(key, value)| Label::from_static_parts(key, value)));
        Key::from_parts(metric, labels)
    }

    /// Gauges are set off the path of calls, so nothing of them is kept.
    pub(super) fn gauge(&self, metric: &'static str, label: Option<(&'static str, &'static str)>) -> Gauge {
        with_recorder(|r| r.register_gauge(&self.key(metric, label), &METADATA))
    }

    pub(super) fn histogram(&self, metric: &'static str) -> Histogram {
        with_recorder(|r| r.register_histogram(&self.key(metric, None), &METADATA))
    }
}

/// Is it the one that stands for none? The facade does not say, but that one has no size, and being a static has an
/// address. (One without a size that somebody installed is boxed, so it has none.)
pub(super) fn is_noop(recorder: &dyn Recorder) -> bool {
    const NO_PAGE: usize = 4096;
    size_of_val(recorder) == 0 && std::ptr::from_ref(recorder).addr() >= NO_PAGE
}
