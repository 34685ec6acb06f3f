//! Retries in virtual time: what is made again, when, how often, and what stops it. Numbers are those of the scenarios.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, ready},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use buttress::{
    Attempts, Backoff, BoxError, Budget, CircuitBreakerLayer, Deadline, Error, HttpClassify, Jitter, Outcome,
    PreviousAttempts, PreviousAttemptsLayer, Reason, Rejection, Replay, RetryBuilder, RetryConfig, RetryLayer, Stopped,
    TimeoutLayer,
    observe::{Event, Kind},
    testing::{Probe, ProbeError},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn retry() -> RetryBuilder {
    RetryLayer::builder().backoff(Backoff::Constant(ms(10))).budget(Budget::unlimited())
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

// === plain ===

#[derive(Debug, Clone, PartialEq)]
struct Oops(u32);

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oops {}", self.0)
    }
}

impl std::error::Error for Oops {}

/// Follows a script, and notes when it was called with what.
#[derive(Clone, Default)]
struct Backend {
    script: Arc<Mutex<VecDeque<Result<u32, u32>>>>,
    calls: Arc<Mutex<Vec<(u128, u32)>>>,
    takes: Duration,
    start: Option<Instant>,
}

impl Backend {
    fn new(script: impl IntoIterator<Item = Result<u32, u32>>) -> Self {
        let script = Arc::new(Mutex::new(script.into_iter().collect()));
        Backend { script, start: Some(Instant::now()), ..Backend::default() }
    }

    fn failing() -> Self {
        Self::new(std::iter::repeat_n(Err(1), 1_000))
    }

    fn takes(self, takes: Duration) -> Self {
        Backend { takes, ..self }
    }

    /// When it was called, in milliseconds since it was made.
    fn times(&self) -> Vec<u128> {
        self.calls.lock().unwrap().iter().map(|(t, _)| *t).collect()
    }

    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

impl Service<u32> for Backend {
    type Response = u32;
    type Error = Oops;
    type Future = Pin<Box<dyn Future<Output = Result<u32, Oops>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Oops>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        let at = self.start.unwrap().elapsed().as_millis();
        self.calls.lock().unwrap().push((at, request));
        let answer = self.script.lock().unwrap().pop_front().unwrap_or(Ok(request)).map_err(Oops);
        let takes = self.takes;
        Box::pin(async move {
            if !takes.is_zero() {
                sleep(takes).await;
            }
            answer
        })
    }
}

/// Attempts without a wait between them that end at once: still others get their turn, and a timeout outside its end.
#[tokio::test(start_paused = true)]
async fn attempts_at_once_do_not_keep_the_thread() {
    for deadline in [None, Some(Deadline::after(ms(1_000)))] {
        let layer = retry().attempts(u32::MAX).backoff(Backoff::Constant(Duration::ZERO)).build().unwrap().plain();
        let failing = service_fn(|(): ()| async { Err::<(), _>(Oops(1)) });
        let call = layer.layer(failing).oneshot(());
        let call = async {
            match deadline {
                Some(deadline) => deadline.scope(call).await,
                None => call.await,
            }
        };
        tokio::select! {
            biased;
            _ = call => panic!("there are more attempts than that"),
            () = async { for _ in 0..3 { tokio::task::yield_now().await } } => {}
        }
        let attempts = layer.handle().snapshot().attempts;
        assert!((3..1_000).contains(&attempts), "{attempts}");
    }
}

/// A body that panics when it is polled after its end, read to that end before the thread is left to others.
#[tokio::test(start_paused = true)]
async fn what_was_drained_is_not_polled_again() {
    let layer = retry().attempts(40).backoff(Backoff::Constant(Duration::ZERO)).build().unwrap();
    let failing = service_fn(|_: Request<Full<Bytes>>| async {
        let frames = futures_util::stream::unfold(1, |n| async move {
            (n > 0).then(|| (Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"x"))), n - 1))
        });
        Ok::<_, io::Error>(Response::builder().status(503).body(StreamBody::new(Box::pin(frames))).unwrap())
    });
    let answer = layer.layer(failing).oneshot(Request::new(Full::default())).await.unwrap();
    assert_eq!(answer.extensions().get(), Some(&Attempts { made: 40, stopped: Stopped::Attempts }));
}

#[tokio::test(start_paused = true)]
async fn fails_twice_and_then_answers() {
    let backend = Backend::new([Err(1), Err(2)]);
    let layer = retry().build().unwrap().plain();
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 7);
    assert_eq!(*backend.calls.lock().unwrap(), [(0, 7), (10, 7), (20, 7)]);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.attempts), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn the_last_error_comes_back_unchanged() {
    let backend = Backend::new([Err(1), Err(2), Err(3), Err(4)]);
    let error = retry().build().unwrap().plain().layer(backend.clone()).oneshot(7).await.unwrap_err();
    assert!(matches!(error, Error::Inner(Oops(3))));
    assert_eq!(backend.count(), 3);
    for attempts in [1, 5] {
        let backend = Backend::failing();
        let layer = retry().attempts(attempts).build().unwrap().plain();
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
        assert_eq!(backend.count(), attempts as usize);
    }
}

/// Scenario 51: five attempts, and the waits between them.
#[tokio::test(start_paused = true)]
async fn the_waits() {
    let exponential = |max| Backoff::Exponential { base: ms(1_000), factor: 2.0, max, jitter: Jitter::None };
    let linear = Backoff::Linear { step: ms(1_000), max: ms(60_000) };
    for (backoff, times) in [
        (exponential(ms(60_000)), [0, 1_000, 3_000, 7_000, 15_000]),
        (exponential(ms(3_000)), [0, 1_000, 3_000, 6_000, 9_000]),
        (linear, [0, 1_000, 3_000, 6_000, 10_000]),
        (Backoff::Constant(ms(0)), [0; 5]),
    ] {
        let backend = Backend::failing();
        let layer = retry().attempts(5).backoff(backoff).build().unwrap().plain();
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
        assert_eq!(backend.times(), times, "{backoff:?}");
    }
    let backend = Backend::failing();
    let layer = retry().attempts(4).backoff_fn(|n| ms(100 * u64::from(n))).build().unwrap().plain();
    assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    assert_eq!(backend.times(), [0, 100, 300, 600]);
}

#[tokio::test(start_paused = true)]
async fn the_numbers_change_while_it_runs() {
    let (base, max) = (ms(1_000), ms(3_000));
    let exponential = |jitter| Backoff::Exponential { base, factor: 2.5, max, jitter };
    let layer = RetryLayer::builder().budget(Budget::unlimited()).build().unwrap().plain();
    assert_eq!(layer.handle().snapshot().config, RetryConfig::default());
    for (backoff, waits) in [
        (Backoff::Constant(ms(0)), Some([0, 0, 0])),
        (Backoff::Constant(base), Some([0, 1_000, 2_000])),
        (Backoff::Linear { step: base, max }, Some([0, 1_000, 3_000])),
        (exponential(Jitter::None), Some([0, 1_000, 3_500])),
        (exponential(Jitter::Equal), None),
        (exponential(Jitter::Full), None),
        (Backoff::Decorrelated { base, max }, None),
    ] {
        let config = RetryConfig { attempts: 3, backoff, max_hint: ms(5), peek: Some(ms(7)) };
        layer.handle().update(config).unwrap();
        assert_eq!(layer.handle().snapshot().config, config);
        let backend = Backend::failing();
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
        match waits {
            Some(waits) => assert_eq!(backend.times(), waits, "{backoff:?}"),
            None => assert_eq!(backend.count(), 3),
        }
    }

    // A call that began when there was one attempt kept nothing for others.
    let backend = Backend::failing().takes(ms(20));
    let layer = retry().attempts(1).build().unwrap().plain();
    let mut call = pin!(layer.layer(backend.clone()).oneshot(7));
    assert!(poll_once(call.as_mut()).is_pending());
    layer.handle().update(RetryConfig::default()).unwrap();
    assert!(call.await.is_err());
    assert_eq!(backend.times(), [0]);

    // A call that runs follows at its next failure; the wait that has begun goes on.
    let backend = Backend::failing();
    let layer = retry().attempts(5).build().unwrap().plain();
    let mut call = pin!(layer.layer(backend.clone()).oneshot(7));
    assert!(poll_once(call.as_mut()).is_pending());
    layer.handle().update(RetryConfig { attempts: 2, ..RetryConfig::default() }).unwrap();
    assert!(call.await.is_err());
    assert_eq!(backend.times(), [0, 10]);

    // One that is at its last attempt has used its last copy, if there ever was one: no body was too large.
    for total in [1, 2] {
        let layer = retry().attempts(total).build().unwrap();
        let handle = layer.handle();
        let backend = (1..total).fold(Http::new(), |backend, _| backend.status(503)).then(move || {
            handle.update(RetryConfig { attempts: 9, ..RetryConfig::default() }).unwrap();
            Ok(response(503, &[], body([])))
        });
        assert_eq!(attempts(&layer, &backend, get()).await, (503, total, Stopped::Attempts));
    }
}

