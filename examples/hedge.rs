//! A backend of which every hundredth call is slow, over real sockets: what the slowest calls take with a hedge and
//! without, and what that costs the backend.
#![allow(clippy::disallowed_methods, reason = "the rule is for the library")]

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, http::Request, routing::get};
use buttress::{BoxError, Budget, HedgeLayer};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceExt};

const CALLS: u64 = 4_000;
const AT_ONCE: u64 = 16;
const QUICK: Duration = Duration::from_millis(2);
const SLOW: Duration = Duration::from_millis(200);

type Body = Empty<Bytes>;

/// What came of one run.
struct Run {
    /// Sorted.
    took: Vec<Duration>,
    /// Calls that the backend saw.
    attempts: u64,
}

impl Run {
    /// What all but this share of the calls stayed below.
    fn above(&self, share: f64) -> f64 {
        let n = self.took.len();
        self.took[n - 1 - (n as f64 * share) as usize + usize::from(share > 0.0)].as_secs_f64() * 1_000.0
    }

    fn print(&self, name: &str) {
        let extra = self.attempts as f64 / CALLS as f64 * 100.0 - 100.0;
        let [p50, p99, p999, most] = [0.5, 0.01, 0.001, 0.0].map(|share| self.above(share));
        println!("{name:<10} {p50:>8.1} {p99:>8.1} {p999:>8.1} {most:>8.1} {:>8} {extra:>6.1} %", self.attempts);
    }
}

/// `AT_ONCE` clients that make one call after the other.
async fn run<S, B>(service: S, uri: String, seen: &AtomicU64) -> Result<Run, BoxError>
where
    S: Service<Request<Body>, Response = axum::http::Response<B>, Error: Into<BoxError>> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send,
{
    seen.store(0, Relaxed);
    let mut clients = Vec::new();
    for _ in 0..AT_ONCE {
        let (service, uri) = (service.clone(), uri.clone());
        clients.push(tokio::spawn(async move {
            let mut took = Vec::new();
            for _ in 0..CALLS / AT_ONCE {
                let request = Request::get(&uri).body(Body::new())?;
                let started = Instant::now();
                let response = service.clone().oneshot(request).await.map_err(Into::into)?;
                response.into_body().collect().await.map_err(Into::into)?;
                took.push(started.elapsed());
            }
            Ok::<_, BoxError>(took)
        }));
    }
    let mut took = Vec::new();
    for client in clients {
        took.extend(client.await??);
    }
    took.sort_unstable();
    Ok(Run { took, attempts: seen.load(Relaxed) })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let seen = Arc::new(AtomicU64::new(0));
    let see = Arc::clone(&seen);
    let answer = move || {
        let takes = if see.fetch_add(1, Relaxed) % 100 == 50 { SLOW } else { QUICK };
        async move {
            sleep(takes).await;
            "well"
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let uri = format!("http://{}/", listener.local_addr()?);
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(answer))).await });

    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build(connector);
    let hedge = HedgeLayer::builder()
        .name("search")
        .quantile(0.97)
        .budget(Budget::new(0.05, 1, Duration::from_secs(10))?)
        .build()?;

    // Connections are made before anything is measured.
    run(client.clone(), uri.clone(), &seen).await?;
    let without = run(client.clone(), uri.clone(), &seen).await?;
    let with = run(hedge.layer(client), uri, &seen).await?;
    server.abort();

    println!("{CALLS} calls, {AT_ONCE} at once; one in a hundred takes {SLOW:?}, the others {QUICK:?}");
    println!(
        "{:<10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "backend", "extra"
    );
    without.print("not hedged");
    with.print("hedged");
    let figures = hedge.handle().snapshot();
    println!(
        "{} second attempts, {} of them answered first; {} not in the budget",
        figures.hedges, figures.won, figures.stopped_by_budget
    );
    let extra = with.attempts as f64 / CALLS as f64 * 100.0 - 100.0;
    println!("hedge: p99 ratio {:.2}, extra load {extra:.1}%", with.above(0.01) / without.above(0.01));
    Ok(())
}
