//! Whom a request comes from.

use std::net::{IpAddr, SocketAddr};

use http::HeaderName;

use crate::{
    config::Checks,
    key::{KeyBytes, forwarded},
    protocol::Head,
};

/// What tells one client from another.
///
/// Addresses are normalised: ports are left out, IPv4 mapped into IPv6 is IPv4, and an IPv6 address counts by its /64,
/// which is what one customer has. Everything else is compared byte for byte.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The address of the peer: axum's `ConnectInfo<SocketAddr>` (feature `axum`; its `MockConnectInfo` too), tonic's
    /// `TcpConnectInfo` (feature `tonic`), or else a [`SocketAddr`] that you put into the request's extensions. axum
    /// knows it only of an app that is served by `into_make_service_with_connect_info::<SocketAddr>()`; without, no
    /// request has a key ([`MissingKey`]). Right where clients connect directly; behind a proxy all of them are one.
    ConnectInfo,
    /// The client behind so many proxies of your own, by `X-Forwarded-For`: with one, the last entry, which that proxy
    /// has added. From 1. Every one of your proxies has to add its entry, or clients choose their own key.
    ForwardedFor {
        /// How many proxies of your own stand before this server.
        proxies: u8,
    },
    /// As [`ForwardedFor`](Key::ForwardedFor), by `Forwarded` (RFC 7239). Take the one your proxies write, never both.
    Forwarded {
        /// How many proxies of your own stand before this server.
        proxies: u8,
    },
    /// The first value of a header, an API key for one. Whoever may choose its value freely has no limit: check it
    /// first.
    Header(HeaderName),
    /// The route that axum matched (feature `axum`): one state for each route, whoever calls. Where none was, the key
    /// is missing: under `Router::layer` an unknown path is refused, under `route_layer` it is a 404.
    MatchedPath,
    /// The path of the URI, which on gRPC is service and method.
    GrpcMethod,
    /// The host that is called, in lower case, with its port if one is named: that of the URI, else the `Host` header.
    /// What tells the upstreams of a client apart. On a server clients choose it freely. (The requests of a generated
    /// tonic client have neither yet unless it was made by `with_origin`: give it each channel's own address there, or
    /// each channel its own layer.)
    Authority,
}

/// What happens to a request that has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingKey {
    /// It is refused with [`Reason::KeyMissing`](crate::Reason). The default.
    #[default]
    Reject,
    /// All such requests share one state of their own.
    Shared,
    /// It is not limited.
    Unlimited,
}

/// Addresses with the same first bits.
pub(crate) type Range = (IpAddr, u8);

impl Key {
    /// Can a request have it?
    pub(crate) fn check(&self, checks: &mut Checks) {
        if let Key::ForwardedFor { proxies } | Key::Forwarded { proxies } = self {
            checks.require(*proxies > 0, "per_key", self, "1 to 255 proxies");
        }
        let knows_routes = cfg!(feature = "axum") || *self != Key::MatchedPath;
        checks.require(knows_routes, "per_key", self, "another key, or the feature `axum`: it knows routes");
    }

    /// The key of a request. `trusted`: whose word about the client counts; everybody's where there is no such list.
    #[inline]
    pub(crate) fn of<'a>(&self, head: Head<'a>, trusted: Option<&[Range]>) -> Option<KeyBytes<'a>> {
        match self {
            Key::Header(name) => head.headers.get(name).map(|v| v.as_bytes().into()),
            Key::GrpcMethod => Some(head.uri.path().into()),
            Key::Authority => authority(head).map(lower_case),
            Key::MatchedPath => matched_path(head).map(Into::into),
            Key::ConnectInfo => peer(head).map(Into::into),
            Key::ForwardedFor { .. } | Key::Forwarded { .. }
                if trusted.is_some_and(|ranges| !peer(head).is_some_and(|ip| is_in(ranges, ip))) =>
            {
                None
            }
            Key::ForwardedFor { proxies } => forwarded::x_forwarded_for(head.headers, *proxies).map(Into::into),
            Key::Forwarded { proxies } => forwarded::forwarded(head.headers, *proxies).map(Into::into),
        }
    }
}

