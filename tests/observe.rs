//! Events, streams, metrics and `tracing`: what every policy tells, and that telling harms nobody.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress::{
    AdaptiveRateLayer, Backoff, Budget, BulkheadLayer, CircuitBreakerLayer, Deadline, DeadlineLayer, Error,
    FallbackLayer, HedgeLayer, Key, OpenTime, Quota, RateLimitLayer, Reason, Registry, RetryLayer, TimeoutLayer,
    observe::{self, Event, Kind, Streamed, metrics::publish},
    testing::{Probe, ProbeError},
};
use futures_util::FutureExt;
use metrics::{Counter, Gauge, Histogram, Key as MetricKey, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tower::{Layer, ServiceBuilder, ServiceExt};

// === the rig ===

/// Runs on one thread, with a paused clock, under a recorder of its own. (The one for all can be installed once a
/// process, and these tests share one.)
fn recorded<F: Future>(test: impl FnOnce(PrometheusHandle) -> F) {
    let recorder = PrometheusBuilder::new().build_recorder();
    recorded_by(&recorder, test);
}

fn recorded_by<F: Future>(recorder: &PrometheusRecorder, test: impl FnOnce(PrometheusHandle) -> F) {
    listen();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(recorder, || runtime.block_on(test(recorder.handle())));
}

/// Every series of a render, as `name{label="value",..}` with its labels in order, and its value.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').map_or((series, ""), |(n, l)| (n, l.trim_end_matches('}')));
            let labels: BTreeSet<_> = labels.split(',').filter(|l| !l.is_empty()).collect();
            let labels: Vec<_> = labels.into_iter().collect();
            (format!("{name}{{{}}}", labels.join(",")), value.parse().unwrap())
        })
        .collect()
}

fn value(handle: &PrometheusHandle, key: &str) -> f64 {
    let all = series(&handle.render());
    *all.get(key).unwrap_or_else(|| panic!("no {key} in {all:#?}"))
}

fn state_of(handle: &PrometheusHandle, name: &str) -> Vec<String> {
    let all = series(&handle.render());
    let prefix = format!("buttress_circuit_breaker_state{{name=\"{name}\",");
    let states: Vec<_> = all.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
    assert!(states.is_empty() || states.len() == 5, "{states:?}");
    let set = states.into_iter().filter(|(_, value)| **value == 1.0);
    set.map(|(key, _)| key.split("state=\"").nth(1).unwrap().trim_end_matches("\"}").to_owned()).collect()
}

type Seen = Arc<Mutex<Vec<Kind>>>;

fn book() -> (Seen, impl Fn(&Event) + Send + Sync + 'static) {
    let seen = Seen::default();
    let writes = Arc::clone(&seen);
    (seen, move |event: &Event| writes.lock().unwrap().push(event.kind.clone()))
}

fn failing() -> Probe {
    let probe = Probe::new();
    probe.fails();
    probe
}

fn breaker(name: &str) -> buttress::CircuitBreakerBuilder {
    let open = OpenTime::Fixed(Duration::from_secs(5));
    CircuitBreakerLayer::builder().name(name).consecutive_failures(1).open(open).probes(1)
}

// === metrics ===

#[test]
fn exactly_one_state_is_set_from_the_first_call_on() {
    recorded(|handle| async move {
        let (probe, layer) = (Probe::new(), breaker("ledger").build().unwrap());
        let service = layer.clone().plain().layer(probe.clone());
        // Nobody has called it yet.
        assert!(state_of(&handle, "ledger").is_empty());
        service.clone().oneshot(()).await.unwrap();
        assert_eq!(state_of(&handle, "ledger"), ["closed"]);
        probe.fails();
        service.clone().oneshot(()).await.unwrap_err();
        assert_eq!(state_of(&handle, "ledger"), ["open"]);
        tokio::time::advance(Duration::from_secs(6)).await;
        let half_open = service.clone().oneshot(()).await;
        assert!(matches!(half_open, Err(Error::Inner(_))));
        assert_eq!(state_of(&handle, "ledger"), ["open"]);
        layer.handle().half_open().unwrap();
        assert_eq!(state_of(&handle, "ledger"), ["half_open"]);
        layer.handle().force_open().unwrap();
        assert_eq!(state_of(&handle, "ledger"), ["forced_open"]);
        layer.handle().force_closed().unwrap();
        assert_eq!(state_of(&handle, "ledger"), ["forced_closed"]);
        layer.handle().reset();
        assert_eq!(state_of(&handle, "ledger"), ["closed"]);
        let changes = |to| {
            value(
                &handle,
                &format!("buttress_state_changes_total{{name=\"ledger\",policy=\"circuit_breaker\",state=\"{to}\"}}"),
            )
        };
        assert_eq!(["closed", "open", "half_open"].map(changes), [1.0, 2.0, 2.0]);
    });
}

