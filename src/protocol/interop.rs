//! A rejection in the words of axum and tonic, for code that meets one by itself.

use crate::{
    protocol::refusal::{self, Form},
    rejection::Rejection,
};

/// The HTTP answer a layer would give, for handlers that pass a rejection on. axum drops the body where it answers
/// HEAD; and `connection: close` is the drain layer's to say, which sees what a request came over.
#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Rejection {
    fn into_response(self) -> axum_core::response::Response {
        refusal::response(Form::Http { is_head: false }, self).map(axum_core::body::Body::from)
    }
}

/// The status a layer would answer with, details included. The rejection is its source, so [`Rejection::of`] finds it.
///
/// With it a service whose error is a `Status` takes `.flat()` layers.
#[cfg(feature = "tonic")]
impl From<Rejection> for tonic::Status {
    fn from(rejection: Rejection) -> Self {
        let answer = refusal::response(Form::Grpc, rejection.clone());
        let mut status = tonic::Status::from_header_map(answer.headers())
            .unwrap_or_else(|| tonic::Status::unavailable(rejection.to_string()));
        status.set_source(std::sync::Arc::new(rejection));
        status
    }
}

#[cfg(all(test, feature = "axum", feature = "tonic"))]
mod tests {
    use std::time::Duration;

    use axum_core::response::IntoResponse;
    use tonic_types::StatusExt;

    use super::*;
    use crate::{origin::Origin, rejection::Reason, stripe::Striped};

    fn rejection() -> Rejection {
        let origin = Origin::new("bulkhead", "db".into(), false, &[Reason::BulkheadFull]);
        Rejection::new(&Striped::new(origin), Reason::BulkheadFull).with_retry_after(Some(Duration::from_millis(1_500)))
    }

    #[test]
    fn as_a_status() {
        let status = tonic::Status::from(rejection());
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "too many calls are in flight");
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1500");
        let info = status.get_details_retry_info().unwrap();
        assert_eq!(info.retry_delay, Some(Duration::from_millis(1_500)));
        assert_eq!(Rejection::of(&status).map(Rejection::reason), Some(Reason::BulkheadFull));
    }

    /// A handler that passes it on, and one that says something else because of it.
    #[test]
    fn as_the_answer_of_a_handler() {
        let answer = tonic::Status::from(rejection()).into_http::<()>();
        assert_eq!(Rejection::in_response(&answer).map(Rejection::reason), Some(Reason::BulkheadFull));
        let mut other = tonic::Status::not_found("nobody of that name");
        other.set_source(std::sync::Arc::new(rejection()));
        assert!(Rejection::in_response(&other.into_http::<()>()).is_none());
    }

    #[test]
    fn as_a_response() {
        let response = rejection().into_response();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"2".parse().unwrap()));
    }
}
