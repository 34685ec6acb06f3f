//! What a rate limit can be told.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    rate_limit::{Engine, Local, Quota, RateLimitLayer, Store, gcra::Meter, rules::Rules, store::Remote},
};

#[cfg(feature = "http")]
use crate::rate_limit::{Key, LimitHeaders, MissingKey, rules::Keys};
#[cfg(feature = "http")]
use std::net::IpAddr;

/// Keys with a state of their own, if nothing else is said.
const DEFAULT_KEYS: usize = 10_000;
/// Above it a process has no memory for them.
const MOST_KEYS: usize = 1 << 28;

/// Builds a [`RateLimitLayer`].
#[must_use = "a builder does nothing until `build()`"]
pub struct RateLimitBuilder<St: Engine = Local> {
    identity: Identity,
    quota: Option<Quota>,
    max_keys: usize,
    rules: Rules,
    #[cfg(feature = "http")]
    ways_to_a_key: usize,
    seed: St::Seed,
    has_store: bool,
}

impl Default for RateLimitBuilder {
    fn default() -> Self {
        RateLimitBuilder {
            identity: Identity::default(),
            quota: None,
            max_keys: DEFAULT_KEYS,
            rules: Rules::default(),
            #[cfg(feature = "http")]
            ways_to_a_key: 0,
            seed: (),
            has_store: false,
        }
    }
}

impl RateLimitBuilder {
    /// Keep the quotas in this store, which a fleet may share, and not in memory. The quota given here is then only what
    /// the headers tell of. What is of the own store alone (`quota_fn`, `charge_fn`) is an error with it.
    ///
    /// Without a key (and on plain services) the store is asked for the layer's name.
    pub fn store<T: Store<Arc<str>>>(self, store: T) -> RateLimitBuilder<Remote<T>> {
        RateLimitBuilder {
            identity: self.identity,
            quota: self.quota,
            max_keys: self.max_keys,
            rules: self.rules,
            #[cfg(feature = "http")]
            ways_to_a_key: self.ways_to_a_key,
            seed: store,
            has_store: true,
        }
    }
}

impl<St: Engine> RateLimitBuilder<St> {
    shared_setters!();

    /// The quota of the layer, or of each key. Required.
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quota = Some(quota);
        self
    }

    /// How long a call may wait for its turn, that instant included. 1 ns to 365 days; by default it is refused at once. A
    /// wait that would end past the call's [`Deadline`](crate::Deadline) is refused at once too.
    pub fn wait(mut self, max: Duration) -> Self {
        self.rules.wait = Some(max);
        self
    }

    /// So many keys have a state of their own, from 1 to 268,435,456. Default: 10,000. More share overflow states, one for
    /// some 64 to 128 keys of this bound, 1 to 1,024 in all.
    pub fn max_keys(mut self, n: usize) -> Self {
        self.max_keys = n;
        self
    }

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field, with its value and its range.
    pub fn build(self) -> Result<RateLimitLayer<crate::Http, St>, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("rate_limit", &mut checks);
        checks.require(self.quota.is_some(), "quota", self.quota, "a quota: there is no default");
        if let Some(quota) = self.quota {
            quota.check(&mut checks);
        }
        if let Some(wait) = self.rules.wait {
            checks.duration("wait", wait);
        }
        checks.require((1..=MOST_KEYS).contains(&self.max_keys), "max_keys", self.max_keys, "1 to 268435456");
        #[cfg(feature = "http")]
        self.check_keys(&mut checks);
        checks.finish()?;
        let (quota, meter) = match self.quota.and_then(|q| Some((q, Meter::new(q)?))) {
            Some(both) => both,
            // Never: it was checked. But if it were, one a second is a limit that nobody overlooks.
            None => (Quota::per_second(1), Meter { mul: 1, div: 1, unit: 1_000_000_000, burst: 1_000_000_000 }),
        };
        // States for keys take memory, if only for their overflow.
        let most_keys = if self.rules.have_keys() { self.max_keys } else { 1 };
        Ok(RateLimitLayer::new(self.identity, quota, meter, most_keys, self.rules, self.seed))
    }
}

