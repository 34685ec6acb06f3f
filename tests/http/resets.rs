//! Streams that HTTP/2 gives up: what the code says of them, and which of them never began.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use buttress::{Attempts, Backoff, Budget, HedgeLayer, RetryLayer, Stopped};
use bytes::Bytes;
use h2::Reason;
use http::{Request, Response, header};
use http_body_util::Full;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer, ServiceExt};

use crate::{
    health::{ask, channel},
    rig::{Server, Version, hyper, soon},
};

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Reset(Reason),
    /// After the head of a response, which says nothing yet.
    Headed(Reason),
    /// With its connection, and without a word.
    Cut,
    Well,
}

use Ends::*;

/// A server that ends its streams in this order, and all later ones well. Counts those it got.
async fn serve(ends: &'static [Ends]) -> (Server, Arc<AtomicUsize>) {
    let hits = Arc::new(AtomicUsize::new(0));
    let hit = Arc::clone(&hits);
    let server = Server::start(|listener, mut stop| async move {
        loop {
            let io = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                () = &mut stop => return,
            };
            tokio::spawn(connection(io, ends, Arc::clone(&hit)));
        }
    })
    .await;
    (server, hits)
}

async fn connection(io: tokio::net::TcpStream, ends: &[Ends], hits: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let head = Response::builder().header(header::CONTENT_TYPE, "application/grpc");
        match ends.get(hits.fetch_add(1, SeqCst)).copied().unwrap_or(Well) {
            Reset(reason) => respond.send_reset(reason),
            Headed(reason) => {
                respond.send_response(head.body(()).unwrap(), false).unwrap().send_reset(reason);
            }
            Cut => return,
            Well => {
                let head = head.header("grpc-status", "0");
                let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
                body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), true).unwrap();
            }
        }
    }
}

fn retry() -> RetryLayer {
    // Time enough for a new connection.
    let backoff = Backoff::Constant(Duration::from_millis(20));
    RetryLayer::builder().backoff(backoff).budget(Budget::unlimited()).build().unwrap()
}

#[tokio::test]
async fn a_reset_grpc_stream_is_retried_by_the_code_that_tonic_tells() {
    for (ends, code, calls) in [
        (&[Reset(Reason::REFUSED_STREAM); 2][..], None, 3),
        (&[Cut; 2], None, 3),
        (&[Reset(Reason::CANCEL)], Some(Code::Cancelled), 1),
        (&[Reset(Reason::INTERNAL_ERROR)], Some(Code::Internal), 1),
        (&[Reset(Reason::NO_ERROR)], Some(Code::Internal), 1),
        (&[Reset(Reason::ENHANCE_YOUR_CALM)], Some(Code::ResourceExhausted), 1),
        (&[Reset(Reason::INADEQUATE_SECURITY)], Some(Code::PermissionDenied), 1),
        (&[Headed(Reason::CANCEL)], Some(Code::Cancelled), 1),
    ] {
        let (server, hits) = serve(ends).await;
        let layer = retry();
        let mut client = HealthClient::new(layer.layer(channel(&server)));
        let answer = soon(client.check(ask("x"))).await;
        assert_eq!((answer.err().map(|status| status.code()), hits.load(SeqCst)), (code, calls), "{ends:?}");
    }
}

/// Where the head is looked behind, its end is known by the time the caller gets it.
#[tokio::test]
async fn a_stream_that_is_reset_behind_its_head_is_too() {
    for (ends, calls) in [(&[Headed(Reason::REFUSED_STREAM)][..], 2), (&[Headed(Reason::CANCEL)], 1)] {
        let (server, hits) = serve(ends).await;
        let layer = RetryLayer::builder()
            .backoff(Backoff::Constant(Duration::from_millis(20)))
            .budget(Budget::unlimited())
            .peek(Duration::from_secs(20))
            .build()
            .unwrap();
        let mut client = HealthClient::new(layer.layer(channel(&server)));
        assert_eq!((soon(client.check(ask("x"))).await.is_ok(), hits.load(SeqCst)), (calls == 2, calls), "{ends:?}");
    }
}

/// As when a peer resets more streams than the client's HTTP/2 puts up with: it says GOAWAY itself, and all streams
/// end.
#[tokio::test]
async fn a_connection_that_the_client_gives_up_is_one_that_breaks() {
    let hits = Arc::new(AtomicUsize::new(0));
    let hit = Arc::clone(&hits);
    let server = Server::start(|listener, _stop| async move {
        let (mut io, _) = listener.accept().await.unwrap();
        // Settings; and once there is a call, data of a stream that is none.
        io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let (mut so_far, mut buffer) = (0, [0; 4096]);
        while so_far < 150 {
            so_far += io.read(&mut buffer).await.unwrap();
        }
        io.write_all(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 7]).await.unwrap();
        hit.fetch_add(1, SeqCst);
        connection(listener.accept().await.unwrap().0, &[], hit).await;
    })
    .await;
    let layer = retry();
    let mut client = HealthClient::new(layer.layer(channel(&server)));
    soon(client.check(ask("x"))).await.unwrap();
    assert_eq!((hits.load(SeqCst), layer.handle().snapshot().attempts), (2, 2));
}

#[tokio::test]
async fn a_hedge_starts_the_next_attempt_by_the_same_rule() {
    for (ends, calls) in [(&[Reset(Reason::REFUSED_STREAM)][..], 2), (&[Reset(Reason::CANCEL)], 1)] {
        let (server, hits) = serve(ends).await;
        let layer = HedgeLayer::builder().after(Duration::from_secs(60)).budget(Budget::unlimited()).build().unwrap();
        let mut client = HealthClient::new(layer.layer(channel(&server)));
        assert_eq!((soon(client.check(ask("x"))).await.is_ok(), hits.load(SeqCst)), (calls == 2, calls), "{ends:?}");
    }
}

/// Of a stream that was refused nothing was done, so that a POST may be sent again.
#[tokio::test]
async fn a_stream_that_never_began_is_sent_again_whatever_its_method() {
    for (ends, made) in [(&[Reset(Reason::REFUSED_STREAM)][..], 2), (&[Reset(Reason::CANCEL)], 1)] {
        let (server, hits) = serve(ends).await;
        let request = Request::post(server.uri("/")).body(Full::new(Bytes::from("all of it"))).unwrap();
        let answer = soon(retry().layer(hyper(Version::H2)).oneshot(request)).await;
        assert_eq!((answer.is_ok(), hits.load(SeqCst)), (made == 2, made), "{ends:?}");
        if let Ok(answer) = answer {
            assert_eq!(answer.extensions().get(), Some(&Attempts { made: 2, stopped: Stopped::Succeeded }));
        }
    }
}
