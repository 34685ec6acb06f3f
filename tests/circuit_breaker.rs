//! The circuit breaker through its layer, in virtual time. Tests named `s<n>_` are the scenarios of the same number
//! that other projects assert of their breakers.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    Attempts, BulkheadLayer, CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerConfig, CircuitBreakerHandle,
    CircuitBreakerLayer, CircuitBreakerSnapshot, Deadline, DeadlineLayer, Error, OpenTime, Outcome, Plain, Reason,
    Rejection, RetryLayer, State, Stopped, TimeoutLayer, Until, Window,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe, ProbeError, ProbeFuture},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn builder() -> CircuitBreakerBuilder {
    CircuitBreakerLayer::builder()
}

/// Opens at the first failure, for a second, and closes at the first success.
fn touchy() -> CircuitBreakerBuilder {
    builder().consecutive_failures(1).open(OpenTime::Fixed(s(1))).probes(1).successes_to_close(1)
}

/// A plain service behind a breaker, and how it is told to end its calls.
struct Rig {
    layer: CircuitBreakerLayer,
    service: CircuitBreaker<Probe, Plain>,
    probe: Probe,
}

type Call = buttress::circuit_breaker::ResponseFuture<ProbeFuture<()>, Plain, (), ()>;

impl Rig {
    fn new(builder: CircuitBreakerBuilder) -> Self {
        let (layer, probe) = (builder.build().unwrap(), Probe::new());
        Rig { service: layer.clone().plain().layer(probe.clone()), layer, probe }
    }

    fn handle(&self) -> CircuitBreakerHandle {
        self.layer.handle()
    }

    fn snapshot(&self) -> CircuitBreakerSnapshot {
        self.handle().snapshot()
    }

    fn state(&self) -> State {
        self.snapshot().state
    }

    /// Begins a call that hangs until the probe is told otherwise.
    fn begin(&mut self) -> Call {
        self.probe.hangs();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(Service::<()>::poll_ready(&mut self.service, &mut cx).is_ready());
        self.service.call(())
    }

    async fn call(&mut self) -> Result<(), Error<ProbeError>> {
        ServiceExt::<()>::ready(&mut self.service).await?.call(()).await
    }

    /// `S` is a success, `F` a failure; each must be admitted.
    async fn run(&mut self, calls: &str) {
        for c in calls.chars() {
            match c {
                'S' => {
                    self.probe.answers();
                    self.call().await.unwrap();
                }
                _ => {
                    self.probe.fails();
                    assert!(matches!(self.call().await, Err(Error::Inner(_))), "{c} of {calls}");
                }
            }
        }
    }

    async fn rejection(&mut self) -> Rejection {
        match self.call().await {
            Err(Error::Rejected(r)) => r,
            other => panic!("not refused: {other:?}"),
        }
    }
}

// === scenarios: states and windows (resilience4j) ===

/// Failure rate 50 %, slow 50 % above 4 s, 20 s, at least 5, 4 probes, 5 s open.
fn r() -> CircuitBreakerBuilder {
    builder()
        .failure_rate(0.5)
        .slow_calls(s(4), 0.5)
        .time_window(s(20))
        .minimum_calls(5)
        .probes(4)
        .successes_to_close(3)
        .open(OpenTime::Fixed(s(5)))
}

#[tokio::test(start_paused = true)]
async fn s1_below_the_minimum_nothing_is_judged() {
    let mut rig = Rig::new(r());
    rig.run("FFFS").await;
    assert_eq!((rig.state(), rig.snapshot().failure_rate), (State::Closed, None));
}

#[tokio::test(start_paused = true)]
async fn s3_opens_at_its_rate() {
    let mut rig = Rig::new(r());
    for c in ["S", "S", "S", "F", "F"] {
        rig.run(c).await;
        advance(s(1)).await;
    }
    assert_eq!(rig.state(), State::Closed);
    rig.run("F").await;
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.state, snapshot.failure_rate), (State::Open, Some(0.5)));
    assert_eq!((snapshot.calls, snapshot.failures), (6, 3));
}

#[tokio::test(start_paused = true)]
async fn s5_half_open_after_the_open_time() {
    let mut rig = Rig::new(r());
    rig.run("FFFFF").await;
    advance(s(3)).await;
    rig.rejection().await;
    advance(s(3)).await;
    assert_eq!(rig.state(), State::Open);
    let _probe = rig.begin();
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.state, snapshot.calls, snapshot.failures, snapshot.probes_out), (State::HalfOpen, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn s7_open_times_grow() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let mut rig = Rig::new(r().open_fn(move |n| {
        seen.lock().unwrap().push(n);
        s(5).mul_f64(1.5f64.powi(n as i32))
    }));
    rig.run("FFFFF").await;
    advance(s(6)).await;
    rig.run("FF").await;
    assert_eq!(rig.snapshot().open_left, Some(ms(7_500)));
    advance(s(6)).await;
    rig.rejection().await;
    advance(s(5)).await;
    rig.run("SSS").await;
    assert_eq!(rig.state(), State::Closed);
    rig.run("FFFFF").await;
    assert_eq!(*asked.lock().unwrap(), [0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn s9_and_s11_probes_decide() {
    let mut rig = Rig::new(r().successes_to_close(2));
    rig.run("FFFFF").await;
    advance(s(6)).await;
    rig.run("FFSF").await;
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.state, snapshot.failures, snapshot.calls), (State::Open, 3, 4));

    let mut rig = Rig::new(r());
    rig.run("FFFFF").await;
    advance(s(6)).await;
    rig.run("FSSS").await;
    assert_eq!((rig.state(), rig.snapshot().calls), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn s13_to_s17_by_hand() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let mut rig = Rig::new(r().observer(move |e: &Event| seen.lock().unwrap().push(e.kind.clone())));
    let error = rig.handle().half_open().unwrap_err();
    assert_eq!((error.from, error.to), (State::Closed, State::HalfOpen));
    assert_eq!(error.to_string(), "a circuit breaker can't go from closed to half_open");

    rig.handle().force_open().unwrap();
    rig.handle().force_open().unwrap();
    advance(s(6)).await;
    for _ in 0..2 {
        let rejection = rig.rejection().await;
        assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::ForcedOpen, None));
    }
    assert_eq!((rig.snapshot().rejected, rig.probe.calls()), (2, 0));
    let rejected = Kind::Rejected { reason: Reason::ForcedOpen };
    let forced = Kind::StateChanged { from: State::Closed, to: State::ForcedOpen };
    assert_eq!(*events.lock().unwrap(), [forced, rejected.clone(), rejected]);

    rig.handle().force_closed().unwrap();
    rig.run("FFFFFFFFFF").await;
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.state, snapshot.failures), (State::ForcedClosed, 10));
    rig.handle().reset();
    assert_eq!((rig.state(), rig.snapshot().calls), (State::Closed, 0));
    rig.run("FFFFF").await;
    rig.handle().half_open().unwrap();
    rig.handle().half_open().unwrap();
    assert_eq!(rig.state(), State::HalfOpen);
    rig.handle().reset();
    assert_eq!(rig.state(), State::Closed);
}

// === scenarios: rates, hints, isolation (Polly) ===

#[tokio::test(start_paused = true)]
async fn s21_throughput_and_rate() {
    for (calls, minimum, failures, rate, opens) in [
        (10, 10, 0, 0.1, false),
        (10, 10, 1, 0.1, true),
        (10, 10, 2, 0.1, true),
        (11, 10, 2, 0.1, true),
        (9, 10, 1, 0.1, false),
    ] {
        let mut rig = Rig::new(builder().failure_rate(rate).minimum_calls(minimum));
        let mut sequence = "F".repeat(failures);
        sequence.push_str(&"S".repeat(calls - failures));
        for c in sequence.split_inclusive(|_| true) {
            if rig.state() == State::Closed {
                rig.run(c).await;
            }
        }
        assert_eq!(rig.state() == State::Open, opens, "{calls} {failures}");
    }
}

