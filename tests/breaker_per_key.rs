//! A circuit breaker for each key: one backend that fails shuts no door to another.
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Uri};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerConfig, CircuitBreakerLayer, CircuitBreakerSnapshot, Deadline,
    Key, MissingKey, OpenTime, Reason, Registry, Rejection, State, Window,
    observe::{Event, Figure, Kind},
    testing::{Probe, ProbeError, laws},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Opens at the second failure in a row, for ten seconds; one success closes it.
fn builder() -> CircuitBreakerBuilder {
    CircuitBreakerLayer::builder().consecutive_failures(2).open(OpenTime::Fixed(s(10))).probes(1).successes_to_close(1)
}

/// By the path, which every request has.
fn per_path(builder: CircuitBreakerBuilder) -> CircuitBreakerBuilder {
    builder.per_key(Key::GrpcMethod)
}

/// By a header, which may be missing.
fn per_tenant() -> CircuitBreakerBuilder {
    builder().key_fn(|parts| Some(parts.headers.get("tenant")?.to_str().ok()?.to_owned()))
}

fn to(path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = path.parse::<Uri>().unwrap();
    request
}

fn of_tenant(tenant: &str) -> Request<()> {
    let mut request = to("/");
    request.headers_mut().insert("tenant", tenant.parse().unwrap());
    request
}

fn snapshot(layer: &CircuitBreakerLayer) -> CircuitBreakerSnapshot {
    layer.handle().snapshot()
}

/// Of the breaker of one key.
fn of(layer: &CircuitBreakerLayer, key: &str) -> CircuitBreakerSnapshot {
    layer.handle().for_key(key).unwrap_or_else(|| panic!("{key} has none")).snapshot()
}

fn state(layer: &CircuitBreakerLayer, key: &str) -> State {
    of(layer, key).state
}

/// Has it a breaker of its own?
fn has(layer: &CircuitBreakerLayer, key: &str) -> bool {
    layer.handle().for_key(key).is_some()
}

/// Calls and failures in the window of a key.
fn window(layer: &CircuitBreakerLayer, key: &str) -> (u64, u64) {
    let seen = of(layer, key);
    (seen.calls, seen.failures)
}

/// A service behind the breakers, and how its calls are told to end.
fn rig(layer: &CircuitBreakerLayer) -> (CircuitBreaker<Probe>, Probe) {
    let probe = Probe::new();
    (layer.layer(probe.clone()), probe)
}

/// A call that has begun.
fn call<S: Service<Request<()>>>(service: &mut S, request: Request<()>) -> Pin<Box<S::Future>> {
    let ready = poll_fn(|cx| service.poll_ready(cx)).now_or_never();
    assert!(ready.is_some_and(|r| r.is_ok()));
    Box::pin(service.call(request))
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Pending,
    Well,
    Failed,
    Refused(Reason),
}

const OPEN: Came = Came::Refused(Reason::CircuitOpen);
const FORCED: Came = Came::Refused(Reason::ForcedOpen);
const NO_KEY: Came = Came::Refused(Reason::KeyMissing);

fn came<B>(call: &mut Pin<Box<impl Future<Output = Result<Response<B>, ProbeError>>>>) -> Came {
    match call.as_mut().now_or_never() {
        None => Came::Pending,
        Some(Err(_)) => Came::Failed,
        Some(Ok(response)) => match response.extensions().get::<Rejection>() {
            Some(rejection) => Came::Refused(rejection.reason()),
            None => Came::Well,
        },
    }
}

/// Makes a call for each letter and expects it to end so: `S` well, `F` failed, `R` refused because it is open.
fn run(service: &mut CircuitBreaker<Probe>, probe: &Probe, path: &str, calls: &str) {
    for (n, c) in calls.chars().enumerate() {
        let expected = match c {
            'S' => Came::Well,
            'F' => Came::Failed,
            _ => OPEN,
        };
        if c == 'F' {
            probe.fails()
        } else {
            probe.answers()
        }
        assert_eq!(came(&mut call(service, to(path))), expected, "{path} {n} of {calls}");
    }
}

// === upstreams ===

#[tokio::test(start_paused = true)]
async fn one_that_fails_shuts_no_door_to_another() {
    let layer = per_path(builder()).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "SFFRR");
    for n in 0..100 {
        run(&mut service, &probe, &format!("/{n}"), "SFS");
    }
    assert_eq!((state(&layer, "/a"), state(&layer, "/7")), (State::Open, State::Closed));
    let seen = snapshot(&layer);
    assert_eq!((seen.keys, seen.open_keys, seen.rejected), (101, 1, 2));
    assert_eq!(probe.calls(), 3 + 300);
    // A refusal says when to come back to that one.
    advance(s(3)).await;
    let refused = call(&mut service, to("/a")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.extensions().get::<Rejection>().unwrap().retry_after(), Some(s(7)));
}

