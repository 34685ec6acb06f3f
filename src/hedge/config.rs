//! What a hedge can be told.

use std::{fmt, time::Duration};

use crate::{
    budget::Budget,
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    hedge::{HedgeLayer, hedger::Hedger},
    protocol::Trust,
    time::LONGEST,
};

/// More attempts beside the first than anybody needs.
const MOST: u32 = 10;

/// The numbers of a hedge, as plain data: what [`HedgeHandle::update`](crate::HedgeHandle::update) takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HedgeConfig {
    /// How long to wait for an attempt before the next one is sent beside it. 0 to 365 days; `None` where that is
    /// measured.
    pub after: Option<Duration>,
    /// Waits as long as this share of the first attempts took at most, above 0 and below 1; `None` where it is fixed.
    pub quantile: Option<f64>,
    /// How many first attempts must have been measured in the last 30 to 40 s. From 1. Default: 50.
    pub minimum_samples: u32,
    /// How many attempts a call may have beside the first. 1 to 10. Default: 1.
    pub max: u32,
}

/// With neither `after` nor `quantile`, one of which is needed.
impl Default for HedgeConfig {
    fn default() -> Self {
        HedgeConfig { after: None, quantile: None, minimum_samples: 50, max: 1 }
    }
}

impl HedgeConfig {
    pub(crate) fn check(&self, checks: &mut Checks) {
        if let Some(after) = self.after {
            checks.require(after <= LONGEST, "after", after, "a duration from 0 to 365 days");
        }
        match (self.after, self.quantile) {
            (None, None) => checks.require(false, "after", None::<Duration>, "`after` or `quantile`"),
            (None, Some(q)) => {
                checks.require(q > 0.0 && q < 1.0, "quantile", q, "a share above 0 and below 1");
            }
            (Some(_), q) => checks.require(q.is_none(), "quantile", q, "none beside `after`"),
        }
        checks.require(self.minimum_samples > 0, "minimum_samples", self.minimum_samples, "at least 1");
        checks.require((1..=MOST).contains(&self.max), "max", self.max, "1 to 10");
    }
}

/// Builds a [`HedgeLayer`].
#[must_use = "a builder does nothing until `build()`"]
pub struct HedgeBuilder {
    identity: Identity,
    config: HedgeConfig,
    fixed: Fixed,
    budget: Option<Budget>,
}

/// What stays as `build()` made it.
#[derive(Debug)]
pub(crate) struct Fixed {
    pub(crate) replay_cap: usize,
    pub(crate) trust: Trust,
}

impl Default for HedgeBuilder {
    fn default() -> Self {
        HedgeBuilder {
            identity: Identity::default(),
            config: HedgeConfig::default(),
            fixed: Fixed { replay_cap: 64 * 1024, trust: Trust::default() },
            budget: None,
        }
    }
}

impl HedgeBuilder {
    shared_setters!();

    /// How long to wait for an attempt before the next one is sent beside it. 0 to 365 days; with 0 all are sent as
    /// soon as the first one is not ready at once, as far as the [`budget`](Self::budget) goes. There is no default:
    /// set this or [`quantile`](Self::quantile); of several the last one counts.
    pub fn after(mut self, d: Duration) -> Self {
        (self.config.after, self.config.quantile) = (Some(d), None);
        self
    }

    /// Waits as long as this share of the first attempts took at most, above 0 and below 1: with 0.95 about one call in
    /// twenty gets a second attempt. With less it is more calls, and they need a larger [`budget`](Self::budget).
    /// Measured over the last 30 to 40 s, and at least 1 ms.
    ///
    /// Before there are [`minimum_samples`](Self::minimum_samples) nobody knows how long that is, and no further
    /// attempt is made, not even for one that failed.
    pub fn quantile(mut self, q: f64) -> Self {
        (self.config.after, self.config.quantile) = (None, Some(q));
        self
    }

    /// How many first attempts must have been measured in the last 30 to 40 s. From 1. Default: 50.
    pub fn minimum_samples(mut self, n: u32) -> Self {
        self.config.minimum_samples = n;
        self
    }

    /// How many attempts a call may have beside the first. 1 to 10. Default: 1.
    pub fn max(mut self, extra: u32) -> Self {
        self.config.max = extra;
        self
    }

    /// What further attempts may add to all calls together. Default: an own one of 5 % of the calls and one a second,
    /// over 10 s, which is what a quantile of 0.95 asks for. A larger one is used up when the backend is slow because
    /// it has much to do, and may [keep it so](crate::budget). One budget for all layers, retries and hedges, that call
    /// the same backend bounds all that they add.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sends requests twice whatever their method: also POST and PATCH, which may then take effect twice. Default:
    /// false.
    pub fn any_method(mut self, on: bool) -> Self {
        self.fixed.trust.any_method = on;
        self
    }

    /// How many bytes of a request's body are kept to be sent again; each chunk counts 64 more. Default: 64 KiB. With 0
    /// only requests without a body are. HTTP and gRPC only.
    pub fn replay_cap(mut self, bytes: usize) -> Self {
        self.fixed.replay_cap = bytes;
        self
    }

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field: a bad name, neither `after` nor `quantile`, either of them out of range,
    /// `minimum_samples` of 0, a `max` out of range.
    pub fn build(self) -> Result<HedgeLayer, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("hedge", &mut checks);
        self.config.check(&mut checks);
        checks.finish()?;
        let budget = self.budget.unwrap_or_else(Budget::of_a_hedge);
        Ok(HedgeLayer::new(Hedger::new(self.identity, self.config, self.fixed, budget)))
    }
}

impl fmt::Debug for HedgeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeBuilder")
            .field("identity", &self.identity)
            .field("config", &self.config)
            .field("fixed", &self.fixed)
            .field("budget", &self.budget)
            .finish()
    }
}