#[tokio::test(start_paused = true)]
async fn s23_says_when_to_come_back() {
    let mut rig = Rig::new(touchy().open(OpenTime::Fixed(s(5))));
    rig.run("F").await;
    advance(ms(1)).await;
    let rejection = rig.rejection().await;
    assert_eq!((rejection.policy(), rejection.reason()), ("circuit_breaker", Reason::CircuitOpen));
    assert_eq!((rejection.retry_after(), rejection.is_refusal()), (Some(ms(4_999)), true));
    // The first allowed instant is strictly after the open time.
    advance(ms(4_999)).await;
    assert_eq!(rig.rejection().await.retry_after(), Some(Duration::ZERO));
    advance(ms(1)).await;
    rig.run("S").await;
    assert_eq!(rig.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn s25_one_probe_at_a_time() {
    let mut rig = Rig::new(touchy());
    rig.run("F").await;
    advance(ms(1_001)).await;
    let probe = rig.begin();
    assert_eq!(rig.rejection().await.retry_after(), None);
    rig.probe.answers();
    probe.await.unwrap();
    assert_eq!(rig.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn s27_isolation_stays() {
    let mut rig = Rig::new(touchy());
    let running = rig.begin();
    rig.handle().force_open().unwrap();
    rig.probe.answers();
    running.await.unwrap();
    assert_eq!((rig.state(), rig.rejection().await.retry_after()), (State::ForcedOpen, None));
}

// === scenarios: failsafe-go, linkerd, sentinel, finagle ===

#[tokio::test(start_paused = true)]
async fn s29_s31_small_windows() {
    let mut rig = Rig::new(touchy());
    rig.run("F").await;
    assert_eq!(rig.state(), State::Open);

    let mut rig = Rig::new(builder().count_window(3).minimum_calls(3).failure_rate(2.0 / 3.0));
    rig.run("FS").await;
    assert_eq!(rig.state(), State::Closed);
    rig.run("F").await;
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn s33_a_relapse_after_two_successes() {
    let mut rig = Rig::new(touchy().probes(3).successes_to_close(3));
    rig.run("F").await;
    advance(ms(1_001)).await;
    rig.run("SSF").await;
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn s37_a_straggler_and_a_growing_delay() {
    let growing = OpenTime::Growing { first: s(1), factor: 2.0, max: s(60), jitter: 0.0 };
    let mut rig = Rig::new(touchy().consecutive_failures(2).open(growing));
    let straggler = rig.begin();
    rig.run("FF").await;
    assert_eq!(rig.state(), State::Open);
    advance(ms(500)).await;
    rig.rejection().await;
    advance(ms(501)).await;
    rig.run("F").await;
    rig.probe.answers();
    straggler.await.unwrap();
    assert_eq!((rig.state(), rig.snapshot().open_left), (State::Open, Some(s(2))));
    advance(ms(2_001)).await;
    rig.run("S").await;
    assert_eq!(rig.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn s39_the_minimum_is_for_rates_only() {
    let mut rig = Rig::new(builder().consecutive_failures(3).minimum_calls(100));
    rig.run("FSFF").await;
    assert_eq!(rig.state(), State::Closed);
    rig.run("F").await;
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn s41_s47_minimum_and_age() {
    let mut rig = Rig::new(builder().failure_rate(1.0).minimum_calls(5));
    rig.run("FFFF").await;
    assert_eq!(rig.state(), State::Closed);
    advance(s(11)).await;
    assert_eq!(rig.snapshot().calls, 0);
    rig.run("FFFF").await;
    assert_eq!(rig.state(), State::Closed);
    rig.run("F").await;
    assert_eq!(rig.state(), State::Open);

    let mut rig = Rig::new(builder().failure_rate(0.5).minimum_calls(10));
    rig.run("FFSSSSSSSS").await;
    assert_eq!(rig.snapshot().failure_rate, Some(0.2));
}

#[tokio::test(start_paused = true)]
async fn s43_many_probes() {
    let mut rig = Rig::new(touchy().probes(10).successes_to_close(10));
    rig.run("F").await;
    advance(ms(1_001)).await;
    rig.run("SSSSSSSSS").await;
    assert_eq!(rig.state(), State::HalfOpen);
    rig.run("S").await;
    assert_eq!(rig.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn s107_s109_readiness() {
    let mut rig = Rig::new(touchy());
    rig.run("F").await;
    let polls = rig.probe.ready_polls();
    rig.probe.is_never_ready();
    rig.rejection().await;
    assert_eq!(rig.probe.ready_polls(), polls);

    // A readiness error is a failure, and comes back unchanged.
    let mut rig = Rig::new(touchy());
    rig.probe.is_broken();
    assert!(matches!(rig.call().await, Err(Error::Inner(ProbeError { in_readiness: true }))));
    assert_eq!(rig.state(), State::Open);
    advance(ms(1_001)).await;
    assert!(matches!(rig.call().await, Err(Error::Inner(_))));
    assert_eq!((rig.state(), rig.snapshot().probes_out), (State::Open, 0));
}

#[tokio::test(start_paused = true)]
async fn s110_a_lost_probe_frees_its_slot() {
    for how in ["dropped", "panics", "ignored"] {
        let (layer, probe) = (touchy().build().unwrap(), Probe::new());
        let ignores = |r: Result<&(), &ProbeError>| if r.is_ok() { Outcome::Success } else { Outcome::Ignored };
        let ignoring = layer.clone().plain_with(ignores).layer(probe.clone());
        let service = layer.clone().plain().layer(probe.clone());
        probe.fails();
        assert!(service.clone().oneshot(()).await.is_err());
        advance(ms(1_001)).await;
        match how {
            "dropped" => {
                probe.hangs();
                let mut call = Box::pin(service.clone().oneshot(()));
                assert!((&mut call).now_or_never().is_none());
                assert_eq!(layer.handle().snapshot().probes_out, 1);
            }
            "panics" => {
                probe.panics();
                let call = std::panic::AssertUnwindSafe(service.clone().oneshot(()));
                assert!(call.catch_unwind().await.is_err());
            }
            _ => assert!(ignoring.clone().oneshot(()).await.is_err()),
        }
        let snapshot = layer.handle().snapshot();
        let state = if how == "panics" { State::Open } else { State::HalfOpen };
        assert_eq!((snapshot.state, snapshot.probes_out), (state, 0), "{how}");
        probe.answers();
        if state == State::HalfOpen {
            service.clone().oneshot(()).await.unwrap();
            assert_eq!(layer.handle().snapshot().state, State::Closed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn s110_a_hung_probe_is_given_up_after_its_lease() {
    let mut rig = Rig::new(touchy().probe_lease(s(30)));
    rig.run("F").await;
    advance(ms(1_001)).await;
    let hung = rig.begin();
    advance(s(30)).await;
    rig.rejection().await;
    advance(ms(1)).await;
    assert_eq!(rig.snapshot().probes_out, 0);
    let next = rig.begin();
    // Its late verdict changes nothing, and does not take the slot of the next one.
    rig.probe.fails();
    assert!(hung.await.is_err());
    assert_eq!((rig.state(), rig.snapshot().probes_out), (State::HalfOpen, 1));
    rig.probe.answers();
    next.await.unwrap();
    assert_eq!(rig.state(), State::Closed);
}

/// A refusal decided in `poll_ready` binds the next call, and no longer than until it is polled ready again.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_forgotten_when_the_door_opens() {
    let mut rig = Rig::new(touchy());
    rig.handle().force_open().unwrap();
    assert!(ServiceExt::<()>::ready(&mut rig.service).await.is_ok());
    rig.handle().reset();
    rig.call().await.unwrap();
    // Decided, and then called without another poll: the inner service was not polled ready.
    rig.handle().force_open().unwrap();
    assert!(ServiceExt::<()>::ready(&mut rig.service).await.is_ok());
    rig.handle().reset();
    assert!(matches!(rig.service.call(()).await, Err(Error::Rejected(_))));
}

/// In shadow a call that would have been refused is not booked, whatever becomes of it.
#[tokio::test(start_paused = true)]
async fn shadow_books_nothing_for_what_it_would_refuse() {
    let mut rig = Rig::new(touchy().shadow(true));
    rig.run("F").await;
    let opened = rig.snapshot();
    rig.run("SF").await;
    drop(rig.begin());
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.calls, snapshot.cancelled, snapshot.would_have_rejected), (opened.calls, 0, 3));
    advance(ms(1_001)).await;
    rig.run("S").await;
    assert_eq!(rig.state(), State::Closed);
}

// === what counts ===

#[tokio::test(start_paused = true)]
async fn throttled_calls_count_in_the_rate_and_not_in_a_row() {
    let throttled = |_: Result<&(), &ProbeError>| Outcome::Throttled;
    for (is_failure, opens) in [(false, false), (true, true)] {
        let layer =
            builder().consecutive_failures(3).minimum_calls(10).throttled_is_failure(is_failure).build().unwrap();
        let service = layer.clone().plain_with(throttled).layer(Probe::new());
        for _ in 0..3 {
            service.clone().oneshot(()).await.unwrap();
        }
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.state == State::Open, snapshot.failures), (opens, 3));
        assert_eq!(snapshot.consecutive_failures, if is_failure { 3 } else { 0 });
    }
    let layer = builder().minimum_calls(3).build().unwrap();
    let service = layer.clone().plain_with(throttled).layer(Probe::new());
    for _ in 0..3 {
        service.clone().oneshot(()).await.unwrap();
    }
    assert_eq!(layer.handle().snapshot().state, State::Open);
}

/// Callers that look at the status and drop the rest.
#[tokio::test(start_paused = true)]
async fn an_unread_answer_counts_by_its_head() {
    type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
    let hello = || Body::new(Full::new(Bytes::from("hello")));
    let endless = || Body::new(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, _>>()));
    // Seen by the layer: whether it is read, with which status, how it ends.
    for (body, reads, status, outcome) in [
        (hello as fn() -> Body, false, 200, Outcome::Success),
        (hello, true, 200, Outcome::Success),
        (hello, false, 500, Outcome::Failure),
        // May be a stream of which somebody has had enough.
        (endless, false, 200, Outcome::Cancelled),
    ] {
        let outcomes = OutcomesLayer::new();
        let service = outcomes.layer(service_fn(move |_: Request<()>| {
            ready(Ok::<_, Infallible>(Response::builder().status(status).body(body()).unwrap()))
        }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        if reads {
            response.into_body().collect().await.unwrap();
        } else {
            drop(response);
        }
        assert_eq!(outcomes.handle().take(), [outcome], "{reads} {status}");
    }
    // An own classification may want to see the end; and a timeout further out that gives it up is a failure.
    struct Own;
    impl buttress::HttpClassify for Own {}
    let (own, inside) = (builder().minimum_calls(1).build().unwrap().classify(Own), OutcomesLayer::new());
    let answers = service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(hello()))));
    drop(own.layer(answers).oneshot(Request::new(())).await.unwrap());
    assert_eq!((own.handle().snapshot().calls, own.handle().snapshot().cancelled), (0, 1));
    let (inner, timeout) = (inside.layer(answers), TimeoutLayer::builder().after(ms(10)).build().unwrap());
    let keeps = timeout.layer(service_fn(move |request: Request<()>| {
        let call = inner.clone().oneshot(request);
        async move {
            let _kept = call.await?;
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        }
    }));
    assert_eq!(keeps.oneshot(Request::new(())).await.unwrap().status(), 504);
    assert_eq!(inside.handle().take(), [Outcome::Failure]);
    // How long its caller keeps it is no time of the backend's.
    let slow = builder().slow_calls(s(1), 0.5).until(Until::End).minimum_calls(1).build().unwrap();
    let kept = slow.layer(answers).oneshot(Request::new(())).await.unwrap();
    advance(s(5)).await;
    drop(kept);
    assert_eq!((slow.handle().snapshot().calls, slow.handle().snapshot().slow), (1, 0));
    // One in twenty fails, of which half would have to; and after an outage it closes again.
    let layer = builder().open(OpenTime::Fixed(s(1))).build().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let fails = Arc::new(AtomicUsize::new(20));
    let (n, every) = (Arc::clone(&calls), Arc::clone(&fails));
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let status = if n.fetch_add(1, SeqCst).is_multiple_of(every.load(SeqCst)) { 500 } else { 200 };
        ready(Ok::<_, Infallible>(Response::builder().status(status).body(hello()).unwrap()))
    }));
    for (every, state) in [(20, State::Closed), (1, State::Open), (usize::MAX, State::Closed)] {
        fails.store(every, SeqCst);
        for _ in 0..1_000 {
            drop(service.clone().oneshot(Request::new(())).await.unwrap());
            advance(Duration::from_millis(20)).await;
        }
        assert_eq!(layer.handle().snapshot().state, state, "one in {every}");
    }
}

#[tokio::test(start_paused = true)]
async fn cancelled_and_refused_calls_leave_the_window_untouched() {
    let mut rig = Rig::new(touchy());
    drop(rig.begin());
    assert_eq!((rig.snapshot().calls, rig.snapshot().cancelled), (0, 1));

    // Refused by a breaker further in: nothing is held against the backend by the outer one.
    let inner = touchy().name("inner").build().unwrap();
    inner.handle().force_open().unwrap();
    let outer = touchy().name("outer").build().unwrap();
    let service = outer.clone().flat().layer(inner.clone().plain().layer(Probe::new()));
    let error = service.clone().oneshot(()).await.unwrap_err();
    assert_eq!(Rejection::of(&error).unwrap().name(), "inner");
    let snapshot = outer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.cancelled, snapshot.state), (0, 0, State::Closed));
    let service = outer.layer(inner.layer(Probe::new()));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(Rejection::in_response(&response).unwrap().name(), "inner");
    assert_eq!(outer.handle().snapshot().calls, 0);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_open_it() {
    let mut rig = Rig::new(builder().slow_calls(ms(100), 0.5).minimum_calls(2));
    for took in [100, 101] {
        let call = rig.begin();
        advance(ms(took)).await;
        rig.probe.answers();
        call.await.unwrap();
    }
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.slow, snapshot.slow_call_rate, snapshot.state), (1, Some(0.5), State::Open));
    // And a slow probe is a failed one.
    advance(s(7)).await;
    let probe = rig.begin();
    advance(ms(101)).await;
    rig.probe.answers();
    probe.await.unwrap();
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_ramp_admits_a_growing_share_and_falls_back() {
    fastrand::seed(7);
    let mut rig = Rig::new(touchy().ramp(s(10)));
    rig.run("F").await;
    advance(ms(1_001)).await;
    rig.run("S").await;
    for (at, least, most) in [(0, 0, 0), (1, 60, 140), (5, 430, 570), (9, 860, 940), (10, 1_000, 1_000)] {
        let mut admitted = 0;
        for _ in 0..1_000 {
            match rig.call().await {
                Ok(()) => admitted += 1,
                Err(e) => assert_eq!(Rejection::of(&e).unwrap().reason(), Reason::CircuitOpen),
            }
        }
        assert!((least..=most).contains(&admitted), "{admitted} at {at} s");
        advance(if at == 1 || at == 5 { s(4) } else { s(1) }).await;
    }
    // A relapse while it ramps opens it again.
    let mut rig = Rig::new(touchy().ramp(s(10)));
    rig.run("F").await;
    advance(ms(1_001)).await;
    rig.run("S").await;
    advance(s(9)).await;
    rig.probe.fails();
    while rig.state() == State::Closed {
        let _ = rig.call().await;
    }
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn shadow_refuses_nothing_and_says_what_it_would() {
    let mut rig = Rig::new(touchy().shadow(true));
    rig.run("FFF").await;
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.state, snapshot.shadow), (State::Open, true));
    assert_eq!((snapshot.would_have_rejected, snapshot.rejected), (2, 0));
    rig.handle().shadow(false);
    rig.rejection().await;
    assert_eq!(rig.snapshot().rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn every_service_and_form_of_a_layer_is_one_breaker() {
    let layer = touchy().consecutive_failures(50).minimum_calls(1_000).build().unwrap();
    let probe = Probe::new();
    probe.fails();
    for i in 0..50 {
        assert_eq!(layer.handle().snapshot().consecutive_failures, i);
        let call = if i % 2 == 0 {
            layer.clone().plain().layer(probe.clone()).oneshot(()).await.is_err()
        } else {
            layer.layer(probe.clone()).oneshot(Request::new(())).await.is_err()
        };
        assert!(call);
    }
    assert_eq!(layer.handle().snapshot().state, State::Open);
}

// === HTTP and gRPC ===

type Headers = &'static [(&'static str, &'static str)];

/// A backend that always answers this, with these trailers after a data frame.
fn answers(
    status: u16,
    headers: Headers,
    trailers: Option<Headers>,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>,
    Error = Infallible,
    Future: Future + Send,
> + Clone {
    service_fn(move |_: Request<Empty<Bytes>>| {
        let mut response = Response::builder().status(status);
        for (k, v) in headers {
            response = response.header(*k, *v);
        }
        let body = match trailers {
            None => Full::new(Bytes::new()).boxed(),
            Some(trailers) => {
                let map = trailers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
                Full::new(Bytes::from_static(b"data")).with_trailers(ready(Some(Ok(map)))).boxed()
            }
        };
        ready(Ok(response.body(body).unwrap()))
    })
}

fn grpc() -> Request<Empty<Bytes>> {
    Request::post("/x.Y/Z").header("content-type", "application/grpc").body(Empty::new()).unwrap()
}

fn get() -> Request<Empty<Bytes>> {
    Request::new(Empty::new())
}

#[tokio::test(start_paused = true)]
async fn opens_on_5xx_on_status_in_headers_and_on_status_in_trailers() {
    type Case = (&'static str, fn() -> Request<Empty<Bytes>>, u16, Headers, Option<Headers>, State);
    let cases: [Case; 7] = [
        ("500", get, 500, &[], None, State::Open),
        ("404", get, 404, &[], None, State::Closed),
        ("head", grpc, 200, &[("grpc-status", "14")], None, State::Open),
        ("trailers", grpc, 200, &[], Some(&[("grpc-status", "13")]), State::Open),
        ("ok", grpc, 200, &[], Some(&[("grpc-status", "0")]), State::Closed),
        ("not found", grpc, 200, &[], Some(&[("grpc-status", "5")]), State::Closed),
        ("cut off", grpc, 200, &[], None, State::Open),
    ];
    for (name, request, status, headers, trailers, state) in cases {
        let layer = touchy().build().unwrap();
        let response = layer.layer(answers(status, headers, trailers)).oneshot(request()).await.unwrap();
        let _ = response.into_body().collect().await;
        assert_eq!(layer.handle().snapshot().state, state, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_response() {
    let layer = touchy().name("ledger").build().unwrap();
    let service = layer.layer(answers(500, &[], None));
    service.clone().oneshot(get()).await.unwrap();
    let response = service.clone().oneshot(get()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the circuit breaker is open","policy":"circuit_breaker","reason":"circuit_open","retry_after":1}"#
    );
    let response = service.oneshot(grpc()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1000");
}

#[tokio::test(start_paused = true)]
async fn the_servers_hint_is_obeyed_within_the_maximum() {
    let growing = OpenTime::Growing { first: s(1), factor: 2.0, max: s(10), jitter: 0.0 };
    let hint: [(Headers, Duration); 9] = [
        (&[("retry-after", "7")], s(7)),
        (&[("retry-after", "600")], s(10)),
        // Longer than there are nanoseconds, seconds, digits for.
        (&[("retry-after", "100000000000")], s(10)),
        (&[("retry-after", "18446744073709551615")], s(10)),
        (&[("retry-after", "18446744073709551616")], s(10)),
        (&[("grpc-retry-pushback-ms", "18446744073709551615"), ("grpc-status", "14")], s(10)),
        (&[("retry-after", "0")], s(1)),
        (&[("retry-after", "soon")], s(1)),
        (&[("grpc-retry-pushback-ms", "2500"), ("grpc-status", "14")], ms(2_500)),
    ];
    for (headers, left) in hint {
        for (obey, left) in [(true, left), (false, s(1))] {
            let layer = touchy().open(growing).obey_retry_after(obey).build().unwrap();
            let (request, status) = if headers.len() == 2 { (grpc(), 200) } else { (get(), 503) };
            layer.layer(answers(status, headers, None)).oneshot(request).await.unwrap();
            assert_eq!(layer.handle().snapshot().open_left, Some(left), "{headers:?}");
        }
    }
}

/// A response whose head comes after 10 ms and whose frames come 100 ms apart.
fn slow_stream(
    content_type: &'static str,
    frames: Vec<&'static [u8]>,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = Infallible>>,
    Error = Infallible,
    Future: Future,
> + Clone {
    service_fn(move |_: Request<Empty<Bytes>>| {
        let frames = frames.clone();
        async move {
            sleep(ms(10)).await;
            let frames = futures_util::stream::unfold(frames.into_iter(), |mut frames| async move {
                let next = frames.next()?;
                sleep(ms(100)).await;
                Some((Ok(http_body::Frame::data(Bytes::from_static(next))), frames))
            });
            let body = StreamBody::new(Box::pin(frames));
            Ok(Response::builder().header("content-type", content_type).body(body).unwrap())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn where_the_latency_ends() {
    // Two gRPC messages of one byte each.
    let messages: Vec<&[u8]> = vec![b"\0\0\0\0\x01a", b"\0\0\0\0\x01b"];
    let cases = [
        (Until::Head, get(), "text/plain", vec![&b"a"[..], b"b"], 10),
        (Until::End, get(), "text/plain", vec![&b"a"[..], b"b"], 210),
        (Until::End, get(), "text/event-stream", vec![&b"a"[..], b"b"], 110),
        (Until::End, grpc(), "application/grpc", messages.clone(), 110),
        (Until::End, grpc(), "application/grpc", vec![b"\0\0\0\0\x02a", b"b"], 210),
    ];
    for (until, request, content_type, frames, took) in cases {
        for (limit, slow) in [(took - 1, 1), (took, 0)] {
            let layer = builder().slow_calls(ms(limit), 1.0).until(until).build().unwrap();
            let (parts, body) = request.clone().into_parts();
            let service = layer.layer(slow_stream(content_type, frames.clone()));
            let response = service.oneshot(Request::from_parts(parts, body)).await.unwrap();
            let _ = response.into_body().collect().await;
            let snapshot = layer.handle().snapshot();
            assert_eq!((snapshot.calls, snapshot.slow), (1, slow), "{until:?} {content_type} {took}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_streams_longer_than_its_lease_counts_by_its_head() {
    let layer = touchy().probe_lease(s(1)).build().unwrap();
    layer.layer(answers(500, &[], None)).oneshot(get()).await.unwrap();
    advance(ms(1_001)).await;
    let endless = slow_stream("text/plain", vec![b"x"; 100]);
    let response = layer.layer(endless).oneshot(get()).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, State::HalfOpen);
    advance(s(2)).await;
    let next = layer.layer(answers(200, &[], None)).oneshot(get()).await.unwrap();
    assert_eq!((next.status().as_u16(), layer.handle().snapshot().state), (200, State::Closed));
    drop(response);
    assert_eq!(layer.handle().snapshot().state, State::Closed);
}

/// How the body of a probe, or of another call, goes on after its head: when that comes, and how it ends so long after
/// it.
fn body_that(
    head: Duration,
    then: Duration,
    end: fn() -> Option<Result<http_body::Frame<Bytes>, std::io::Error>>,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = std::io::Error>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    service_fn(move |_: Request<Empty<Bytes>>| async move {
        sleep(head).await;
        let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"x")))]);
        let rest = futures_util::stream::unfold((), move |()| async move {
            sleep(then).await;
            end().map(|frame| (frame, ()))
        });
        Ok(Response::new(StreamBody::new(Box::pin(futures_util::StreamExt::chain(first, rest)))))
    })
}

async fn read<S, B>(service: S)
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let body = service.oneshot(get()).await.unwrap().into_body();
    let _ = body.collect().await;
}

/// It hangs past its lease, and then its head is good: that says nothing any more, however its body ends.
#[tokio::test(start_paused = true)]
async fn a_head_that_comes_after_its_lease_changes_nothing() {
    for end in [|| None, || Some(Err(std::io::Error::other("broken")))] {
        let layer = touchy().probe_lease(s(1)).build().unwrap();
        layer.layer(answers(500, &[], None)).oneshot(get()).await.unwrap();
        advance(ms(1_001)).await;
        read(layer.layer(body_that(ms(1_500), ms(1), end))).await;
        assert_eq!(layer.handle().snapshot().state, State::HalfOpen);
    }
}

/// By its head, though its latency would be that of its end, and whether or not somebody calls meanwhile.
#[tokio::test(start_paused = true)]
async fn a_probe_that_streams_for_long_is_not_slow() {
    for others in [false, true] {
        let builder = touchy().probe_lease(s(1)).until(Until::End).slow_calls(ms(300), 0.9);
        let layer = builder.build().unwrap();
        layer.layer(answers(500, &[], None)).oneshot(get()).await.unwrap();
        advance(ms(1_001)).await;
        let probe = async { read(layer.layer(body_that(ms(0), ms(1_700), || None))).await };
        let other = async {
            sleep(ms(1_200)).await;
            assert_eq!(layer.handle().snapshot().state, State::HalfOpen);
            if others {
                read(layer.layer(body_that(ms(0), ms(0), || None))).await;
            }
        };
        tokio::join!(probe, other);
        assert_eq!(layer.handle().snapshot().state, State::Closed, "{others}");
    }
}

/// The latency of a call is that of its head, however late its body breaks, and in whichever way.
#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_late_is_not_slow() {
    for end in [|| panic!("broken"), || Some(Err(std::io::Error::other("broken")))] {
        let layer = builder().slow_calls(ms(300), 1.0).build().unwrap();
        let service = layer.layer(body_that(ms(0), ms(1_700), end));
        let _ = tokio::spawn(async { read(service).await }).await;
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.failures, snapshot.slow), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_a_failure() {
    let layer = touchy().build().unwrap();
    let broken = service_fn(|_: Request<Empty<Bytes>>| {
        let frames = [Ok(http_body::Frame::data(Bytes::from_static(b"a"))), Err("broken pipe")];
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames)))))
    });
    let response = layer.layer(broken).oneshot(get()).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, State::Closed);
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(layer.handle().snapshot().state, State::Open);
}

// === whose clock ran out ===

fn hanging()
-> impl Service<Request<Empty<Bytes>>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Future + Send> + Clone
{
    service_fn(|_| std::future::pending())
}

#[tokio::test(start_paused = true)]
async fn a_hanging_backend_behind_a_timeout_opens_it_whichever_is_outside() {
    let timeout = TimeoutLayer::builder().after(ms(100)).build().unwrap();
    let layer = touchy().build().unwrap();
    layer.layer(timeout.layer(hanging())).oneshot(get()).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, State::Open);
    let layer = touchy().build().unwrap();
    timeout.layer(layer.layer(hanging())).oneshot(get()).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, State::Open);
}

/// A caller may write what it likes into a header. What answers in HTTP is judged by HTTP's table; what may be gRPC,
/// and ends without a status, is a failure.
#[tokio::test(start_paused = true)]
async fn a_forged_content_type_does_not_open_it() {
    use Outcome::*;
    const JSON: (&str, &str) = ("content-type", "application/json");
    let table: [(u16, Headers, Outcome); 14] = [
        (200, &[JSON], Success),
        (204, &[], Success),
        (404, &[], Success),
        (405, &[("allow", "GET")], Success),
        (401, &[JSON], Success),
        (200, &[("content-type", "application/grpc-web")], Success),
        (429, &[JSON], Throttled),
        (503, &[JSON], Failure),
        (200, &[], Failure),
        (200, &[("content-type", "application/grpc+proto")], Failure),
        // What says how it ended speaks gRPC, whatever else it says.
        (200, &[JSON, ("grpc-status", "13")], Failure),
        (404, &[("grpc-status", "14")], Failure),
        (503, &[("grpc-status", "5")], Success),
        (200, &[("content-type", "application/grpc"), ("grpc-status", "8")], Throttled),
    ];
    for (status, headers, outcome) in table {
        let outcomes = OutcomesLayer::new();
        let service = outcomes.layer(answers(status, headers, None));
        service.oneshot(grpc()).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(outcomes.handle().take(), [outcome], "{status} {headers:?}");
        // As whoever looks before it passes on sees it.
        let retry = RetryLayer::builder().attempts(1).build().unwrap();
        let response = retry.layer(answers(status, headers, None)).oneshot(grpc()).await.unwrap();
        let stopped = response.extensions().get::<Attempts>().unwrap().stopped;
        assert_eq!(stopped == Stopped::Succeeded, outcome == Success, "{status} {headers:?}: {stopped:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn forged_short_deadlines_do_not_open_it() {
    let short = || {
        let mut request = grpc();
        request.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
        request
    };
    let server = || DeadlineLayer::server(s(10));
    let timeout = || TimeoutLayer::builder().after(s(5)).build().unwrap();
    let layer = touchy().build().unwrap();
    for _ in 0..3 {
        server().layer(layer.layer(hanging())).oneshot(short()).await.unwrap();
        layer.layer(server().layer(hanging())).oneshot(short()).await.unwrap();
        server().layer(timeout().layer(layer.layer(hanging()))).oneshot(short()).await.unwrap();
        server().layer(layer.layer(timeout().layer(hanging()))).oneshot(short()).await.unwrap();
        // A backend that is told of the deadline and answers with code 4 in time.
        let obeys = service_fn(|r: Request<Empty<Bytes>>| async {
            sleep(ms(49)).await;
            answers(200, &[("grpc-status", "4")], None).oneshot(r).await
        });
        server().layer(layer.layer(obeys)).oneshot(short()).await.unwrap();
    }
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.state, snapshot.calls, snapshot.cancelled), (State::Closed, 0, 15));
}

/// A refusal that comes as an error is no failure of the backend on HTTP either.
#[tokio::test(start_paused = true)]
async fn a_refusal_in_an_error_opens_no_http_breaker() {
    let wall = BulkheadLayer::builder().limit(1).build().unwrap().boxed();
    let refuses = wall.layer(hanging());
    let mut running = Box::pin(refuses.clone().oneshot(get()));
    assert!(running.as_mut().now_or_never().is_none());
    let (layer, outcomes) = (touchy().build().unwrap(), OutcomesLayer::new());
    let error = outcomes.layer(layer.layer(refuses)).oneshot(get()).await.unwrap_err();
    assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::BulkheadFull);
    assert_eq!((layer.handle().snapshot().state, layer.handle().snapshot().calls), (State::Closed, 0));
    assert_eq!(outcomes.handle().take(), [Outcome::Ignored]);
}

/// A panic is the backend's own, however little time its caller had: in a poll as in the call.
#[tokio::test(start_paused = true)]
async fn a_panic_after_a_short_deadline_is_a_failure() {
    for in_call in [true, false] {
        let layer = touchy().build().unwrap().plain();
        let service = layer.layer(service_fn(move |(): ()| {
            assert!(!in_call, "broken");
            async {
                sleep(ms(30)).await;
                panic!("broken");
                #[allow(unreachable_code, reason = "it says what there would have been")]
                Ok::<(), std::io::Error>(())
            }
        }));
        let call = Deadline::after(ms(20)).scope(service.oneshot(()));
        assert!(tokio::spawn(call).await.unwrap_err().is_panic());
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.state, snapshot.cancelled), (State::Open, 0), "{in_call}");
    }
}

