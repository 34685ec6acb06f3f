//! The callers: so many at once, each waiting for its answer and then a little.
#![allow(clippy::disallowed_methods, reason = "latencies are what it is about")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{task::JoinSet, time::Instant};

use crate::edge::CLIENT;

pub(crate) const CALLERS: u64 = 32;
/// Articles that are asked for in turn.
const ARTICLES: u64 = 20;

/// What came of a number of calls.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) ok: u64,
    pub(crate) degraded: u64,
    /// 429: it asked for more than its quota.
    pub(crate) limited: u64,
    /// Anything else: an error, whatever its status.
    pub(crate) failed: u64,
    /// In microseconds, of all, sorted.
    latencies: Vec<u64>,
}

impl Seen {
    pub(crate) fn requests(&self) -> u64 {
        self.ok + self.degraded + self.limited + self.failed
    }

    /// In milliseconds.
    pub(crate) fn percentile(&self, p: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * p).ceil() as usize;
        let micros = self.latencies.get(rank.max(1) - 1).copied().unwrap_or_default();
        micros as f64 / 1e3
    }
}

#[derive(Clone)]
pub(crate) struct Callers {
    client: Client<HttpConnector, Empty<Bytes>>,
    gateway: SocketAddr,
    /// All of them are one client, of this name; else each is one of its own.
    name: Option<&'static str>,
}

impl Callers {
    pub(crate) fn new(gateway: SocketAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Callers { client: Client::builder(TokioExecutor::new()).build(connector), gateway, name: None }
    }

    /// The same callers, all in the name of one client.
    pub(crate) fn named(&self, name: &'static str) -> Self {
        Callers { name: Some(name), ..self.clone() }
    }

    /// Makes `calls` calls. `progress` is told of each hundred.
    pub(crate) async fn run(&self, calls: u64, pause: Duration, progress: impl Fn(u64)) -> Seen {
        let next = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (own, next) = (self.clone(), Arc::clone(&next));
            let name = own.name.map_or_else(|| format!("caller-{caller}"), str::to_owned);
            callers.spawn(async move {
                let mut seen = Seen::default();
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= calls {
                        return seen;
                    }
                    own.call(n, &name, &mut seen).await;
                    tokio::time::sleep(pause).await;
                }
            });
        }
        let mut all = Seen::default();
        let mut reports = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                caller = callers.join_next() => match caller {
                    Some(Ok(seen)) => all.add(seen),
                    Some(Err(e)) => eprintln!("a caller died: {e}"),
                    None => break,
                },
                _ = reports.tick() => progress(next.load(Relaxed).min(calls)),
            }
        }
        all
    }

    async fn call(&self, n: u64, name: &str, seen: &mut Seen) {
        let start = Instant::now();
        let article = n % ARTICLES;
        let uri = format!("http://{}/offers/{article}", self.gateway);
        let answer = async {
            let request = Request::get(uri).header(CLIENT, name).body(Empty::new())?;
            let response = self.client.request(request).await?;
            let kind = (response.status(), response.headers().contains_key("x-degraded"));
            // The whole answer, or it was none.
            response.into_body().collect().await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(kind)
        };
        match answer.await {
            Ok((StatusCode::OK, false)) => seen.ok += 1,
            Ok((StatusCode::OK, true)) => seen.degraded += 1,
            Ok((StatusCode::TOO_MANY_REQUESTS, _)) => seen.limited += 1,
            _ => seen.failed += 1,
        }
        seen.latencies.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}

impl Seen {
    pub(crate) fn add(&mut self, other: Seen) {
        self.ok += other.ok;
        self.degraded += other.degraded;
        self.limited += other.limited;
        self.failed += other.failed;
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable();
    }
}
