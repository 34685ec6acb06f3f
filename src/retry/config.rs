//! What a retry can be told.

use std::{fmt, time::Duration};

use crate::{
    budget::Budget,
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    protocol::Trust,
    retry::{
        Backoff, RetryLayer,
        retrier::Retrier,
        settings::{BackoffFn, Fixed, Settings},
    },
};

/// The numbers of a retry, as plain data: what [`RetryHandle::update`](crate::RetryHandle::update) takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryConfig {
    /// How many attempts a call may have, the first one included. From 1, which is no retry. Default: 3.
    pub attempts: u32,
    /// How long to wait before the next attempt. Default: 50 ms, doubled up to 5 s, with full jitter.
    pub backoff: Backoff,
    /// The longest wait that a server's hint may ask for. 1 ns to 365 days. Default: 60 s.
    pub max_hint: Duration,
    /// The longest wait for the first frame of a gRPC response whose head does not say how it went. 1 ns to 365 days.
    /// Default: none.
    pub peek: Option<Duration>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig { attempts: 3, backoff: Backoff::default(), max_hint: Duration::from_secs(60), peek: None }
    }
}

impl RetryConfig {
    pub(crate) fn check(&self, has_backoff_fn: bool, checks: &mut Checks) {
        checks.require(self.attempts > 0, "attempts", self.attempts, "at least 1, the first one");
        if !has_backoff_fn {
            self.backoff.check(checks);
        }
        checks.duration("max_hint", self.max_hint);
        if let Some(peek) = self.peek {
            checks.duration("peek", peek);
        }
    }
}

/// Builds a [`RetryLayer`].
#[must_use = "a builder does nothing until `build()`"]
pub struct RetryBuilder {
    identity: Identity,
    config: RetryConfig,
    backoff_fn: Option<BackoffFn>,
    fixed: Fixed,
    budget: Option<Budget>,
}

impl Default for RetryBuilder {
    fn default() -> Self {
        let fixed = Fixed {
            replay_cap: 64 * 1024,
            trust: Trust::default(),
            #[cfg(feature = "http")]
            header: None,
        };
        RetryBuilder {
            identity: Identity::default(),
            config: RetryConfig::default(),
            backoff_fn: None,
            fixed,
            budget: None,
        }
    }
}

impl RetryBuilder {
    shared_setters!();

    /// How many attempts a call may have, the first one included. From 1, which is no retry. Default: 3.
    pub fn attempts(mut self, total: u32) -> Self {
        self.config.attempts = total;
        self
    }

    /// How long to wait before the next attempt. Default: 50 ms, doubled up to 5 s, with full jitter.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.config.backoff = backoff;
        self.backoff_fn = None;
        self
    }

    /// An own wait before the next attempt, by how many attempts there were. Zero is at once, and what is above 365
    /// days is that. It runs outside every lock; if it panics, so does the call. It stays through
    /// [`RetryHandle::update`](crate::RetryHandle::update).
    pub fn backoff_fn(mut self, f: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        self.backoff_fn = Some(Box::new(f));
        self
    }

    /// What further attempts may add to all calls together. Default: an own one of 20 % of the calls and one a second,
    /// over 10 s. Give one budget to all layers that call the same backend.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// How many bytes of a request's body are kept to be sent again; each chunk counts 64 more. Default: 64 KiB. With 0
    /// only requests without a body are, and what certainly never left. HTTP and gRPC only.
    pub fn replay_cap(mut self, bytes: usize) -> Self {
        self.fixed.replay_cap = bytes;
        self
    }

    /// The longest wait that a server's hint may ask for: a longer one waits so long. 1 ns to 365 days. Default: 60 s.
    pub fn max_hint(mut self, d: Duration) -> Self {
        self.config.max_hint = d;
        self
    }

    /// Waits up to so long for the first frame of a gRPC response whose head does not say how it went, and until the
    /// call's deadline at most. 1 ns to 365 days. Default: it is looked for and not waited for.
    ///
    /// Not for streams in both directions: a server that waits for the client's first message while the client waits
    /// for the response waits for this time.
    pub fn peek(mut self, max: Duration) -> Self {
        self.config.peek = Some(max);
        self
    }

    /// Sends requests again whatever their method: also POST and PATCH, which may then take effect twice. Default:
    /// false.
    pub fn any_method(mut self, on: bool) -> Self {
        self.fixed.trust.any_method = on;
        self
    }

    /// Sends requests again that carry an `Idempotency-Key`, whatever their method. Default: false, for only the
    /// backend knows whether it honours the key.
    pub fn retry_idempotency_key(mut self, on: bool) -> Self {
        self.fixed.trust.idempotency_key = on;
        self
    }

    /// Writes on each further attempt how many there were before it, as gRPC does by itself in
    /// `grpc-previous-rpc-attempts`; added to what the request says already. Default: none. HTTP and gRPC only.
    #[cfg(feature = "http")]
    pub fn attempt_header(mut self, name: http::HeaderName) -> Self {
        self.fixed.header = Some(name);
        self
    }

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field: a bad name, `attempts` of 0, a `backoff` out of range or with its base above its maximum,
    /// a `max_hint` or a `peek` out of range.
    pub fn build(self) -> Result<RetryLayer, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("retry", &mut checks);
        self.config.check(self.backoff_fn.is_some(), &mut checks);
        checks.finish()?;
        let budget = self.budget.unwrap_or_default();
        let settings = Settings::new(self.config, self.backoff_fn, self.fixed);
        Ok(RetryLayer::new(Retrier::new(self.identity, settings, budget)))
    }
}

impl fmt::Debug for RetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBuilder")
            .field("identity", &self.identity)
            .field("config", &self.config)
            .field("backoff_fn", &self.backoff_fn.is_some())
            .field("fixed", &self.fixed)
            .field("budget", &self.budget)
            .finish()
    }
}
