//! What a timeout can be told.

use std::{fmt, time::Duration};

use crate::{
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    timeout::{TimeoutLayer, layer::AfterFn},
};

/// Where the bound of a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Until {
    /// With the head of the response. The default.
    #[default]
    Head,
    /// With the end of its body. For plain services the same as `Head`.
    End,
}

/// The numbers of a timeout, as plain data: what [`TimeoutHandle::update`](crate::TimeoutHandle::update) takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeoutConfig {
    /// The bound of a call. 1 ns to 365 days; `None`: no bound of its own.
    pub after: Option<Duration>,
    /// Where it ends. Default: the head.
    pub until: Until,
    /// The longest wait for a frame of the response body, the first one included. 1 ns to 365 days; `None`: no bound.
    pub idle: Option<Duration>,
}

/// Builds a [`TimeoutLayer`].
#[must_use = "a builder does nothing until `build()`"]
#[derive(Default)]
pub struct TimeoutBuilder {
    identity: Identity,
    config: TimeoutConfig,
    after_fn: Option<AfterFn>,
}

impl TimeoutBuilder {
    shared_setters!();

    /// The longest a call may take, counted from `call`. 1 ns to 365 days; tokio's timers round up to a millisecond.
    pub fn after(mut self, d: Duration) -> Self {
        self.config.after = Some(d);
        self
    }

    /// As [`after`](Self::after), chosen by the head of the request. Where it gives `None`, `after` holds (if set).
    ///
    /// It can't fail at `build()`, so: zero means that only an answer which is ready at once is in time, and what is
    /// above 365 days is no bound. It runs on the path of every call, outside every lock. Plain services have no
    /// head, so there it is never asked.
    #[cfg(feature = "http")]
    pub fn after_fn(mut self, f: impl Fn(&http::request::Parts) -> Option<Duration> + Send + Sync + 'static) -> Self {
        self.after_fn = Some(Box::new(f));
        self
    }

    /// Where `after` ends: at the head of the response (default) or at the end of its body, which ends when its reader
    /// asks for more: one that has stopped reading holds it until its connection goes.
    pub fn until(mut self, until: Until) -> Self {
        self.config.until = until;
        self
    }

    /// The longest wait for each frame of the response body, from the head or the frame before. 1 ns to 365 days.
    ///
    /// It runs only while somebody waits for the inner body: a slow reader is not a stalled backend.
    pub fn idle(mut self, d: Duration) -> Self {
        self.config.idle = Some(d);
        self
    }

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field: a bad name, a duration out of range, or none of `after`, `after_fn` and `idle` (on
    /// `after`).
    pub fn build(self) -> Result<TimeoutLayer, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("timeout", &mut checks);
        self.config.check(self.after_fn.is_some(), &mut checks);
        checks.finish()?;
        Ok(TimeoutLayer::new(self.identity, self.config, self.after_fn))
    }
}

impl TimeoutConfig {
    pub(crate) fn check(&self, has_after_fn: bool, checks: &mut Checks) {
        let some = self.after.is_some() || self.idle.is_some() || has_after_fn;
        checks.require(some, "after", None::<Duration>, "at least one of `after`, `after_fn` and `idle`");
        for (field, duration) in [("after", self.after), ("idle", self.idle)] {
            if let Some(d) = duration {
                checks.duration(field, d);
            }
        }
    }
}

impl fmt::Debug for TimeoutBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutBuilder")
            .field("identity", &self.identity)
            .field("config", &self.config)
            .field("after_fn", &self.after_fn.is_some())
            .finish()
    }
}
