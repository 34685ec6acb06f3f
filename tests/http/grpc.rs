//! What gRPC calls come to, seen around a tonic channel and on both kinds of server, each exactly once.

use axum::{Router, body::Body, routing::post};
use buttress::{Outcome, testing::OutcomesLayer};
use futures_util::stream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer, ServiceExt};

use crate::{
    health::{Manners, ask, channel, drain, layered},
    rig::{Server, Version, chunk, hyper, nothing, seen, soon},
};

/// A server under one layer, a channel under another.
struct Pair {
    server: Server,
    manners: Manners,
    seen_by_server: OutcomesLayer,
    seen_by_client: OutcomesLayer,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Tonic,
    Axum,
}

const KINDS: [Kind; 2] = [Kind::Tonic, Kind::Axum];

type Client = HealthClient<buttress::testing::Outcomes<tonic::transport::Channel>>;

impl Pair {
    async fn new(kind: Kind) -> Pair {
        let (manners, seen_by_server) = (Manners::default(), OutcomesLayer::new());
        let server = match kind {
            Kind::Tonic => layered!(tonic, manners, seen_by_server.clone()),
            Kind::Axum => layered!(axum, manners, seen_by_server.clone()),
        };
        Pair { server, manners, seen_by_server, seen_by_client: OutcomesLayer::new() }
    }

    fn client(&self) -> Client {
        HealthClient::new(self.seen_by_client.layer(channel(&self.server)))
    }

    /// The one call so far came to this on the client and that on the server, and to nothing more once all is closed.
    async fn expect(&self, what: impl std::fmt::Debug, client: Outcome, server: Outcome) {
        assert_eq!(seen(&self.seen_by_client.handle(), 1).await, [client], "{what:?}, client");
        assert_eq!(seen(&self.seen_by_server.handle(), 1).await, [server], "{what:?}, server");
    }

    /// Every client is gone.
    async fn close(self) {
        self.server.stop().await;
        assert_eq!(self.seen_by_client.handle().take(), []);
        assert_eq!(self.seen_by_server.handle().take(), []);
    }
}

fn table() -> [Outcome; 17] {
    use Outcome::*;
    [
        Success, Cancelled, Failure, Success, Failure, Success, Success, Success, Throttled, Success, Success, Success,
        Success, Failure, Failure, Failure, Success,
    ]
}

#[tokio::test]
async fn a_unary_answer_and_every_trailers_only_error() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut client = pair.client();
        for (code, outcome) in table().into_iter().enumerate() {
            let manner = if code == 0 { "ok".to_owned() } else { code.to_string() };
            let answer = client.check(ask(manner)).await;
            assert_eq!(answer.map_or_else(|s| s.code(), |_| Code::Ok), Code::from(code as i32));
            pair.expect((kind, code), outcome, outcome).await;
        }
        drop(client);
        pair.close().await;
    }
}

#[tokio::test]
async fn a_stream_that_ends_with_every_status_after_three_messages() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut client = pair.client();
        for (code, outcome) in table().into_iter().enumerate() {
            let manner = if code == 0 { "ok".to_owned() } else { code.to_string() };
            let messages = client.watch(ask(manner)).await.unwrap().into_inner();
            let end = if code == 0 { Ok(()) } else { Err(Code::from(code as i32)) };
            assert_eq!(drain(messages).await, (3, end));
            pair.expect((kind, code), outcome, outcome).await;
        }
        drop(client);
        pair.close().await;
    }
}

#[tokio::test]
async fn nothing_is_known_before_the_trailers() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut messages = pair.client().watch(ask("hangs")).await.unwrap().into_inner();
        for _ in 0..3 {
            assert!(messages.message().await.unwrap().is_some());
        }
        assert_eq!(pair.seen_by_client.handle().take(), [], "{kind:?}");
        assert_eq!(pair.seen_by_server.handle().take(), [], "{kind:?}");
        drop(messages);
        pair.expect(kind, Outcome::Cancelled, Outcome::Cancelled).await;
        pair.close().await;
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_in_the_stream() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut messages = pair.client().watch(ask("hangs")).await.unwrap().into_inner();
        messages.message().await.unwrap();
        drop(messages);
        pair.expect(kind, Outcome::Cancelled, Outcome::Cancelled).await;
        pair.close().await;
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_before_the_head() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut client = pair.client();
        tokio::select! {
            answer = client.check(ask("hangs")) => panic!("{answer:?}"),
            () = pair.manners.hanging.notified() => {}
        }
        pair.expect(kind, Outcome::Cancelled, Outcome::Cancelled).await;
        drop(client);
        pair.close().await;
    }
}

/// A handler passes on that a policy of its own has refused: no failure of the server, whose policies see the rejection
/// itself; the caller can't know that.
#[tokio::test]
async fn a_handler_that_passes_a_refusal_on() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut client = pair.client();
        assert_eq!(client.check(ask("refused")).await.unwrap_err().code(), Code::Unavailable);
        pair.expect(kind, Outcome::Failure, Outcome::Ignored).await;
        drop(client);
        pair.close().await;
    }
}

#[tokio::test]
async fn a_handler_that_panics() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let mut client = pair.client();
        client.check(ask("panics")).await.unwrap_err();
        pair.expect(kind, Outcome::Failure, Outcome::Failure).await;

        let messages = client.watch(ask("panics")).await.unwrap().into_inner();
        assert!(drain(messages).await.1.is_err());
        pair.expect(kind, Outcome::Failure, Outcome::Failure).await;
        drop(client);
        pair.close().await;
    }
}

/// No library announces a length on gRPC. Where it is announced all the same, the status still comes after it.
#[tokio::test]
async fn announced_bytes_do_not_end_a_grpc_response() {
    let (by_server, by_client) = (OutcomesLayer::new(), OutcomesLayer::new());
    let answer = async || {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("8"))]);
        let frames = [chunk("hello").map(Frame::data), Ok(Frame::trailers(trailers))];
        ([(CONTENT_LENGTH, "5")], Body::new(StreamBody::new(stream::iter(frames))))
    };
    let server = Server::axum(Router::new().route("/", post(answer)).layer(by_server.clone())).await;
    let request = Request::post(server.uri("/")).header(CONTENT_TYPE, "application/grpc").body(nothing()).unwrap();
    let answer = soon(by_client.layer(hyper(Version::H2)).oneshot(request)).await.unwrap();
    let read = soon(answer.into_body().collect()).await.unwrap();
    assert_eq!(read.trailers().unwrap()["grpc-status"], "8");
    assert_eq!(by_client.handle().take(), [Outcome::Throttled]);
    assert_eq!(seen(&by_server.handle(), 1).await, [Outcome::Throttled]);
}

/// On several threads, where the two ends of one call are booked at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_at_once_half_of_them_left() {
    for kind in KINDS {
        let pair = Pair::new(kind).await;
        let client = pair.client();
        let calls = (0..200).map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let mut messages =
                    client.watch(ask(if n % 2 == 0 { "ok" } else { "hangs" })).await.unwrap().into_inner();
                messages.message().await.unwrap().unwrap();
                if n % 2 == 0 {
                    assert_eq!(drain(messages).await, (2, Ok(())));
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            soon(call).await.unwrap();
        }
        for side in [&pair.seen_by_client, &pair.seen_by_server] {
            let seen = seen(&side.handle(), 200).await;
            let count = |outcome| seen.iter().filter(|o| **o == outcome).count();
            assert_eq!((seen.len(), count(Outcome::Success), count(Outcome::Cancelled)), (200, 100, 100), "{kind:?}");
        }
        drop(client);
        pair.close().await;
    }
}