/// And in a body, for which it is polled after its head was good.
#[tokio::test(start_paused = true)]
async fn a_panic_in_a_body_after_a_short_deadline_is_a_failure() {
    let layer = touchy().until(Until::End).build().unwrap();
    let service = layer.layer(service_fn(|_: Request<Empty<Bytes>>| async {
        let broken = futures_util::stream::once(async {
            sleep(ms(30)).await;
            panic!("broken");
            #[allow(unreachable_code, reason = "it says what there would have been")]
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::new()))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(broken)))
    }));
    let response = Deadline::after(ms(20)).scope(service.oneshot(get())).await.unwrap();
    let body = Deadline::after(ms(20)).scope(async { Box::pin(response.into_body()).collect().await.map(drop) });
    assert!(tokio::spawn(body).await.unwrap_err().is_panic());
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.state, snapshot.cancelled), (State::Open, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_long_enough_is_the_backends_failure() {
    for (blame, state) in [(s(1), State::Open), (s(3), State::Closed)] {
        let layer = touchy().deadline_blame_after(blame).build().unwrap();
        DeadlineLayer::server(s(2)).layer(layer.layer(hanging())).oneshot(get()).await.unwrap();
        assert_eq!(layer.handle().snapshot().state, state);
        let layer = touchy().deadline_blame_after(blame).build().unwrap();
        layer.layer(DeadlineLayer::server(s(2)).layer(hanging())).oneshot(get()).await.unwrap();
        assert_eq!(layer.handle().snapshot().state, state);
    }
    // To the millisecond, whichever is outside, and on gRPC too, where timers run out a little before.
    let timeout = || TimeoutLayer::builder().after(s(10)).build().unwrap();
    for (had, state) in [(999, State::Closed), (1_000, State::Open)] {
        for outside in [false, true] {
            let layer = touchy().build().unwrap();
            let plain = layer.clone().plain();
            let hangs = service_fn(|(): ()| std::future::pending::<Result<(), std::io::Error>>());
            let call = if outside {
                futures_util::future::Either::Left(timeout().plain().layer(plain.layer(hangs)).oneshot(()).map(drop))
            } else {
                futures_util::future::Either::Right(plain.layer(timeout().plain().layer(hangs)).oneshot(()).map(drop))
            };
            Deadline::after(ms(had)).scope(call).await;
            assert_eq!(layer.handle().snapshot().state, state, "{had} ms, {outside}");
            for server in [false, true] {
                let layer = touchy().build().unwrap();
                let request = short_grpc(&format!("{had}m"));
                let (far, near) = (DeadlineLayer::server(s(10)), timeout());
                match (server, outside) {
                    (true, true) => far.layer(layer.layer(hanging())).oneshot(request).map(drop).await,
                    (true, false) => layer.layer(far.layer(hanging())).oneshot(request).map(drop).await,
                    (false, true) => near.layer(layer.layer(hanging())).oneshot(request).map(drop).await,
                    (false, false) => layer.layer(near.layer(hanging())).oneshot(request).map(drop).await,
                }
                assert_eq!(layer.handle().snapshot().state, state, "grpc-timeout: {had}m, {outside}, {server}");
            }
        }
    }
    // An early failure is a failure, however short the deadline.
    let layer = touchy().build().unwrap();
    Deadline::after(ms(500)).scope(layer.layer(answers(500, &[], None)).oneshot(get())).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, State::Open);
}

