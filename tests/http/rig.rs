//! Servers on loopback ports, clients of both versions, and the patience to wait for an outcome.

use std::{convert::Infallible, future::Future, net::SocketAddr, time::Duration};

use axum::Router;
use buttress::{Outcome, testing::OutcomesHandle};
use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How long a test waits for what must come. Reached only by a failure, so it may be long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    H1,
    /// With prior knowledge.
    H2,
}

pub(crate) const BOTH: [Version; 2] = [Version::H1, Version::H2];

pub(crate) type Hyper<B = Full<Bytes>> = Client<HttpConnector, B>;

/// hyper's pooling client. It has no timer of its own.
pub(crate) fn hyper<B: http_body::Body<Data: Send> + Send>(version: Version) -> Hyper<B> {
    let mut connector = HttpConnector::new();
    // Else a request's body may wait 40 ms for the acknowledgement of its head, and time is what these tests are about.
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).http2_only(version == Version::H2).build(connector)
}

/// A server on a loopback port.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

/// Resolves when a server shall stop.
pub(crate) type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Server {
    /// `run` serves until the given future is ready, and then until the last connection is closed.
    pub(crate) async fn start<F>(run: impl FnOnce(TcpListener, Stop) -> F) -> Server
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = Box::pin(async { stopped.await.unwrap_or(()) });
        Server { addr, stop, done: tokio::spawn(run(listener, stopped)) }
    }

    pub(crate) async fn axum(app: Router) -> Server {
        Self::start(|listener, stop| async {
            axum::serve(listener, app).with_graceful_shutdown(stop).await.unwrap();
        })
        .await
    }

    pub(crate) fn uri(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.addr).parse().unwrap()
    }

    /// Returns when every connection is closed: drop the clients before.
    pub(crate) async fn stop(self) {
        // A server that takes one connection may have ended by itself.
        let _ = self.stop.send(());
        soon(self.done).await.unwrap();
    }
}

/// A port on which nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// The first `n` outcomes, or more if there are more.
///
/// The other side books its end on a task of its own that tells nobody, hence the polling.
pub(crate) async fn seen(outcomes: &OutcomesHandle, n: usize) -> Vec<Outcome> {
    let mut seen = outcomes.take();
    let polled = timeout(PATIENCE, async {
        while seen.len() < n {
            sleep(Duration::from_millis(1)).await;
            seen.extend(outcomes.take());
        }
    });
    let in_time = polled.await.is_ok();
    assert!(in_time, "{n} outcomes expected, these came: {seen:?}");
    seen
}

/// What must come, but nobody knows when. A test that hangs fails by this.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it does not come")
}

/// A request body of nothing.
pub(crate) fn nothing() -> Full<Bytes> {
    Full::default()
}

/// The type of a handler's stream: chunks that do not fail.
pub(crate) fn chunk(text: &'static str) -> Result<Bytes, Infallible> {
    Ok(Bytes::from_static(text.as_bytes()))
}