/// With keys it is the worst that one is in, and no key is a label.
#[test]
fn the_worst_state_of_all_keys_is_set() {
    recorded(|handle| async move {
        let probe = Probe::new();
        let layer = breaker("upstreams").per_key(Key::GrpcMethod).build().unwrap();
        let service = layer.layer(probe.clone());
        let to = |path: &str| http::Request::get(path).body(()).unwrap();
        service.clone().oneshot(to("/a")).await.unwrap();
        assert_eq!(state_of(&handle, "upstreams"), ["closed"]);
        probe.fails();
        service.clone().oneshot(to("/a")).await.unwrap_err();
        assert_eq!(state_of(&handle, "upstreams"), ["open"]);
        layer.handle().for_key("/a").unwrap().half_open().unwrap();
        assert_eq!(state_of(&handle, "upstreams"), ["half_open"]);
        service.clone().oneshot(to("/b")).await.unwrap_err();
        assert_eq!(state_of(&handle, "upstreams"), ["open"]);
        publish();
        let gauge = |name| value(&handle, &format!("buttress_{name}{{name=\"upstreams\",policy=\"circuit_breaker\"}}"));
        assert_eq!((gauge("keys"), gauge("open_keys")), (2.0, 1.0));
        layer.handle().force_closed().unwrap();
        assert_eq!(state_of(&handle, "upstreams"), ["forced_closed"]);
        layer.handle().for_key("/b").unwrap().force_open().unwrap();
        assert_eq!(state_of(&handle, "upstreams"), ["forced_open"]);
        layer.handle().reset();
        assert_eq!(state_of(&handle, "upstreams"), ["closed"]);
        assert!(!handle.render().contains("/a"));
    });
}

/// Threads that change the state at once: whoever writes last writes what is.
#[test]
fn exactly_one_state_is_set_whoever_changes_it() {
    listen();
    let recorder = PrometheusBuilder::new().build_recorder();
    let layer = breaker("raced").build().unwrap();
    for _ in 0..100 {
        std::thread::scope(|scope| {
            for way in 0..4 {
                let (recorder, handle) = (&recorder, layer.handle());
                scope.spawn(move || {
                    metrics::with_local_recorder(recorder, || match way {
                        0 => handle.force_open().unwrap(),
                        1 => handle.force_closed().unwrap(),
                        _ => handle.reset(),
                    });
                });
            }
        });
        assert_eq!(state_of(&recorder.handle(), "raced"), [layer.handle().snapshot().state.as_str()]);
    }
}

#[test]
fn calls_count_by_what_they_meant() {
    recorded(|handle| async move {
        let probe = Probe::new();
        let layer = CircuitBreakerLayer::builder().name("ledger").build().unwrap();
        let service = layer.clone().plain().layer(probe.clone());
        for _ in 0..3 {
            service.clone().oneshot(()).await.unwrap();
        }
        probe.fails();
        for _ in 0..2 {
            service.clone().oneshot(()).await.unwrap_err();
        }
        probe.hangs();
        let left = tokio::time::timeout(Duration::from_secs(1), service.clone().oneshot(())).await;
        assert!(left.is_err());
        probe.panics();
        let task = tokio::spawn(service.clone().oneshot(()));
        assert!(task.await.unwrap_err().is_panic());
        let calls = |outcome| {
            let labels = format!("{{name=\"ledger\",outcome=\"{outcome}\",policy=\"circuit_breaker\"}}");
            value(&handle, &format!("buttress_calls_total{labels}"))
        };
        assert_eq!(["success", "failure", "cancelled", "throttled", "ignored"].map(calls), [3.0, 3.0, 1.0, 0.0, 0.0]);
    });
}