#[tokio::test(start_paused = true)]
async fn each_has_a_window_of_its_own() {
    let windows: [fn(CircuitBreakerBuilder) -> CircuitBreakerBuilder; 2] =
        [|b| b.time_window(s(10)), |b| b.count_window(10)];
    for window_of in windows {
        let rates = CircuitBreakerLayer::builder().failure_rate(0.5).minimum_calls(6);
        let layer = per_path(window_of(rates)).build().unwrap();
        let (mut service, probe) = rig(&layer);
        for round in 0..3 {
            // Together they would have opened after six.
            run(&mut service, &probe, "/a", "FS");
            run(&mut service, &probe, "/b", if round == 2 { "S" } else { "FS" });
        }
        run(&mut service, &probe, "/a", "R");
        assert_eq!((window(&layer, "/a"), window(&layer, "/b")), ((6, 3), (5, 2)));
        assert_eq!((state(&layer, "/a"), state(&layer, "/b")), (State::Open, State::Closed));
        run(&mut service, &probe, "/b", "F");
        assert_eq!(state(&layer, "/b"), State::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn fifty_services_share_the_breaker_of_a_key() {
    let layer = per_path(builder().consecutive_failures(25).minimum_calls(1_000)).build().unwrap();
    for n in 0..50 {
        let (mut service, probe) = rig(&layer);
        run(&mut service, &probe, "/a", if n < 25 { "F" } else { "R" });
        assert_eq!(probe.calls(), u64::from(n < 25));
    }
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/b", "S");
    assert_eq!((snapshot(&layer).keys, snapshot(&layer).rejected), (2, 25));
}

#[tokio::test(start_paused = true)]
async fn each_has_probes_of_its_own() {
    let layer = per_path(builder()).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "FF");
    run(&mut service, &probe, "/b", "FF");
    advance(s(10) + ms(1)).await;
    probe.hangs();
    let (mut a, mut b) = (call(&mut service, to("/a")), call(&mut service, to("/b")));
    assert_eq!((came(&mut a), came(&mut b)), (Came::Pending, Came::Pending));
    for path in ["/a", "/b"] {
        assert_eq!(came(&mut call(&mut service, to(path))), OPEN, "one probe for each");
    }
    assert_eq!((state(&layer, "/a"), snapshot(&layer).probes_out, probe.calls()), (State::HalfOpen, 2, 6));
    probe.answers();
    assert_eq!(came(&mut a), Came::Well);
    assert_eq!((state(&layer, "/a"), state(&layer, "/b")), (State::Closed, State::HalfOpen));
    probe.fails();
    assert_eq!(came(&mut b), Came::Failed);
    assert_eq!((state(&layer, "/a"), state(&layer, "/b")), (State::Closed, State::Open));
}

#[tokio::test(start_paused = true)]
async fn a_time_window_slides_for_each_key() {
    // Of many clocks some meet in what a thread remembers.
    let rates = CircuitBreakerLayer::builder().failure_rate(1.0).minimum_calls(1_000).time_window(s(10));
    let layer = per_path(rates).build().unwrap();
    let (mut service, probe) = rig(&layer);
    for second in 0..30 {
        for n in 0..40 {
            run(&mut service, &probe, &format!("/{n}"), if n % 2 == 0 { "SSF" } else { "S" });
        }
        let seconds = (second + 1).min(11);
        for n in [0, 1, 38, 39] {
            let expected = if n % 2 == 0 { (3 * seconds, seconds) } else { (seconds, 0) };
            assert_eq!(window(&layer, &format!("/{n}")), expected, "{n} after {second} s");
        }
        advance(s(1)).await;
    }
}

/// What a thread remembers of the tick that runs is of one breaker, though two may be in the same generation.
#[tokio::test(start_paused = true)]
async fn windows_that_began_anew_differently_are_not_mixed_up() {
    let layer = per_path(builder().time_window(s(10)).minimum_calls(1_000)).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "S");
    run(&mut service, &probe, "/b", "FF");
    advance(s(11)).await;
    // Open, half-open, closed: three generations, and two windows. Reset by hand: three of each.
    run(&mut service, &probe, "/b", "S");
    (0..3).for_each(|_| layer.handle().for_key("/a").unwrap().reset());
    for n in 1..20 {
        run(&mut service, &probe, "/a", "S");
        run(&mut service, &probe, "/b", "S");
        assert_eq!((window(&layer, "/a"), window(&layer, "/b")), ((n, 0), (n, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn slow_calls_deadlines_and_those_who_left_are_of_their_key() {
    let layer = per_path(builder().slow_calls(s(1), 0.5).minimum_calls(2)).build().unwrap();
    let (mut service, probe) = rig(&layer);
    probe.hangs();
    let mut slow = [call(&mut service, to("/slow")), call(&mut service, to("/slow"))];
    let left = [call(&mut service, to("/left")), call(&mut service, to("/left"))];
    let mut request = to("/deadline");
    request.extensions_mut().insert(Deadline::after(ms(10)));
    let late = call(&mut service, request);
    assert_eq!(slow.each_mut().map(came), [Came::Pending; 2]);
    advance(ms(1_001)).await;
    drop((left, late));
    probe.answers();
    assert_eq!(slow.each_mut().map(came), [Came::Well; 2]);
    assert_eq!((state(&layer, "/slow"), of(&layer, "/slow").slow), (State::Open, 2));
    assert_eq!((state(&layer, "/left"), window(&layer, "/left")), (State::Closed, (0, 0)));
    assert_eq!((window(&layer, "/deadline"), snapshot(&layer).cancelled), ((0, 0), 3));
}

#[tokio::test(start_paused = true)]
async fn panics_are_failures_of_their_key() {
    let layer = per_path(builder()).build().unwrap();
    let (mut service, probe) = rig(&layer);
    for panics in [Probe::panics_in_call, Probe::panics] {
        panics(&probe);
        let panic = catch_unwind(AssertUnwindSafe(|| came(&mut call(&mut service, to("/a")))));
        assert!(panic.is_err());
    }
    assert_eq!((state(&layer, "/a"), window(&layer, "/a")), (State::Open, (2, 2)));
    let layer = builder().key_fn(|_| panic!("a user's")).build().unwrap();
    let (mut service, probe) = rig(&layer);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(call(&mut service, to("/a"))))).is_err());
    assert_eq!((snapshot(&layer).keys, probe.calls()), (0, 0));
}

/// Nobody knows whose call it would have been.
#[tokio::test(start_paused = true)]
async fn a_readiness_error_is_of_no_key() {
    let layer = per_path(builder().consecutive_failures(1)).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "S");
    probe.is_broken();
    for _ in 0..10 {
        assert!(matches!(ServiceExt::<Request<()>>::ready(&mut service).await, Err(ProbeError { in_readiness: true })));
    }
    assert_eq!((window(&layer, "/a"), snapshot(&layer).calls, snapshot(&layer).state), ((1, 0), 1, State::Closed));
}

/// The key is seen after readiness: what the readied instance holds goes back.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_holds_nothing_of_the_inner_service() {
    let layer = per_path(builder()).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/", "FF");
    laws::late_refusal(|p| layer.layer(p), Request::<()>::default, async || ()).await;
    run(&mut service, &probe, "/", "R");
    assert_eq!(probe.held(), 0);
}

// === requests without a key ===

#[tokio::test(start_paused = true)]
async fn without_a_key_a_request_is_refused_shares_or_runs_uncounted() {
    let refuses = per_tenant().build().unwrap();
    let (mut service, probe) = rig(&refuses);
    let response = call(&mut service, to("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.extensions().get::<Rejection>().unwrap().reason(), Reason::KeyMissing);
    assert_eq!((probe.calls(), probe.held(), snapshot(&refuses).rejected), (0, 0, 1));

    let shares = per_tenant().missing_key(MissingKey::Shared).build().unwrap();
    let (mut service, probe) = rig(&shares);
    run(&mut service, &probe, "/", "FFR");
    assert_eq!(came(&mut call(&mut service, of_tenant("a"))), Came::Well, "it has one of its own");
    let seen = snapshot(&shares);
    assert_eq!((seen.state, seen.keys, seen.open_keys, seen.calls), (State::Open, 1, 0, 3));

    let unlimited = per_tenant().missing_key(MissingKey::Unlimited).build().unwrap();
    let (mut service, probe) = rig(&unlimited);
    run(&mut service, &probe, "/", "FFFFS");
    probe.hangs();
    drop(call(&mut service, to("/")));
    let seen = snapshot(&unlimited);
    assert_eq!((seen.state, seen.calls, seen.cancelled, seen.keys), (State::Closed, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn services_without_heads_share_one_breaker() {
    let layer = per_path(builder()).build().unwrap();
    let probe = Probe::new();
    probe.fails();
    let mut plain = layer.clone().plain().layer(probe.clone());
    for _ in 0..2 {
        assert!(pin!(ServiceExt::<()>::ready(&mut plain).await.unwrap().call(())).await.is_err());
    }
    assert_eq!((snapshot(&layer).state, snapshot(&layer).keys), (State::Open, 0));
    // It is known before: a closed door does not touch the house.
    let mut other = layer.clone().plain().layer(probe.clone());
    probe.is_never_ready();
    let polls = probe.ready_polls();
    assert!(poll_fn(|cx| Service::<()>::poll_ready(&mut other, cx)).now_or_never().is_some());
    assert_eq!(probe.ready_polls(), polls);
    let refused = pin!(other.call(())).now_or_never().unwrap().unwrap_err();
    assert_eq!(Rejection::of(&refused).map(Rejection::reason), Some(Reason::CircuitOpen));
    // Also where nobody has asked for readiness.
    let mut third = layer.clone().boxed().layer(probe.clone());
    assert!(pin!(Service::<()>::call(&mut third, ())).now_or_never().unwrap().is_err());
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "S");
}

#[tokio::test(start_paused = true)]
async fn shadow_lets_all_pass_and_says_what_it_would_have_refused() {
    let layer = per_tenant().shadow(true).build().unwrap();
    let (mut service, probe) = rig(&layer);
    probe.fails();
    for request in [to("/"), of_tenant("a"), of_tenant("a"), of_tenant("a")] {
        assert_eq!(came(&mut call(&mut service, request)), Came::Failed);
    }
    let seen = snapshot(&layer);
    assert_eq!((seen.would_have_rejected, seen.rejected, seen.shadow, seen.open_keys), (2, 0, true, 1));
    layer.handle().shadow(false);
    assert_eq!(came(&mut call(&mut service, of_tenant("a"))), OPEN);
    assert_eq!(came(&mut call(&mut service, to("/"))), NO_KEY);
    assert!(!snapshot(&layer).shadow && !of(&layer, "a").shadow);
    // It holds for all, for those to come, and from whichever handle.
    layer.handle().for_key("a").unwrap().shadow(true);
    layer.handle().force_open().unwrap();
    probe.answers();
    for request in [of_tenant("a"), of_tenant("new"), to("/")] {
        assert_eq!(came(&mut call(&mut service, request)), Came::Well);
    }
    assert_eq!(snapshot(&layer).would_have_rejected, 5);
}

// === the bound ===

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_is_bounded_and_hurts_nobody_who_is_known() {
    let layer = per_path(builder()).max_keys(10_000).build().unwrap();
    let (mut service, probe) = rig(&layer);
    // Half of them are open, the others have a window with a failure in it.
    for n in 0..2_000 {
        run(&mut service, &probe, &format!("/{n}"), if n % 2 == 0 { "FF" } else { "SSF" });
    }
    probe.answers();
    for n in 10_000..110_000 {
        assert_eq!(came(&mut call(&mut service, to(&format!("/{n}")))), Came::Well);
        assert!(n % 10_000 > 0 || snapshot(&layer).keys <= 10_000);
    }
    assert_eq!((snapshot(&layer).keys, snapshot(&layer).open_keys), (10_000, 1_000));
    for n in 0..2_000 {
        let (key, is_open) = (format!("/{n}"), n % 2 == 0);
        let expected = if is_open { (State::Open, (2, 2)) } else { (State::Closed, (3, 1)) };
        assert_eq!((state(&layer, &key), window(&layer, &key)), expected, "{n}");
        run(&mut service, &probe, &key, if is_open { "R" } else { "FR" });
    }
    // When the windows are empty new keys take the places of those, and of no other.
    advance(s(11)).await;
    for n in 200_000..300_000 {
        assert_eq!(came(&mut call(&mut service, to(&format!("/{n}")))), Came::Well);
    }
    assert_eq!((snapshot(&layer).keys, snapshot(&layer).open_keys), (10_000, 2_000));
    assert!((0..2_000).all(|n| state(&layer, &format!("/{n}")) == State::Open));
}

/// Room for one key: when does `/a`, which this did to it, make room for another?
struct One {
    layer: CircuitBreakerLayer,
    service: CircuitBreaker<Probe>,
    probe: Probe,
}

impl One {
    fn new(builder: CircuitBreakerBuilder) -> Self {
        let layer = per_path(builder).max_keys(1).build().unwrap();
        let (service, probe) = rig(&layer);
        One { layer, service, probe }
    }

    fn after(builder: CircuitBreakerBuilder, calls: &str) -> Self {
        let mut one = One::new(builder);
        one.run(calls);
        one
    }

    fn run(&mut self, calls: &str) {
        run(&mut self.service, &self.probe, "/a", calls);
    }

    /// Whether another one that calls now has its place.
    fn is_idle(&mut self) -> bool {
        self.probe.answers();
        drop(call(&mut self.service, to("/b")));
        assert_ne!(has(&self.layer, "/a"), has(&self.layer, "/b"));
        has(&self.layer, "/b")
    }

    async fn goes_after(&mut self, time: Duration) {
        advance(time - ms(1)).await;
        assert!(!self.is_idle(), "a millisecond before {time:?}");
        advance(ms(1)).await;
        assert!(self.is_idle(), "after {time:?}");
    }

    async fn stays(&mut self) {
        for _ in 0..10 {
            advance(s(10_000)).await;
            assert!(!self.is_idle());
        }
    }
}

fn rates() -> CircuitBreakerBuilder {
    CircuitBreakerLayer::builder().failure_rate(0.5).open(OpenTime::Fixed(s(10))).probes(1).successes_to_close(1)
}

#[tokio::test(start_paused = true)]
async fn a_closed_one_goes_when_its_window_is_empty() {
    One::after(rates().time_window(s(10)), "SSFF").goes_after(s(11)).await;
    One::after(rates().time_window(s(600)), "SF").goes_after(s(660)).await;
    // From its last call on.
    let mut one = One::after(rates().time_window(s(10)), "SF");
    advance(s(9)).await;
    one.run("S");
    one.goes_after(s(11)).await;
    // It would not be believed that it failed for longer than that.
    One::after(rates().time_window(s(7_200)), "SF").goes_after(s(3_600)).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_of_failures_does_not_age_where_one_is_asked_for() {
    One::after(builder().time_window(s(10)), "SF").goes_after(s(3_600)).await;
    One::after(builder().time_window(s(10)), "FS").goes_after(s(11)).await;
}

#[tokio::test(start_paused = true)]
async fn a_count_window_of_good_calls_goes_after_a_minute() {
    One::after(rates().count_window(100), "SSSS").goes_after(s(60)).await;
    One::after(rates().count_window(100), "SSFS").goes_after(s(3_600)).await;
    // Once the failure has slid out of it all were good.
    One::after(rates().count_window(4).minimum_calls(4), "FSSSS").goes_after(s(60)).await;
}

#[tokio::test(start_paused = true)]
async fn an_open_one_stays_for_an_hour_and_for_its_open_time() {
    One::after(builder(), "FF").goes_after(s(3_600)).await;
    // Refusals are uses.
    let mut one = One::after(builder().open(OpenTime::Fixed(s(10_000))), "FF");
    advance(s(3_000)).await;
    one.run("R");
    one.goes_after(s(7_000)).await;
    // Half-open.
    let mut one = One::after(builder(), "FF");
    advance(s(11)).await;
    one.probe.hangs();
    drop(call(&mut one.service, to("/a")));
    assert_eq!(state(&one.layer, "/a"), State::HalfOpen);
    one.goes_after(s(3_600)).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_ramps_stays_until_it_is_through() {
    let mut one = One::after(builder().time_window(s(10)).ramp(s(100)), "FF");
    advance(s(11)).await;
    one.run("S");
    assert_eq!(state(&one.layer, "/a"), State::Closed);
    one.goes_after(s(100)).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_held_stays() {
    // By a call that runs, and for what that call says at its end.
    let mut one = One::new(rates().time_window(s(10)));
    one.probe.hangs();
    let mut runs = call(&mut one.service, to("/a"));
    assert_eq!(came(&mut runs), Came::Pending);
    for _ in 0..5 {
        advance(s(10_000)).await;
        one.probe.hangs();
        drop(call(&mut one.service, to("/b")));
        assert!(has(&one.layer, "/a"));
    }
    one.probe.fails();
    assert_eq!(came(&mut runs), Came::Failed);
    drop(runs);
    // When it ended stands in the window alone, which is looked at once a tick.
    advance(s(11) - ms(1)).await;
    assert!(!one.is_idle());
    advance(s(1)).await;
    assert!(one.is_idle());
    // What it says may be that it is down, or that it may be: both count from its end, whatever the window.
    for builder in [builder().consecutive_failures(1), builder().time_window(s(10)), builder().count_window(10)] {
        let mut one = One::new(builder);
        one.probe.hangs();
        let mut runs = call(&mut one.service, to("/a"));
        assert_eq!(came(&mut runs), Came::Pending);
        advance(s(10_000)).await;
        one.probe.fails();
        assert_eq!(came(&mut runs), Came::Failed);
        drop(runs);
        one.goes_after(s(3_600)).await;
    }
    // By a handle.
    let mut one = One::after(rates(), "S");
    let handle = one.layer.handle().for_key("/a");
    one.stays().await;
    drop(handle);
    advance(s(1)).await;
    assert!(one.is_idle());
}

#[tokio::test(start_paused = true)]
async fn one_that_was_moved_by_hand_stays_unless_all_were() {
    for force in [buttress::CircuitBreakerHandle::force_open, buttress::CircuitBreakerHandle::force_closed] {
        let mut one = One::after(rates().time_window(s(10)), "S");
        force(&one.layer.handle().for_key("/a").unwrap()).unwrap();
        one.stays().await;
    }
    // Those to come would be as it is.
    let mut one = One::after(rates().time_window(s(10)), "S");
    one.layer.handle().force_closed().unwrap();
    one.run("FFF");
    one.goes_after(s(11)).await;
    // One that was reset by hand is not as they are.
    one.layer.handle().for_key("/b").unwrap().reset();
    advance(s(20_000)).await;
    drop(call(&mut one.service, to("/c")));
    assert!(has(&one.layer, "/b") && !has(&one.layer, "/c"));
    // Where all are forced open nobody is let in who could want a place.
    one.layer.handle().force_open().unwrap();
    advance(s(20_000)).await;
    assert_eq!(came(&mut call(&mut one.service, to("/c"))), FORCED);
    assert!(has(&one.layer, "/b"));
}

#[tokio::test(start_paused = true)]
async fn keys_beyond_the_bound_share_one_and_are_promoted_to_one_as_new() {
    let layer = per_path(builder().time_window(s(10))).max_keys(2).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "FF");
    run(&mut service, &probe, "/b", "S");
    // There is one overflow state for two keys.
    run(&mut service, &probe, "/c", "F");
    run(&mut service, &probe, "/d", "F");
    run(&mut service, &probe, "/c", "R");
    run(&mut service, &probe, "/d", "R");
    let seen = snapshot(&layer);
    assert_eq!((seen.keys, seen.open_keys, seen.state, seen.calls, seen.failures), (2, 1, State::Open, 5, 4));
    assert!(!has(&layer, "/c") && !has(&layer, "/d"));
    run(&mut service, &probe, "/b", "S");
    // The place of b, after its window.
    advance(s(11)).await;
    run(&mut service, &probe, "/d", "S");
    assert_eq!((window(&layer, "/d"), has(&layer, "/b")), ((1, 0), false), "what others did is not its own");
    run(&mut service, &probe, "/a", "S");
    assert_eq!((snapshot(&layer).keys, state(&layer, "/a")), (2, State::Closed));
}

// === by hand ===

#[tokio::test(start_paused = true)]
async fn a_handle_for_a_key_is_of_that_one_alone() {
    let layer = per_path(builder()).build().unwrap();
    let (mut service, probe) = rig(&layer);
    assert!(!has(&layer, "/a"));
    assert_eq!(snapshot(&layer).keys, 0, "asking makes none");
    run(&mut service, &probe, "/a", "S");
    run(&mut service, &probe, "/b", "SF");
    let handle = layer.handle().for_key("/a").unwrap();
    handle.force_open().unwrap();
    assert_eq!((came(&mut call(&mut service, to("/a"))), state(&layer, "/b")), (FORCED, State::Closed));
    run(&mut service, &probe, "/b", "S");
    run(&mut service, &probe, "/c", "S");
    let error = handle.half_open().unwrap_err();
    assert_eq!((error.from, error.to), (State::ForcedOpen, State::HalfOpen));
    handle.reset();
    run(&mut service, &probe, "/a", "FFR");
    advance(s(4)).await;
    let seen = handle.snapshot();
    assert_eq!((seen.state, seen.in_state, seen.open_left), (State::Open, s(4), Some(s(6))));
    assert_eq!((seen.calls, seen.failures, seen.consecutive_failures, seen.keys, seen.open_keys), (2, 2, 2, 0, 0));
    assert_eq!(seen.rejected, 2, "of the whole layer");
    handle.half_open().unwrap();
    run(&mut service, &probe, "/a", "S");
    handle.force_closed().unwrap();
    run(&mut service, &probe, "/a", "FFFFF");
    run(&mut service, &probe, "/b", "FFR");
    assert!(handle.for_key("/b").is_some_and(|b| b.snapshot().state == State::Open));
    // There are none in layers without keys.
    assert!(builder().build().unwrap().handle().for_key("/a").is_none());
}

#[tokio::test(start_paused = true)]
async fn the_handle_of_the_layer_moves_all_and_those_to_come() {
    let layer = per_tenant().missing_key(MissingKey::Shared).build().unwrap();
    let (mut service, probe) = rig(&layer);
    let mut came = |request| came(&mut call(&mut service, request));
    assert_eq!((came(of_tenant("a")), came(of_tenant("b"))), (Came::Well, Came::Well));
    layer.handle().force_open().unwrap();
    let calls = probe.calls();
    for request in [of_tenant("a"), of_tenant("b"), of_tenant("new"), to("/")] {
        assert_eq!(came(request), FORCED);
    }
    let seen = snapshot(&layer);
    assert_eq!((seen.state, seen.keys, seen.open_keys, probe.calls()), (State::ForcedOpen, 2, 2, calls));
    // A key may be taken out of it.
    layer.handle().for_key("b").unwrap().reset();
    assert_eq!((state(&layer, "a"), state(&layer, "b")), (State::ForcedOpen, State::Closed));
    assert_eq!(["a", "b", "late"].map(|key| came(of_tenant(key))), [FORCED, Came::Well, FORCED]);
    assert_eq!((came(to("/")), state(&layer, "late")), (FORCED, State::ForcedOpen));

    layer.handle().force_closed().unwrap();
    probe.fails();
    for request in ["a", "new", "new", "new", "new"].map(of_tenant) {
        assert_eq!(came(request), Came::Failed);
    }
    assert_eq!((state(&layer, "a"), state(&layer, "new")), (State::ForcedClosed, State::ForcedClosed));
    assert_eq!((snapshot(&layer).state, snapshot(&layer).open_keys), (State::ForcedClosed, 0));
    let error = layer.handle().half_open().unwrap_err();
    assert_eq!((error.from, error.to), (State::ForcedClosed, State::HalfOpen));

    layer.handle().for_key("a").unwrap().force_open().unwrap();
    layer.handle().reset();
    assert_eq!((snapshot(&layer).state, window(&layer, "new")), (State::Closed, (0, 0)));
    assert_eq!([came(of_tenant("newer")), came(of_tenant("newer")), came(of_tenant("newer"))].last(), Some(&OPEN));
    assert_eq!((state(&layer, "newer"), state(&layer, "a")), (State::Open, State::Closed));
    layer.handle().half_open().unwrap();
    assert_eq!((state(&layer, "newer"), state(&layer, "a")), (State::HalfOpen, State::Closed));
    layer.handle().half_open().unwrap();
}

/// Without a readiness of its own to wait for: what holds for all is known in `poll_ready`.
#[tokio::test(start_paused = true)]
async fn a_door_that_is_closed_for_all_does_not_touch_the_house() {
    let layer = per_tenant().missing_key(MissingKey::Unlimited).build().unwrap();
    layer.handle().force_open().unwrap();
    let (mut service, probe) = rig(&layer);
    probe.is_never_ready();
    for request in [of_tenant("a"), to("/")] {
        assert_eq!(came(&mut call(&mut service, request)), FORCED);
    }
    assert_eq!((probe.ready_polls(), snapshot(&layer).keys), (0, 0));
    // And of those that were ready before.
    layer.handle().reset();
    probe.answers();
    for request in [of_tenant("a"), to("/")] {
        assert!(poll_fn(|cx| Service::<Request<()>>::poll_ready(&mut service, cx)).now_or_never().is_some());
        layer.handle().force_open().unwrap();
        assert_eq!((came(&mut Box::pin(service.call(request))), probe.held()), (FORCED, 0));
        layer.handle().reset();
    }
    assert_eq!(probe.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn new_numbers_are_for_all_keys_and_for_those_to_come() {
    let layer = per_path(builder()).max_keys(2).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "F");
    run(&mut service, &probe, "/over", "S");
    run(&mut service, &probe, "/flow", "F");
    let five = CircuitBreakerConfig {
        consecutive_failures: Some(5),
        minimum_calls: 50,
        window: Window::Count(50),
        open: OpenTime::Fixed(s(77)),
        ..CircuitBreakerConfig::default()
    };
    layer.handle().update(five.clone()).unwrap();
    assert_eq!(window(&layer, "/a"), (1, 1), "what the window knows is kept");
    run(&mut service, &probe, "/a", "FFFFR");
    assert_eq!(of(&layer, "/a").open_left, Some(s(77)));
    run(&mut service, &probe, "/flow", "FFFFR");
    advance(s(4_000)).await;
    run(&mut service, &probe, "/new", "FFFFFR");
    let bad = CircuitBreakerConfig { probes: 0, ..five.clone() };
    assert!(layer.handle().update(bad).is_err());
    // From whichever handle.
    let handle = layer.handle().for_key("/new").unwrap();
    handle.update(CircuitBreakerConfig { consecutive_failures: Some(1), ..five }).unwrap();
    handle.reset();
    run(&mut service, &probe, "/new", "FR");
    advance(s(4_000)).await;
    run(&mut service, &probe, "/newer", "FR");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_of_all() {
    let layer = per_path(builder().failure_rate(0.9).minimum_calls(9)).max_keys(100).build().unwrap();
    let (mut service, probe) = rig(&layer);
    assert_eq!((snapshot(&layer).state, snapshot(&layer).failure_rate), (State::Closed, None));
    run(&mut service, &probe, "/a", "SSSF");
    advance(s(1)).await;
    run(&mut service, &probe, "/b", "FF");
    advance(s(1)).await;
    run(&mut service, &probe, "/c", "SFFRRR");
    let seen = snapshot(&layer);
    assert_eq!((seen.state, seen.keys, seen.open_keys), (State::Open, 3, 2));
    assert_eq!((seen.in_state, seen.open_left), (s(1), Some(s(9))), "b's");
    assert_eq!((seen.calls, seen.failures, seen.consecutive_failures, seen.rejected), (9, 5, 2, 3));
    assert_eq!((seen.failure_rate, seen.slow_call_rate), (Some(5.0 / 9.0), Some(0.0)));
    layer.handle().for_key("/a").unwrap().force_open().unwrap();
    assert_eq!((snapshot(&layer).state, snapshot(&layer).open_keys), (State::ForcedOpen, 3));
}

#[tokio::test(start_paused = true)]
async fn a_registry_shows_how_many_are_open() {
    let registry = Registry::new();
    let layer = per_path(builder().name("upstreams").registry(&registry)).build().unwrap();
    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "FF");
    run(&mut service, &probe, "/b", "S");
    let seen = registry.snapshot();
    let seen = seen.get("upstreams").unwrap();
    let figure = |name| seen.figures.iter().find(|(known, _)| *known == name).map(|(_, figure)| *figure);
    assert_eq!((figure("keys"), figure("open_keys")), (Some(Figure::Count(2)), Some(Figure::Count(1))));
    assert_eq!((figure("state"), seen.admits), (Some(Figure::Word("open")), true));
    layer.handle().force_open().unwrap();
    assert!(!registry.snapshot().get("upstreams").unwrap().admits);
}

// === events ===

type Seen = Arc<Mutex<Vec<(Option<String>, Kind)>>>;

fn book() -> (Seen, impl Fn(&Event) + Send + Sync + 'static) {
    let seen = Seen::default();
    let book = Arc::clone(&seen);
    (seen, move |e: &Event| book.lock().unwrap().push((e.key.as_deref().map(String::from), e.kind.clone())))
}

fn changed(from: State, to: State) -> Kind {
    Kind::StateChanged { from, to }
}

#[tokio::test(start_paused = true)]
async fn an_event_says_which_one_it_was() {
    let (seen, observer) = book();
    let layer = per_path(builder().time_window(s(10)).observer(observer)).max_keys(1).build().unwrap();
    let (mut service, probe) = rig(&layer);
    let take = || std::mem::take(&mut *seen.lock().unwrap());
    let a = || Some("/a".to_owned());
    run(&mut service, &probe, "/a", "FFR");
    let rejected = (None, Kind::Rejected { reason: Reason::CircuitOpen });
    assert_eq!(take(), [(a(), changed(State::Closed, State::Open)), rejected]);
    advance(s(11)).await;
    run(&mut service, &probe, "/a", "S");
    let expected = [changed(State::Open, State::HalfOpen), changed(State::HalfOpen, State::Closed)];
    assert_eq!(take(), expected.map(|kind| (a(), kind)));
    // Where several share one it is nobody's.
    run(&mut service, &probe, "/b", "FF");
    assert_eq!(take(), [(None, changed(State::Closed, State::Open))]);
    layer.handle().for_key("/a").unwrap().force_open().unwrap();
    assert_eq!(take(), [(a(), changed(State::Closed, State::ForcedOpen))]);
    // All at once.
    layer.handle().force_closed().unwrap();
    let change = changed(State::ForcedOpen, State::ForcedClosed);
    assert_eq!(take(), [(None, change.clone()), (a(), change)]);
    // One that comes into it has not changed.
    advance(s(12)).await;
    run(&mut service, &probe, "/c", "FFFF");
    assert!(has(&layer, "/c"));
    assert_eq!(take(), []);
}

/// However many breakers there are that keys share: with as many keys as are kept by default there are 128 of them.
#[tokio::test(start_paused = true)]
async fn a_move_by_hand_is_one_event_and_one_for_each_key() {
    let (seen, observer) = book();
    let layer = per_path(builder().observer(observer)).build().unwrap();
    let take = || {
        let mut told = std::mem::take(&mut *seen.lock().unwrap());
        told.sort_by_key(|(key, _)| key.clone());
        told
    };
    // Nobody has a breaker yet.
    let handle = layer.handle();
    handle.force_open().unwrap();
    handle.force_open().unwrap();
    assert_eq!(take(), [(None, changed(State::Closed, State::ForcedOpen))]);
    handle.reset();
    handle.reset();
    assert_eq!(take(), [(None, changed(State::ForcedOpen, State::Closed))]);

    let (mut service, probe) = rig(&layer);
    run(&mut service, &probe, "/a", "S");
    run(&mut service, &probe, "/b", "FF");
    let (a, b) = (|| Some("/a".to_owned()), || Some("/b".to_owned()));
    assert_eq!(take(), [(b(), changed(State::Closed, State::Open))]);
    handle.half_open().unwrap();
    handle.half_open().unwrap();
    let change = changed(State::Open, State::HalfOpen);
    assert_eq!(take(), [(None, change.clone()), (b(), change)]);
    handle.force_closed().unwrap();
    let expected = [
        (None, changed(State::HalfOpen, State::ForcedClosed)),
        (a(), changed(State::Closed, State::ForcedClosed)),
        (b(), changed(State::HalfOpen, State::ForcedClosed)),
    ];
    assert_eq!(take(), expected);
    // One of them goes its own way, and only that one comes back.
    handle.for_key("/a").unwrap().reset();
    assert_eq!(take(), [(a(), changed(State::ForcedClosed, State::Closed))]);
    handle.force_closed().unwrap();
    let change = changed(State::Closed, State::ForcedClosed);
    assert_eq!(take(), [(None, change.clone()), (a(), change)]);
    handle.force_closed().unwrap();
    assert_eq!(take(), []);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_shown_within_bounds_and_as_text() {
    let keys: [(Vec<u8>, String); 4] = [
        (b"x".repeat(300), "x".repeat(256)),
        // It ends within the second byte of the last one that would have had room.
        ("xä".repeat(100).into_bytes(), "xä".repeat(85) + "x"),
        ("\u{e4}".repeat(200).into_bytes(), "ä".repeat(128)),
        (vec![0xff; 300], "\u{fffd}".repeat(85)),
    ];
    for (key, shown) in keys {
        let (seen, observer) = book();
        let layer = builder().per_key(Key::Header("k".parse().unwrap())).observer(observer).build().unwrap();
        let (mut service, probe) = rig(&layer);
        probe.fails();
        for _ in 0..2 {
            let mut request = to("/");
            request.headers_mut().insert("k", http::HeaderValue::from_bytes(&key).unwrap());
            drop(call(&mut service, request).await);
        }
        assert_eq!(*seen.lock().unwrap(), [(Some(shown), changed(State::Closed, State::Open))]);
        assert!(layer.handle().for_key(&key).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn bad_keys_are_an_error_with_all_others() {
    let builder = per_path(builder().probes(0)).key_fn(|_| None).max_keys(0).trusted([([10, 0, 0, 0].into(), 33)]);
    let error = builder.build().unwrap_err();
    let fields: Vec<_> = error.fields().iter().map(|f| f.field).collect();
    assert_eq!(fields, ["probes", "max_keys", "per_key", "trusted"]);
    let nobody = CircuitBreakerLayer::builder().per_key(Key::ForwardedFor { proxies: 0 }).build();
    assert_eq!(nobody.unwrap_err().fields().len(), 1);
}

/// States, hands and a bound that is too small, from many threads: nothing is lost, and the counts of states come out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_and_hands_lose_nothing() {
    let touchy = CircuitBreakerLayer::builder().consecutive_failures(1).open(OpenTime::Fixed(ms(1)));
    let layer = per_path(touchy).max_keys(4).build().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20_usize {
        let inner = service_fn(move |request: Request<()>| async move {
            tokio::task::yield_now().await;
            let fails = request.uri().path().len() % 2 == n % 2;
            let status = if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
            let mut response = Response::new(http_body_util::Empty::<Bytes>::new());
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        let (service, layer) = (layer.layer(inner), layer.clone());
        tasks.spawn(async move {
            for round in 0..200 {
                let path = "/".repeat((n + round) % 8 + 1);
                service.clone().oneshot(to(&path)).await.unwrap();
                match (n, round % 20) {
                    (0, 0) => layer.handle().force_open().unwrap(),
                    (0, 1) => layer.handle().reset(),
                    (1, _) => drop(layer.handle().half_open()),
                    (2, _) => drop(layer.handle().for_key(&path).map(|handle| handle.force_closed())),
                    (3, _) => layer.handle().update(CircuitBreakerConfig::default()).unwrap(),
                    _ => {}
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    layer.handle().force_closed().unwrap();
    layer.handle().reset();
    let seen = snapshot(&layer);
    assert_eq!((seen.state, seen.calls, seen.probes_out), (State::Closed, 0, 0));
    assert!(seen.keys <= 4 && seen.open_keys == 0);
    // It goes by counts, and they say the same.
    let error = layer.handle().half_open().unwrap_err();
    assert_eq!(error.from, State::Closed);
}
