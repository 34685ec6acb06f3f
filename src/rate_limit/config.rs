//! What a rate limit can be told.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    rate_limit::{Engine, Local, Quota, RateLimitLayer, Store, rules::Rules, store::Remote},
};

#[cfg(feature = "http")]
use crate::{
    Boxed, Flat, KeyBytes, KeyedBy, Plain,
    key::{Way, key_setters},
    rate_limit::LimitHeaders,
};

/// Builds a [`RateLimitLayer`].
#[must_use = "a builder does nothing until `build()`"]
pub struct RateLimitBuilder<St: Engine = Local> {
    identity: Identity,
    quota: Option<Quota>,
    rules: Rules,
    seed: St::Seed,
    has_store: bool,
}

impl Default for RateLimitBuilder {
    fn default() -> Self {
        RateLimitBuilder {
            identity: Identity::default(),
            quota: None,
            rules: Rules::default(),
            seed: (),
            has_store: false,
        }
    }
}

impl RateLimitBuilder {
    /// Keep the quotas in this store, which a fleet may share, and not in memory. The quota given here is then only
    /// what the headers tell of. What is of the own store alone (`quota_fn`, `charge_fn`) is an error with it.
    ///
    /// The store is asked for the key as text: as it is, a number in digits, and behind a DEL (U+007F) in hexadecimal
    /// what is no text, begins with that sign, or is the layer's name. For a request without a key (and on plain
    /// services that know none) it is asked for the layer's name.
    ///
    /// With [`wait`](Self::wait) a call that is denied asks again when the store said that it may, for as long as it
    /// may wait. There is no line: of those that come back in the same moment the store takes whom it likes, so let it
    /// give each its own instant if that matters. One that says zero is asked each millisecond.
    pub fn store<T: Store<Arc<str>>>(self, store: T) -> RateLimitBuilder<Remote<T>> {
        RateLimitBuilder { identity: self.identity, quota: self.quota, rules: self.rules, seed: store, has_store: true }
    }
}

impl<St: Engine> RateLimitBuilder<St> {
    shared_setters!();

    /// The quota of the layer, or of each key. Required.
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quota = Some(quota);
        self
    }

    /// How long a call may wait for its turn, that instant included. 1 ns to 365 days; by default it is refused at
    /// once. A wait that would end past the call's [`Deadline`](crate::Deadline) is refused at once too.
    pub fn wait(mut self, max: Duration) -> Self {
        self.rules.wait = Some(max);
        self
    }

    /// The layer, in its HTTP and gRPC form. For other services there are [`plain`](RateLimitLayer::plain) and its
    /// like, and [`build_plain_per_key`](Self::build_plain_per_key) where each key has its own quota.
    ///
    /// # Errors
    ///
    /// Lists every bad field, with its value and its range.
    pub fn build(self) -> Result<RateLimitLayer<crate::Http, St>, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("rate_limit", &mut checks);
        checks.require(self.quota.is_some(), "quota", self.quota, "a quota: there is no default");
        let meter = self.quota.and_then(|quota| quota.check(&mut checks));
        if let Some(wait) = self.rules.wait {
            checks.duration("wait", wait);
        }
        #[cfg(feature = "http")]
        self.check_http(&mut checks);
        let (Some(quota), Some(meter)) = (self.quota, meter) else { return Err(checks.into_error()) };
        checks.finish()?;
        // States for keys take memory, if only for their overflow.
        let most_keys = self.rules.most_keys();
        Ok(RateLimitLayer::new(self.identity, quota, meter, most_keys, self.rules, self.seed))
    }
}

/// Builds the forms without HTTP in which a function knows the keys.
#[cfg(feature = "http")]
macro_rules! build_per_key {
    ($name:ident, $form:ident, $like:literal) => {
        #[doc = concat!("The layer as [`", $like, "`](RateLimitLayer::", $like, ") makes it, with a quota for each key that the")]
        /// function finds; `None`: the request has none. It runs on the path of every call, outside of every lock.
        ///
        /// ```
        /// use buttress::{KeyBytes, Quota, RateLimitLayer};
        ///
        /// struct Job { tenant: String }
        /// # fn main() -> Result<(), buttress::ConfigError> {
        /// let each = RateLimitLayer::builder().quota(Quota::per_second(10));
        #[doc = concat!("let layer = each.", stringify!($name), "(|job: &Job| Some(KeyBytes::from(&job.tenant)))?;")]
        /// # drop(layer); Ok(()) }
        /// ```
        ///
        /// # Errors
        ///
        /// As [`build`](Self::build).
        pub fn $name<Req, F>(mut self, key: F) -> Result<RateLimitLayer<KeyedBy<$form, F>, St>, ConfigError>
        where
            F: Fn(&Req) -> Option<KeyBytes<'_>> + Clone,
        {
            self.rules.http.keys.set(Way::Form);
            self.rules.http.keys_are_text = self.has_store || self.rules.http.quota_fn.is_some();
            Ok(self.build()?.with_protocol(KeyedBy { form: $form::default(), key }))
        }
    };
}

#[cfg(feature = "http")]
impl<St: Engine> RateLimitBuilder<St> {
    key_setters!("quota", rules.http.keys);

    build_per_key!(build_plain_per_key, Plain, "plain");
    build_per_key!(build_flat_per_key, Flat, "flat");
    build_per_key!(build_boxed_per_key, Boxed, "boxed");

    /// The quota of a key, where it is not the common one; `None`: the common one. Asked for every call, so that it may
    /// change; what was used stays used. What is no valid quota, and a key that is no UTF-8, has the common one. So
    /// have keys in the overflow.
    pub fn quota_fn(mut self, f: impl Fn(&str) -> Option<Quota> + Send + Sync + 'static) -> Self {
        self.rules.http.quota_fn = Some(Box::new(f));
        self
    }

    /// What a call costs, in units. Default: 1. Zero is free; more than the burst is refused for ever, with
    /// [`Reason::CostAboveBurst`](crate::Reason). It runs on the path of every call, outside of every lock.
    pub fn cost_fn(mut self, f: impl Fn(&http::request::Parts) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.http.cost_fn = Some(Box::new(f));
        self
    }

    /// What a call turns out to have cost, by the head of its response. Less than it was charged is given back; more is
    /// taken, even if that much is not there: then it has to come back before the next call goes, be it one that waits
    /// already (which is refused where that would be after its maximum). It is not asked for responses of calls that
    /// were free because of shadow or their key. A call that fails without a response keeps its charge. With a
    /// [`cost_fn`](RateLimitBuilder::cost_fn) of zero a call is charged by its response alone.
    pub fn charge_fn(mut self, f: impl Fn(&http::response::Parts) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.http.charge_fn = Some(Box::new(f));
        self
    }

    /// Which headers tell of the quota. Default: [`LimitHeaders::Off`].
    pub fn headers(mut self, headers: LimitHeaders) -> Self {
        self.rules.http.headers = headers;
        self
    }

    fn check_http(&self, checks: &mut Checks) {
        let rules = &self.rules.http;
        rules.keys.check(checks);
        let none = "none: an own store decides on quotas";
        checks.require(!(self.has_store && rules.quota_fn.is_some()), "quota_fn", "set", none);
        checks.require(!(self.has_store && rules.charge_fn.is_some()), "charge_fn", "set", none);
    }
}

impl<St: Engine> fmt::Debug for RateLimitBuilder<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitBuilder")
            .field("identity", &self.identity)
            .field("quota", &self.quota)
            .field("rules", &self.rules)
            .field("has_store", &self.has_store)
            .finish()
    }
}