/// The layer is built and used, and then somebody installs a recorder.
#[test]
fn a_recorder_may_come_late() {
    listen();
    let recorder = PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (probe, layer) = (Probe::new(), breaker("late").build().unwrap());
    let service = layer.clone().plain().layer(probe.clone());
    // None is there yet: whatever a handle would have been taken from is a recorder that keeps nothing.
    runtime.block_on(service.clone().oneshot(())).unwrap();
    layer.handle().force_open().unwrap();
    runtime.block_on(service.clone().oneshot(())).unwrap_err();
    recorded_by(&recorder, |handle| async move {
        service.clone().oneshot(()).await.unwrap_err();
        assert_eq!(state_of(&handle, "late"), ["forced_open"]);
        let rejected = "buttress_rejected_total{name=\"late\",policy=\"circuit_breaker\",reason=\"forced_open\"}";
        assert_eq!(value(&handle, rejected), 1.0);
        layer.handle().reset();
        service.oneshot(()).await.unwrap();
        assert_eq!(
            value(&handle, "buttress_calls_total{name=\"late\",outcome=\"success\",policy=\"circuit_breaker\"}"),
            1.0
        );
    });
}

/// A layer that nobody has called yet shows itself when it is published.
#[test]
fn publishing_shows_layers_that_have_not_been_called() {
    recorded(|handle| async move {
        let _breaker = breaker("quiet").build().unwrap();
        let _bulkhead = BulkheadLayer::builder().name("quiet wall").limit(7).build().unwrap();
        publish();
        assert_eq!(state_of(&handle, "quiet"), ["closed"]);
        assert_eq!(value(&handle, "buttress_limit{name=\"quiet wall\",policy=\"bulkhead\"}"), 7.0);
        assert!(value(&handle, "buttress_failure_rate{name=\"quiet\",policy=\"circuit_breaker\"}").is_nan());
    });
}

#[test]
fn attempts_and_admissions_are_counted() {
    recorded(|handle| async move {
        let probe = Probe::new();
        let retry = RetryLayer::builder().name("r").attempts(3).build().unwrap();
        let limit = RateLimitLayer::builder().name("q").quota(Quota::per_second(10).burst(4)).build().unwrap();
        let limited = limit.clone().plain().layer(probe.clone());
        let service = retry.clone().flat().clone_with(|&()| Some(())).layer(limited);
        service.clone().oneshot(()).await.unwrap();
        probe.fails();
        service.clone().oneshot(()).await.unwrap_err();
        let attempts = |outcome| {
            value(&handle, &format!("buttress_attempts_total{{name=\"r\",outcome=\"{outcome}\",policy=\"retry\"}}"))
        };
        assert_eq!(["success", "failure"].map(attempts), [1.0, 3.0]);
        assert_eq!(value(&handle, "buttress_admitted_total{name=\"q\",policy=\"rate_limit\"}"), 4.0);
        // One that waits for its turn is admitted too.
        let wait = Duration::from_secs(1);
        let line =
            RateLimitLayer::builder().name("line").quota(Quota::per_second(10).burst(1)).wait(wait).build().unwrap();
        let service = line.plain().layer(probe.clone());
        for _ in 0..3 {
            service.clone().oneshot(()).await.unwrap_err();
        }
        assert_eq!(value(&handle, "buttress_admitted_total{name=\"line\",policy=\"rate_limit\"}"), 3.0);
        publish();
        let left = value(&handle, "buttress_budget_left{name=\"r\",policy=\"retry\"}");
        assert!(left > 0.0 && left <= 10.0, "{left}");
    });
}