#[cfg(feature = "http")]
impl<St: Engine> RateLimitBuilder<St> {
    /// A quota for each key. [`Key::MatchedPath`] without the feature `axum` is an error. Plain services have no heads, so there all calls share one.
    pub fn per_key(mut self, key: Key) -> Self {
        self.rules.http.key = Keys::Key(key);
        self.ways_to_a_key += 1;
        self
    }

    /// A quota for each key that the function finds; `None`: the request has none. It runs on the path of every call,
    /// outside of every lock.
    pub fn key_fn(mut self, f: impl Fn(&http::request::Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.rules.http.key = Keys::Fn(Box::new(f));
        self.ways_to_a_key += 1;
        self
    }

    /// The quota of a key, where it is not the common one; `None`: the common one. Asked for every call, so that it may
    /// change; what was used stays used. What is no valid quota, and a key that is no UTF-8, has the common one. So have
    /// keys in the overflow.
    pub fn quota_fn(mut self, f: impl Fn(&str) -> Option<Quota> + Send + Sync + 'static) -> Self {
        self.rules.http.quota_fn = Some(Box::new(f));
        self
    }

    /// What happens to a request without a key. Default: [`MissingKey::Reject`].
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.rules.http.missing = missing;
        self
    }

    /// Whose word about the client counts, for [`Key::ForwardedFor`] and [`Key::Forwarded`]: peers within these ranges, each
    /// an address and how many of its bits count. The key of a request from any other peer, or from one whose address is not
    /// known (see [`Key::ConnectInfo`]), is missing. Default: everybody's.
    pub fn trusted(mut self, ranges: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        self.rules.http.trusted = Some(ranges.into_iter().collect());
        self
    }

    /// What a call costs, in units. Default: 1. Zero is free; more than the burst is refused for ever, with
    /// [`Reason::CostAboveBurst`](crate::Reason). It runs on the path of every call, outside of every lock.
    pub fn cost_fn(mut self, f: impl Fn(&http::request::Parts) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.http.cost_fn = Some(Box::new(f));
        self
    }

    /// What a call turns out to have cost, by the head of its response. Less than it was charged is given back; more is
    /// taken, even if that much is not there: then it has to come back before the next call goes. It is not asked for
    /// responses of calls that were free because of shadow or their key. A call that fails without a response keeps its charge.
    pub fn charge_fn(mut self, f: impl Fn(&http::response::Parts) -> u32 + Send + Sync + 'static) -> Self {
        self.rules.http.charge_fn = Some(Box::new(f));
        self
    }

    /// Which headers tell of the quota. Default: [`LimitHeaders::Off`].
    pub fn headers(mut self, headers: LimitHeaders) -> Self {
        self.rules.http.headers = headers;
        self
    }

    fn check_keys(&self, checks: &mut Checks) {
        let rules = &self.rules.http;
        checks.require(self.ways_to_a_key <= 1, "per_key", &rules.key, "one of `per_key` and `key_fn`, once");
        if let Keys::Key(Key::ForwardedFor { proxies } | Key::Forwarded { proxies }) = &rules.key {
            checks.require(*proxies > 0, "per_key", &rules.key, "1 to 255 proxies");
        }
        let knows_routes = cfg!(feature = "axum") || !matches!(rules.key, Keys::Key(Key::MatchedPath));
        checks.require(knows_routes, "per_key", &rules.key, "another key, or the feature `axum`: it knows routes");
        for (ip, length) in rules.trusted.iter().flatten() {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let expected = "addresses with prefix lengths of up to 32 (IPv4) or 128 (IPv6)";
            checks.require(*length <= most, "trusted", (ip, length), expected);
        }
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
            .field("max_keys", &self.max_keys)
            .field("rules", &self.rules)
            .field("has_store", &self.has_store)
            .finish()
    }
}
