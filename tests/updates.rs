//! Two updates at once: one of them is the last. A mixture would be a configuration that nobody gave, and perhaps none
//! that `build()` takes.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use buttress::{
    Backoff, BulkheadConfig, BulkheadLayer, HedgeConfig, HedgeLayer, RetryConfig, RetryLayer, TimeoutConfig,
    TimeoutLayer, Until,
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Both go on at once, to within nanoseconds: the window in which two updates could mix is no wider.
fn meet(arrived: &AtomicUsize, round: usize) {
    arrived.fetch_add(1, SeqCst);
    let mut looks = 0_u32;
    while arrived.load(SeqCst) < 2 * round {
        looks += 1;
        if looks.is_multiple_of(1_000) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

fn one_is_the_last<C>(make: impl Fn(u32) -> C, update: impl Fn(C) + Sync, last: impl Fn() -> C + Sync)
where
    C: Copy + PartialEq + Debug + Send + Sync,
{
    let configs = [make(1), make(50)];
    let arrived = AtomicUsize::new(0);
    let run = |own: usize| {
        for round in 0..20_000 {
            meet(&arrived, 2 * round + 1);
            update(configs[own]);
            meet(&arrived, 2 * round + 2);
            if own == 0 && !configs.contains(&last()) {
                return Some(last());
            }
        }
        None
    };
    let mixed = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let mixed = run(0);
        // Lets the other one go.
        arrived.fetch_add(1 << 20, SeqCst);
        other.join().unwrap();
        mixed
    });
    assert_eq!(mixed, None);
}

#[test]
fn retry() {
    let handle = RetryLayer::builder().build().unwrap().handle();
    let make = |n: u32| RetryConfig {
        attempts: n,
        backoff: Backoff::Linear { step: ms(n.into()), max: ms(n.into()) },
        max_hint: ms(n.into()),
        peek: Some(ms(n.into())),
    };
    one_is_the_last(make, |config| handle.update(config).unwrap(), || handle.snapshot().config);
}

#[test]
fn hedge() {
    let handle = HedgeLayer::builder().quantile(0.9).build().unwrap().handle();
    let make = |n: u32| HedgeConfig {
        quantile: Some(f64::from(n) / 100.0),
        minimum_samples: n,
        max: n.min(3),
        ..handle.snapshot().config
    };
    one_is_the_last(make, |config| handle.update(config).unwrap(), || handle.snapshot().config);
}

#[test]
fn bulkhead() {
    let handle = BulkheadLayer::builder().limit(1).build().unwrap().handle();
    let make = |n: u32| BulkheadConfig {
        limit: n as usize,
        queue: n as usize,
        wait: ms(n.into()),
        permit_lease: ms(n.into()),
    };
    one_is_the_last(make, |config| handle.update(config).unwrap(), || handle.snapshot().config);
}

#[test]
fn timeout() {
    let handle = TimeoutLayer::builder().after(ms(1)).build().unwrap().handle();
    let make = |n: u32| TimeoutConfig {
        after: Some(ms(n.into())),
        until: if n == 1 { Until::Head } else { Until::End },
        idle: Some(ms(n.into())),
    };
    one_is_the_last(make, |config| handle.update(config).unwrap(), || handle.snapshot().config);
}