/// What an operator asks of retries and hedges: how many attempts they add, of what use these are, and what forbids
/// more.
#[test]
fn further_attempts_and_what_stops_them_are_counted() {
    recorded(|handle| async move {
        let probe = Probe::new();
        let once = Budget::new(0.0, 1, Duration::from_secs(1)).unwrap();
        let wait = Backoff::Constant(Duration::from_secs(1));
        let retry = RetryLayer::builder().name("r").attempts(5).backoff(wait).budget(once).build().unwrap();
        let service = retry.plain().clone_with(|&()| Some(())).layer(probe.clone());
        service.clone().oneshot(()).await.unwrap();
        probe.fails();
        service.clone().oneshot(()).await.unwrap_err();
        let short = Deadline::after(Duration::from_millis(1));
        short.scope(service.oneshot(())).await.unwrap_err();
        let series = |metric: &str, more: &str, policy: &str| {
            value(&handle, &format!("buttress_{metric}{{{more},policy=\"{policy}\"}}"))
        };
        let further = |outcome| series("further_attempts_total", &format!("name=\"r\",outcome=\"{outcome}\""), "retry");
        assert_eq!(["success", "failure"].map(further), [0.0, 1.0]);
        let stopped = |by| series("attempts_stopped_total", &format!("by=\"{by}\",name=\"r\""), "retry");
        assert_eq!(["budget", "deadline"].map(stopped), [1.0, 1.0]);

        // The second attempt is the one that answers.
        let hedge = HedgeLayer::builder().name("h").after(Duration::from_millis(10)).build().unwrap().plain();
        let calls = Arc::new(AtomicU32::new(0));
        let slow_once = tower::service_fn(move |()| {
            let slow = calls.fetch_add(1, Relaxed) == 0;
            async move {
                tokio::time::sleep(Duration::from_secs(u64::from(slow))).await;
                Ok::<_, std::io::Error>(())
            }
        });
        hedge.layer(slow_once).oneshot(()).await.unwrap();
        let of = |metric, outcome| series(metric, &format!("name=\"h\",outcome=\"{outcome}\""), "hedge");
        assert_eq!(["success", "cancelled"].map(|outcome| of("attempts_total", outcome)), [1.0, 1.0]);
        assert_eq!(["success", "cancelled"].map(|outcome| of("further_attempts_total", outcome)), [1.0, 0.0]);
    });
}

#[test]
fn an_adaptive_rate_shows_for_how_long_nothing_is_sent() {
    recorded(|handle| async move {
        let rate = AdaptiveRateLayer::builder().name("api").build().unwrap();
        let throttled = || http::Response::builder().status(429).header("retry-after", "7");
        let backend = tower::service_fn(move |_: http::Request<()>| {
            std::future::ready(throttled().body(http_body_util::Empty::<bytes::Bytes>::new()))
        });
        let held = || value(&handle, "buttress_held_seconds{name=\"api\",policy=\"adaptive_rate\"}");
        publish();
        assert!(held().is_nan());
        rate.layer(backend).oneshot(http::Request::new(())).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        publish();
        assert_eq!(held(), 5.0);
        tokio::time::sleep(Duration::from_secs(5)).await;
        publish();
        assert!(held().is_nan());
    });
}

#[test]
fn a_bulkhead_shows_who_is_in_and_who_waits() {
    recorded(|handle| async move {
        let probe = Probe::new();
        probe.hangs();
        let layer = BulkheadLayer::builder().name("db").limit(1).queue(1).wait(Duration::from_secs(2)).build().unwrap();
        let service = layer.clone().plain().layer(probe);
        let runs = tokio::spawn(service.clone().oneshot(()));
        let waits = tokio::spawn(service.clone().oneshot(()));
        tokio::task::yield_now().await;
        service.clone().oneshot(()).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        publish();
        let db = |metric: &str| value(&handle, &format!("{metric}{{name=\"db\",policy=\"bulkhead\"}}"));
        assert_eq!((db("buttress_in_flight"), db("buttress_waiting"), db("buttress_limit")), (1.0, 1.0, 1.0));
        assert_eq!((db("buttress_oldest_wait_seconds"), db("buttress_admitted_total")), (1.5, 1.0));
        layer.handle().resize(2).unwrap();
        assert_eq!(db("buttress_limit"), 2.0);
        tokio::task::yield_now().await;
        assert_eq!((db("buttress_admitted_total"), db("buttress_queue_wait_seconds_count")), (2.0, 1.0));
        assert_eq!(db("buttress_queue_wait_seconds_sum"), 1.5);
        runs.abort();
        waits.abort();
        let _ = (runs.await, waits.await);
        publish();
        assert_eq!((db("buttress_in_flight"), db("buttress_waiting")), (0.0, 0.0));
        assert!(db("buttress_oldest_wait_seconds").is_nan());
        let full = "buttress_rejected_total{name=\"db\",policy=\"bulkhead\",reason=\"bulkhead_full\"}";
        assert_eq!(value(&handle, full), 1.0);
    });
}

