//! What an error of the transport says of a call.
//!
//! In the HTTP form the error type is whatever the service has, so it is asked what it is. Known are `io::Error`, boxed
//! errors, and by feature those of hyper, of its pooling client and of a tonic channel.

use std::{any::Any, error::Error as StdError, io, iter};

use crate::{
    outcome::{End, Outcome},
    protocol::{BoxError, end_of_error},
};

type AnyError = dyn StdError + 'static;

/// The error as one, if it is of a type that is known here.
#[cold]
#[inline(never)]
pub(crate) fn as_error<E: 'static>(error: &E) -> Option<&AnyError> {
    let any = error as &dyn Any;
    #[cfg(feature = "hyper")]
    if let Some(e) = any.downcast_ref::<hyper_util::client::legacy::Error>() {
        return Some(e);
    }
    #[cfg(feature = "hyper")]
    if let Some(e) = any.downcast_ref::<hyper::Error>() {
        return Some(e);
    }
    #[cfg(feature = "tonic")]
    if let Some(e) = any.downcast_ref::<tonic::transport::Error>() {
        return Some(e);
    }
    if let Some(e) = any.downcast_ref::<BoxError>() {
        return Some(&**e);
    }
    any.downcast_ref::<io::Error>().map(|e| e as &AnyError)
}

/// It and what lies behind it.
fn chain(error: &AnyError) -> impl Iterator<Item = &AnyError> {
    iter::successors(Some(error), |&e| {
        // An `io::Error` made of another error has the source of that one, and not that one itself.
        let inside = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|e| e as &AnyError);
        inside.or_else(|| e.source())
    })
}

/// Did the call certainly not reach the backend?
///
/// The kind of an I/O error does not say so: a connection that has been used for long may end as unreachable or even
/// refused, by an ICMP message that comes later. So whoever connects has to say that it did that. Only a refusal as it
/// is, which no client has put its own words around, is taken for one.
pub(crate) fn never_arrived(error: &AnyError) -> bool {
    let connecting = chain(error).any(|e| {
        #[cfg(feature = "hyper")]
        if e.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect()) {
            return true;
        }
        #[cfg(feature = "tonic")]
        if e.is::<tonic::ConnectError>() {
            return true;
        }
        #[cfg(feature = "h2")]
        if e.downcast_ref::<h2::Error>().is_some_and(reset::never_began) {
            return true;
        }
        let _ = e;
        false
    });
    connecting || is_refused(error)
}

fn is_refused(error: &AnyError) -> bool {
    let mut io = chain(error).map_while(|e| e.downcast_ref::<io::Error>());
    io.any(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// How a call ended that could not be made, or whose response was broken off. A policy of ours may speak in the error.
#[cold]
#[inline(never)]
pub(crate) fn end_of(error: Option<&AnyError>) -> End {
    match error {
        Some(error) if is_of_the_caller(error) => End::Left,
        Some(error) => end_of_error(error).unwrap_or(End::Outcome(Outcome::Failure)),
        None => End::Outcome(Outcome::Failure),
    }
}

/// Was it the request's own side that failed? Mostly its body, because whoever sends it has gone: an upload that is
/// streamed on. (hyper counts what is wrong with a request too, and a runtime that is gone.) It says nothing of the
/// backend, and else any caller could open the breaker of all.
fn is_of_the_caller(error: &AnyError) -> bool {
    chain(error).any(|e| {
        #[cfg(feature = "hyper")]
        if e.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user) {
            return true;
        }
        #[cfg(feature = "h2")]
        if e.downcast_ref::<h2::Error>().is_some_and(reset::is_ours) {
            return true;
        }
        let _ = e;
        false
    })
}

/// Is it UNAVAILABLE to a gRPC caller? So is all that breaks a connection; a stream that was reset may be something
/// else.
pub(crate) fn is_unavailable(error: &AnyError) -> bool {
    #[cfg(feature = "h2")]
    if let Some(e) = chain(error).find_map(|e| e.downcast_ref::<h2::Error>()) {
        return e.reason().is_none() || e.is_go_away() || reset::never_began(e);
    }
    let _ = error;
    true
}

#[cfg(feature = "h2")]
mod reset {
    use h2::{Error, Reason};

    /// Of a stream that was refused nothing was done, nor of one that a GOAWAY of the other side tells of: it ends
    /// those only that come after the last that was looked at (RFC 9113, sections 6.8 and 8.7). Of all reasons these
    /// alone are UNAVAILABLE on gRPC (its PROTOCOL-HTTP2.md, "Errors").
    pub(super) fn never_began(e: &Error) -> bool {
        e.reason() == Some(Reason::REFUSED_STREAM) || e.is_go_away() && e.is_remote()
    }

    /// By whoever sends the request: neither the other side nor the protocol wants it.
    pub(super) fn is_ours(e: &Error) -> bool {
        e.is_reset() && !e.is_remote() && !e.is_library()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Told(io::Error);

    impl std::fmt::Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the connection ended")
        }
    }

    impl StdError for Told {
        fn source(&self) -> Option<&AnyError> {
            Some(&self.0)
        }
    }

    fn boxed(e: impl Into<BoxError>) -> BoxError {
        Box::new(io::Error::other(e))
    }

    #[test]
    fn along_the_sources() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(never_arrived(&refused()));
        assert!(as_error(&boxed(refused())).is_some_and(never_arrived));
        // It may have been read before the connection broke.
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::HostUnreachable, io::ErrorKind::NetworkUnreachable]
        {
            assert!(!never_arrived(&io::Error::from(kind)), "{kind}");
        }
        // So may that of a client which says in other words that its connection ended.
        let told = Told(refused());
        assert!(!never_arrived(&told));
        assert!(!as_error(&boxed(io::Error::from(io::ErrorKind::BrokenPipe))).is_some_and(never_arrived));
        assert!(as_error(&"whatever").is_none());
        assert!(is_unavailable(&*boxed(refused())) && is_unavailable(&*boxed("whatever")));
    }

    #[cfg(feature = "h2")]
    #[test]
    fn a_reset_has_a_reason() {
        use h2::Reason;
        let of = |reason: Reason| boxed(h2::Error::from(reason));
        let refused = of(Reason::REFUSED_STREAM);
        assert!(never_arrived(&*refused) && is_unavailable(&*refused));
        for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR, Reason::ENHANCE_YOUR_CALM] {
            assert!(!never_arrived(&*of(reason)) && !is_unavailable(&*of(reason)), "{reason:?}");
        }
    }
}