/// The last error is kept for a deadline that may come first, and no longer than that.
#[tokio::test(start_paused = true)]
async fn the_last_error_goes_before_the_next_attempt_comes() {
    struct Noted(u32, Arc<Mutex<Vec<String>>>);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(format!("error {} goes", self.0));
        }
    }
    impl fmt::Debug for Noted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }
    impl fmt::Display for Noted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }
    impl std::error::Error for Noted {}

    let log = Arc::new(Mutex::new(Vec::new()));
    let (noted, calls) = (Arc::clone(&log), Arc::new(AtomicU32::new(0)));
    let service = service_fn(move |(): ()| {
        let n = calls.fetch_add(1, SeqCst) + 1;
        noted.lock().unwrap().push(format!("call {n}"));
        ready(if n < 3 { Err(Noted(n, Arc::clone(&noted))) } else { Ok(()) })
    });
    let layer = retry().backoff(Backoff::Constant(ms(10))).build().unwrap().plain();
    Deadline::after(ms(5_000)).scope(layer.layer(service).oneshot(())).await.unwrap();
    assert_eq!(*log.lock().unwrap(), ["call 1", "error 1 goes", "call 2", "error 2 goes", "call 3"]);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_fails_changes_nothing() {
    let handle = retry().build().unwrap().handle();
    let before = handle.snapshot().config;
    let step = Backoff::Linear { step: Duration::MAX, max: Duration::MAX };
    let bad = RetryConfig { attempts: 0, backoff: step, max_hint: Duration::ZERO, peek: Some(Duration::MAX) };
    let error = handle.update(bad).unwrap_err();
    let fields: Vec<_> = error.fields().iter().map(|field| field.field).collect();
    assert_eq!(fields, ["attempts", "backoff", "max_hint", "peek"]);
    assert_eq!(handle.snapshot().config, before);

    // A function stays, whatever the backoff beside it.
    let backend = Backend::failing();
    let layer = retry().backoff_fn(|n| ms(100 * u64::from(n))).build().unwrap().plain();
    layer.handle().update(RetryConfig { attempts: 4, backoff: step, ..RetryConfig::default() }).unwrap();
    assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    assert_eq!(backend.times(), [0, 100, 300, 600]);
}

#[tokio::test(start_paused = true)]
async fn the_default_is_drawn_below_its_bounds() {
    for _ in 0..50 {
        let backend = Backend::failing();
        let layer = RetryLayer::builder().attempts(4).build().unwrap().plain();
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
        let times = backend.times();
        for (n, most) in [50, 100, 200].into_iter().enumerate() {
            // Timers round up to a millisecond.
            assert!(times[n + 1] - times[n] <= most + 1, "{times:?}");
        }
    }
}

