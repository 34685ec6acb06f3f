//! Every layer of the process that lives.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Watched;

static LAYERS: Mutex<Vec<Weak<dyn Watched>>> = Mutex::new(Vec::new());

pub(in crate::observe) fn add(layer: Weak<dyn Watched>) {
    let mut layers = LAYERS.lock().unwrap_or_else(PoisonError::into_inner);
    // Before it grows it forgets: at most twice as many as there ever were at once.
    if layers.len() == layers.capacity() {
        layers.retain(|layer| layer.strong_count() > 0);
    }
    layers.push(layer);
}

pub(super) fn all() -> Vec<Arc<dyn Watched>> {
    let layers = LAYERS.lock().unwrap_or_else(PoisonError::into_inner);
    layers.iter().filter_map(Weak::upgrade).collect()
}
