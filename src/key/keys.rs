//! What a builder was told of keys, and how a request is looked at for its own.

use std::{fmt, net::IpAddr};

use crate::{
    config::Checks,
    key::{Key, KeyBytes, MissingKey, Whose, client::Range},
    protocol::{Head, Protocol},
};

/// What tells the keys of one layer.
pub(crate) struct Keys {
    pub(crate) way: Way,
    /// How often one was set.
    ways: usize,
    pub(crate) missing: MissingKey,
    pub(crate) trusted: Option<Box<[Range]>>,
    /// So many have a state of their own.
    pub(crate) most: usize,
}

/// How a request's key is found.
#[derive(Default)]
pub(crate) enum Way {
    /// There are no keys.
    #[default]
    None,
    Key(Key),
    Fn(KeyFn),
    /// By the form: a function of requests that are not HTTP.
    Form,
}

type KeyFn = Box<dyn Fn(&http::request::Parts) -> Option<String> + Send + Sync>;

/// Keys with a state of their own, if nothing else is said.
const DEFAULT: usize = 10_000;
/// Above it a process has no memory for them.
const MOST: usize = 1 << 28;

impl Default for Keys {
    fn default() -> Self {
        Keys { way: Way::None, ways: 0, missing: MissingKey::default(), trusted: None, most: DEFAULT }
    }
}

impl Keys {
    pub(crate) fn set(&mut self, way: Way) {
        self.way = way;
        self.ways += 1;
    }

    pub(crate) fn trust(&mut self, ranges: impl IntoIterator<Item = (IpAddr, u8)>) {
        self.trusted = Some(ranges.into_iter().collect());
    }

    pub(crate) fn check(&self, checks: &mut Checks) {
        checks.require((1..=MOST).contains(&self.most), "max_keys", self.most, "1 to 268435456");
        checks.require(self.ways <= 1, "per_key", &self.way, "one of `per_key` and `key_fn`, once");
        if let Way::Key(key) = &self.way {
            key.check(checks);
        }
        for (ip, length) in self.trusted.iter().flatten() {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let expected = "addresses with prefix lengths of up to 32 (IPv4) or 128 (IPv6)";
            checks.require(*length <= most, "trusted", (ip, length), expected);
        }
    }

    /// Is there a state for each key?
    pub(crate) fn are_asked(&self) -> bool {
        !matches!(self.way, Way::None)
    }

    pub(crate) fn have_a_function(&self) -> bool {
        matches!(self.way, Way::Fn(_))
    }

    /// What a user's function says, if there is one.
    pub(crate) fn ask(&self, parts: &http::request::Parts) -> Option<KeyBytes<'static>> {
        match &self.way {
            Way::Fn(key_fn) => key_fn(parts).map(Into::into),
            Way::Key(_) | Way::Form | Way::None => None,
        }
    }

    /// As [`ask`](Self::ask), of a whole request.
    pub(crate) fn ask_of<P, Req, Res, Err>(&self, request: &mut Req) -> Option<KeyBytes<'static>>
    where
        P: Protocol<Req, Res, Err>,
    {
        self.have_a_function().then(|| P::with_parts(request, |parts| self.ask(parts))).flatten().flatten()
    }

    /// Sees whose state a request uses. `own`: what the user's function has said.
    #[inline]
    pub(crate) fn look<T>(
        &self,
        head: Option<Head<'_>>,
        own: Option<KeyBytes<'_>>,
        run: impl FnOnce(Whose<'_>) -> T,
    ) -> T {
        let key = match (&self.way, head) {
            (Way::Key(key), Some(head)) => key.of(head, self.trusted.as_deref()),
            (Way::Fn(_), Some(_)) | (Way::Form, _) => own,
            (Way::None, _) | (Way::Key(_) | Way::Fn(_), None) => return run(Whose::Keyless),
        };
        match (&key, self.missing) {
            (Some(key), _) => run(Whose::Key(key.as_bytes())),
            (None, MissingKey::Shared) => run(Whose::Keyless),
            (None, missing) => run(Whose::Nobodys { refuse: missing == MissingKey::Reject }),
        }
    }
}

/// The setters of a builder with a state for each key, over its field with [`Keys`]. `$one` is what each key has.
macro_rules! key_setters {
    ($one:literal, $($keys:ident).+) => {
        #[doc = concat!("A ", $one, " for each key. [`Key::MatchedPath`](crate::Key::MatchedPath) without the feature")]
        /// `axum` is an error. Plain services have no heads, so there all calls share one.
        pub fn per_key(mut self, key: crate::Key) -> Self {
            self.$($keys).+.set(crate::key::Way::Key(key));
            self
        }

        #[doc = concat!("A ", $one, " for each key that the function finds; `None`: the request has none. It runs on")]
        /// the path of every call, outside of every lock.
        pub fn key_fn(
            mut self,
            f: impl Fn(&http::request::Parts) -> Option<String> + Send + Sync + 'static,
        ) -> Self {
            self.$($keys).+.set(crate::key::Way::Fn(Box::new(f)));
            self
        }

        /// What happens to a request without a key. Default: [`MissingKey::Reject`](crate::MissingKey::Reject).
        pub fn missing_key(mut self, missing: crate::MissingKey) -> Self {
            self.$($keys).+.missing = missing;
            self
        }

        /// Whose word about the client counts, for [`Key::ForwardedFor`](crate::Key::ForwardedFor) and
        /// [`Key::Forwarded`](crate::Key::Forwarded): peers within these ranges, each an address and how many of its
        /// bits count. The key of a request from any other peer, or from one whose address is not known (see
        /// [`Key::ConnectInfo`](crate::Key::ConnectInfo)), is missing. Default: everybody's.
        pub fn trusted(mut self, ranges: impl IntoIterator<Item = (std::net::IpAddr, u8)>) -> Self {
            self.$($keys).+.trust(ranges);
            self
        }

        /// So many keys have a state of their own, from 1 to 268,435,456. Default: 10,000. More share overflow states,
        /// one for some 64 to 128 keys of this bound, 1 to 1,024 in all (so with a bound of 1 there is one beside it).
        pub fn max_keys(mut self, n: usize) -> Self {
            self.$($keys).+.most = n;
            self
        }
    };
}

pub(crate) use key_setters;

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("key", &self.way)
            .field("missing", &self.missing)
            .field("trusted", &self.trusted)
            .field("max_keys", &self.most)
            .finish()
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::None => f.write_str("None"),
            Way::Key(key) => key.fmt(f),
            Way::Fn(_) => f.write_str("Fn"),
            Way::Form => f.write_str("Form"),
        }
    }
}
