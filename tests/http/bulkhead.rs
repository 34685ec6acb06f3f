//! The bulkhead on real traffic: what holds a permit, and until when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use buttress::{BulkheadLayer, Key, Priority, Rejection};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    sync::{Notify, Semaphore},
    time::sleep,
};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tower::Layer;

use crate::{
    health::{Manners, ask, bare, channel, drain, layered},
    rig::{BOTH, Hyper, PATIENCE, Server, Version, chunk, hyper, nothing, soon},
};

fn layer(limit: usize, queue: usize) -> BulkheadLayer {
    BulkheadLayer::builder().limit(limit).queue(queue).wait(PATIENCE).build().unwrap()
}

async fn ask_for(client: &Hyper, server: &Server, path: &str) -> Response<Incoming> {
    let request = Request::get(server.uri(path)).body(nothing()).unwrap();
    soon(client.request(request)).await.unwrap()
}

/// The status, with the body read to its end.
async fn status(client: &Hyper, server: &Server, path: &str) -> u16 {
    let response = ask_for(client, server, path).await;
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

/// What the other side gives back, it gives back on a task of its own that tells nobody, hence the polling.
async fn in_flight(layer: &BulkheadLayer, expected: usize) {
    soon(async {
        while layer.handle().snapshot().in_flight != expected {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" })).route("/empty", get(|| async { StatusCode::NO_CONTENT }))
}

/// 112: a permit is a call's, not a connection's.
#[tokio::test]
async fn s112_a_hundred_idle_connections_hold_no_permit() {
    for version in BOTH {
        let layer = layer(1, 0);
        let server = Server::axum(hello().layer(layer.clone())).await;
        let clients: Vec<_> = (0..100).map(|_| hyper(version)).collect();
        for (n, client) in clients.iter().enumerate() {
            in_flight(&layer, 0).await;
            let path = if n % 2 == 0 { "/" } else { "/empty" };
            assert!(status(client, &server, path).await < 300, "{version:?}");
        }
        in_flight(&layer, 0).await;
        // They are still open.
        assert_eq!(status(&clients[0], &server, "/").await, 200);
        drop(clients);
        server.stop().await;
    }
}

/// A tenant that hangs with all that it may have, over as many connections as it likes, is not noticed by the others.
#[tokio::test]
async fn a_tenant_that_is_full_leaves_the_others_alone() {
    for version in BOTH {
        let tenant = Key::Header(http::HeaderName::from_static("tenant"));
        let layer = BulkheadLayer::builder().limit(3).per_key(tenant).build().unwrap();
        let leave = Arc::new(Semaphore::new(0));
        let leaves = Arc::clone(&leave);
        let app = hello().route("/hangs", get(move || async move { drop(leaves.acquire().await) }));
        let server = Server::axum(app.layer(layer.clone())).await;
        let ask = async |tenant: &str, path: &str| {
            let request = Request::get(server.uri(path)).header("tenant", tenant).body(nothing()).unwrap();
            let response = soon(hyper(version).request(request)).await.unwrap();
            let status = response.status().as_u16();
            response.into_body().collect().await.unwrap();
            status
        };
        let greedy = futures_util::future::join_all((0..20).map(|_| ask("greedy", "/hangs")));
        let others = async {
            in_flight(&layer, 3).await;
            for n in 0..20 {
                assert_eq!(ask(&format!("polite {n}"), "/").await, 200, "{version:?}");
            }
            // Each of the greedy one's calls has come: three run, the rest was refused.
            soon(async {
                while layer.handle().snapshot().rejected < 17 {
                    sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            leave.add_permits(3);
        };
        let (statuses, ()) = tokio::join!(greedy, others);
        assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 3, "{version:?}");
        assert_eq!(statuses.iter().filter(|s| **s == 503).count(), 17, "{version:?}");
        assert_eq!(status(&hyper(version), &server, "/").await, 429, "it names no tenant");
        in_flight(&layer, 0).await;
        assert_eq!(layer.handle().snapshot().keys, 21);
    }
}

/// 111, for a limit: axum makes a service of the layer for each route and each connection.
#[tokio::test]
async fn s111_fifty_connections_share_one_limit() {
    for version in BOTH {
        let (layer, entered, leave) = (layer(10, 0), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (enters, leaves) = (Arc::clone(&entered), Arc::clone(&leave));
        let hangs = move || async move {
            enters.fetch_add(1, SeqCst);
            leaves.notified().await;
        };
        let server = Server::axum(Router::new().route("/", get(hangs)).layer(layer.clone())).await;
        let clients: Vec<_> = (0..50).map(|_| hyper(version)).collect();
        let mut calls: stream::FuturesUnordered<_> = clients.iter().map(|c| status(c, &server, "/")).collect();
        for _ in 0..40 {
            assert_eq!(soon(calls.next()).await, Some(503), "{version:?}");
        }
        assert_eq!((layer.handle().snapshot().in_flight, entered.load(SeqCst)), (10, 10));
        leave.notify_waiters();
        while let Some(status) = soon(calls.next()).await {
            assert_eq!(status, 200);
        }
        in_flight(&layer, 0).await;
    }
}

#[tokio::test]
async fn a_call_waits_and_goes_in_on_both_versions() {
    for version in BOTH {
        let (layer, entered, leave) = (layer(1, 1), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (enters, leaves) = (Arc::clone(&entered), Arc::clone(&leave));
        let slow = move || async move {
            enters.notify_one();
            leaves.notified().await;
            "slow"
        };
        let server = Server::axum(hello().route("/slow", get(slow)).layer(layer.clone())).await;
        let client = hyper(version);
        let runs = status(&client, &server, "/slow");
        let rest = async {
            soon(entered.notified()).await;
            let waits = status(&client, &server, "/");
            let ends = async {
                soon(async {
                    while layer.handle().snapshot().waiting == 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                })
                .await;
                assert_eq!(status(&client, &server, "/").await, 503);
                leave.notify_one();
            };
            tokio::join!(waits, ends).0
        };
        assert_eq!(tokio::join!(runs, rest), (200, 200), "{version:?}");
    }
}

/// It ends when its last chunk is out, or when its reader has left.
#[tokio::test]
async fn a_streaming_response_holds_its_permit() {
    for version in BOTH {
        let (layer, go_on) = (layer(1, 0), Arc::new(Notify::new()));
        let next = Arc::clone(&go_on);
        let streams = move || async move {
            let chunks = stream::iter(["one", "two", "three"]).then(move |text| {
                let next = Arc::clone(&next);
                async move {
                    next.notified().await;
                    chunk(text)
                }
            });
            Body::from_stream(chunks)
        };
        let server = Server::axum(Router::new().route("/", get(streams)).layer(layer.clone())).await;
        let (client, other) = (hyper(version), hyper(version));
        for reads_all in [true, false] {
            let mut body = ask_for(&client, &server, "/").await.into_body();
            for n in 1..=3 {
                let refused = ask_for(&other, &server, "/").await;
                assert_eq!(refused.status(), 503, "{version:?}, before chunk {n}");
                go_on.notify_one();
                soon(body.frame()).await.unwrap().unwrap();
                if !reads_all {
                    break;
                }
            }
            if reads_all {
                assert!(soon(body.collect()).await.unwrap().to_bytes().is_empty());
            } else {
                drop(body);
            }
            // The server may see that its reader has left only when it has something to say.
            go_on.notify_one();
            in_flight(&layer, 0).await;
            // A permit of that kind may be left over.
            let _ = tokio::time::timeout(Duration::ZERO, go_on.notified()).await;
        }
    }
}

/// As much as its reader takes, chunk after chunk.
fn endless() -> Router {
    let chunks = || stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 16_384])));
    Router::new().route("/", get(move || async move { Body::from_stream(chunks()) }))
}

/// Flow control stops the server: nothing is polled, nothing ends.
#[tokio::test]
async fn a_reader_that_stalls_loses_its_permit_after_the_lease() {
    for version in BOTH {
        let lease = Duration::from_secs(1);
        let layer = BulkheadLayer::builder().limit(1).permit_lease(lease).build().unwrap();
        let server = Server::axum(endless().layer(layer.clone())).await;
        let client = hyper(version);
        let mut stalls = ask_for(&client, &server, "/").await.into_body();
        soon(stalls.frame()).await.unwrap().unwrap();
        let other = hyper(version);
        let early = ask_for(&other, &server, "/").await;
        assert_eq!((early.status(), layer.handle().snapshot().permits_expired), (StatusCode::SERVICE_UNAVAILABLE, 0));
        // The lease is the subject. While the window of the connection fills, frames are handed out, so it may be
        // later.
        let admitted = soon(async {
            loop {
                sleep(lease / 10).await;
                let response = ask_for(&other, &server, "/").await;
                if response.status() == 200 {
                    return response;
                }
            }
        })
        .await;
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.in_flight, snapshot.permits_expired), (1, 1), "{version:?}");
        // It may read on, and its end gives nothing back that is not its own.
        soon(stalls.frame()).await.unwrap().unwrap();
        drop(stalls);
        drop(client);
        sleep(Duration::from_millis(50)).await;
        assert!(layer.handle().snapshot().in_flight <= 1);
        drop(admitted);
        drop(other);
        in_flight(&layer, 0).await;
    }
}

/// On a server and on a client, whose permits last to the trailers.
#[tokio::test]
async fn grpc_streams_hold_their_permits_to_the_trailers() {
    for on_server in [true, false] {
        let (layer, manners) = (layer(1, 0), Manners::default());
        let server = if on_server { layered!(tonic, manners, layer.clone()) } else { bare(&manners).await };
        let other = self::layer(100, 0);
        let mut client = HealthClient::new(if on_server { &other } else { &layer }.layer(channel(&server)));
        assert_eq!(soon(client.check(ask("ok"))).await.unwrap().into_inner().status, 1);
        in_flight(&layer, 0).await;
        let stream = soon(client.watch(ask("hangs"))).await.unwrap().into_inner();
        let refused = soon(client.check(ask("ok"))).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "too many calls are in flight"));
        drop(stream);
        in_flight(&layer, 0).await;
        let stream = soon(client.watch(ask("ok"))).await.unwrap().into_inner();
        assert_eq!(drain(stream).await, (3, Ok(())));
        in_flight(&layer, 0).await;
        // A status at the head ends it there.
        assert_eq!(soon(client.check(ask(5))).await.unwrap_err().code(), Code::NotFound);
        in_flight(&layer, 0).await;
    }
}

