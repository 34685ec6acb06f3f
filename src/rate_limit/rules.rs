//! What a layer was told: whose quota, what a call costs, what is told of it.

use std::{fmt, time::Duration};

use crate::{key::Whose, protocol::Protocol, rate_limit::short_way::ShortWay};

#[cfg(feature = "http")]
use crate::{
    key::{Keys, Way},
    rate_limit::{LimitHeaders, Quota},
};

/// The rules of one layer.
#[derive(Default)]
pub(crate) struct Rules {
    /// How long a call may wait.
    pub(crate) wait: Option<Duration>,
    #[cfg(feature = "http")]
    pub(crate) http: HttpRules,
}

#[cfg(feature = "http")]
#[derive(Default)]
pub(crate) struct HttpRules {
    pub(crate) keys: Keys,
    pub(crate) cost_fn: Option<OfRequest<u32>>,
    pub(crate) charge_fn: Option<OfResponse>,
    pub(crate) quota_fn: Option<OfKey>,
    pub(crate) headers: LimitHeaders,
    /// Keys are handed to a function or a store of the user, as text.
    pub(crate) keys_are_text: bool,
}

#[cfg(feature = "http")]
pub(crate) type OfRequest<T> = Box<dyn Fn(&http::request::Parts) -> T + Send + Sync>;
#[cfg(feature = "http")]
pub(crate) type OfResponse = Box<dyn Fn(&http::response::Parts) -> u32 + Send + Sync>;
#[cfg(feature = "http")]
pub(crate) type OfKey = Box<dyn Fn(&str) -> Option<Quota> + Send + Sync>;

impl Rules {
    /// Which way nearly all calls go.
    #[cfg(feature = "http")]
    pub(crate) fn short_way(&self) -> ShortWay {
        let http = &self.http;
        let more = http.cost_fn.is_some()
            || http.charge_fn.is_some()
            || http.quota_fn.is_some()
            || http.keys.trusted.is_some()
            || http.headers != LimitHeaders::Off;
        match &http.keys.way {
            Way::None if !more => ShortWay::Common,
            Way::Key(_) if !more => ShortWay::Key,
            Way::Form if !more => ShortWay::Form,
            _ => ShortWay::Rules,
        }
    }

    #[cfg(not(feature = "http"))]
    pub(crate) fn short_way(&self) -> ShortWay {
        ShortWay::Common
    }

    /// For so many keys there are states: they take memory, if only for their overflow.
    pub(crate) fn most_keys(&self) -> usize {
        #[cfg(feature = "http")]
        if self.http.keys.are_asked() {
            return self.http.keys.most;
        }
        1
    }

    /// Whatever the call is, it takes one unit of the common quota.
    pub(crate) fn all_cost_one(&self) -> bool {
        #[cfg(feature = "http")]
        return !self.http.keys.are_asked() && self.http.cost_fn.is_none();
        #[cfg(not(feature = "http"))]
        true
    }

    /// May a call turn out to have cost something else?
    pub(crate) fn charges(&self) -> bool {
        #[cfg(feature = "http")]
        return self.http.charge_fn.is_some();
        #[cfg(not(feature = "http"))]
        false
    }

    /// Is a quota told of in headers?
    pub(crate) fn shows(&self) -> bool {
        #[cfg(feature = "http")]
        return self.http.shows();
        #[cfg(not(feature = "http"))]
        false
    }

    /// Sees whose quota a call uses, and how many units of it. User functions run before, and outside of every lock.
    #[inline]
    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "keys are for HTTP"))]
    pub(crate) fn look<P, Req, Res, Err, T>(
        &self,
        protocol: &P,
        request: &mut Req,
        decide: impl FnOnce(Whose<'_>, u32) -> T,
    ) -> T
    where
        P: Protocol<Req, Res, Err>,
    {
        #[cfg(feature = "http")]
        return self.http.look(protocol, request, decide);
        #[cfg(not(feature = "http"))]
        decide(Whose::Keyless, 1)
    }
}

#[cfg(feature = "http")]
impl HttpRules {
    #[inline]
    fn look<P, Req, Res, Err, T>(&self, protocol: &P, request: &mut Req, decide: impl FnOnce(Whose<'_>, u32) -> T) -> T
    where
        P: Protocol<Req, Res, Err>,
    {
        let (mut own, mut units) = (None, 1);
        if self.keys.have_a_function() || self.cost_fn.is_some() {
            P::with_parts(request, |parts| {
                own = self.keys.ask(parts);
                if let Some(cost_fn) = &self.cost_fn {
                    units = cost_fn(parts);
                }
            });
        }
        if P::KNOWS_KEYS {
            own = protocol.key(request).map(|key| if self.keys_are_text { key.readable() } else { key });
        } else if matches!(self.keys.way, Way::Form) {
            // It was turned into another form, which has no keys.
            return decide(Whose::Keyless, units);
        }
        self.keys.look(P::head(request), own, |whose| decide(whose, units))
    }

    pub(crate) fn shows(&self) -> bool {
        self.headers != LimitHeaders::Off
    }

    /// The quota of a key, if it is not the common one.
    #[inline]
    pub(crate) fn tier(&self, key: &[u8]) -> Option<Quota> {
        let quota_fn = self.quota_fn.as_ref()?;
        // It can't fail at `build()`; what is no quota is none of its own.
        quota_fn(std::str::from_utf8(key).ok()?).filter(Quota::is_valid)
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rules = f.debug_struct("Rules");
        rules.field("wait", &self.wait);
        #[cfg(feature = "http")]
        rules
            .field("keys", &self.http.keys)
            .field("cost_fn", &self.http.cost_fn.is_some())
            .field("charge_fn", &self.http.charge_fn.is_some())
            .field("quota_fn", &self.http.quota_fn.is_some())
            .field("headers", &self.http.headers);
        rules.finish()
    }
}
