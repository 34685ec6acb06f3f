//! Errors of calls that never reached the backend.
//!
//! In the HTTP form the error type is whatever the service has, so it is asked what it is. Known are `io::Error`, boxed errors
//! and (with the feature `hyper`) the error of hyper's pooling client.

use std::{any::Any, error::Error as StdError, io};

use crate::protocol::BoxError;

/// The error as one, if it is of a type that is known here.
pub(crate) fn as_error<E: 'static>(error: &E) -> Option<&(dyn StdError + 'static)> {
    let any = error as &dyn Any;
    #[cfg(feature = "hyper")]
    if let Some(e) = any.downcast_ref::<hyper_util::client::legacy::Error>() {
        return Some(e);
    }
    if let Some(e) = any.downcast_ref::<BoxError>() {
        return Some(&**e);
    }
    any.downcast_ref::<io::Error>().map(|e| e as &(dyn StdError + 'static))
}

/// Did the call certainly not reach the backend?
pub(crate) fn is<E: 'static>(error: &E) -> bool {
    let mut next = as_error(error);
    while let Some(e) = next {
        #[cfg(feature = "hyper")]
        if e.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect()) {
            return true;
        }
        let io = e.downcast_ref::<io::Error>();
        if io.is_some_and(|e| never_connected(e.kind())) {
            return true;
        }
        // An `io::Error` made of another error has the source of that one, and not that one itself.
        let inside = io.and_then(io::Error::get_ref).map(|e| e as &(dyn StdError + 'static));
        next = inside.or_else(|| e.source());
    }
    false
}

fn never_connected(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(kind, ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn along_the_sources() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let boxed = |e: io::Error| -> BoxError { Box::new(io::Error::other(e)) };
        assert!(is(&refused()));
        assert!(is(&boxed(refused())));
        // It may have been read before the connection broke.
        assert!(!is(&io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(!is(&boxed(io::Error::from(io::ErrorKind::BrokenPipe))));
        assert!(!is(&"whatever"));
    }
}