#[test]
fn without_a_delay_there_is_no_timer() {
    // No runtime: a timer would panic.
    let backend = Probe::new();
    backend.fails();
    let layer = retry().backoff(Backoff::Constant(Duration::ZERO)).build().unwrap().plain();
    let mut service = layer.layer(backend.clone());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Service::<()>::poll_ready(&mut service, &mut cx).is_ready());
    assert!(pin!(service.call(())).poll(&mut cx).is_ready());
    assert_eq!(backend.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_retried_is_a_matter_of_classification() {
    for (outcome, calls) in [
        (Outcome::Success, 1),
        (Outcome::Failure, 3),
        (Outcome::Throttled, 1),
        (Outcome::Cancelled, 1),
        (Outcome::Ignored, 1),
    ] {
        let backend = Backend::failing();
        let layer = retry().build().unwrap().plain_with(move |r: Result<&u32, &Oops>| match r {
            Ok(_) => Outcome::Success,
            Err(_) => outcome,
        });
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
        assert_eq!(backend.count(), calls, "{outcome:?}");
    }
    // A response can be a failure too; the last one is given back.
    let backend = Backend::new([Ok(500), Ok(501), Ok(502), Ok(200)]);
    let layer = retry().build().unwrap().boxed_with(|r: Result<&u32, &Oops>| match r {
        Ok(500..) => Outcome::Failure,
        _ => Outcome::Success,
    });
    assert_eq!(layer.layer(backend).oneshot(7).await.unwrap(), 502);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_clone() {
    struct Job(u32, bool);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let service = service_fn(move |job: Job| {
        seen.lock().unwrap().push(job.0);
        async move { Err::<(), _>(Oops(job.0)) }
    });
    let layer = retry().build().unwrap().plain().clone_with(|job: &Job| job.1.then_some(Job(job.0, true)));
    assert!(layer.layer(service.clone()).oneshot(Job(1, true)).await.is_err());
    assert!(layer.layer(service.clone()).oneshot(Job(2, false)).await.is_err());
    assert_eq!(*calls.lock().unwrap(), [1, 1, 1, 2]);
    // It can change its mind.
    let layer = retry()
        .attempts(9)
        .build()
        .unwrap()
        .boxed()
        .clone_with(|job: &Job| (job.0 < 5).then_some(Job(job.0 + 1, true)));
    calls.lock().unwrap().clear();
    assert!(layer.layer(service).oneshot(Job(4, true)).await.is_err());
    // A copy, and one of the original after each failure: 5, 5, ... The last one is the request itself.
    assert_eq!(*calls.lock().unwrap(), [5, 5, 5, 5, 5, 5, 5, 5, 4]);
}

// === what is around it ===

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_retried_and_a_timeout_is() {
    let open = CircuitBreakerLayer::builder().build().unwrap();
    open.handle().force_open().unwrap();
    let layer = retry().build().unwrap();
    let service = layer.clone().flat().layer(open.plain().layer(Backend::failing()));
    assert!(matches!(service.oneshot(7).await, Err(Error::Rejected(r)) if r.reason() == Reason::ForcedOpen));
    assert_eq!(layer.handle().snapshot().attempts, 1);

    let timeout = TimeoutLayer::builder().after(ms(20)).build().unwrap();
    let backend = Backend::failing().takes(ms(100));
    let service = layer.clone().flat().layer(timeout.plain().layer(backend.clone()));
    assert!(matches!(service.oneshot(7).await, Err(Error::Rejected(r)) if r.reason() == Reason::Timeout));
    assert_eq!(backend.times(), [0, 30, 60]);
}

/// Scenario 108: each attempt is preceded by readiness, on the instance that makes it; a readiness error ends it.
#[tokio::test(start_paused = true)]
async fn readiness_before_each_attempt() {
    // The probe panics when it is called without having been ready.
    let probe = Probe::new();
    probe.fails();
    let layer = retry().attempts(4).build().unwrap().plain();
    let mut service = layer.layer(probe.clone());
    let mut call = pin!(ServiceExt::<()>::ready(&mut service).await.unwrap().call(()));
    assert_eq!(probe.held(), 0);
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!((probe.calls(), probe.in_flight(), probe.held()), (1, 0, 0), "something is held while it sleeps");
    // It is not ready when its time comes. Nobody polls it before, and it is not called then.
    probe.is_never_ready();
    sleep(ms(15)).await;
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!((probe.calls(), probe.held()), (1, 0));
    probe.fails();
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(probe.ready_instance_was_called());
    assert_eq!(probe.calls(), 2);
    probe.is_broken();
    let error = call.await.unwrap_err();
    assert!(matches!(error, Error::Inner(ProbeError { in_readiness: true })));
    assert_eq!(probe.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn cancelled_with_its_call() {
    let layer = retry().build().unwrap().plain();
    // In its first attempt, in its sleep, in its second attempt.
    for (after, calls) in [(3, 1), (8, 1), (17, 2)] {
        let backend = Backend::failing().takes(ms(5));
        let call = layer.layer(backend.clone()).oneshot(7);
        assert!(tokio::time::timeout(ms(after), call).await.is_err());
        sleep(ms(1_000)).await;
        assert_eq!(backend.count(), calls, "after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn given_back_at_once() {
    let budget = Budget::new(0.0, 1, ms(1_000)).unwrap();
    let backend = Backend::failing().takes(ms(5));
    let layer = retry().budget(budget.clone()).build().unwrap().plain();
    let asleep = tokio::time::timeout(ms(8), layer.layer(backend.clone()).oneshot(7));
    assert!(asleep.await.is_err());
    assert!(budget.withdraw(), "a sleeper that left keeps its attempt");
    assert!(!budget.withdraw());

    sleep(ms(1_200)).await;
    let running = tokio::time::timeout(ms(17), layer.layer(backend.clone()).oneshot(7));
    assert!(running.await.is_err());
    assert!(!budget.withdraw(), "an attempt that was made is given back");

    // Not ready for the further attempt: an error ends the call, and the attempt was not made.
    sleep(ms(1_200)).await;
    let probe = Probe::new();
    probe.fails();
    let mut service = layer.layer(probe.clone());
    let mut call = pin!(ServiceExt::<()>::ready(&mut service).await.unwrap().call(()));
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(!budget.withdraw(), "a sleeper has not reserved its attempt");
    probe.is_broken();
    assert!(call.await.is_err());
    assert!(budget.withdraw());
}

// === budget ===

#[tokio::test(start_paused = true)]
async fn one_budget_for_two_layers() {
    let budget = Budget::new(0.0, 3, ms(1_000)).unwrap();
    let layers = [0, 1].map(|_| retry().budget(budget.clone()).build().unwrap().plain());
    let backend = Backend::failing();
    for layer in layers.iter().cycle().take(4) {
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    }
    assert_eq!(backend.count(), 4 + 3);
    let stopped = layers.map(|l| l.handle().snapshot().stopped_by_budget);
    assert_eq!(stopped, [1, 2]);
}

/// Scenario 53 in our terms: what is there is used up, one by one.
#[tokio::test(start_paused = true)]
async fn a_share_of_the_calls() {
    let layer = retry().attempts(2).budget(Budget::new(0.1, 0, ms(10_000)).unwrap()).build().unwrap().plain();
    let good = Backend::default();
    let good = Backend { start: Some(Instant::now()), ..good };
    for _ in 0..38 {
        layer.layer(good.clone()).oneshot(7).await.unwrap();
    }
    let backend = Backend::failing();
    for _ in 0..12 {
        assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    }
    // 38 and 12 calls: five further attempts, the fourth and the fifth when their calls had paid for them.
    assert_eq!(backend.count(), 12 + 5);
}

/// Scenario 69.
#[tokio::test(start_paused = true)]
async fn tokens_of_grpc() {
    let layer = retry().attempts(2).backoff(Backoff::Constant(ms(0))).budget(Budget::tokens(10, 0.1).unwrap());
    let layer = layer.build().unwrap().plain();
    let backend = Backend::failing();
    let calls = |n: usize| {
        let service = layer.layer(backend.clone());
        async move {
            for _ in 0..n {
                assert!(service.clone().oneshot(7).await.is_err());
            }
        }
    };
    // Two failed attempts, two, and one that leaves 5: not retried.
    calls(3).await;
    assert_eq!(backend.count(), 5);
    calls(10).await;
    assert_eq!(backend.count(), 15);
    let good = Backend { start: Some(Instant::now()), ..Backend::default() };
    for _ in 0..70 {
        layer.layer(good.clone()).oneshot(7).await.unwrap();
    }
    // 7 tokens: 6 after the first failure, which is retried.
    calls(1).await;
    assert_eq!(backend.count(), 17);
}

#[test]
fn a_budget_by_hand() {
    let budget = Budget::new(0.5, 1, ms(2_000)).unwrap();
    assert_eq!([(); 3].map(|()| budget.withdraw()), [true, true, false]);
    budget.deposit();
    assert!(!budget.withdraw());
    budget.clone().deposit();
    assert!(budget.withdraw());
    // A third, three times, is one; and what a float makes of a share is not one more.
    for (ratio, calls, whole) in
        [(1.0 / 3.0, 3, 1), (1.0 / 7.0, 7, 1), (0.07, 100, 7), (0.3, 10, 3), (0.2, 9, 1), (0.0, 99, 0)]
    {
        let budget = Budget::new(ratio, 0, ms(10_000)).unwrap();
        (0..calls).for_each(|_| budget.deposit());
        assert_eq!((0..99).take_while(|_| budget.withdraw()).count(), whole, "{ratio} of {calls}");
    }
    // Half a one and half a one.
    let budget = Budget::new(0.5, 1, ms(500)).unwrap();
    assert!(!budget.withdraw());
    budget.deposit();
    assert!(budget.withdraw());
    for (ratio, over, fields) in [
        (-0.1, 1_000, &["ratio"][..]),
        (1.1, 1_000, &["ratio"]),
        (f64::NAN, 0, &["ratio", "over"]),
        (0.2, u64::MAX, &["over"]),
    ] {
        let error = Budget::new(ratio, 1, ms(over)).unwrap_err();
        assert_eq!(error.fields().iter().map(|f| f.field).collect::<Vec<_>>(), fields);
    }
    assert!(Budget::new(0.0, 0, ms(1)).is_ok_and(|b| !b.withdraw()));
    assert_eq!(Budget::tokens(0, -1.0).unwrap_err().fields().len(), 2);
}

// === deadline ===

#[tokio::test(start_paused = true)]
async fn no_sleep_ends_past_the_deadline() {
    let layer = retry().attempts(9).backoff(Backoff::Constant(ms(50))).build().unwrap().plain();
    for (deadline, times) in [(50, &[0][..]), (51, &[0, 50]), (100, &[0, 50]), (101, &[0, 50, 100])] {
        let (backend, start) = (Backend::failing(), Instant::now());
        let call = Deadline::after(ms(deadline)).scope(layer.layer(backend.clone()).oneshot(7));
        // The last real answer, at once.
        assert!(matches!(call.await, Err(Error::Inner(Oops(1)))));
        assert_eq!(backend.times(), times, "{deadline}");
        assert_eq!(start.elapsed().as_millis(), *times.last().unwrap());
    }
    assert_eq!(layer.handle().snapshot().stopped_by_deadline, 4);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_with_less_time_than_attempts_take() {
    let layer = retry().build().unwrap().plain();
    let good = Backend { start: Some(Instant::now()), ..Backend::default() }.takes(ms(40));
    for _ in 0..20 {
        layer.layer(good.clone()).oneshot(7).await.unwrap();
    }
    // It fails at once. After the wait of 10 ms there would be 35 ms left, and attempts take 40.
    for (deadline, calls) in [(45, 1), (60, 3)] {
        let backend = Backend::failing();
        let call = Deadline::after(ms(deadline)).scope(layer.layer(backend.clone()).oneshot(7));
        assert!(call.await.is_err());
        assert_eq!(backend.count(), if deadline == 45 { 1 } else { 2 }, "{calls}");
    }
}

/// Waits that begin in many windows and end in the same moment, as a date in `Retry-After` makes them: who waits counts
/// for as long as that takes, and then for a window.
#[tokio::test(start_paused = true)]
async fn a_crowd_of_sleepers_is_within_the_budget() {
    let start = Instant::now();
    let budget = Budget::new(0.0, 5, ms(1_000)).unwrap();
    let until_then = move |_| ms(20_000) - start.elapsed();
    let layer = retry().attempts(2).backoff_fn(until_then).budget(budget.clone()).build().unwrap().plain();
    let backend = Backend::failing();
    let mut running = Vec::new();
    for _ in 0..5 {
        running.extend((0..20).map(|n| tokio::spawn(layer.layer(backend.clone()).oneshot(n))));
        sleep(ms(2_000)).await;
        assert!(!budget.withdraw(), "others wait");
    }
    futures_util::future::join_all(running).await;
    assert_eq!((start.elapsed(), backend.count()), (ms(20_000), 100 + 5));
    sleep(ms(1_000)).await;
    assert!(!budget.withdraw());
    sleep(ms(100)).await;
    assert!((0..5).all(|_| budget.withdraw()) && !budget.withdraw());
}

/// What can't go on is refused, and booked as that, though a shadow has begun since its readiness was refused.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_one_though_a_shadow_begins() {
    let layer = retry().build().unwrap().plain();
    let mut service = layer.layer(Probe::new());
    let answer = Deadline::after(ms(0)).scope(async {
        ServiceExt::<()>::ready(&mut service).await.unwrap();
        layer.handle().shadow(true);
        service.call(()).await
    });
    assert!(matches!(answer.await, Err(Error::Rejected(r)) if r.reason() == Reason::DeadlineExceeded));
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.deadline_exceeded, snapshot.would_have_rejected), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn readiness_is_not_waited_for_past_the_deadline() {
    let probe = Probe::new();
    probe.fails();
    let layer = retry().build().unwrap().plain();
    let start = Instant::now();
    let call = Deadline::after(ms(30)).scope({
        let (layer, probe) = (layer.clone(), probe.clone());
        async move {
            let mut service = layer.layer(probe);
            Service::<()>::call(ServiceExt::<()>::ready(&mut service).await.unwrap(), ()).await
        }
    });
    let (answer, ()) = tokio::join!(call, async {
        sleep(ms(1)).await;
        probe.is_never_ready();
    });
    // The last real answer comes back.
    assert!(matches!(answer, Err(Error::Inner(_))), "{answer:?}");
    assert_eq!((start.elapsed(), probe.calls()), (ms(30), 1));
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.stopped_by_deadline, snapshot.deadline_exceeded), (1, 0));
}

/// A response is kept only where nothing of it is to come: to hold the rest were to hold something of the inner
/// service.
#[tokio::test(start_paused = true)]
async fn what_is_whole_is_kept_for_the_end() {
    let empty = || UnsyncBoxBody::new(Empty::new().map_err(|e| match e {}));
    let unending = || UnsyncBoxBody::new(StreamBody::new(futures_util::stream::pending()));
    let cases = [
        (Http::new().then(move || Ok(response(503, &[], empty()))), 503),
        (Http::new().then(move || Ok(response(200, &[("grpc-status", "14")], empty()))), 200),
        (Http::new().then(|| Ok(response(200, &[], body([Ok(trailers("14"))])))), 200),
        (Http::new().then(move || Ok(response(503, &[], unending()))), 504),
    ];
    for (n, (backend, status)) in cases.into_iter().enumerate() {
        let layer = retry().build().unwrap();
        let busy = ReadyOnce { inner: backend, ready: true };
        let request = if n == 1 || n == 2 { grpc() } else { get() };
        let response = Deadline::after(ms(60)).scope(layer.layer(busy).oneshot(request)).await.unwrap();
        let told = response.extensions().get::<Attempts>().unwrap();
        assert_eq!((response.status().as_u16(), told.made, told.stopped), (status, 1, Stopped::Deadline), "{n}");
        if n == 2 {
            assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "14");
        }
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.stopped_by_deadline, snapshot.deadline_exceeded), if n == 3 { (0, 1) } else { (1, 0) });
    }
}

/// What rides in its extensions may be a connection, or a permit: that is not kept.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_kept_keeps_no_more() {
    let permits = Arc::new(());
    let permit = Arc::clone(&permits);
    let backend = Http::new().then(move || {
        let mut answer = response(503, &[], UnsyncBoxBody::new(Empty::new().map_err(|e| match e {})));
        answer.extensions_mut().insert(Arc::clone(&permit));
        Ok(answer)
    });
    let busy = ReadyOnce { inner: backend, ready: true };
    let layer = retry().backoff(Backoff::Constant(ms(10))).build().unwrap();
    let others = Arc::strong_count(&permits);
    let call = Deadline::after(ms(60)).scope(layer.layer(busy).oneshot(get()));
    let (answer, while_waiting) = tokio::join!(call, async {
        sleep(ms(30)).await;
        Arc::strong_count(&permits)
    });
    assert_eq!((answer.unwrap().status().as_u16(), while_waiting), (503, others));
}