/// In vain, until its caller left, or until its turn came that it did not notice.
#[test]
fn whoever_waited_at_a_bulkhead_is_seen_whatever_became_of_it() {
    recorded(|handle| async move {
        let probe = Probe::new();
        probe.hangs();
        let wall =
            BulkheadLayer::builder().name("wait").limit(1).queue(1).wait(Duration::from_secs(5)).build().unwrap();
        let service = wall.clone().plain().layer(probe);
        let calls = || tokio::spawn(service.clone().oneshot(()));
        let seen = || {
            let of = |part| {
                value(&handle, &format!("buttress_queue_wait_seconds_{part}{{name=\"wait\",policy=\"bulkhead\"}}"))
            };
            (of("count"), of("sum"))
        };
        let runs = calls();
        tokio::task::yield_now().await;
        // Its caller leaves.
        let leaves = calls();
        tokio::time::sleep(Duration::from_secs(2)).await;
        leaves.abort();
        assert!(leaves.await.unwrap_err().is_cancelled());
        assert_eq!(seen(), (1.0, 2.0));
        // Nobody lets it in.
        calls().await.unwrap().unwrap_err();
        assert_eq!(seen(), (2.0, 7.0));
        // Its turn has come, and it does not notice any more.
        let mut service = service.clone();
        std::future::poll_fn(|cx| tower::Service::<()>::poll_ready(&mut service, cx)).await.unwrap();
        let late = tower::Service::call(&mut service, ());
        tokio::time::sleep(Duration::from_secs(1)).await;
        runs.abort();
        assert!(runs.await.unwrap_err().is_cancelled());
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(late);
        assert_eq!(seen(), (3.0, 10.0));
        assert_eq!((wall.handle().snapshot().in_flight, wall.handle().snapshot().waiting), (0, 0));
        // Who does not have to wait has not waited.
        let runs = calls();
        tokio::task::yield_now().await;
        runs.abort();
        assert_eq!(seen(), (3.0, 10.0));
    });
}

/// The gauge of what is in flight is true until the last call has ended, whatever has become of the layer.
#[test]
fn a_call_is_in_flight_when_its_layer_is_gone() {
    recorded(|handle| async move {
        let probe = Probe::new();
        probe.hangs();
        let wall = BulkheadLayer::builder().name("outlived").limit(3).build().unwrap().plain();
        let calls = [(); 2].map(|()| tokio::spawn(wall.layer(probe.clone()).oneshot(())));
        tokio::task::yield_now().await;
        drop(wall);
        let in_flight = || {
            publish();
            value(&handle, "buttress_in_flight{name=\"outlived\",policy=\"bulkhead\"}")
        };
        assert_eq!(in_flight(), 2.0);
        let [first, second] = calls;
        first.abort();
        let _ = first.await;
        assert_eq!(in_flight(), 1.0);
        second.abort();
        let _ = second.await;
    });
}

/// Everything that is emitted stands in the table of the docs, with its kind and its labels, and the other way round.
#[test]
fn the_table_in_the_docs_is_what_is_emitted() {
    recorded(|handle| async move {
        everything_happens().await;
        publish();
        let emitted = emitted(&handle.render());
        assert_eq!(emitted, table());
    });
}

/// Makes each policy do each thing that it can do.
async fn everything_happens() {
    let closed = breaker("all").observer(|_: &Event| panic!("observer")).build().unwrap();
    closed.clone().plain().layer(failing()).oneshot(()).await.unwrap_err();
    closed.clone().plain().layer(failing()).oneshot(()).await.unwrap_err();
    closed.handle().shadow(true);
    closed.plain().layer(failing()).oneshot(()).await.unwrap_err();
    std::mem::forget(breaker("kept").build().unwrap());

    // A stream that stalls loses its permit to the next call, and one more has to wait.
    let wall = BulkheadLayer::builder().name("all").limit(1).queue(1).permit_lease(Duration::from_secs(1));
    let wall = wall.wait(Duration::from_secs(1)).build().unwrap();
    let stalls = tower::service_fn(|_: http::Request<()>| async {
        let frames = futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>();
        Ok::<_, std::io::Error>(http::Response::new(http_body_util::StreamBody::new(frames)))
    });
    let streams = wall.clone().layer(stalls).oneshot(http::Request::new(())).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let probe = Probe::new();
    probe.hangs();
    let wall = wall.plain().layer(probe);
    let runs = tokio::spawn(wall.clone().oneshot(()));
    tokio::task::yield_now().await;
    wall.clone().oneshot(()).await.unwrap_err();
    runs.abort();
    drop(streams);
    std::mem::forget(wall);

    let hangs = Probe::new();
    hangs.hangs();
    let timeout = TimeoutLayer::builder().name("all").after(Duration::from_secs(1)).build().unwrap();
    timeout.plain().layer(hangs).oneshot(()).await.unwrap_err();
    let retry = RetryLayer::builder().name("all").attempts(2).build().unwrap();
    retry.clone().plain().clone_with(|&()| Some(())).layer(failing()).oneshot(()).await.unwrap_err();
    let limit = RateLimitLayer::builder().name("all").quota(Quota::per_second(1)).build().unwrap();
    let rate = AdaptiveRateLayer::builder().name("all").build().unwrap();
    let nothing = Budget::new(0.0, 0, Duration::from_secs(1)).unwrap();
    let stopped = RetryLayer::builder().name("stopped").budget(nothing).build().unwrap();
    stopped.plain().clone_with(|&()| Some(())).layer(failing()).oneshot(()).await.unwrap_err();
    std::mem::forget((retry, limit, rate));
    let fallback = FallbackLayer::builder().name("all");
    let fallback = fallback.build_plain_from_fn(|_: &Error<ProbeError>| Some(())).unwrap();
    fallback.layer(failing()).oneshot(()).await.unwrap();
}

