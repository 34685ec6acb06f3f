//! One outage, two fleets of clients: what three attempts a call do to a backend that is down, and what a budget makes
//! of it. In virtual time, so a minute takes a moment.
#![allow(clippy::disallowed_methods, reason = "the rule is for the library")]

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress::{Budget, RetryLayer};
use tokio::time::{Instant, interval, sleep};
use tower::{Layer, ServiceExt, service_fn};

const CLIENTS: u64 = 50;
/// Calls a second, of each client.
const CALLS: u64 = 20;
const SECONDS: u64 = 18;
const OUTAGE: std::ops::Range<u64> = 5..13;

#[derive(Debug)]
struct Away;

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the backend is away")
    }
}

impl std::error::Error for Away {}

/// Attempts that reach the backend in each second, of clients that each make so many calls a second.
async fn attempts(budget: fn() -> Budget) -> Result<Vec<u64>, buttress::ConfigError> {
    let start = Instant::now();
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..SECONDS + 2).map(|_| AtomicU64::new(0)).collect());
    let mut fleet = Vec::new();
    for _ in 0..CLIENTS {
        let seen = Arc::clone(&seen);
        let backend = service_fn(move |(): ()| {
            let second = start.elapsed().as_secs();
            seen[second as usize].fetch_add(1, Relaxed);
            async move {
                sleep(Duration::from_millis(5)).await;
                if OUTAGE.contains(&second) { Err(Away) } else { Ok(()) }
            }
        });
        // Each client has a layer and a budget of its own, and knows nothing of the others.
        let retry = RetryLayer::builder().budget(budget()).build()?.plain();
        let service = retry.layer(backend);
        fleet.push(tokio::spawn(async move {
            let mut beat = interval(Duration::from_secs(1) / CALLS as u32);
            for _ in 0..SECONDS * CALLS {
                beat.tick().await;
                let call = service.clone().oneshot(());
                tokio::spawn(async move { call.await.is_ok() });
            }
        }));
    }
    for client in fleet {
        let _ = client.await;
    }
    Ok(seen.iter().map(|n| n.load(Relaxed)).collect())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), buttress::ConfigError> {
    let storm = attempts(Budget::unlimited).await?;
    let calm = attempts(Budget::default).await?;
    println!("{} calls a second; the backend is away from second {} to {}.", CLIENTS * CALLS, OUTAGE.start, OUTAGE.end);
    println!("second   attempts without a budget                 with the default one");
    for second in 0..SECONDS as usize {
        let bar = |n: u64| "#".repeat((n / 100) as usize);
        let (without, with) = (storm[second], calm[second]);
        println!("{second:>6}   {without:>5} {:<32} {with:>5} {}", bar(without), bar(with));
    }
    let in_outage = |seen: &[u64]| seen[OUTAGE.start as usize..OUTAGE.end as usize].iter().sum::<u64>() as f64;
    let calls = (CLIENTS * CALLS * (OUTAGE.end - OUTAGE.start)) as f64;
    println!("amplification in the outage: {:.2} and {:.2}", in_outage(&storm) / calls, in_outage(&calm) / calls);
    Ok(())
}