/// A future has room for one attempt, also where a hedge may share the budget.
#[test]
fn a_future_is_not_twice_its_attempt() {
    let shared = Budget::unlimited();
    let layer = retry().budget(shared.clone()).build().unwrap().plain();
    let service = service_fn(|_: ()| async {
        let large = [0_u8; 4_096];
        sleep(ms(1)).await;
        if large[0] == 0 { Ok(()) } else { Err(Oops(1)) }
    });
    let mut service = layer.layer(service);
    let size = size_of_val(&service.call(()));
    assert!(size < 4_096 + 1_024, "{size}");
    drop(shared);
}

/// A panic while the next instance gets ready takes nothing from the budget.
#[tokio::test(start_paused = true)]
async fn a_panic_in_readiness_takes_nothing() {
    #[derive(Clone)]
    struct Panics(Arc<Mutex<bool>>);
    impl Service<()> for Panics {
        type Response = ();
        type Error = Oops;
        type Future = std::future::Ready<Result<(), Oops>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Oops>> {
            assert!(!std::mem::replace(&mut *self.0.lock().unwrap(), true), "not again");
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            std::future::ready(Err(Oops(1)))
        }
    }
    for delay in [0, 1] {
        let budget = Budget::new(0.0, 1, ms(3_000)).unwrap();
        let layer = retry().backoff(Backoff::Constant(ms(delay))).budget(budget.clone()).build().unwrap().plain();
        let call = tokio::spawn(layer.layer(Panics(Arc::default())).oneshot(()));
        assert!(call.await.unwrap_err().is_panic());
        assert_eq!((0..9).take_while(|_| budget.withdraw()).count(), 3, "{delay}");
    }
}

/// A body that panics while it is looked into has ended the attempt.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_body_is_the_end_of_an_attempt() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    let observer = move |event: &Event| {
        if let Kind::Attempt { number, outcome, .. } = event.kind {
            events.lock().unwrap().push((number, outcome));
        }
    };
    let backend = Http::new().then(|| {
        let frames =
            futures_util::stream::poll_fn(|_| -> Poll<Option<Result<Frame<Bytes>, BoxError>>> { panic!("broken") });
        Ok(response(200, &[], UnsyncBoxBody::new(StreamBody::new(frames))))
    });
    let call = tokio::spawn(retry().observer(observer).build().unwrap().layer(backend).oneshot(grpc()));
    assert!(call.await.unwrap_err().is_panic());
    assert_eq!(*seen.lock().unwrap(), [(1, Outcome::Failure)]);
}

/// Its clones are never ready.
struct ReadyOnce<S> {
    inner: S,
    ready: bool,
}

impl<S: Clone> Clone for ReadyOnce<S> {
    fn clone(&self) -> Self {
        ReadyOnce { inner: self.inner.clone(), ready: false }
    }
}

impl<S: Service<Req>, Req> Service<Req> for ReadyOnce<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.ready { self.inner.poll_ready(cx) } else { Poll::Pending }
    }

    fn call(&mut self, request: Req) -> S::Future {
        self.inner.call(request)
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever attempts take, backoff and hints ask for, and deadline there is.
    #[test]
    fn never_an_attempt_after_the_deadline(
        deadline in 1..400u64, takes in 0..60u64, wait in 0..90u64, hint in proptest::option::of(0..2u64), attempts in 1..8u32,
        ready_after in 0..120u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let layer = retry().attempts(attempts).backoff(Backoff::Constant(ms(wait))).build().unwrap();
            let (start, begun) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
            let seen = Arc::clone(&begun);
            let backend = service_fn(move |_: Request<Body>| {
                seen.lock().unwrap().push(start.elapsed());
                async move {
                    sleep(ms(takes)).await;
                    let mut response = response(503, &[], body([]));
                    if let Some(seconds) = hint {
                        response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
                    }
                    Ok::<_, io::Error>(response)
                }
            });
            // Every instance takes a while to become ready.
            let slow = SlowlyReady { inner: backend, after: ms(ready_after), timer: None };
            let mut service = layer.layer(slow);
            let deadline = start + ms(deadline + ready_after);
            let mut request = get();
            request.extensions_mut().insert(Deadline::at(deadline));
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            let begun = begun.lock().unwrap();
            assert!(begun.iter().all(|at| start + *at < deadline), "{begun:?}");
            assert!(!begun.is_empty() && begun.len() <= attempts as usize);
            let told = response.extensions().get::<Attempts>().unwrap();
            assert_eq!(told.made as usize, begun.len());
            // It was not waited for past the deadline either, but for the attempt that ran.
            assert!(Instant::now() <= deadline + ms(takes));
            assert!(told.stopped == Stopped::Deadline || told.made == attempts, "{told:?}");
        });
    }
}

