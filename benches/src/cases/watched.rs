//! What being watched costs: `metrics` and `tracing` compiled in, and a recorder installed. Only with the feature
//! `watched`; the same cases without it are in the groups of their policies, in a build without it.
//!
//! The recorder has the storage of the Prometheus exporter, for that is what a call writes to. The exporter itself
//! reads the clock in a loop while it starts, which is some millions of instructions more in one run than in another.

use std::sync::Once;

use buttress::{BulkheadLayer, CircuitBreakerLayer, Quota, RateLimitLayer, Registry, RetryLayer, TimeoutLayer};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{GenerationalAtomicStorage, Registry as Storage};
use tower::Layer;

use crate::{
    case::{Case, Judge},
    cases::bare::{self, Bare},
    drive::{http, plain},
};

/// More than the same case without, for counters and gauges.
const MORE: f64 = 40.0;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("watched/breaker count100", || plain(breaker().plain().layer(Bare)))
            .judged(Judge::AtMost(106.0 + MORE))
            .on_threads(),
        Case::new("watched/breaker count100 http", || http(breaker().layer(Bare), bare::http_request)).over(bare::HTTP),
        Case::new("watched/bulkhead", || plain(bulkhead().plain().layer(Bare)))
            .judged(Judge::AtMost(118.0 + MORE))
            .on_threads(),
        Case::new("watched/bulkhead http", || http(bulkhead().layer(Bare), bare::http_request)).over(bare::HTTP),
        Case::new("watched/rate", || plain(rate().plain().layer(Bare))).judged(Judge::AtMost(229.0 + MORE)),
        Case::new("watched/retry", || plain(retry().plain().layer(Bare))).judged(Judge::AtMost(127.5 + MORE)),
        Case::new("watched/timeout", || plain(timeout().plain().layer(Bare))).judged(Judge::AtMost(104.0 + MORE)),
    ]
}

fn breaker() -> CircuitBreakerLayer {
    install();
    let registry = Registry::new();
    let builder = CircuitBreakerLayer::builder().name("db").count_window(100).registry(&registry);
    builder.build().expect("a valid configuration")
}

fn bulkhead() -> BulkheadLayer {
    install();
    BulkheadLayer::builder().name("db").limit(100).build().expect("a valid configuration")
}

fn rate() -> RateLimitLayer {
    install();
    let quota = Quota::per_second(1_000_000_000);
    RateLimitLayer::builder().name("db").quota(quota).build().expect("a valid configuration")
}

fn retry() -> RetryLayer {
    install();
    RetryLayer::builder().name("db").build().expect("a valid configuration")
}

fn timeout() -> TimeoutLayer {
    install();
    let hour = std::time::Duration::from_secs(3600);
    TimeoutLayer::builder().name("db").after(hour).build().expect("a valid configuration")
}

/// One recorder a process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let storage = Storage::new(GenerationalAtomicStorage::atomic());
        assert!(metrics::set_global_recorder(Stores(storage)).is_ok(), "it is the first recorder");
    });
}

struct Stores(Storage<Key, GenerationalAtomicStorage>);

impl Recorder for Stores {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.0.get_or_create_counter(key, |c| c.clone().into())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.0.get_or_create_gauge(key, |g| g.clone().into())
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.0.get_or_create_histogram(key, |h| h.clone().into())
    }
}