/// Metric to kind and further labels, as a render has them.
fn emitted(text: &str) -> BTreeMap<String, (String, String)> {
    let mut kinds = BTreeMap::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        kinds.insert(name.to_owned(), if kind == "summary" { "histogram" } else { kind }.to_owned());
    }
    let mut all = BTreeMap::new();
    for key in series(text).keys() {
        let (name, labels) = key.split_once('{').unwrap();
        let name = ["_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        let labels = labels.trim_end_matches('}').split(',').map(|l| l.split('=').next().unwrap());
        let own: Vec<_> = labels.clone().filter(|l| ["policy", "name"].contains(l)).collect();
        assert_eq!(own, ["name", "policy"], "{key}");
        let more: Vec<_> = labels.filter(|l| !["policy", "name", "quantile"].contains(l)).collect();
        all.insert(name.to_owned(), (kinds[name].clone(), more.join(",")));
    }
    all
}

/// The same as the docs have it.
fn table() -> BTreeMap<String, (String, String)> {
    let docs = include_str!("../src/observe/metrics/mod.rs");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("//! | `buttress_"));
    let table: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
            assert!(["at once", "published"].contains(&&*cells[4]), "{row}");
            (format!("buttress_{}", cells[0]), (cells[1].clone(), cells[2].clone()))
        })
        .collect();
    assert!(table.len() > 15);
    table
}

/// The dashboard asks only for what there is, and by labels that it has.
#[test]
fn the_dashboard_asks_for_metrics_of_the_table() {
    let dashboard: serde_json::Value = serde_json::from_str(include_str!("../dashboards/buttress.json")).unwrap();
    let table = table();
    let mut asked = BTreeSet::new();
    let panels = dashboard["panels"].as_array().unwrap();
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
        let query = target["expr"].as_str().unwrap();
        let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("buttress_")) {
            let name = ["_sum", "_count"].iter().find_map(|s| word.strip_suffix(s)).unwrap_or(word);
            let (kind, label) = table.get(name).unwrap_or_else(|| panic!("{name} of {query}"));
            assert_eq!(name != word, kind == "histogram", "{query}");
            asked.insert(name.to_owned());
            for by in query.split(" by (").skip(1) {
                for by in by.split(')').next().unwrap().split(',').map(str::trim) {
                    assert!(["policy", "name"].contains(&by) || label == by, "{by} of {query}");
                }
            }
        }
    }
    assert!(asked.contains("buttress_rejected_total") && asked.len() > 8, "{asked:?}");
}

// === events ===

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_is_counted_and_harms_nobody() {
    listen();
    let (seen, writes) = book();
    let registry = Registry::new();
    let timeout = TimeoutLayer::builder().name("api").after(Duration::from_secs(1)).registry(&registry);
    let layer = timeout.observer(|_: &Event| panic!("observer")).observer(writes).build().unwrap();
    let probe = Probe::new();
    probe.hangs();
    let before = observe::contained_panics();
    let error = layer.clone().plain().layer(probe).oneshot(()).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(r) if r.reason() == Reason::Timeout));
    // The next observer is told all the same.
    assert_eq!(*seen.lock().unwrap(), [Kind::TimedOut]);
    assert_eq!(registry.snapshot().get("api").unwrap().observer_panics, 1);
    // Other tests have such observers too.
    assert!(observe::contained_panics() > before);
}

