//! What a registry knows at one moment.

use std::sync::Arc;

use crate::{
    observe::{Figure, Watched},
    registry::Seat,
};

/// Every policy of a registry, and its draining.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct RegistrySnapshot {
    /// In the order of their names.
    pub policies: Vec<PolicySnapshot>,
    /// Is it shutting down?
    pub draining: bool,
    /// Calls in flight behind its drain layers.
    pub in_flight: u64,
}

/// One policy.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct PolicySnapshot {
    /// The policy's kind: `circuit_breaker`, ...
    pub policy: &'static str,
    /// Its name.
    pub name: Arc<str>,
    /// Could the next call be let in? False for a breaker that refuses and a bulkhead without room and queue.
    pub admits: bool,
    /// Panics of its observers that were contained.
    pub observer_panics: u64,
    /// What its handle's `snapshot()` has, under the same names, and what a budget has left. No settings but a
    /// bulkhead's `limit` and `queue`: a quota or a configuration is in the handle's snapshot alone.
    pub figures: Vec<(&'static str, Figure)>,
}

impl RegistrySnapshot {
    /// The policy with this name.
    pub fn get(&self, name: &str) -> Option<&PolicySnapshot> {
        self.policies.iter().find(|policy| &*policy.name == name)
    }

    /// Readiness: shall new work come here? Not while draining. What backends do does not change it: where all
    /// instances share a backend, all of them would leave the balancer at once, and with them every call that could
    /// have been answered without it.
    pub fn is_ready(&self) -> bool {
        !self.draining
    }

    /// As [`is_ready`](Self::is_ready), where nothing can be done without these policies: each is there and admits.
    pub fn is_ready_with(&self, names: &[&str]) -> bool {
        self.is_ready() && names.iter().all(|name| self.get(name).is_some_and(|policy| policy.admits))
    }

    /// Liveness: is there any use in this process? Only when it has drained, and nothing is left to be done, there is
    /// not. Being restarted helps against nothing else that a policy can see.
    pub fn is_live(&self) -> bool {
        !self.draining || self.in_flight > 0
    }
}

impl PolicySnapshot {
    pub(super) fn of(seat: &Seat, layer: &dyn Watched) -> Self {
        let mut figures = Vec::new();
        layer.figures(&mut |name, figure| figures.push((name, figure)));
        PolicySnapshot {
            policy: seat.policy,
            name: Arc::clone(&seat.name),
            admits: layer.admits(),
            observer_panics: layer.reporter().contained(),
            figures,
        }
    }

    /// The figure of this name.
    pub fn get(&self, figure: &str) -> Option<Figure> {
        self.figures.iter().find(|(name, _)| *name == figure).map(|(_, figure)| *figure)
    }
}

/// As JSON: `{"draining":false,"in_flight":0,"policies":[{"policy":"bulkhead","name":"db","admits":true,...}]}`. Times
/// are seconds, what is unknown is null.
#[cfg(feature = "serde")]
mod serialized {
    use serde::{Serialize, Serializer, ser::SerializeMap};

    use super::{Figure, PolicySnapshot, RegistrySnapshot};

    impl Serialize for RegistrySnapshot {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            let mut map = s.serialize_map(Some(3))?;
            map.serialize_entry("draining", &self.draining)?;
            map.serialize_entry("in_flight", &self.in_flight)?;
            map.serialize_entry("policies", &self.policies)?;
            map.end()
        }
    }

    impl Serialize for PolicySnapshot {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            let mut map = s.serialize_map(Some(4 + self.figures.len()))?;
            map.serialize_entry("policy", self.policy)?;
            map.serialize_entry("name", &*self.name)?;
            map.serialize_entry("admits", &self.admits)?;
            map.serialize_entry("observer_panics", &self.observer_panics)?;
            for (name, figure) in &self.figures {
                map.serialize_entry(name, figure)?;
            }
            map.end()
        }
    }

    impl Serialize for Figure {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            match self {
                Figure::Count(n) => s.serialize_u64(*n),
                Figure::Number(n) => s.serialize_f64(*n),
                Figure::Time(d) => s.serialize_f64(d.as_secs_f64()),
                Figure::Flag(on) => s.serialize_bool(*on),
                Figure::Word(word) => s.serialize_str(word),
                Figure::Unknown => s.serialize_unit(),
            }
        }
    }
}
