//! What every builder takes, whatever the policy: a name, observers, shadow.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use crate::{
    config::Checks,
    observe::{Observer, Reporter},
    origin::Origin,
    registry::{Registry, Seat},
    rejection::Reason,
};

/// The settings that every builder has. [`shared_setters!`] makes the public methods over it.
#[derive(Default)]
pub(crate) struct Identity {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) expose_name: bool,
    pub(crate) shadow: bool,
    pub(crate) observers: Vec<Box<dyn Observer>>,
    pub(crate) registry: Option<Registry>,
    /// The name is taken in the registry from the check on.
    seat: OnceLock<Arc<Seat>>,
}

const FREE: &str = "a name that no other policy in its registry has, nor one that is gone of which calls still run";

impl Identity {
    /// Of a layer of this kind.
    pub(crate) fn check(&self, policy: &'static str, checks: &mut Checks) {
        if let Some(name) = &self.name {
            checks.name(name);
        }
        if let Some(registry) = &self.registry {
            let name = self.name.clone().unwrap_or_else(|| policy.into());
            match registry.take_name(policy, &name) {
                Some(seat) => drop(self.seat.set(seat)),
                None => checks.require(false, "name", &*name, FREE),
            }
        }
    }

    /// `reasons` are those the policy can give.
    pub(crate) fn reporter(self, policy: &'static str, reasons: &'static [Reason]) -> Reporter {
        let name = self.name.unwrap_or_else(|| policy.into());
        let origin = Origin::new(policy, name, self.expose_name, reasons);
        Reporter::new(origin, reasons, self.observers, self.seat.into_inner())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("expose_name", &self.expose_name)
            .field("shadow", &self.shadow)
            .field("observers", &self.observers.len())
            .field("registry", &self.registry.is_some())
            .finish()
    }
}

/// The setters every builder has, over its field `identity`. With what is to be said of its shadow beside.
macro_rules! shared_setters {
    ($($shadow:literal)?) => {
        /// The name in events, metrics and rejections: 1 to 64 printable ASCII characters. Default: the policy's kind.
        pub fn name(mut self, name: impl Into<std::sync::Arc<str>>) -> Self {
            self.identity.name = Some(name.into());
            self
        }

        /// Decide and report ([`Kind::WouldHaveRejected`](crate::observe::Kind)), but let every call go on.
        /// Default: false. Can be changed later through the handle.
        $(#[doc = ""] #[doc = $shadow])?
        pub fn shadow(mut self, on: bool) -> Self {
            self.identity.shadow = on;
            self
        }

        /// Tell this observer of every event. Call it again to add another.
        pub fn observer(mut self, observer: impl crate::observe::Observer) -> Self {
            self.identity.observers.push(Box::new(observer));
            self
        }

        /// Puts the layer into this registry, under its name. A name that is taken there is an error on `name`.
        pub fn registry(mut self, registry: &crate::Registry) -> Self {
            self.identity.registry = Some(registry.clone());
            self
        }

        /// May the text of a refusal name the policy? Default: false, for names tell what is behind a service.
        pub fn expose_name(mut self, on: bool) -> Self {
            self.identity.expose_name = on;
            self
        }
    };
}

/// The forms of a layer with the fields `shared` and `protocol`, and what every layer can be asked.
macro_rules! layer_forms {
    ($layer:ident, $handle:ident) => {
        impl<P> $layer<P> {
            /// The name it was given, else the policy's kind.
            pub fn name(&self) -> &str {
                self.shared.name()
            }

            /// A handle to read and steer this layer and everything it wraps.
            pub fn handle(&self) -> $handle {
                $handle::new(std::sync::Arc::clone(&self.shared))
            }

            /// For a service whose error is a `std::error::Error`: it becomes [`Error<E>`](crate::Error). The state
            /// stays shared with the layer this was made from.
            pub fn plain(self) -> $layer<crate::Plain> {
                self.with_protocol(crate::Plain::default())
            }

            /// For a service whose error is `From<Rejection>`: it stays what it was.
            pub fn flat(self) -> $layer<crate::Flat> {
                self.with_protocol(crate::Flat::default())
            }

            /// For every other service: the error becomes a [`BoxError`](crate::BoxError).
            pub fn boxed(self) -> $layer<crate::Boxed> {
                self.with_protocol(crate::Boxed::default())
            }

            fn with_protocol<Q>(self, protocol: Q) -> $layer<Q> {
                $layer { shared: self.shared, protocol }
            }
        }
    };
}

/// The same forms with an own classification, for policies that judge outcomes.
macro_rules! judging_forms {
    ($layer:ident) => {
        impl<P> $layer<P> {
            /// As [`plain`](Self::plain), with an own classification of results.
            pub fn plain_with<R, E, F>(self, classify: F) -> $layer<crate::Plain<F>>
            where
                F: Fn(Result<&R, &E>) -> crate::Outcome + Clone,
            {
                self.with_protocol(crate::Plain(classify))
            }

            /// As [`flat`](Self::flat), with an own classification of results.
            pub fn flat_with<R, E, F>(self, classify: F) -> $layer<crate::Flat<F>>
            where
                F: Fn(Result<&R, &E>) -> crate::Outcome + Clone,
            {
                self.with_protocol(crate::Flat(classify))
            }

            /// As [`boxed`](Self::boxed), with an own classification of results.
            pub fn boxed_with<R, E, F>(self, classify: F) -> $layer<crate::Boxed<F>>
            where
                F: Fn(Result<&R, &E>) -> crate::Outcome + Clone,
            {
                self.with_protocol(crate::Boxed(classify))
            }
        }

        #[cfg(feature = "http")]
        impl $layer<crate::Http> {
            /// An own classification of HTTP and gRPC responses.
            pub fn classify(self, classify: impl crate::HttpClassify) -> Self {
                self.with_protocol(crate::Http::with_classify(classify))
            }
        }
    };
}

pub(crate) use {judging_forms, layer_forms, shared_setters};
