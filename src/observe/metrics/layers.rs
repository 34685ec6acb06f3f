//! Every layer of the process that lives, and those that are gone of which a gauge still shows something.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{Sight, Watched, Who};

static LAYERS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    sight: Arc<dyn Sight>,
    trace: Trace,
}

/// What a layer leaves behind in a recorder.
pub(in crate::observe) struct Trace {
    pub(super) who: Who,
    /// Has a recorder its gauges?
    pub(super) is_shown: Arc<AtomicBool>,
    /// The names of its figures.
    pub(super) figures: Vec<&'static str>,
    pub(super) has_state: bool,
}

pub(in crate::observe) fn add(sight: Arc<dyn Sight>) {
    let Some(layer) = sight.layer() else { return };
    let trace = layer.reporter().trace(&*layer);
    let mut layers = lock();
    // Before it grows it forgets: at most twice as many as there ever were at once, and as many as a recorder has
    // names.
    if layers.len() == layers.capacity() {
        let mut names = HashSet::new();
        layers.retain(|Entry { sight, trace }| sight.is_there() || trace.is_shown() && names.insert(trace.name()));
        let double = layers.len();
        layers.reserve(double.max(1));
    }
    layers.push(Entry { sight, trace });
}

pub(super) fn living() -> Vec<Arc<dyn Watched>> {
    lock().iter().filter_map(|entry| entry.sight.layer()).collect()
}

/// Those that have gone since this was last asked, and left something that nobody writes to any more.
pub(super) fn gone() -> Vec<Trace> {
    let mut layers = lock();
    let gone: Vec<_> = layers.extract_if(.., |entry| !entry.sight.is_there()).map(|entry| entry.trace).collect();
    let names: HashSet<_> = layers.iter().map(|entry| entry.trace.name()).collect();
    gone.into_iter().filter(|trace| trace.is_shown() && !names.contains(&trace.name())).collect()
}

impl Trace {
    fn is_shown(&self) -> bool {
        self.is_shown.load(Relaxed)
    }

    fn name(&self) -> (&'static str, Arc<str>) {
        (self.who.policy, Arc::clone(&self.who.name))
    }
}

fn lock() -> MutexGuard<'static, Vec<Entry>> {
    LAYERS.lock().unwrap_or_else(PoisonError::into_inner)
}
