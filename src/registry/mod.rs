//! Every policy of a program under its name: to be read at once, to be watched, and to be shut before it stops.
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::{CircuitBreakerLayer, Registry, TimeoutLayer};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
//! let registry = Registry::new();
//! let breaker = CircuitBreakerLayer::builder().name("ledger").registry(&registry).build()?;
//! let timeout = TimeoutLayer::builder().name("api").after(Duration::from_secs(2)).registry(&registry).build()?;
//!
//! let ready = registry.clone();
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .layer((registry.drain_layer(), timeout))
//!     // Outside of it, or a draining server could not say that it is.
//!     .route("/ready", get(move || async move { ready.snapshot().is_ready_with(&["ledger"]).to_string() }));
//!
//! let seen = registry.snapshot();
//! assert_eq!(seen.get("ledger").map(|p| (p.policy, p.admits)), Some(("circuit_breaker", true)));
//! assert!(seen.is_ready() && seen.is_live());
//!
//! // On SIGTERM: what comes is refused, what runs ends. (See there for how a server stops within a bound.)
//! registry.drain().await;
//! assert!(!registry.snapshot().is_ready());
//! # drop((app, breaker)); Ok(()) }
//! ```
//!
//! - A layer is put in by its builder's `registry(..)`. Inside one registry a name belongs to one layer; a second one
//!   is an error of `build()` on `name`. The name is free again when the layer and all that was made of it are gone,
//!   its services, handles, and what runs and has still to be told of its end (of a rate limit only calls that wait, or
//!   that write headers or are charged afterwards): a registry keeps nothing alive, but for the moment in which a
//!   snapshot is taken. As long as the name is taken the layer is shown. But calls of a layer with a breaker
//!   or a bulkhead for each key keep only that of their key: when they are all that is left, the name is taken, and
//!   nothing is shown.
//! - [`snapshot`](Registry::snapshot) reads all of them, each at its own moment; with the feature `serde` it can be
//!   serialized. Readiness and liveness are functions of it.
//! - [`subscribe`](Registry::subscribe) gives the events of all of them, also of those that are put in later.
//! - [`drain`](Registry::drain) shuts the door of every [`DrainLayer`]; see [`drain`](crate::drain).

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use crate::{
    drain::{DrainLayer, Drained, Gate},
    observe::{EventStream, Hub, Sight, Watched},
    stripe::Striped,
};

mod names;
mod snapshot;

use self::names::Names;
pub use self::snapshot::{PolicySnapshot, RegistrySnapshot};

/// Names, and the live policies that have them. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    names: Arc<Mutex<Names>>,
    hub: Arc<Hub>,
    gate: Arc<Striped<Gate>>,
}

/// A name that is taken, for as long as this lives.
pub(crate) struct Seat {
    policy: &'static str,
    name: Arc<str>,
    hub: Arc<Hub>,
    taken_by: OnceLock<Arc<dyn Sight>>,
}

impl Registry {
    /// An empty one.
    #[allow(clippy::new_without_default, reason = "two registries by mistake are worse than a word more")]
    pub fn new() -> Self {
        let hub = Arc::new(Hub::default());
        let gate = Gate::of(Seat::new("drain", "drain".into(), &hub));
        Registry { names: Arc::default(), hub, gate }
    }

    /// Everything in it, in the order of the names. Each policy is read at its own moment.
    pub fn snapshot(&self) -> RegistrySnapshot {
        // Read outside of the lock: the last reference to a layer may be the one that is dropped here.
        let seats = self.lock().taken();
        let policies = seats.iter().filter_map(|seat| Some(PolicySnapshot::of(seat, &*seat.layer()?))).collect();
        RegistrySnapshot { policies, draining: self.gate.is_draining(), in_flight: self.gate.in_flight() }
    }

    /// The events of all policies in it, from now on. The stream keeps the last `capacity` of them and says how many it
    /// dropped; it ends when the registry and everything in it are gone.
    pub fn subscribe(&self, capacity: usize) -> EventStream {
        self.hub.subscribe(capacity)
    }

    /// A layer that lets everything through until [`drain`](Self::drain), and counts what is in flight. All of one
    /// registry count together. Put it outermost.
    pub fn drain_layer(&self) -> DrainLayer {
        DrainLayer::new(Arc::clone(&self.gate))
    }

    /// What draining layers tell their callers to wait. Default: 1 s, for another instance is there at once. Times
    /// above a year are a year.
    pub fn drain_retry_after(self, after: Duration) -> Self {
        self.gate.set_retry_after(after);
        self
    }

    /// From now on, also before the future is polled, every [`drain_layer`](Self::drain_layer) refuses new calls, for
    /// good. The future is ready when no call is in flight behind them any more, its response body included; dropping
    /// it changes nothing. Put a bound around it, and around the server's own end: see [`drain`](crate::drain).
    pub fn drain(&self) -> Drained {
        Gate::drain(&self.gate)
    }

    pub(crate) fn take_name(&self, policy: &'static str, name: &Arc<str>) -> Option<Arc<Seat>> {
        self.lock().take(name, || Seat::new(policy, Arc::clone(name), &self.hub))
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn new(policy: &'static str, name: Arc<str>, hub: &Arc<Hub>) -> Self {
        Seat { policy, name, hub: Arc::clone(hub), taken_by: OnceLock::new() }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn take(&self, layer: Arc<dyn Sight>) {
        let _ = self.taken_by.set(layer);
    }

    fn layer(&self) -> Option<Arc<dyn Watched>> {
        self.taken_by.get()?.layer()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Out of the lock as in a snapshot.
        let seats = self.lock().taken();
        let names: Vec<_> = seats.iter().map(|seat| &seat.name).collect();
        f.debug_struct("Registry").field("names", &names).field("draining", &self.gate.is_draining()).finish()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.policy, self.name)
    }
}