// === configuration ===

#[test]
fn bad_configuration_lists_every_field() {
    let bad =
        |b: CircuitBreakerBuilder| -> Vec<_> { b.build().unwrap_err().fields().iter().map(|e| e.field).collect() };
    assert_eq!(bad(builder().failure_rate(1.1)), ["failure_rate"]);
    assert_eq!(bad(builder().failure_rate(f64::NAN)), ["failure_rate"]);
    assert_eq!(bad(builder().slow_calls(Duration::ZERO, -0.1)), ["slow_call_rate", "slow_call"]);
    assert_eq!(bad(builder().count_window(0)), ["window"]);
    assert_eq!(bad(builder().count_window(4_097)), ["window"]);
    assert_eq!(bad(builder().time_window(Duration::ZERO)), ["window"]);
    assert_eq!(bad(builder().time_window(Duration::MAX)), ["window"]);
    assert_eq!(bad(builder().count_window(10).minimum_calls(11)), ["minimum_calls"]);
    assert_eq!(bad(builder().minimum_calls(0)), ["minimum_calls"]);
    assert_eq!(bad(builder().probes(0)), ["probes"]);
    assert_eq!(bad(builder().probes(2).successes_to_close(3)), ["successes_to_close"]);
    assert!(builder().probes(1).build().is_ok());
    assert_eq!(bad(builder().probes(65)), ["probes"]);
    assert_eq!(bad(builder().successes_to_close(4)), ["successes_to_close"]);
    assert_eq!(bad(builder().successes_to_close(0)), ["successes_to_close"]);
    assert_eq!(bad(builder().consecutive_failures(0)), ["consecutive_failures"]);
    assert_eq!(bad(builder().open(OpenTime::Fixed(Duration::MAX))), ["open"]);
    for open in [(s(2), 2.0, s(1), 0.0), (s(1), 0.5, s(2), 0.0), (s(1), f64::NAN, s(2), 0.0), (s(1), 2.0, s(2), 1.5)] {
        let (first, factor, max, jitter) = open;
        assert_eq!(bad(builder().open(OpenTime::Growing { first, factor, max, jitter })), ["open"], "{open:?}");
    }
    assert_eq!(
        bad(builder()
            .name("")
            .failure_rate(2.0)
            .time_window(Duration::ZERO)
            .minimum_calls(0)
            .probes(0)
            .ramp(Duration::ZERO)
            .probe_lease(Duration::MAX)
            .deadline_blame_after(Duration::MAX)),
        ["name", "failure_rate", "window", "minimum_calls", "probes", "probe_lease", "ramp", "deadline_blame_after"]
    );
    let error = builder().successes_to_close(4).build().unwrap_err();
    assert!(error.to_string().contains("above what probes can give"), "{error}");

    let nothing = CircuitBreakerConfig { failure_rate: None, ..CircuitBreakerConfig::default() };
    let error = CircuitBreakerLayer::from_config(nothing.clone()).unwrap_err();
    assert_eq!(error.fields()[0].field, "failure_rate");
    let layer = CircuitBreakerLayer::from_config(CircuitBreakerConfig::default()).unwrap();
    assert!(layer.handle().update(nothing).is_err());
}