/// Becomes ready so long after it was first asked, each time anew.
struct SlowlyReady<S> {
    inner: S,
    after: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S: Clone> Clone for SlowlyReady<S> {
    fn clone(&self) -> Self {
        SlowlyReady { inner: self.inner.clone(), after: self.after, timer: None }
    }
}

impl<S: Service<Req>, Req> Service<Req> for SlowlyReady<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let after = self.after;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(after)));
        std::task::ready!(timer.as_mut().poll(cx));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        assert!(self.timer.take().is_some_and(|t| t.is_elapsed()), "called without having been ready");
        self.inner.call(request)
    }
}

// === reporting ===

#[tokio::test(start_paused = true)]
async fn each_attempt_is_an_event() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let layer = retry()
        .name("ledger")
        .observer(move |e: &Event| {
            assert_eq!((e.policy, &*e.name), ("retry", "ledger"));
            seen.lock().unwrap().push(e.kind.clone());
        })
        .build()
        .unwrap()
        .plain();
    assert_eq!(layer.layer(Backend::new([Err(1)])).oneshot(7).await.unwrap(), 7);
    let attempt = |number, outcome, delay: Option<u64>| Kind::Attempt { number, outcome, delay: delay.map(ms) };
    let expected = [attempt(1, Outcome::Failure, Some(10)), attempt(2, Outcome::Success, None)];
    assert_eq!(*events.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn shadow_passes_the_first_answer_on() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let budget = Budget::new(0.0, 1, ms(1_000)).unwrap();
    let layer = retry()
        .shadow(true)
        .budget(budget.clone())
        .observer(move |e: &Event| seen.lock().unwrap().push(e.kind.clone()));
    let layer = layer.build().unwrap().plain();
    let backend = Backend::failing();
    assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    assert_eq!(backend.count(), 1);
    let expected = [Kind::Attempt { number: 1, outcome: Outcome::Failure, delay: Some(ms(10)) }];
    assert_eq!(*events.lock().unwrap(), expected);
    assert!(budget.withdraw());
    layer.handle().shadow(false);
    Deadline::at(Instant::now()).scope(async { assert!(layer.layer(backend.clone()).oneshot(7).await.is_err()) }).await;
    assert_eq!(backend.count(), 1);
    layer.handle().shadow(true);
    Deadline::at(Instant::now()).scope(async { assert!(layer.layer(backend.clone()).oneshot(7).await.is_err()) }).await;
    assert_eq!((backend.count(), layer.handle().snapshot().would_have_rejected), (2, 1));
}

#[test]
fn bad_settings_are_named_all_at_once() {
    let exponential =
        |base, factor, max| Backoff::Exponential { base: ms(base), factor, max: ms(max), jitter: Jitter::Full };
    let builder =
        RetryLayer::builder().name("").attempts(0).max_hint(ms(0)).peek(Duration::MAX).backoff(exponential(2, 2.0, 1));
    let error = builder.build().unwrap_err();
    assert_eq!(
        error.fields().iter().map(|f| f.field).collect::<Vec<_>>(),
        ["name", "attempts", "backoff", "max_hint", "peek"]
    );
    for backoff in [
        exponential(1, 0.9, 1),
        exponential(1, f64::NAN, 1),
        exponential(1, f64::INFINITY, 1),
        Backoff::Constant(Duration::MAX),
        Backoff::Decorrelated { base: ms(2), max: ms(1) },
    ] {
        assert!(RetryLayer::builder().backoff(backoff).build().is_err(), "{backoff:?}");
    }
    assert!(RetryLayer::builder().attempts(1).replay_cap(0).backoff(exponential(0, 1.0, 0)).build().is_ok());
}

// === HTTP and gRPC ===

type Body = UnsyncBoxBody<Bytes, BoxError>;
type Answer = Result<Response<Body>, io::Error>;

type Scripted = Box<dyn Fn() -> Answer + Send>;

/// Answers that are made when their turn comes; the last one again and again.
#[derive(Clone)]
struct Http {
    script: Arc<Mutex<VecDeque<Scripted>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    start: Instant,
}

#[derive(Debug, Clone)]
struct Seen {
    at: u128,
    headers: HeaderMap,
    body: Result<Bytes, String>,
}

impl Http {
    fn new() -> Self {
        Http { script: Arc::default(), seen: Arc::default(), start: Instant::now() }
    }

    fn then(self, answer: impl Fn() -> Answer + Send + 'static) -> Self {
        self.script.lock().unwrap().push_back(Box::new(answer));
        self
    }

    fn status(self, status: u16) -> Self {
        self.with(status, &[])
    }

    fn with(self, status: u16, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.then(move || Ok(response(status, headers, body([]))))
    }

    fn times(&self) -> Vec<u128> {
        self.seen.lock().unwrap().iter().map(|s| s.at).collect()
    }
}

fn response(status: u16, headers: &[(&'static str, &'static str)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (k, v) in headers {
        response = response.header(*k, *v);
    }
    response.body(body).unwrap()
}

fn body(frames: impl IntoIterator<Item = Result<Frame<Bytes>, BoxError>, IntoIter: Send + 'static>) -> Body {
    UnsyncBoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))
}

fn trailers(code: &'static str) -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))]))
}

fn data() -> Frame<Bytes> {
    Frame::data(Bytes::from_static(b"message"))
}

impl Service<Request<Body>> for Http {
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let at = self.start.elapsed().as_millis();
        let (script, seen) = (Arc::clone(&self.script), Arc::clone(&self.seen));
        Box::pin(async move {
            let body = body.collect().await.map(|b| b.to_bytes()).map_err(|e| e.to_string());
            seen.lock().unwrap().push(Seen { at, headers: parts.headers, body });
            let mut script = script.lock().unwrap();
            if script.len() > 1 { script.pop_front().unwrap()() } else { script[0]() }
        })
    }
}

fn get() -> Request<Body> {
    Request::new(UnsyncBoxBody::default())
}

fn by(method: Method) -> Request<Body> {
    let mut request = get();
    *request.method_mut() = method;
    request
}

