//! axum routes and tonic routes on one port under one layer: each caller is refused in its own protocol.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use buttress::{DeadlineLayer, Outcome, TimeoutLayer, testing::OutcomesLayer};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    health::{Manners, ask, without_timer},
    rig::{BOTH, Server, Version, hyper, nothing, soon},
};

/// `/` and `/hangs` of axum, the health service of tonic.
struct OnePort {
    server: Server,
    manners: Manners,
    plain_calls: Arc<AtomicUsize>,
}

impl OnePort {
    async fn new(layered: impl FnOnce(Router) -> Router) -> OnePort {
        let (manners, plain_calls) = (Manners::default(), Arc::<AtomicUsize>::default());
        let (calls, calls_that_hang) = (Arc::clone(&plain_calls), Arc::clone(&plain_calls));
        let hangs = move || {
            calls_that_hang.fetch_add(1, SeqCst);
            std::future::pending::<()>()
        };
        let app = Router::new()
            .route("/", get(move || async move { calls.fetch_add(1, SeqCst).to_string() }))
            .route("/hangs", get(hangs))
            .merge(tonic::service::Routes::new(manners.server()).into_axum_router());
        OnePort { server: Server::axum(layered(app)).await, manners, plain_calls }
    }

    async fn get(&self, version: Version, path: &str, timeout: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::get(self.server.uri(path));
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let answer = soon(hyper(version).request(request.body(nothing()).unwrap())).await.unwrap();
        let (head, body) = answer.into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(text.to_vec()).unwrap())
    }

    /// Over a client without a timer, so that the server is all that can end it.
    async fn check(&self, manner: &str, timeout: Option<&str>) -> Result<(), Status> {
        let mut request = tonic::Request::new(ask(manner));
        if let Some(timeout) = timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        soon(without_timer(&self.server).check(request)).await.map(drop)
    }

    async fn assert_serves(&self) {
        for version in BOTH {
            assert_eq!(self.get(version, "/", None).await.0, 200);
        }
        self.check("ok", None).await.unwrap();
    }

    /// How many calls have reached axum's and tonic's handlers.
    fn reached(&self) -> (usize, usize) {
        (self.plain_calls.load(SeqCst), self.manners.timeouts().len())
    }
}

/// The whole problem document, members and order. Which sentence says it is free.
fn assert_problem((status, headers, text): (StatusCode, HeaderMap, String), policy: &str, reason: &str) {
    assert_eq!(status, 504);
    assert_eq!(headers["content-type"], "application/problem+json");
    assert_eq!(headers["content-length"], text.len().to_string().as_str());
    for absent in ["retry-after", "grpc-status", "grpc-message"] {
        assert!(!headers.contains_key(absent), "{headers:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let detail = json["detail"].as_str().unwrap();
    assert!(detail.len() > 8 && detail.contains(' '), "a sentence: {detail}");
    let whole = format!(
        r#"{{"type":"about:blank","title":"Gateway Timeout","status":504,"detail":"{detail}","policy":"{policy}","reason":"{reason}"}}"#
    );
    assert_eq!(text, whole);
}

/// A refusal with a delay has `RetryInfo` and pushback; time that ran out has none, and so no details at all.
fn assert_out_of_time(answer: Result<(), Status>) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains(' '), "a sentence: {}", status.message());
    assert!(status.details().is_empty());
    assert!(status.get_details_retry_info().is_none());
    for absent in ["grpc-status-details-bin", "grpc-retry-pushback-ms"] {
        assert!(!status.metadata().contains_key(absent), "{status:?}");
    }
}

#[tokio::test]
async fn a_deadline_in_the_past() {
    let port = OnePort::new(|app| app.layer(DeadlineLayer::server(Duration::from_secs(60)))).await;
    for past in ["0m", "0n", "0H"] {
        for version in BOTH {
            assert_problem(port.get(version, "/", Some(past)).await, "deadline", "deadline_exceeded");
        }
        assert_out_of_time(port.check("ok", Some(past)).await);
    }
    assert_eq!(port.reached(), (0, 0), "a refusal does not touch a handler");
    port.assert_serves().await;
    assert_eq!(port.reached(), (2, 1));
}

#[tokio::test]
async fn a_deadline_that_passes_while_the_handler_hangs() {
    // The caller's, and the server's own upper bound.
    for (max, said) in [(Duration::from_secs(60), Some("30m")), (Duration::from_millis(30), None)] {
        let (inside, outside) = (OutcomesLayer::new(), OutcomesLayer::new());
        let layers = (outside.clone(), DeadlineLayer::server(max), inside.clone());
        let port = OnePort::new(|app| app.layer(layers)).await;
        for version in BOTH {
            assert_problem(port.get(version, "/hangs", said).await, "deadline", "deadline_exceeded");
        }
        assert_out_of_time(port.check("hangs", said).await);
        assert_eq!(outside.handle().take(), [Outcome::Cancelled; 3], "it is the caller's clock");
        assert_eq!(inside.handle().take(), [Outcome::Cancelled; 3]);
    }
}

#[tokio::test]
async fn a_timeout() {
    let layer = TimeoutLayer::builder().after(Duration::from_millis(30)).build().unwrap();
    let (inside, outside) = (OutcomesLayer::new(), OutcomesLayer::new());
    let layers = (outside.clone(), layer.clone(), inside.clone());
    let port = OnePort::new(|app| app.layer(layers)).await;
    for version in BOTH {
        assert_problem(port.get(version, "/hangs", None).await, "timeout", "timeout");
    }
    assert_out_of_time(port.check("hangs", None).await);
    assert_eq!(outside.handle().take(), [Outcome::Failure; 3], "it is the backend that hung");
    assert_eq!(inside.handle().take(), [Outcome::Failure; 3]);
    assert_eq!(layer.handle().snapshot().timed_out, 3);
}

#[tokio::test]
async fn a_timeout_that_is_not_reached_and_a_deadline_that_only_grpc_has() {
    let layer = TimeoutLayer::builder().after(Duration::from_secs(60)).build().unwrap();
    let port = OnePort::new(|app| app.layer(layer.clone())).await;
    port.assert_serves().await;
    // `grpc-timeout` is gRPC's; on a plain route only `DeadlineLayer` reads it.
    assert_eq!(port.get(Version::H1, "/", Some("0m")).await.0, 200);
    assert_out_of_time(port.check("ok", Some("0m")).await);
    assert_eq!(port.reached(), (3, 1));
    assert_eq!(layer.handle().snapshot().deadline_exceeded, 1);
}

#[tokio::test]
async fn both_layers_are_one_answer() {
    let timeout = TimeoutLayer::builder().after(Duration::from_millis(30)).build().unwrap();
    let port = OnePort::new(|app| app.layer((DeadlineLayer::server(Duration::from_secs(60)), timeout))).await;
    for version in BOTH {
        assert_problem(port.get(version, "/hangs", None).await, "timeout", "timeout");
        assert_problem(port.get(version, "/hangs", Some("0m")).await, "deadline", "deadline_exceeded");
    }
    assert_out_of_time(port.check("hangs", None).await);
    assert_out_of_time(port.check("hangs", Some("0m")).await);
}
