//! Reading and changing a timeout while it runs.

use std::sync::Arc;

use crate::{
    config::{Checks, ConfigError},
    timeout::{TimeoutConfig, layer::State},
};

/// Reads and changes a [`TimeoutLayer`](crate::TimeoutLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct TimeoutHandle {
    shared: Arc<State>,
}

/// The figures of a timeout, since `build()`.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct TimeoutSnapshot {
    /// Calls that the operator's timeout ended, before or in their body.
    pub timed_out: u64,
    /// Calls that the caller's deadline refused or ended.
    pub deadline_exceeded: u64,
    /// Calls that went on only because of shadow.
    pub would_have_rejected: u64,
    /// Headers of a peer that could not be read and were ignored: `grpc-timeout` of every gRPC request; `grpc-status`
    /// and `Content-Length` of responses whose body is bounded.
    pub malformed_headers: u64,
    /// Does it only report what it would end?
    pub shadow: bool,
    /// The settings in force.
    pub config: TimeoutConfig,
}

impl TimeoutHandle {
    pub(crate) fn new(shared: Arc<State>) -> Self {
        TimeoutHandle { shared }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> TimeoutSnapshot {
        let figures = self.shared.ledger.figures();
        TimeoutSnapshot {
            timed_out: figures.timed_out,
            deadline_exceeded: figures.deadline_exceeded,
            would_have_rejected: figures.would_have_rejected,
            malformed_headers: figures.malformed_headers,
            shadow: figures.shadow,
            config: self.shared.settings().load(),
        }
    }

    /// Changes the numbers for calls that start from now on. An `after_fn` stays.
    ///
    /// # Errors
    ///
    /// As `build()`; then nothing is changed.
    pub fn update(&self, config: TimeoutConfig) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        config.check(self.shared.after_fn().is_some(), &mut checks);
        checks.finish()?;
        self.shared.settings().store(config);
        Ok(())
    }

    /// Shadow: report what would time out, and let it go on. Calls that are running follow.
    pub fn shadow(&self, on: bool) {
        self.shared.ledger.shadow(on);
    }
}