fn grpc() -> Request<Body> {
    let mut request = by(Method::POST);
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

/// How many attempts a request takes, and why it was not more.
async fn attempts(layer: &RetryLayer, backend: &Http, request: Request<Body>) -> (u16, u32, Stopped) {
    let response = layer.layer(backend.clone()).oneshot(request).await.unwrap();
    let Attempts { made, stopped } = *response.extensions().get().unwrap();
    assert_eq!(backend.seen.lock().unwrap().len(), made as usize);
    (response.status().as_u16(), made, stopped)
}

#[tokio::test(start_paused = true)]
async fn http_by_its_status() {
    let layer = retry().attempts(2).build().unwrap();
    for (status, made, stopped) in [
        (200, 1, Stopped::Succeeded),
        (404, 1, Stopped::Succeeded),
        (429, 1, Stopped::NotRetryable),
        (500, 1, Stopped::NotRetryable),
        (501, 1, Stopped::NotRetryable),
        (502, 2, Stopped::Attempts),
        (503, 2, Stopped::Attempts),
        (504, 2, Stopped::Attempts),
    ] {
        assert_eq!(attempts(&layer, &Http::new().status(status), get()).await, (status, made, stopped));
    }
    let backend = Http::new().status(503).status(503).status(200);
    assert_eq!(attempts(&retry().build().unwrap(), &backend, get()).await, (200, 3, Stopped::Succeeded));
}

/// Scenario 71: with a classification of one's own every failure is worth another attempt.
#[tokio::test(start_paused = true)]
async fn http_by_an_own_classification() {
    struct Moody;
    impl HttpClassify for Moody {
        fn head(&self, _: &Method, _: bool, res: &http::response::Parts) -> Option<Outcome> {
            (res.status.is_server_error() || res.status == 404).then_some(Outcome::Failure)
        }
    }
    let layer = |n| retry().attempts(n).build().unwrap().classify(Moody);
    assert_eq!(attempts(&layer(2), &Http::new().status(500).status(204), get()).await, (204, 2, Stopped::Succeeded));
    let backend = Http::new().status(500).status(404).status(504).status(200);
    assert_eq!(attempts(&layer(3), &backend, get()).await, (504, 3, Stopped::Attempts));
}

#[tokio::test(start_paused = true)]
async fn http_by_its_method() {
    for (method, safe) in [
        (Method::GET, true),
        (Method::HEAD, true),
        (Method::OPTIONS, true),
        (Method::TRACE, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::POST, false),
        (Method::PATCH, false),
        (Method::CONNECT, false),
    ] {
        for any in [false, true] {
            let layer = retry().attempts(2).any_method(any).build().unwrap();
            let expected = if safe || any { (503, 2, Stopped::Attempts) } else { (503, 1, Stopped::NotRetryable) };
            assert_eq!(attempts(&layer, &Http::new().status(503), by(method.clone())).await, expected, "{method}");
        }
    }
    for (on, made) in [(false, 1), (true, 2)] {
        let layer = retry().attempts(2).retry_idempotency_key(on).build().unwrap();
        let mut request = by(Method::POST);
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static("1"));
        assert_eq!(attempts(&layer, &Http::new().status(503), request).await.1, made);
        assert_eq!(attempts(&layer, &Http::new().status(503), by(Method::POST)).await.1, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_reached_the_backend_is_sent_again_whatever_it_is() {
    let layer = retry().build().unwrap();
    for (kind, method, calls) in [
        (io::ErrorKind::ConnectionRefused, Method::POST, 3),
        (io::ErrorKind::ConnectionReset, Method::POST, 1),
        (io::ErrorKind::ConnectionReset, Method::GET, 3),
    ] {
        let backend = Http::new().then(move || Err(kind.into()));
        let error = layer.layer(backend.clone()).oneshot(by(method)).await.unwrap_err();
        assert_eq!((error.kind(), backend.seen.lock().unwrap().len()), (kind, calls));
    }
    let backend = Http::new().then(|| Err(io::ErrorKind::ConnectionReset.into()));
    assert!(layer.layer(backend.clone()).oneshot(grpc()).await.is_err());
    assert_eq!(backend.seen.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_hint_takes_the_place_of_the_backoff() {
    let layer = retry().attempts(2).max_hint(ms(30_000)).build().unwrap();
    const DATE: &str = "Tue, 15 Nov 1994 08:12:31 GMT";
    for (headers, wait) in [
        (&[("retry-after", "3")][..], 3_000),
        (&[("retry-after", "0")], 0),
        (&[("retry-after", "3600")], 30_000),
        (&[("retry-after", "-1")], 10),
        (&[("retry-after", "soon")], 10),
        (&[("retry-after", "Tue, 15 Nov 1994 08:12:36 GMT"), ("date", DATE)], 5_000),
        // Long ago by our own clock.
        (&[("retry-after", DATE)], 0),
        (&[("grpc-retry-pushback-ms", "700")], 10),
    ] {
        let backend = Http::new().with(503, headers);
        assert_eq!(attempts(&layer, &backend, get()).await.1, 2);
        assert_eq!(backend.times(), [0, wait], "{headers:?}");
    }
    let backend = Http::new().with(429, &[("retry-after", "2")]);
    assert_eq!(attempts(&layer, &backend, get()).await, (429, 2, Stopped::Attempts));
    assert_eq!(backend.times(), [0, 2_000]);
    let shorter = retry().attempts(2).build().unwrap();
    shorter.handle().update(RetryConfig { attempts: 2, max_hint: ms(500), ..RetryConfig::default() }).unwrap();
    let backend = Http::new().with(503, &[("retry-after", "3600")]);
    assert_eq!(attempts(&shorter, &backend, get()).await.1, 2);
    assert_eq!(backend.times(), [0, 500]);
    // A hint that ends past the deadline.
    let backend = Http::new().with(503, &[("retry-after", "2")]);
    let call = Deadline::after(ms(2_000)).scope(attempts(&layer, &backend, get()));
    assert_eq!(call.await, (503, 1, Stopped::Deadline));
}

/// A date is one of the paused clock, too, if the server does not say what it takes for now.
#[tokio::test(start_paused = true)]
async fn a_date_follows_virtual_time() {
    let today = std::time::SystemTime::now();
    sleep(Duration::from_secs(3_600)).await;
    let date: &'static str = httpdate::fmt_http_date(today + Duration::from_secs(3_620)).leak();
    let layer = retry().attempts(2).build().unwrap();
    let backend = Http::new().then(move || Ok(response(503, &[("retry-after", date)], body([]))));
    let (start, expected) = (Instant::now(), 18_900..=20_100);
    attempts(&layer, &backend, get()).await;
    let waited = start.elapsed().as_millis();
    // To a whole second, and what runs between two looks at a real clock.
    assert!(expected.contains(&waited), "{waited}");
}

/// What the server asked for is not what the next delay grows from.
#[tokio::test(start_paused = true)]
async fn a_hint_is_no_step_of_the_backoff() {
    let backoff = Backoff::Decorrelated { base: ms(10), max: ms(100_000) };
    let layer = retry().attempts(3).backoff(backoff).build().unwrap();
    for _ in 0..50 {
        let backend = Http::new().with(503, &[("retry-after", "30")]).status(503);
        attempts(&layer, &backend, get()).await;
        let times = backend.times();
        assert!(times[1] == 30_000 && (30_010..=30_030).contains(&times[2]), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_by_its_code() {
    let layer = retry().attempts(2).build().unwrap();
    for code in 0..=16u32 {
        let text: &'static str = Box::leak(code.to_string().into_boxed_str());
        let expected = match code {
            0 | 3 | 5 | 6 | 7 | 9 | 10 | 11 | 12 | 16 => (1, Stopped::Succeeded),
            14 => (2, Stopped::Attempts),
            _ => (1, Stopped::NotRetryable),
        };
        let headers: &'static [_] = Box::leak(Box::new([("grpc-status", text)]));
        let (_, made, stopped) = attempts(&layer, &Http::new().with(200, headers), grpc()).await;
        assert_eq!((made, stopped), expected, "{code} in the head");
        // Scenario 73: in trailers that are there already.
        let backend = Http::new().then(move || Ok(response(200, &[], body([Ok(trailers(text))]))));
        let (_, made, stopped) = attempts(&layer, &backend, grpc()).await;
        assert_eq!((made, stopped), expected, "{code} in the trailers");
        // A frame without a byte is no message.
        let empty = || Ok(Frame::data(Bytes::new()));
        let backend = Http::new().then(move || Ok(response(200, &[], body([empty(), Ok(trailers(text))]))));
        let (_, made, stopped) = attempts(&layer, &backend, grpc()).await;
        assert_eq!((made, stopped), expected, "{code} in the trailers behind an empty frame");
        // Once a message was passed on, never.
        let backend = Http::new().then(move || Ok(response(200, &[], body([Ok(data()), Ok(trailers(text))]))));
        assert_eq!(attempts(&layer, &backend, grpc()).await.1, 1, "{code} behind a message");
    }
    // What stands between speaks HTTP.
    for (status, made) in [(502, 2), (503, 2), (504, 2), (429, 2), (500, 1)] {
        assert_eq!(attempts(&layer, &Http::new().status(status), grpc()).await.1, made, "{status}");
    }
    // A stream that breaks before anything came, and one that ends without a status.
    let backend = Http::new().then(|| Ok(response(200, &[], body([Err("broken".into())]))));
    assert_eq!(attempts(&layer, &backend, grpc()).await.1, 2);
    assert_eq!(attempts(&layer, &Http::new().status(200), grpc()).await.1, 1);
}

#[tokio::test(start_paused = true)]
async fn grpc_pushback() {
    let layer = retry().attempts(2).build().unwrap();
    for (code, pushback, expected) in [
        ("14", "0", (2, Stopped::Attempts, Some(0))),
        ("14", "250", (2, Stopped::Attempts, Some(250))),
        ("14", "-1", (1, Stopped::ServerSaidStop, None)),
        ("14", "soon", (1, Stopped::ServerSaidStop, None)),
        ("8", "250", (2, Stopped::Attempts, Some(250))),
        ("8", "-1", (1, Stopped::ServerSaidStop, None)),
        ("13", "250", (1, Stopped::NotRetryable, None)),
    ] {
        for early in [false, true] {
            let answer = move || {
                let pairs = [("grpc-status", code), ("grpc-retry-pushback-ms", pushback)];
                if !early {
                    return Ok(response(200, &pairs, body([])));
                }
                let trailers = pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
                Ok(response(200, &[], body([Ok(Frame::trailers(trailers.collect()))])))
            };
            let backend = Http::new().then(answer);
            let (_, made, stopped) = attempts(&layer, &backend, grpc()).await;
            assert_eq!((made, stopped, backend.times().get(1).copied()), expected, "{code} {pushback} {early}");
        }
    }
}

/// What is looked into is passed on as it came, waited for only where that was asked for.
#[tokio::test(start_paused = true)]
async fn a_grpc_stream_is_not_waited_for() {
    let late = |code: &'static str| {
        move || {
            let frames = futures_util::stream::once(async move {
                sleep(ms(20)).await;
                Ok(trailers(code))
            });
            Ok(response(200, &[], UnsyncBoxBody::new(StreamBody::new(frames))))
        }
    };
    let start = Instant::now();
    let response = retry().build().unwrap().layer(Http::new().then(late("14"))).oneshot(grpc()).await.unwrap();
    assert_eq!(start.elapsed(), ms(0));
    let read = response.into_body().collect().await.unwrap();
    assert_eq!(read.trailers().unwrap()["grpc-status"], "14");

    let backend = Http::new().then(late("14"));
    let layer = retry().attempts(2).peek(ms(25)).build().unwrap();
    assert_eq!(attempts(&layer, &backend, grpc()).await.1, 2);
    assert_eq!(backend.times(), [0, 30]);
    let backend = Http::new().then(late("14"));
    let layer = retry().attempts(2).peek(ms(15)).build().unwrap();
    let start = Instant::now();
    assert_eq!(attempts(&layer, &backend, grpc()).await.1, 1);
    assert_eq!(start.elapsed(), ms(15));
    // The answer that there is comes by the deadline, whatever was to be waited for.
    let backend = Http::new().then(late("14"));
    let layer = retry().attempts(2).peek(ms(25)).build().unwrap();
    let mut request = grpc();
    request.extensions_mut().insert(Deadline::after(ms(12)));
    let start = Instant::now();
    assert_eq!(attempts(&layer, &backend, request).await.1, 1);
    assert_eq!(start.elapsed(), ms(12));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_attempts_goes_along() {
    let name = HeaderName::from_static("x-attempts");
    let layer = retry().attempts(3).attempt_header(name).build().unwrap();
    let backend = Http::new().with(200, &[("grpc-status", "14")]);
    let mut request = grpc();
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("1S"));
    attempts(&layer, &backend, request).await;
    let seen = |name: &str| -> Vec<_> {
        let seen = backend.seen.lock().unwrap();
        seen.iter().map(|s| s.headers.get(name).map(|v| v.to_str().unwrap().to_owned())).collect()
    };
    let numbers = [None, Some("1".to_owned()), Some("2".to_owned())];
    assert_eq!(seen("grpc-previous-rpc-attempts"), numbers);
    assert_eq!(seen("x-attempts"), numbers);
    // The time that the call has is that of all its attempts.
    assert_eq!(seen("grpc-timeout"), [Some("1S".into()), Some("990000u".into()), Some("980000u".into())]);
    let backend = Http::new().status(503);
    attempts(&layer, &backend, get()).await;
    {
        let seen = backend.seen.lock().unwrap();
        assert!(seen.iter().all(|s| !s.headers.contains_key("grpc-previous-rpc-attempts")));
        assert_eq!(seen[2].headers["x-attempts"], "2");
    }
    // Those of a retry further out were attempts too.
    let backend = Http::new().with(200, &[("grpc-status", "14")]);
    let inner = retry().attempts(2).build().unwrap();
    let outer = retry().attempts(2).build().unwrap();
    outer.layer(inner.layer(backend.clone())).oneshot(grpc()).await.unwrap();
    let seen = backend.seen.lock().unwrap();
    let numbers: Vec<_> = seen.iter().map(|s| s.headers.get("grpc-previous-rpc-attempts").cloned()).collect();
    assert_eq!(numbers, [None, Some("1"), Some("1"), Some("2")].map(|n| n.map(HeaderValue::from_static)));
}

#[tokio::test(start_paused = true)]
async fn a_grpc_timeout_is_a_deadline() {
    let layer = retry().attempts(9).backoff(Backoff::Constant(ms(50))).build().unwrap();
    let backend = Http::new().with(200, &[("grpc-status", "14")]);
    let mut request = grpc();
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("90m"));
    let (_, made, stopped) = attempts(&layer, &backend, request).await;
    assert_eq!((made, stopped), (2, Stopped::Deadline));
}

/// Scenario 73, second half.
#[tokio::test(start_paused = true)]
async fn a_body_is_sent_whole_each_time_or_once() {
    let chunks = |n: usize| body((0..n).map(|i| Ok(Frame::data(Bytes::from(vec![i as u8; 936])))));
    let layer = retry().replay_cap(5_000).build().unwrap();
    for (n, made, stopped) in [(5, 3, Stopped::Attempts), (6, 1, Stopped::BodyTooLarge)] {
        let backend = Http::new().status(503);
        let mut request = by(Method::PUT);
        *request.body_mut() = chunks(n);
        assert_eq!(attempts(&layer, &backend, request).await, (503, made, stopped));
        let whole = chunks(n).collect().await.unwrap().to_bytes();
        assert!(backend.seen.lock().unwrap().iter().all(|s| s.body.as_ref() == Ok(&whole)));
    }
    // One that says so itself is not even recorded.
    let mut request = by(Method::PUT);
    *request.body_mut() = UnsyncBoxBody::new(Full::new(Bytes::from(vec![0; 5_000])).map_err(|e| match e {}));
    assert_eq!(attempts(&layer, &Http::new().status(503), request).await.2, Stopped::BodyTooLarge);
}

/// It is above the cap, so it is not recorded; where nothing of it was read it is there all the same.
#[tokio::test(start_paused = true)]
async fn a_long_body_that_never_left_is_sent_again() {
    async fn sent<B>(body: impl Fn() -> B, reads: usize, kind: io::ErrorKind) -> (usize, Result<Bytes, io::ErrorKind>)
    where
        B: Replay<Data = Bytes, Error: std::fmt::Debug> + Unpin + Send + 'static,
        B::Source: Send + Sync,
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let service = service_fn(|request: Request<B>| {
            let call = calls.fetch_add(1, SeqCst);
            async move {
                let mut body = request.into_body();
                if call < 2 {
                    for _ in 0..reads {
                        body.frame().await.unwrap().unwrap();
                    }
                    return Err(io::Error::from(kind));
                }
                Ok(response(200, &[], body_of(body.collect().await.unwrap().to_bytes())))
            }
        });
        let layer = retry().replay_cap(100).any_method(true).build().unwrap();
        let request = Request::post("/").body(body()).unwrap();
        let answer = match layer.layer(service).oneshot(request).await {
            Ok(response) => Ok(response.into_body().collect().await.unwrap().to_bytes()),
            Err(error) => Err(error.kind()),
        };
        (calls.load(SeqCst), answer)
    }
    use io::ErrorKind::*;
    let long = Bytes::from(vec![7; 1_000]);
    let known = || body_of(long.clone());
    let streamed = || body([Ok(Frame::data(long.clone())), Ok(Frame::data(long.clone()))]);
    assert_eq!(sent(known, 0, ConnectionRefused).await, (3, Ok(long.clone())));
    assert_eq!(sent(streamed, 0, ConnectionRefused).await, (3, Ok([&long[..], &long[..]].concat().into())));
    // Nobody else can have it once it was read, whatever became of it.
    assert_eq!(sent(known, 1, ConnectionRefused).await, (1, Err(ConnectionRefused)));
    assert_eq!(sent(streamed, 1, ConnectionRefused).await, (1, Err(ConnectionRefused)));
    // Unless it is in memory.
    assert_eq!(sent(|| Full::new(long.clone()), 1, ConnectionRefused).await, (3, Ok(long.clone())));
    // Whether it left is not known: then the cap is one.
    assert_eq!(sent(known, 0, ConnectionReset).await, (1, Err(ConnectionReset)));
    assert_eq!(sent(|| Full::new(long.clone()), 0, ConnectionReset).await, (1, Err(ConnectionReset)));
}

/// A backend that answers before it has read: the rest of the body is read by the attempt that is left.
#[tokio::test(start_paused = true)]
async fn an_answer_before_the_body_was_read() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeps = Arc::clone(&kept);
    let service = service_fn(move |request: Request<Body>| {
        let keeps = Arc::clone(&keeps);
        async move {
            let mut body = request.into_body();
            let n = keeps.lock().unwrap().len();
            if n < 2 {
                // Reads one frame, and keeps the body as a transport may do.
                let _ = body.frame().await;
                keeps.lock().unwrap().push(body);
                return Ok::<_, io::Error>(response(503, &[], body_of(Bytes::new())));
            }
            Ok(response(200, &[], body_of(body.collect().await.unwrap().to_bytes())))
        }
    });
    let mut request = by(Method::PUT);
    *request.body_mut() = body((0..4u8).map(|i| Ok(Frame::data(Bytes::from(vec![i; 10])))));
    let response = retry().build().unwrap().layer(service).oneshot(request).await.unwrap();
    assert_eq!(response.extensions().get(), Some(&Attempts { made: 3, stopped: Stopped::Succeeded }));
    let echoed = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(echoed, [[0; 10], [1; 10], [2; 10], [3; 10]].concat());
    // The two that were given up know.
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    for mut body in kept {
        let frame = body.frame().await;
        assert!(frame.unwrap().is_err());
    }
}

fn body_of(bytes: Bytes) -> Body {
    UnsyncBoxBody::new(Full::new(bytes).map_err(|e| match e {}))
}

/// The body of a failed HTTP/1.1 response is read while the retry waits, but not for long, and not if it is long.
#[tokio::test(start_paused = true)]
async fn a_failed_response_is_drained() {
    #[derive(Clone, Default)]
    struct Fate(Arc<Mutex<Vec<&'static str>>>);
    struct Watched(Vec<u64>, Pin<Box<tokio::time::Sleep>>, Fate, bool);
    impl http_body::Body for Watched {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            std::task::ready!(self.1.as_mut().poll(cx));
            let Some(next) = self.0.pop() else {
                self.3 = true;
                return Poll::Ready(None);
            };
            let at = Instant::now() + ms(next);
            self.1.as_mut().reset(at);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; 6_000])))))
        }
    }
    impl Drop for Watched {
        fn drop(&mut self) {
            let fate = if self.3 { "read" } else { "dropped" };
            self.2.0.lock().unwrap().push(fate);
        }
    }
    for (waits, fate, delay) in [
        (vec![0, 0], "read", 0),
        (vec![10, 10], "read", 100),
        (vec![60, 10], "dropped", 100),
        (vec![0, 0, 0], "dropped", 100),
        (vec![10, 10], "dropped", 0),
    ] {
        let fates = Fate::default();
        let (seen, script) = (fates.clone(), waits.clone());
        let backend = Http::new()
            .then(move || {
                let body = Watched(script.clone(), Box::pin(sleep(ms(0))), seen.clone(), false);
                Ok(response(503, &[], UnsyncBoxBody::new(body)))
            })
            .status(200);
        let layer = retry().backoff(Backoff::Constant(ms(delay))).build().unwrap();
        assert_eq!(attempts(&layer, &backend, get()).await, (200, 2, Stopped::Succeeded));
        // It neither lengthens the wait nor shortens it.
        assert_eq!(backend.times(), [0, u128::from(delay)]);
        assert_eq!(*fates.0.lock().unwrap(), [fate], "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_and_timeouts_made_here_over_http() {
    let open = CircuitBreakerLayer::builder().build().unwrap();
    open.handle().force_open().unwrap();
    let layer = retry().build().unwrap();
    let service = ServiceBuilder::new().layer(layer.clone()).layer(open).service(Http::new().status(200));
    for request in [get(), grpc()] {
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(Rejection::in_response(&response).unwrap().reason(), Reason::ForcedOpen);
        let expected = Attempts { made: 1, stopped: Stopped::NotRetryable };
        assert_eq!(response.extensions().get(), Some(&expected));
    }
    let timeout = TimeoutLayer::builder().after(ms(20)).build().unwrap();
    let slow = service_fn(|_: Request<Body>| async {
        sleep(ms(100)).await;
        Ok::<_, io::Error>(response(200, &[], body([])))
    });
    let service = ServiceBuilder::new().layer(layer).layer(timeout).service(slow);
    for (request, made) in [(get(), 3), (grpc(), 3), (by(Method::POST), 1)] {
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(Rejection::in_response(&response).unwrap().reason(), Reason::Timeout);
        assert_eq!(response.extensions().get::<Attempts>().unwrap().made, made);
    }
}

/// A timeout of another form comes as an error. The call may have been made all the same.
#[tokio::test(start_paused = true)]
async fn a_timeout_that_comes_as_an_error_is_no_reason_to_post_twice() {
    let timeout = TimeoutLayer::builder().after(ms(20)).build().unwrap();
    for (request, made) in [(get(), 3), (grpc(), 3), (by(Method::POST), 1)] {
        let calls = Arc::new(Mutex::new(0));
        let slow = service_fn(|_: Request<Body>| {
            *calls.lock().unwrap() += 1;
            async {
                sleep(ms(100)).await;
                Ok::<_, io::Error>(response(200, &[], body([])))
            }
        });
        let service =
            ServiceBuilder::new().layer(retry().build().unwrap()).layer(timeout.clone().boxed()).service(slow);
        let error = service.oneshot(request).await.unwrap_err();
        assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::Timeout);
        assert_eq!(*calls.lock().unwrap(), made);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_refuses() {
    let layer = retry().build().unwrap();
    let backend = Http::new().status(200);
    let mut request = get();
    request.extensions_mut().insert(Deadline::at(Instant::now()));
    let response = layer.layer(backend.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 504);
    let rejection = Rejection::in_response(&response).unwrap();
    assert_eq!((rejection.policy(), rejection.reason()), ("retry", Reason::DeadlineExceeded));
    assert_eq!(response.extensions().get(), Some(&Attempts { made: 0, stopped: Stopped::Deadline }));
    assert!(backend.times().is_empty());
    assert_eq!(layer.handle().snapshot().deadline_exceeded, 1);
}

// === the other end ===

/// A storm ends one hop down: the server sheds, and says so to whoever comes again.
#[tokio::test(start_paused = true)]
async fn a_shedding_server_stops_retries() {
    let full = CircuitBreakerLayer::builder().build().unwrap();
    full.handle().force_open().unwrap();
    let server = |stop: Option<u32>| {
        let layer = PreviousAttemptsLayer::new().header(HeaderName::from_static("x-attempts"));
        let layer = stop.map_or(layer.clone(), |n| layer.stop_after(n));
        let inner = ServiceBuilder::new().layer(layer).layer(full.clone()).service(Http::new().status(200));
        // What crosses the wire has no extensions.
        service_fn(move |request: Request<Body>| {
            let call = inner.clone().oneshot(request);
            async move {
                let mut response = call.await?;
                response.extensions_mut().clear();
                Ok::<_, io::Error>(response)
            }
        })
    };
    let layer = retry().attempts(5).build().unwrap();
    for (stop, made, stopped) in
        [(None, 5, Stopped::Attempts), (Some(2), 3, Stopped::ServerSaidStop), (Some(0), 1, Stopped::ServerSaidStop)]
    {
        let response = layer.layer(server(stop)).oneshot(grpc()).await.unwrap();
        assert_eq!(response.extensions().get(), Some(&Attempts { made, stopped }), "{stop:?}");
    }
}

#[tokio::test]
async fn previous_attempts_are_an_extension() {
    let name = HeaderName::from_static("x-attempts");
    let seen = service_fn(|request: Request<Body>| async move {
        Ok::<_, io::Error>(Response::new(request.extensions().get::<PreviousAttempts>().copied()))
    });
    for (header, grpc_too, before) in [
        (&[][..], false, 0),
        (&[("grpc-previous-rpc-attempts", "3")], true, 3),
        (&[("grpc-previous-rpc-attempts", "3")], false, 0),
        (&[("x-attempts", "2")], false, 2),
        (&[("grpc-previous-rpc-attempts", "3"), ("x-attempts", "2")], true, 3),
        (&[("x-attempts", "-1")], false, 0),
        (&[("x-attempts", "many")], false, 0),
        (&[("x-attempts", "99999999999")], false, 0),
    ] {
        let mut request = if grpc_too { grpc() } else { get() };
        for (k, v) in header {
            request.headers_mut().insert(*k, HeaderValue::from_static(v));
        }
        let response = PreviousAttemptsLayer::new().header(name.clone()).layer(seen).oneshot(request).await.unwrap();
        assert_eq!(response.into_body(), Some(PreviousAttempts(before)), "{header:?}");
    }
}
