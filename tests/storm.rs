//! A retry storm, and what a budget makes of it: many clients, each with a layer of its own, none of which knows of the
//! others. In virtual time.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use buttress::{Budget, HedgeLayer, RetryLayer, TimeoutLayer};
use tokio::{
    sync::Semaphore,
    time::{Instant, interval, sleep, sleep_until},
};
use tower::{Layer, Service, ServiceExt, service_fn};

const CLIENTS: u64 = 100;
/// 20 calls a second.
const EVERY: Duration = Duration::from_millis(50);
const SECONDS: usize = 30;
/// The backend fails from here to there.
const OUTAGE: std::ops::Range<usize> = 10..20;

/// It answers in 5 ms, if it answers.
#[derive(Clone)]
struct Backend {
    start: Instant,
    /// Attempts in each second.
    attempts: Arc<Mutex<[u64; SECONDS + 10]>>,
}

#[derive(Debug)]
struct Away;

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("away")
    }
}

impl std::error::Error for Away {}

impl Backend {
    fn second(&self) -> usize {
        self.start.elapsed().as_secs() as usize
    }
}

impl Service<()> for Backend {
    type Response = ();
    type Error = Away;
    type Future = Pin<Box<dyn Future<Output = Result<(), Away>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Away>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let backend = self.clone();
        backend.attempts.lock().unwrap()[backend.second()] += 1;
        Box::pin(async move {
            sleep(Duration::from_millis(5)).await;
            if OUTAGE.contains(&backend.second()) { Err(Away) } else { Ok(()) }
        })
    }
}

/// Attempts, and successful calls, by the second in which they began.
struct Seen {
    attempts: Vec<u64>,
    successes: Vec<u64>,
}

const CALLS: u64 = CLIENTS * 20;

async fn storm(budget: impl Fn() -> Budget) -> Seen {
    fastrand::seed(7);
    let backend = Backend { start: Instant::now(), attempts: Arc::new(Mutex::new([0; SECONDS + 10])) };
    let successes = Arc::new(Mutex::new(vec![0; SECONDS]));
    let clients = (0..CLIENTS).map(|n| {
        let service = RetryLayer::builder().budget(budget()).build().unwrap().plain().layer(backend.clone());
        let (backend, successes) = (backend.clone(), Arc::clone(&successes));
        tokio::spawn(async move {
            // Not all at once.
            sleep(EVERY.mul_f64(n as f64 / CLIENTS as f64)).await;
            let mut beat = interval(EVERY);
            let mut calls = Vec::new();
            for _ in 0..SECONDS * 20 {
                beat.tick().await;
                let (call, successes, second) = (service.clone().oneshot(()), Arc::clone(&successes), backend.second());
                calls.push(tokio::spawn(async move {
                    if call.await.is_ok() {
                        successes.lock().unwrap()[second.min(SECONDS - 1)] += 1;
                    }
                }));
            }
            for call in calls {
                call.await.unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let attempts = backend.attempts.lock().unwrap()[..SECONDS].to_vec();
    let successes = successes.lock().unwrap().clone();
    Seen { attempts, successes }
}

#[tokio::test(start_paused = true)]
async fn with_the_default_budget_an_outage_is_not_a_storm() {
    let seen = storm(Budget::default).await;
    let in_outage: u64 = seen.attempts[OUTAGE].iter().sum();
    let calls = CALLS * OUTAGE.len() as u64;
    assert!(in_outage * 10 <= calls * 13, "{in_outage} attempts for {calls} calls");
    // In no second is it more than that either, once what was saved up is used.
    assert!(seen.attempts[OUTAGE.start + 3..].iter().all(|n| *n <= CALLS * 13 / 10), "{:?}", seen.attempts);
    // Normal again within two seconds.
    assert!(seen.successes[OUTAGE.end + 2..SECONDS - 1].iter().all(|n| *n == CALLS), "{:?}", seen.successes);
    assert!(seen.attempts[OUTAGE.end + 2..SECONDS - 1].iter().all(|n| *n == CALLS), "{:?}", seen.attempts);
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_it_is() {
    let seen = storm(Budget::unlimited).await;
    let in_outage: u64 = seen.attempts[OUTAGE].iter().sum();
    let calls = CALLS * OUTAGE.len() as u64;
    assert!(in_outage * 10 > calls * 28, "{in_outage} attempts for {calls} calls");
}

/// A backend that is busy and well, until somebody adds too much: 16 workers that take 50 ms in the mean and end what
/// they have begun, whoever has left, at 85 % of what they can do. A hedge sends to it what its budget allows, and what
/// is slow then makes more hedges: with a retry's budget of a fifth it would never get out of that again.
#[tokio::test(start_paused = true)]
async fn a_hedge_by_its_defaults_does_not_drown_a_busy_backend() {
    fastrand::seed(1);
    let workers = Arc::new(Semaphore::new(16));
    let backend = service_fn(move |takes: Duration| {
        let workers = Arc::clone(&workers);
        let work = async move {
            let _worker = workers.acquire().await.expect("it is not closed");
            sleep(takes).await;
        };
        async { tokio::spawn(work).await.map_err(|_| Away) }
    });
    let hedge = HedgeLayer::builder().quantile(0.95).build().expect("valid").boxed();
    let attempt = TimeoutLayer::builder().after(Duration::from_millis(500)).build().expect("valid").boxed();
    // The second attempt takes as long as that takes, and not as the first one.
    let service = hedge.clone().clone_with(|_| Some(exponential(0.05))).layer(attempt.layer(backend));
    let (start, mut next) = (Instant::now(), Instant::now());
    let mut last_minute = Vec::new();
    while start.elapsed() < Duration::from_secs(180) {
        next += exponential(1.0 / (0.85 * 320.0));
        sleep_until(next).await;
        let call = tokio::spawn(service.clone().oneshot(exponential(0.05)));
        if start.elapsed() > Duration::from_secs(120) {
            last_minute.push(call);
        }
    }
    let (all, mut good) = (last_minute.len(), 0);
    for call in last_minute {
        good += usize::from(call.await.expect("no panic").is_ok());
    }
    let figures = hedge.handle().snapshot();
    let extra = figures.hedges as f64 / figures.calls as f64;
    assert!(good * 100 > all * 99 && extra < 0.06, "{good} of {all}, with {extra:.2} more attempts");
}

/// In seconds.
fn exponential(mean: f64) -> Duration {
    Duration::from_secs_f64(-mean * (1.0 - fastrand::f64()).ln())
}