#[tokio::test(start_paused = true)]
async fn update_keeps_what_the_window_knows_and_the_state() {
    let mut rig = Rig::new(builder().failure_rate(0.9).minimum_calls(4));
    rig.run("FFSS").await;
    let lower = CircuitBreakerConfig { failure_rate: Some(0.5), minimum_calls: 4, ..CircuitBreakerConfig::default() };
    rig.handle().update(lower.clone()).unwrap();
    assert_eq!((rig.state(), rig.snapshot().calls, rig.snapshot().failure_rate), (State::Closed, 4, Some(0.5)));
    rig.run("F").await;
    assert_eq!(rig.state(), State::Open);
    let count = CircuitBreakerConfig { window: Window::Count(10), ..lower };
    rig.handle().update(count.clone()).unwrap();
    assert_eq!((rig.state(), rig.snapshot().calls), (State::Open, 5));
    // One number changes: the others are asked for.
    assert_eq!(rig.snapshot().config, count);
    rig.handle().update(CircuitBreakerConfig { probes: 4, ..rig.snapshot().config }).unwrap();
    assert_eq!(rig.snapshot().config, CircuitBreakerConfig { probes: 4, ..count });
}

/// The numbers of a trial that runs may change: it is won by a probe that is good, and lost by one that is not.
#[tokio::test(start_paused = true)]
async fn a_trial_whose_numbers_change_goes_by_its_next_probe() {
    let config = |successes_to_close| CircuitBreakerConfig {
        failure_rate: None,
        consecutive_failures: Some(1),
        open: OpenTime::Fixed(s(1)),
        probes: 10,
        successes_to_close,
        ..CircuitBreakerConfig::default()
    };
    for (from, before, to, next, state) in [
        (10, "SSSSS", 3, "F", State::HalfOpen),
        (10, "SSSSS", 3, "S", State::Closed),
        (1, "FFFFF", 9, "S", State::HalfOpen),
        (1, "FFFFF", 9, "F", State::Open),
    ] {
        let mut rig = Rig::new(touchy());
        rig.handle().update(config(from)).unwrap();
        rig.run("F").await;
        advance(ms(1_001)).await;
        rig.run(before).await;
        assert_eq!(rig.state(), State::HalfOpen);
        rig.handle().update(config(to)).unwrap();
        rig.run(next).await;
        assert_eq!(rig.state(), state, "{before}{next}");
    }
}