#[tokio::test(start_paused = true)]
async fn every_policy_tells_what_it_does() {
    listen();
    let registry = Registry::new();
    let mut stream = registry.subscribe(100);
    let breaker = breaker("b").registry(&registry).build().unwrap();
    let service = breaker.clone().plain().layer(failing());
    service.clone().oneshot(()).await.unwrap_err();
    service.clone().oneshot(()).await.unwrap_err();
    breaker.handle().shadow(true);
    service.clone().oneshot(()).await.unwrap_err();

    let wall = BulkheadLayer::builder().name("w").limit(2).registry(&registry).build().unwrap();
    wall.handle().resize(3).unwrap();

    let server = DeadlineLayer::builder().name("d").server(Duration::from_secs(1)).registry(&registry).build().unwrap();
    let late = Deadline::after(Duration::ZERO);
    late.scope(server.layer(Probe::new()).oneshot(http::Request::new(()))).await.unwrap();

    let fallback = FallbackLayer::builder().name("f").registry(&registry);
    let fallback = fallback.build_plain_from_fn(|_: &Error<ProbeError>| Some(())).unwrap();
    fallback.layer(failing()).oneshot(()).await.unwrap();
    fallback.handle().shadow(true);
    fallback.layer(failing()).oneshot(()).await.unwrap_err();

    let retry =
        RetryLayer::builder().name("r").attempts(2).backoff(Backoff::Constant(Duration::ZERO)).registry(&registry);
    let retry = retry.build().unwrap();
    retry.clone().plain().clone_with(|&()| Some(())).layer(failing()).oneshot(()).await.unwrap_err();
    let limit = RateLimitLayer::builder().name("q").quota(Quota::per_second(1)).registry(&registry).build().unwrap();
    let limited = limit.clone().plain().layer(Probe::new());
    limited.clone().oneshot(()).await.unwrap();
    limited.clone().oneshot(()).await.unwrap_err();

    drop(registry.drain());
    registry.drain_layer().plain().layer(Probe::new()).oneshot(()).await.unwrap_err();

    let mut told = String::new();
    drop((service, breaker, wall, server, fallback, retry, limit, limited, registry));
    while let Some(next) = stream.recv().await {
        let Streamed::Event(Event { policy, name, kind, .. }) = next else { panic!("{next:?}") };
        writeln!(told, "{policy} {name} {kind:?}").unwrap();
    }
    assert_eq!(
        told,
        "circuit_breaker b StateChanged { from: Closed, to: Open }\n\
         circuit_breaker b Rejected { reason: CircuitOpen }\n\
         circuit_breaker b WouldHaveRejected { reason: CircuitOpen }\n\
         bulkhead w LimitChanged { from: 2, to: 3 }\n\
         deadline d Rejected { reason: DeadlineExceeded }\n\
         fallback f FellBack { outcome: Failure }\n\
         fallback f WouldHaveFallenBack { outcome: Failure }\n\
         retry r Attempt { number: 1, outcome: Failure, delay: Some(0ns) }\n\
         retry r Attempt { number: 2, outcome: Failure, delay: None }\n\
         rate_limit q Rejected { reason: RateLimited }\n\
         drain drain Rejected { reason: Draining }\n"
    );
}

/// Nobody takes anything while it happens: the last ones are there, and how many are not.
#[tokio::test(start_paused = true)]
async fn a_stream_says_how_many_it_dropped() {
    listen();
    let registry = Registry::new();
    let wall = BulkheadLayer::builder().name("w").limit(1).registry(&registry).build().unwrap();
    let mut stream = registry.subscribe(3);
    for limit in 2..=10 {
        wall.handle().resize(limit).unwrap();
    }
    assert!(matches!(stream.recv().await, Some(Streamed::Dropped(6))));
    for limit in 8..=10 {
        let next = stream.recv().await;
        assert!(
            matches!(&next, Some(Streamed::Event(e)) if e.kind == Kind::LimitChanged { from: limit - 1, to: limit }),
            "{next:?}"
        );
    }
    assert_eq!(stream.dropped(), 6);
    // And somebody who waits is woken.
    let waits = tokio::spawn(async move { stream.recv().await });
    tokio::task::yield_now().await;
    wall.handle().resize(1).unwrap();
    assert!(matches!(waits.await.unwrap(), Some(Streamed::Event(_))));
}

