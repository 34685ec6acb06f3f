//! The gauges of layers that are gone. By itself: whoever publishes shows what is left of all layers of the process.

use std::{collections::BTreeMap, time::Duration};

use buttress::{
    BulkheadLayer, CircuitBreakerLayer, RetryLayer, TimeoutLayer, observe::metrics::publish, testing::Probe,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tower::{Layer, ServiceExt};

/// The gauges of a layer that are not 0.
fn set(handle: &PrometheusHandle, name: &str) -> BTreeMap<String, f64> {
    let text = handle.render();
    let counted = ["_total{", "_count{", "_sum{", "quantile="];
    let lines = text.lines().filter(|line| line.contains(&format!("name=\"{name}\"")));
    let gauges = lines.filter(|line| !counted.iter().any(|part| line.contains(part)));
    let gauges =
        gauges.map(|line| line.rsplit_once(' ').unwrap()).map(|(key, value)| (key.into(), value.parse().unwrap()));
    gauges.filter(|(_, value)| *value != 0.0).collect()
}

/// Runs under a recorder of its own, with a paused clock.
fn runs(test: impl AsyncFnOnce(PrometheusHandle)) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(test(recorder.handle())));
}

#[test]
fn gauges_of_a_layer_that_is_gone_are_zero() {
    runs(async |handle| {
        let probe = Probe::new();
        probe.hangs();
        let wall = || BulkheadLayer::builder().name("wall").limit(7).build().unwrap().plain();
        let first = wall();
        let breaker = CircuitBreakerLayer::builder().name("breaker").build().unwrap().plain();
        let retry = RetryLayer::builder().name("retry").build().unwrap();
        let timeout =
            TimeoutLayer::builder().name("timeout").after(Duration::from_secs(1)).shadow(true).build().unwrap();
        // Called and never published: the state is shown all the same.
        let called = CircuitBreakerLayer::builder().name("called").build().unwrap().plain();
        let unknown = BulkheadLayer::builder().name("unknown").limit(7).build().unwrap();
        drop(unknown);
        let call = tokio::spawn(first.layer(probe.clone()).oneshot(()));
        tokio::task::yield_now().await;
        publish();
        called.layer(Probe::new()).oneshot(()).await.unwrap();
        for name in ["wall", "breaker", "retry", "timeout", "called"] {
            assert!(!set(&handle, name).is_empty(), "{name}");
        }

        // As long as a call runs, its layer lives.
        drop((first, breaker, retry, timeout, called));
        publish();
        for name in ["breaker", "retry", "timeout", "called"] {
            assert_eq!(set(&handle, name), BTreeMap::new());
        }
        let seen = |key: &str| {
            set(&handle, "wall").get(&format!("buttress_{key}{{policy=\"bulkhead\",name=\"wall\"}}")).copied()
        };
        assert_eq!((seen("in_flight"), seen("limit")), (Some(1.0), Some(7.0)));
        call.abort();
        let _ = call.await;
        publish();
        assert_eq!(set(&handle, "wall"), BTreeMap::new());
        // What nobody has ever seen does not come to be seen by that.
        assert!(!handle.render().contains("unknown"));

        // Another one of that name has them, whenever it came.
        let (first, second) = (wall(), wall());
        publish();
        drop(first);
        publish();
        assert_eq!(seen("limit"), Some(7.0));
        drop(second);
        let third = wall();
        publish();
        assert_eq!(seen("limit"), Some(7.0));
        drop(third);
        // Of many that have gone before they grow, too.
        let many: Vec<_> =
            (0..1_000).map(|_| BulkheadLayer::builder().name("many").limit(1).build().unwrap()).collect();
        publish();
        assert_eq!((seen("limit"), set(&handle, "many").len()), (None, 2));
        drop(many);
        let more: Vec<_> =
            (0..3_000).map(|_| BulkheadLayer::builder().name("more").limit(1).build().unwrap()).collect();
        publish();
        assert_eq!((set(&handle, "many").len(), more.len()), (0, 3_000));
    });
}