/// Of calls that came in one tick a smaller window has room for some: of these as large a share has failed as of all.
#[tokio::test(start_paused = true)]
async fn a_smaller_window_keeps_the_share_of_failures() {
    let mut rig = Rig::new(builder().failure_rate(0.9));
    rig.run(&"FFSSS".repeat(20)).await;
    for (room, failures) in [(50, 20), (25, 10), (1_000, 10)] {
        let config = CircuitBreakerConfig {
            failure_rate: Some(0.9),
            window: Window::Count(room),
            minimum_calls: 1,
            ..CircuitBreakerConfig::default()
        };
        rig.handle().update(config).unwrap();
        assert_eq!(rig.snapshot().failures, failures, "{room}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_defaults_are_those_that_are_documented() {
    let config = CircuitBreakerConfig::default();
    assert_eq!((config.failure_rate, config.window, config.minimum_calls), (Some(0.5), Window::Time(s(10)), 20));
    assert_eq!(config.open, OpenTime::Growing { first: s(5), factor: 2.0, max: s(60), jitter: 0.2 });
    assert_eq!((config.probes, config.successes_to_close, config.probe_lease, config.ramp), (3, 3, s(30), None));
    let mut rig = Rig::new(builder());
    rig.run(&"F".repeat(19)).await;
    assert_eq!(rig.state(), State::Closed);
    rig.run("F").await;
    let left = rig.snapshot().open_left.unwrap();
    assert!(left >= s(4) && left <= s(6), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_open_time_and_observer_are_contained() {
    let mut rig = Rig::new(touchy().open_fn(|_| panic!("no idea")).observer(|_: &Event| panic!("nor here")));
    rig.run("F").await;
    assert_eq!(rig.snapshot().open_left, Some(s(1)));
    let mut rig = Rig::new(touchy().open_fn(|_| Duration::MAX));
    rig.run("F").await;
    assert_eq!(rig.snapshot().open_left, Some(s(365 * 24 * 3600)));
}

#[tokio::test(start_paused = true)]
async fn time_in_a_state() {
    let start = Instant::now();
    let mut rig = Rig::new(touchy());
    advance(s(3)).await;
    assert_eq!(rig.snapshot().in_state, start.elapsed());
    rig.run("F").await;
    advance(ms(400)).await;
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.in_state, snapshot.open_left), (ms(400), Some(ms(600))));
    let outcomes = OutcomesLayer::new();
    let error = outcomes.clone().flat().layer(rig.service.clone()).oneshot(()).await.unwrap_err();
    assert!(Rejection::of(&error).is_some());
    assert_eq!(outcomes.handle().take(), [Outcome::Ignored]);
}

// === regressions: each was seen to fail ===

/// A response whose body never has anything.
fn mute() -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = Infallible> + Send>,
    Error = Infallible,
    Future: Future + Send,
> + Clone {
    service_fn(|_| ready(Ok(Response::new(StreamBody::new(futures_util::stream::pending())))))
}

fn short_grpc(timeout: &str) -> Request<Empty<Bytes>> {
    let mut request = grpc();
    request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

#[tokio::test(start_paused = true)]
async fn a_longer_window_is_not_blind_after_hours_of_a_shorter_one() {
    let mut rig = Rig::new(builder());
    for _ in 0..600 {
        rig.run("SSSSSSSSSF").await;
        advance(s(1)).await;
    }
    let longer = CircuitBreakerConfig { window: Window::Time(s(60)), ..CircuitBreakerConfig::default() };
    rig.handle().update(longer).unwrap();
    let kept = rig.snapshot();
    assert!(kept.calls >= 90 && kept.failures >= 9, "{kept:?}");
    for _ in 0..200 {
        if rig.state() == State::Closed {
            rig.run("F").await;
        }
    }
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_update_while_it_ramps_keeps_the_share() {
    for (ramp, left) in [(None, 0), (Some(s(10)), 5), (Some(s(60)), 30)] {
        let mut rig = Rig::new(touchy().ramp(s(60)));
        rig.run("F").await;
        advance(ms(1_001)).await;
        rig.run("S").await;
        advance(s(30)).await;
        let config = CircuitBreakerConfig { ramp, minimum_calls: 1_000, ..CircuitBreakerConfig::default() };
        rig.handle().update(config).unwrap();
        let share = async |rig: &mut Rig| {
            let mut admitted = 0;
            for _ in 0..400 {
                admitted += u32::from(rig.call().await.is_ok());
            }
            admitted
        };
        let now = share(&mut rig).await;
        assert!(if left == 0 { now == 400 } else { (140..260).contains(&now) }, "{ramp:?}: {now}");
        advance(s(left)).await;
        assert_eq!(share(&mut rig).await, 400, "{ramp:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lowered_rate_is_judged_at_the_next_call() {
    let mut rig = Rig::new(builder().failure_rate(0.9).minimum_calls(2));
    rig.run("SSSSSFFFFF").await;
    let lower = CircuitBreakerConfig { failure_rate: Some(0.3), minimum_calls: 2, ..CircuitBreakerConfig::default() };
    rig.handle().update(lower).unwrap();
    rig.run("S").await;
    assert_eq!(rig.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_short_deadline_in_the_body_opens_no_breaker_however_far_out() {
    let server = || DeadlineLayer::server(s(60));
    let timeout = TimeoutLayer::builder().after(s(60)).until(Until::End).build().unwrap();
    let [a, b, c, d] = std::array::from_fn(|_| touchy().build().unwrap());
    let response = a.layer(timeout.layer(server().layer(mute()))).oneshot(short_grpc("50m")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "4");
    let response = b.layer(c.layer(server().layer(d.layer(mute())))).oneshot(short_grpc("50m")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "4");
    for breaker in [a, b, c, d] {
        let snapshot = breaker.handle().snapshot();
        assert_eq!((snapshot.state, snapshot.cancelled), (State::Closed, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_deadline_is_short_however_late_it_is_noticed() {
    for inside in [true, false] {
        let layer = touchy().slow_calls(s(1), 1.0).build().unwrap();
        let request = short_grpc("50m");
        if inside {
            let response = DeadlineLayer::server(s(60)).layer(layer.layer(mute())).oneshot(request).await.unwrap();
            // Its reader sleeps; the deadline is noticed when it wakes.
            advance(s(5)).await;
            let _ = response.into_body().collect().await;
        } else {
            let response = layer.layer(DeadlineLayer::server(s(60)).layer(mute())).oneshot(request).await.unwrap();
            advance(s(5)).await;
            let _ = response.into_body().collect().await;
        }
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.state, snapshot.failures, snapshot.cancelled), (State::Closed, 0, 1), "{inside}");
    }
}

/// The peer knows the deadline too, and ends the call a moment before it: then its answer comes before our timer does.
#[tokio::test(start_paused = true)]
async fn a_peer_that_knows_the_deadline_opens_no_breaker_by_it() {
    // In the head or in the trailers; the deadline, when the peer answers that it has passed, and what that is.
    for (in_head, deadline, answers, state) in [
        (true, 50, 49, State::Closed),
        (false, 50, 49, State::Closed),
        (true, 50, 30, State::Open),
        (false, 50, 30, State::Open),
        // Long enough for the backend to be blamed.
        (true, 2_000, 1_996, State::Open),
        (false, 2_000, 1_996, State::Open),
    ] {
        let peer = service_fn(move |_: Request<()>| async move {
            let head = Response::builder().header("content-type", "application/grpc");
            let status =
                http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "4".parse().unwrap())]);
            let trailers = async move {
                sleep(ms(answers)).await;
                Ok::<_, Infallible>(Frame::trailers(status))
            };
            let body = StreamBody::new(futures_util::stream::once(Box::pin(trailers)));
            if in_head {
                sleep(ms(answers)).await;
                return Ok::<_, Infallible>(head.header("grpc-status", "4").body(body).unwrap());
            }
            Ok(head.body(body).unwrap())
        });
        for outside in [false, true] {
            let breaker = touchy().build().unwrap();
            let call = async {
                let request = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
                if outside {
                    let service = breaker.layer(DeadlineLayer::client().layer(peer));
                    drop(service.oneshot(request).await.unwrap().into_body().collect().await);
                } else {
                    let service = DeadlineLayer::client().layer(breaker.layer(peer));
                    drop(service.oneshot(request).await.unwrap().into_body().collect().await);
                }
            };
            Deadline::after(ms(deadline)).scope(call).await;
            assert_eq!(breaker.handle().snapshot().state, state, "{in_head} {answers} of {deadline}, {outside}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_deadline_in_a_header_is_the_backends_failure_inside_and_outside() {
    let timeout = TimeoutLayer::builder().after(s(60)).build().unwrap();
    let (inside, outside) = (touchy().build().unwrap(), touchy().build().unwrap());
    timeout.layer(inside.layer(hanging())).oneshot(short_grpc("10S")).await.unwrap();
    outside.layer(timeout.layer(hanging())).oneshot(short_grpc("10S")).await.unwrap();
    assert_eq!([inside, outside].map(|l| l.handle().snapshot().state), [State::Open, State::Open]);
}

/// A server stream that reads another, which our timeout cuts, and ends well all the same.
#[tokio::test(start_paused = true)]
async fn a_handler_that_recovers_from_a_cut_upstream_succeeded() {
    let layer = touchy().build().unwrap();
    let timeout = TimeoutLayer::builder().after(ms(100)).until(Until::End).build().unwrap();
    let upstream = timeout.layer(mute());
    let handler = service_fn(move |r: Request<Empty<Bytes>>| {
        let upstream = upstream.clone();
        async move {
            let mut body = Box::pin(upstream.oneshot(r).await?.into_body());
            let frames = futures_util::stream::once(async move {
                let cut = body.frame().await.unwrap().unwrap();
                assert_eq!(cut.trailers_ref().unwrap()["grpc-status"], "4");
                let well = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
                Ok::<_, Infallible>(http_body::Frame::trailers(well))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames))))
        }
    });
    let response = layer.layer(handler).oneshot(grpc()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "0");
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.failures), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_streaming_probe_whose_caller_leaves_after_the_lease_decides_by_its_head() {
    let layer = touchy().probe_lease(s(1)).build().unwrap();
    layer.layer(answers(500, &[], None)).oneshot(get()).await.unwrap();
    advance(ms(1_001)).await;
    let response = layer.layer(mute()).oneshot(get()).await.unwrap();
    advance(s(2)).await;
    drop(response);
    assert_eq!(layer.handle().snapshot().state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_has_failed_at_its_head() {
    let layer = touchy().slow_calls(ms(5), 1.0).minimum_calls(1_000).build().unwrap();
    layer.layer(answers(500, &[], None)).oneshot(get()).await.unwrap();
    advance(ms(1_001)).await;
    let response = layer.layer(slow_stream("text/plain", vec![b"x"; 100])).oneshot(get()).await.unwrap();
    assert_eq!(layer.handle().snapshot().state, State::Open);
    drop(response);
    assert_eq!(layer.handle().snapshot().cancelled, 0);
}

/// The operator's timeout is the backend's failure, also where the caller's deadline comes at about the same time.
#[tokio::test(start_paused = true)]
async fn a_timeout_and_a_deadline_at_once() {
    for deadline in [100, 101, 110] {
        let timeout = TimeoutLayer::builder().after(ms(100)).build().unwrap();
        let layer = touchy().build().unwrap();
        let call = layer.layer(timeout.layer(hanging())).oneshot(get());
        let response = Deadline::after(ms(deadline)).scope(call).await.unwrap();
        assert_eq!(Rejection::in_response(&response).unwrap().reason(), Reason::Timeout);
        assert_eq!(layer.handle().snapshot().state, State::Open, "{deadline}");
    }
}

/// No result may be lost to a hand that changes something at the same time.
#[test]
fn results_count_while_hands_are_at_work() {
    let layer = builder().count_window(4_096).failure_rate(1.0).minimum_calls(4_096).build().unwrap();
    let (handle, service) = (layer.handle(), layer.clone().plain().layer(Probe::new()));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(handle.half_open().is_err());
                let same = CircuitBreakerConfig { window: Window::Count(4_096), ..CircuitBreakerConfig::default() };
                handle.update(CircuitBreakerConfig { failure_rate: Some(1.0), ..same }).unwrap();
                std::thread::yield_now();
            }
        });
        for _ in 0..4_000 {
            service.clone().oneshot(()).now_or_never().unwrap().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(layer.handle().snapshot().calls, 4_000);
}