// === tracing ===

thread_local! {
    /// What was told on this thread.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static SPAN: Cell<Option<&'static tracing::Metadata<'static>>> = const { Cell::new(None) };
}

/// Writes down events and what is recorded on spans, for each thread by itself.
struct Lines;

/// One for all tests, and before any of them tells anything: `tracing` remembers of each place in the code whether
/// anybody listens, and takes the answer of whichever thread comes first.
fn listen() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Lines).unwrap());
}

struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        SPAN.set(Some(span.metadata()));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut line = Line("span".to_owned());
        values.record(&mut line);
        LINES.with_borrow_mut(|lines| lines.push(line.0));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(format!("{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut line);
        LINES.with_borrow_mut(|lines| lines.push(line.0));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}

    fn current_span(&self) -> tracing_core::span::Current {
        use tracing_core::span::Current;

        SPAN.get().map_or_else(Current::none, |metadata| Current::new(tracing::span::Id::from_u64(1), metadata))
    }
}

#[tokio::test(start_paused = true)]
async fn tracing_is_told_of_changes_and_refusals_and_not_of_admitted_calls() {
    listen();
    let _span = tracing::info_span!("call", error.type = tracing::field::Empty);
    let (probe, layer) = (Probe::new(), breaker("ledger").build().unwrap());
    let service = layer.clone().plain().layer(probe.clone());
    LINES.take();
    service.clone().oneshot(()).await.unwrap();
    assert_eq!(LINES.take(), [""; 0]);
    probe.fails();
    service.clone().oneshot(()).await.unwrap_err();
    service.clone().oneshot(()).await.unwrap_err();
    layer.handle().reset();
    let lines = || {
        let ours = |line: &String| line.contains("buttress") || line.starts_with("span");
        LINES.take().into_iter().filter(ours).collect::<Vec<_>>()
    };
    assert_eq!(
        lines(),
        [
            "WARN buttress::circuit_breaker message=state changed name=\"ledger\" from=\"closed\" to=\"open\"",
            "DEBUG buttress::circuit_breaker message=rejected name=\"ledger\" error.type=\"circuit_open\"",
            "span error.type=\"circuit_open\"",
            "INFO buttress::circuit_breaker message=state changed name=\"ledger\" from=\"open\" to=\"closed\"",
        ]
    );
    let layer = breaker("upstreams").per_key(Key::GrpcMethod).build().unwrap();
    layer.layer(probe.clone()).oneshot(http::Request::get("/a").body(()).unwrap()).await.unwrap_err();
    assert_eq!(
        lines(),
        [
            "WARN buttress::circuit_breaker message=state changed name=\"upstreams\" key=\"/a\" from=\"closed\" to=\"open\""
        ]
    );
    SPAN.set(None);
}

/// A recorder is somebody else's code, and so are its counters, at each step: no permit is lost to them, and a panic of
/// the inner service is still the call's.
#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_harms_nobody() {
    struct Breaks;
    impl metrics::CounterFn for Breaks {
        fn increment(&self, _: u64) {
            panic!("recorder");
        }
        fn absolute(&self, _: u64) {}
    }
    impl metrics::Recorder for Breaks {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &MetricKey, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Arc::new(Breaks))
        }
        fn register_gauge(&self, _: &MetricKey, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, _: &MetricKey, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }
    metrics::with_local_recorder(&Breaks, || {
        let probe = Probe::new();
        let wall = BulkheadLayer::builder().limit(9).build().unwrap().plain();
        let breaker = breaker("broken").build().unwrap();
        let retry = RetryLayer::builder().build().unwrap().plain().clone_with(|&()| Some(()));
        let service =
            ServiceBuilder::new().layer(wall.clone()).layer(breaker.plain()).layer(retry).service(probe.clone());
        for _ in 0..3 {
            assert!(service.clone().oneshot(()).now_or_never().unwrap().is_ok());
        }
        assert_eq!(wall.handle().snapshot().in_flight, 0);
        probe.panics();
        let panicked = catch_unwind(AssertUnwindSafe(|| service.oneshot(()).now_or_never()));
        assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"the probe panics"));
        assert_eq!(wall.handle().snapshot().in_flight, 0);
    });
}
