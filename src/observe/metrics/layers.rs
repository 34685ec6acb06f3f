//! Every layer of the process that lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Sight, Watched};

static LAYERS: Mutex<Vec<Arc<dyn Sight>>> = Mutex::new(Vec::new());

pub(in crate::observe) fn add(layer: Arc<dyn Sight>) {
    let mut layers = lock();
    // Before it grows it forgets: at most twice as many as there ever were at once.
    if layers.len() == layers.capacity() {
        layers.retain(|layer| layer.is_there());
    }
    layers.push(layer);
}

pub(super) fn all() -> Vec<Arc<dyn Watched>> {
    lock().iter().filter_map(|layer| layer.layer()).collect()
}

fn lock() -> MutexGuard<'static, Vec<Arc<dyn Sight>>> {
    LAYERS.lock().unwrap_or_else(PoisonError::into_inner)
}
