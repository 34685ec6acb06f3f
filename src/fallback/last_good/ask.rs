//! What a request asks for, and whether its answer is anybody else's business.

use std::fmt;

use http::{HeaderMap, HeaderName, Method, Request, Uri, header};

/// What is known of a request whose answer may be kept, or that may be answered with a kept one.
pub struct Ask {
    /// Method, host and URI.
    pub(super) key: String,
    /// For `Vary`: which of them matter only the response says.
    pub(super) headers: HeaderMap,
    /// It has a cookie, so its answer may be one user's own.
    pub(super) has_cookie: bool,
}

impl Ask {
    /// `None`: neither kept nor answered.
    pub(super) fn of<B>(request: &Request<B>, across_authorization: bool) -> Option<Ask> {
        let headers = request.headers();
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_whole = !headers.contains_key(header::RANGE);
        let is_anybodys = across_authorization || !headers.contains_key(header::AUTHORIZATION);
        if !is_safe || !is_whole || !is_anybodys {
            return None;
        }
        Some(Ask {
            key: key(request.method(), request.uri(), headers)?,
            headers: headers.clone(),
            has_cookie: headers.contains_key(header::COOKIE),
        })
    }

    /// The answer has no body, whatever it announces.
    pub(super) fn is_head(&self) -> bool {
        self.key.starts_with("HEAD ")
    }

    /// The key of the variant that these headers choose. `None`: it is the only one.
    pub(super) fn variant(&self, vary: &[HeaderName]) -> Option<String> {
        (!vary.is_empty()).then(|| {
            let mut key = self.key.clone();
            for name in vary {
                // A header may come in several lines; their number and order matter too. No value has such a byte.
                key.push('\n');
                key.push_str(name.as_str());
                for value in self.headers.get_all(name) {
                    key.push('\r');
                    key.extend(value.as_bytes().iter().map(|byte| char::from(*byte)));
                }
            }
            key
        })
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither key nor headers: they may hold secrets.
        f.debug_struct("Ask").finish_non_exhaustive()
    }
}

/// A server's URI has no host, which stands in a header then. `None`: nobody knows which it is.
fn key(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => host(headers)?,
    };
    let scheme = uri.scheme_str().unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    // Whoever sends the header may write a path into it, but no such byte: else one could plant what another asks for.
    Some(format!("{method} {scheme}://{}\n{path}", host.to_ascii_lowercase()))
}

/// Without the header it is empty: HTTP/1.0 has none.
fn host(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(header::HOST).iter();
    let Some(host) = lines.next() else { return Some("") };
    host.to_str().ok().filter(|_| lines.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, uri: &str, headers: &[(&'static str, &'static str)]) -> Option<Ask> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        Ask::of(&request.body(()).unwrap(), false)
    }

    #[test]
    fn who_asks_and_for_what() {
        let key = |method, uri, headers: &[_]| ask(method, uri, headers).map(|a| a.key);
        assert_eq!(key("GET", "/a?b", &[("host", "Example.org")]).unwrap(), "GET ://example.org\n/a?b");
        assert_eq!(key("HEAD", "http://example.org/a", &[]).unwrap(), "HEAD http://example.org\n/a");
        for (method, headers) in [
            ("POST", &[][..]),
            ("DELETE", &[]),
            ("GET", &[("authorization", "Basic YTpi")]),
            ("GET", &[("range", "bytes=0-1")]),
            ("GET", &[("host", "a"), ("host", "b")]),
            ("GET", &[("host", "\u{e9}")]),
        ] {
            assert!(key(method, "/", headers).is_none(), "{method} {headers:?}");
        }
        // A host that looks like the beginning of a path is not that path.
        assert_ne!(key("GET", "/b", &[("host", "x.org/a")]), key("GET", "/a/b", &[("host", "x.org")]));
    }

    #[test]
    fn variants_are_told_apart() {
        let vary = [header::ACCEPT, header::ACCEPT_LANGUAGE];
        let variant = |headers: &[_]| ask("GET", "/", headers).unwrap().variant(&vary).unwrap();
        let all = [
            variant(&[]),
            variant(&[("accept", "a")]),
            variant(&[("accept-language", "a")]),
            variant(&[("accept", "a"), ("accept", "b")]),
            variant(&[("accept", "a, b")]),
            variant(&[("accept", "")]),
        ];
        for (n, a) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|b| a != b), "{all:?}");
        }
        assert!(ask("GET", "/", &[]).unwrap().variant(&[]).is_none());
    }
}