fn authority(head: Head<'_>) -> Option<&[u8]> {
    match head.uri.authority() {
        // Without a user: that is no part of the host.
        Some(authority) => authority.as_str().rsplit('@').next().map(str::as_bytes),
        None => head.headers.get(http::header::HOST).map(http::HeaderValue::as_bytes),
    }
}

/// A host is the same in whatever case it is written (RFC 3986, 3.2.2). Most are in this one.
fn lower_case(host: &[u8]) -> KeyBytes<'_> {
    if host.iter().any(u8::is_ascii_uppercase) { KeyBytes::owned(host.to_ascii_lowercase()) } else { host.into() }
}

#[cfg(feature = "axum")]
fn matched_path(head: Head<'_>) -> Option<&str> {
    head.extensions.get::<axum::extract::MatchedPath>().map(axum::extract::MatchedPath::as_str)
}

#[cfg(not(feature = "axum"))]
fn matched_path(_: Head<'_>) -> Option<&str> {
    None
}

fn peer(head: Head<'_>) -> Option<IpAddr> {
    #[cfg(feature = "axum")]
    {
        use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
        if let Some(ConnectInfo(addr)) = head.extensions.get::<ConnectInfo<SocketAddr>>() {
            return Some(addr.ip());
        }
        if let Some(MockConnectInfo(addr)) = head.extensions.get::<MockConnectInfo<SocketAddr>>() {
            return Some(addr.ip());
        }
    }
    #[cfg(feature = "tonic")]
    if let Some(info) = head.extensions.get::<tonic::transport::server::TcpConnectInfo>() {
        return info.remote_addr().map(|addr| addr.ip());
    }
    head.extensions.get::<SocketAddr>().map(SocketAddr::ip)
}

fn is_in(ranges: &[Range], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ranges.iter().any(|(range, length)| match (range.to_canonical(), ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            // A range of mapped addresses has 96 bits more.
            let length = if range.is_ipv6() { length.saturating_sub(96) } else { *length };
            shares(u128::from(a.to_bits()) << 96, u128::from(b.to_bits()) << 96, length.min(32))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => shares(a.to_bits(), b.to_bits(), (*length).min(128)),
        _ => false,
    })
}

/// Are the first `length` bits the same?
fn shares(a: u128, b: u128, length: u8) -> bool {
    (a ^ b).leading_zeros() >= u32::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_in_any_case_is_one() {
        for (uri, host, key) in [
            ("http://User@API.Example:8080/Path", "", "api.example:8080"),
            ("/Path", "API.Example", "api.example"),
            ("/Path", "api.example", "api.example"),
        ] {
            let request = http::Request::get(uri).header("host", host).body(()).unwrap();
            let head = Head { uri: request.uri(), headers: request.headers(), extensions: request.extensions() };
            assert_eq!(Key::Authority.of(head, None).unwrap().as_bytes(), key.as_bytes());
        }
    }

    #[test]
    fn ranges() {
        let is_in = |range: &str, length, ip: &str| is_in(&[(range.parse().unwrap(), length)], ip.parse().unwrap());
        assert!(is_in("10.0.0.0", 8, "10.255.0.1"));
        assert!(!is_in("10.0.0.0", 8, "11.0.0.1"));
        assert!(is_in("10.0.0.1", 32, "10.0.0.1") && !is_in("10.0.0.1", 32, "10.0.0.2"));
        assert!(is_in("0.0.0.0", 0, "1.2.3.4") && !is_in("0.0.0.0", 0, "2001:db8::1"));
        assert!(is_in("10.0.0.0", 8, "::ffff:10.1.1.1"), "mapped is IPv4");
        assert!(is_in("::ffff:10.0.0.0", 104, "10.1.1.1") && !is_in("::ffff:10.0.0.0", 104, "11.1.1.1"));
        assert!(is_in("2001:db8::", 32, "2001:db8:1::1") && !is_in("2001:db8::", 32, "2001:db9::1"));
        assert!(is_in("::", 0, "2001:db8::1") && is_in("::1", 128, "::1"));
    }
}