/// In the router: a handler further out says what matters, and nobody from outside.
#[tokio::test]
async fn a_priority_rides_in_the_extensions() {
    let layer = layer(1, 1);
    let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (enters, leaves) = (Arc::clone(&entered), Arc::clone(&leave));
    let slow = move || async move {
        enters.notify_one();
        leaves.notified().await;
    };
    let ranked = axum::middleware::map_request(|mut request: axum::extract::Request| async {
        let pays = request.uri().path() == "/pay";
        request.extensions_mut().insert(if pays { Priority::Critical } else { Priority::Sheddable });
        request
    });
    let refused = axum::middleware::map_response(|response: Response<Body>| async {
        let reason = Rejection::in_response(&response).map(|r| r.reason().as_str());
        let mut response = response;
        response.headers_mut().extend(reason.map(|r| (http::HeaderName::from_static("x-reason"), r.parse().unwrap())));
        response
    });
    let app =
        Router::new().route("/slow", get(slow)).route("/pay", get(|| async {})).route("/browse", get(|| async {}));
    let server = Server::axum(app.layer(layer.clone()).layer(refused).layer(ranked)).await;
    let client = hyper(Version::H2);
    let runs = status(&client, &server, "/slow");
    let waiting = || async {
        while layer.handle().snapshot().waiting == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let others = async {
        soon(entered.notified()).await;
        let browses = ask_for(&client, &server, "/browse");
        let pays = async {
            soon(waiting()).await;
            let ends = async {
                // As soon as it has taken the other one's place.
                soon(async {
                    while layer.handle().snapshot().rejected == 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                })
                .await;
                leave.notify_one();
            };
            tokio::join!(status(&client, &server, "/pay"), ends).0
        };
        tokio::join!(browses, pays)
    };
    let (slow, (browses, pays)) = tokio::join!(runs, others);
    assert_eq!((slow, browses.status().as_u16(), pays), (200, 503, 200));
    assert_eq!(browses.headers()["x-reason"], "shed_by_priority");
}
