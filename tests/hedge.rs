//! Hedges in virtual time: what is sent beside a slow attempt, when, how often, and what stops it. Numbers are those of
//! the scenarios.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use buttress::{
    Backoff, Budget, BulkheadLayer, CircuitBreakerLayer, Deadline, Error, HedgeBuilder, HedgeConfig, HedgeLayer,
    Outcome, Reason, Rejection, RetryLayer, TimeoutLayer,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe, ProbeError},
};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use proptest::prelude::*;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// After 10 ms, as often as one likes.
fn hedge() -> HedgeBuilder {
    HedgeLayer::builder().after(ms(10)).budget(Budget::unlimited())
}

#[derive(Debug, Clone, PartialEq)]
struct Oops(u32);

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oops {}", self.0)
    }
}

impl std::error::Error for Oops {}

/// How many milliseconds it takes, and how it ends.
type Attempt = (u64, Result<u32, u32>);

/// Follows a script: how long each attempt takes, and how it ends. Then it answers the request at once.
#[derive(Clone)]
struct Backend {
    script: Arc<Mutex<VecDeque<Attempt>>>,
    began: Arc<Mutex<Vec<u128>>>,
    running: Arc<AtomicUsize>,
    start: Instant,
}

impl Backend {
    fn new(script: impl IntoIterator<Item = Attempt>) -> Self {
        let script = Arc::new(Mutex::new(script.into_iter().collect()));
        Backend { script, began: Arc::default(), running: Arc::default(), start: Instant::now() }
    }

    fn taking(times: &[u64]) -> Self {
        Self::new(times.iter().zip(0..).map(|(t, n)| (*t, Ok(n))))
    }

    /// When the attempts began, in milliseconds.
    fn times(&self) -> Vec<u128> {
        self.began.lock().unwrap().clone()
    }

    fn elapsed(&self) -> u128 {
        self.start.elapsed().as_millis()
    }

    fn running(&self) -> usize {
        self.running.load(SeqCst)
    }
}

/// Counts an attempt for as long as it stands.
struct Runs(Arc<AtomicUsize>);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
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
        self.began.lock().unwrap().push(self.elapsed());
        let (takes, answer) = self.script.lock().unwrap().pop_front().unwrap_or((0, Ok(request)));
        self.running.fetch_add(1, SeqCst);
        let runs = Runs(Arc::clone(&self.running));
        Box::pin(async move {
            if takes > 0 {
                sleep(ms(takes)).await;
            }
            drop(runs);
            answer.map_err(Oops)
        })
    }
}

// === when ===

/// Scenario 99: a delay of 10 ms, two beside the first; and 97: an answer before the delay has no other attempt.
#[tokio::test(start_paused = true)]
async fn after_a_delay() {
    let layer = hedge().max(2).build().unwrap().plain();
    let slow = Backend::taking(&[100, 100, 100]);
    assert_eq!(layer.layer(slow.clone()).oneshot(7).await.unwrap(), 0);
    assert_eq!((slow.times(), slow.elapsed()), (vec![0, 10, 20], 100));
    let fast = Backend::taking(&[9]);
    assert_eq!(layer.layer(fast.clone()).oneshot(7).await.unwrap(), 0);
    assert_eq!(fast.times(), [0]);
    let at_once = Backend::taking(&[]);
    assert_eq!(layer.layer(at_once.clone()).oneshot(7).await.unwrap(), 7);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.hedges, snapshot.won), (3, 2, 0));
}

/// An answer that is there in the same moment wins.
#[tokio::test(start_paused = true)]
async fn an_answer_wins_over_the_timer() {
    let backend = Backend::taking(&[10]);
    hedge().build().unwrap().plain().layer(backend.clone()).oneshot(7).await.unwrap();
    assert_eq!(backend.times(), [0]);
}

/// Scenario 99: without a delay all are sent at once, if the first is not ready at once.
#[tokio::test(start_paused = true)]
async fn without_a_delay() {
    let layer = hedge().after(ms(0)).max(2).build().unwrap().plain();
    let backend = Backend::taking(&[30, 20, 25]);
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 1);
    assert_eq!((backend.times(), backend.elapsed(), backend.running()), (vec![0, 0, 0], 20, 0));
    let at_once = Backend::taking(&[0]);
    layer.layer(at_once.clone()).oneshot(7).await.unwrap();
    assert_eq!(at_once.times(), [0]);
}

#[tokio::test(start_paused = true)]
async fn without_a_delay_there_is_no_timer() {
    let layer = hedge().after(ms(0)).max(3).build().unwrap().plain();
    let probe = Probe::new();
    probe.hangs();
    std::thread::spawn(move || {
        // No runtime: a timer would panic.
        let mut service = layer.layer(probe.clone());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Service::<()>::poll_ready(&mut service, &mut cx).is_ready());
        let mut call = pin!(service.call(()));
        assert!(call.as_mut().poll(&mut cx).is_pending());
        assert_eq!((probe.calls(), probe.in_flight()), (4, 4));
        probe.answers();
        assert!(call.as_mut().poll(&mut cx).is_ready());
        assert_eq!(probe.in_flight(), 0);
    })
    .join()
    .unwrap();
}

/// Scenario 99: a quantile of at least 20 measured calls.
#[tokio::test(start_paused = true)]
async fn after_a_quantile() {
    let layer = hedge().quantile(0.95).minimum_samples(20).build().unwrap().plain();
    // Slow from the start, and nobody knows that it is.
    let backend = Backend::taking(&[5; 20]);
    for _ in 0..20 {
        layer.layer(backend.clone()).oneshot(7).await.unwrap();
    }
    assert_eq!(layer.handle().snapshot().hedges, 0);
    let backend = Backend::taking(&[5, 5, 5, 5, 5, 200, 200]);
    for n in 0..6 {
        assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), n);
    }
    assert_eq!(layer.handle().snapshot().hedges, 1);
    // The sixth began at 25 ms; timers round 5.1 ms up to 6.
    assert_eq!(backend.times(), [0, 5, 10, 15, 20, 25, 31]);
}

#[tokio::test(start_paused = true)]
async fn before_it_knows_nothing_is_sent_twice() {
    let layer = hedge().quantile(0.5).minimum_samples(2).build().unwrap().plain();
    let backend = Backend::new([(500, Ok(1)), (0, Err(2)), (5, Err(3)), (0, Ok(4)), (500, Ok(5)), (900, Ok(6))]);
    let call = || layer.layer(backend.clone()).oneshot(7);
    assert_eq!(call().await.unwrap(), 1);
    // Not for a failure either; and neither failures nor what is ready at once are measured.
    assert!(call().await.is_err());
    assert!(call().await.is_err());
    assert_eq!(call().await.unwrap(), 4);
    assert_eq!(call().await.unwrap(), 5);
    assert_eq!(layer.handle().snapshot().hedges, 0);
    assert_eq!(call().await.unwrap(), 7);
    assert_eq!(layer.handle().snapshot().hedges, 1);
}

/// Scenario 97: a measured delay is never below a millisecond.
#[tokio::test(start_paused = true)]
async fn never_below_a_millisecond() {
    let layer = hedge().quantile(0.9).minimum_samples(1).build().unwrap().plain();
    let quick = service_fn(|(): ()| {
        let mut polled = false;
        std::future::poll_fn(move |cx| {
            if std::mem::replace(&mut polled, true) {
                return Poll::Ready(Ok::<_, Oops>(()));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    });
    for _ in 0..20 {
        layer.layer(quick).oneshot(()).await.unwrap();
    }
    let backend = Backend::taking(&[50, 50]);
    layer.layer(backend.clone()).oneshot(7).await.unwrap();
    assert_eq!(backend.times().len(), 2);
    assert!((1..=2).contains(&backend.times()[1]), "{:?}", backend.times());
}

/// What hedging cuts off is still part of what is measured: else the delay would shrink until every call is sent twice.
#[tokio::test(start_paused = true)]
async fn the_delay_does_not_shrink_by_itself() {
    let layer = hedge().quantile(0.5).minimum_samples(10).build().unwrap().plain();
    let mut hedged = 0;
    for n in 0..600u64 {
        // First attempts take 1 to 100 ms, all alike often; a second one always wins.
        let backend = Backend::taking(&[n * 37 % 100 + 1, 1]);
        layer.layer(backend.clone()).oneshot(7).await.unwrap();
        if n >= 400 {
            hedged += backend.times().len() - 1;
        }
    }
    assert!((80..=110).contains(&hedged), "{hedged} of 200");
}

// === what wins ===

#[tokio::test(start_paused = true)]
async fn the_first_success_wins_and_the_losers_end_at_once() {
    let layer = hedge().max(3).build().unwrap().plain();
    let backend = Backend::taking(&[500, 400, 15, 300]);
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 2);
    assert_eq!((backend.times(), backend.elapsed(), backend.running()), (vec![0, 10, 20, 30], 35, 0));
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.hedges, snapshot.won), (1, 3, 1));
    sleep(ms(1_000)).await;
    assert_eq!(backend.times().len(), 4);
}

/// Scenario 97: a second attempt that fails first is not the answer, and has not won.
#[tokio::test(start_paused = true)]
async fn a_failure_does_not_win() {
    let backend = Backend::new([(50, Ok(1)), (5, Err(2))]);
    let layer = hedge().build().unwrap().plain();
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 1);
    assert_eq!((backend.times(), backend.elapsed(), layer.handle().snapshot().won), (vec![0, 10], 50, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_starts_the_next_at_once() {
    // The first fails at 4, the second at 9; the third is slow, so the fourth comes after the delay.
    let backend = Backend::new([(4, Err(1)), (5, Err(2)), (50, Ok(3)), (50, Ok(4))]);
    let layer = hedge().max(3).build().unwrap().plain();
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 3);
    assert_eq!(backend.times(), [0, 4, 9, 19]);
    // Also one that fails at once.
    let backend = Backend::new([(0, Err(1)), (0, Err(2))]);
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 7);
    assert_eq!(backend.times(), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_the_last_failure_comes_back() {
    let backend = Backend::new([(40, Err(1)), (50, Err(2)), (5, Err(3))]);
    let layer = hedge().max(2).build().unwrap().plain();
    let error = layer.layer(backend.clone()).oneshot(7).await.unwrap_err();
    assert!(matches!(error, Error::Inner(Oops(2))), "{error:?}");
    assert_eq!((backend.times(), backend.elapsed()), (vec![0, 10, 20], 60));
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.hedges, snapshot.won), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_answer_stops_hedging() {
    let judged = |r: Result<&u32, &Oops>| match r {
        Ok(_) => Outcome::Success,
        Err(Oops(429)) => Outcome::Throttled,
        Err(Oops(400)) => Outcome::Cancelled,
        Err(_) => Outcome::Failure,
    };
    let layer = hedge().max(5).build().unwrap().plain_with(judged);
    // The second is throttled: no third, and the first is waited for.
    let backend = Backend::new([(80, Ok(1)), (5, Err(429))]);
    assert_eq!(layer.layer(backend.clone()).oneshot(7).await.unwrap(), 1);
    assert_eq!(backend.times(), [0, 10]);
    // Nor does a failure start one after that.
    let backend = Backend::new([(80, Err(1)), (5, Err(429))]);
    let error = layer.layer(backend.clone()).oneshot(7).await.unwrap_err();
    assert!(matches!(error, Error::Inner(Oops(1))));
    assert_eq!(backend.times(), [0, 10]);
    // With nothing else to wait for it is the answer.
    let backend = Backend::new([(5, Err(429))]);
    assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    assert_eq!(backend.times(), [0]);
    // What no other attempt can mend ends all.
    let backend = Backend::new([(80, Ok(1)), (5, Err(400))]);
    assert!(layer.layer(backend.clone()).oneshot(7).await.is_err());
    assert_eq!((backend.times(), backend.elapsed(), backend.running()), (vec![0, 10], 15, 0));
}

/// A breaker that opened meanwhile refuses the second attempt: the first is not given up for that.
#[tokio::test(start_paused = true)]
async fn a_refusal_inside_stops_hedging_and_ends_nothing() {
    let breaker = CircuitBreakerLayer::builder().build().unwrap();
    let backend = Backend::taking(&[50]);
    let layer = hedge().max(3).build().unwrap();
    let call = tokio::spawn(layer.clone().flat().layer(breaker.clone().plain().layer(backend.clone())).oneshot(7));
    sleep(ms(5)).await;
    breaker.handle().force_open().unwrap();
    assert_eq!(call.await.unwrap().unwrap(), 0);
    assert_eq!((backend.times().len(), layer.handle().snapshot().hedges), (1, 1));
    // Alone it is the answer.
    let error = layer.flat().layer(breaker.plain().layer(backend)).oneshot(7).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(r) if r.reason() == Reason::ForcedOpen));
}

// === what is inside, and around ===

/// Law 2: each attempt on an instance of its own, polled ready just before.
#[tokio::test(start_paused = true)]
async fn each_attempt_is_readied_on_its_own_instance() {
    // The probe panics when it is called without having been ready.
    let probe = Probe::new();
    probe.hangs();
    let layer = hedge().max(2).build().unwrap().plain();
    let mut service = layer.layer(probe.clone());
    let mut call = pin!(ServiceExt::<()>::ready(&mut service).await.unwrap().call(()));
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!((probe.calls(), probe.held(), probe.ready_polls()), (1, 0, 1));
    sleep(ms(11)).await;
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(probe.ready_instance_was_called());
    assert_eq!((probe.calls(), probe.held(), probe.in_flight()), (2, 0, 2));
    sleep(ms(11)).await;
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!((probe.calls(), probe.held(), probe.in_flight()), (3, 0, 3));
    probe.answers();
    call.await.unwrap();
    assert_eq!((probe.in_flight(), probe.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_ready() {
    let layer = hedge().budget(Budget::new(0.0, 1, ms(1_000)).unwrap()).build().unwrap().plain();
    // It waits for it, beside the first; whose answer counts.
    let hangs = Probe::new();
    hangs.hangs();
    let mut service = layer.layer(hangs.clone());
    let mut call = pin!(ServiceExt::<()>::ready(&mut service).await.unwrap().call(()));
    assert!(poll_once(call.as_mut()).is_pending());
    sleep(ms(11)).await;
    hangs.is_never_ready();
    call.await.unwrap();
    assert_eq!(layer.handle().snapshot().hedges, 0);

    // Broken readiness is no reason to give up what runs, and what was taken from the budget is back.
    let budget = Budget::new(0.0, 1, ms(1_000)).unwrap();
    let layer = hedge().budget(budget.clone()).build().unwrap().plain();
    let backend = Backend::taking(&[50]);
    let readied = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(BreaksLater { inner: backend, readied: Arc::clone(&readied) });
    assert_eq!(service.oneshot(7).await.unwrap(), 0);
    assert_eq!(readied.load(SeqCst), 2);
    assert!(budget.withdraw());

    // With nothing else running it is the call's.
    let layer = hedge().build().unwrap().plain();
    let backend = Backend::new([(5, Err(1))]);
    let service = layer.layer(BreaksLater { inner: backend, readied: Arc::default() });
    assert!(matches!(service.oneshot(7).await, Err(Error::Inner(Oops(99)))));
}

/// Ready once.
#[derive(Clone)]
struct BreaksLater {
    inner: Backend,
    readied: Arc<AtomicUsize>,
}

impl Service<u32> for BreaksLater {
    type Response = u32;
    type Error = Oops;
    type Future = <Backend as Service<u32>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Oops>> {
        Poll::Ready(if self.readied.fetch_add(1, SeqCst) == 0 { Ok(()) } else { Err(Oops(99)) })
    }

    fn call(&mut self, request: u32) -> Self::Future {
        self.inner.call(request)
    }
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A bulkhead inside has its permits back when the answer is given, and losers are cancelled calls to it and to a
/// breaker.
#[tokio::test(start_paused = true)]
async fn losers_are_cancelled_and_give_their_permits_back() {
    let bulkhead = BulkheadLayer::builder().limit(3).build().unwrap();
    let (breaker, outcomes) = (CircuitBreakerLayer::builder().build().unwrap(), OutcomesLayer::new());
    let backend = Backend::taking(&[500, 500, 5]);
    let inner = bulkhead.clone().plain().layer(breaker.clone().plain().layer(outcomes.clone().plain().layer(backend)));
    // Around it, and inside, timeouts that do not run out.
    let timeout = TimeoutLayer::builder().after(ms(1_000)).build().unwrap();
    let inner = timeout.clone().boxed().layer(inner);
    let layer = hedge().max(2).build().unwrap().boxed();
    let service = timeout.boxed().layer(layer.layer(inner));
    let mut call = pin!(service.oneshot(7));
    assert!(tokio::time::timeout(ms(22), call.as_mut()).await.is_err());
    assert_eq!(bulkhead.handle().snapshot().in_flight, 3);
    assert_eq!(call.await.unwrap(), 2);
    assert_eq!(bulkhead.handle().snapshot().in_flight, 0);
    assert_eq!(outcomes.handle().take(), [Outcome::Success, Outcome::Cancelled, Outcome::Cancelled]);
    assert_eq!(breaker.handle().snapshot().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_each_attempt_starts_the_next() {
    let outcomes = OutcomesLayer::new();
    let timeout = TimeoutLayer::builder().after(ms(8)).build().unwrap();
    let backend = Backend::taking(&[100, 5]);
    let inner = timeout.plain().layer(outcomes.clone().plain().layer(backend.clone()));
    assert_eq!(hedge().build().unwrap().flat().layer(inner).oneshot(7).await.unwrap(), 1);
    assert_eq!(backend.times(), [0, 8]);
    assert_eq!(outcomes.handle().take(), [Outcome::Failure, Outcome::Success]);
}

#[tokio::test(start_paused = true)]
async fn cancelled_with_its_call() {
    let layer = hedge().max(2).build().unwrap().plain();
    for (after, made) in [(5, 1), (15, 2), (25, 3)] {
        let backend = Backend::taking(&[100, 100, 100]);
        assert!(tokio::time::timeout(ms(after), layer.layer(backend.clone()).oneshot(7)).await.is_err());
        assert_eq!(backend.running(), 0);
        sleep(ms(500)).await;
        assert_eq!(backend.times().len(), made);
    }
}

// === deadlines ===

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_past_the_deadline() {
    let layer = hedge().max(5).build().unwrap().plain();
    let backend = Backend::taking(&[50; 6]);
    let call = layer.layer(backend.clone()).oneshot(7);
    Deadline::after(ms(20)).scope(call).await.unwrap();
    // At 20 ms it would be too late.
    assert_eq!(backend.times(), [0, 10]);

    // After a failure neither.
    let backend = Backend::new([(30, Err(1)), (50, Ok(2))]);
    let call = layer.layer(backend.clone()).oneshot(7);
    assert!(Deadline::after(ms(9)).scope(call).await.is_err());
    assert_eq!(backend.times(), [0]);
    let backend = Backend::new([(5, Err(1)), (50, Ok(2))]);
    let call = layer.layer(backend.clone()).oneshot(7);
    assert_eq!(Deadline::after(ms(9)).scope(call).await.unwrap(), 2);
    assert_eq!(backend.times(), [0, 5]);

    // And who comes late is refused.
    let backend = Backend::taking(&[]);
    let late = Deadline::after(ms(0)).scope(layer.layer(backend.clone()).oneshot(7)).await.unwrap_err();
    let Error::Rejected(rejection) = late else { panic!("{late:?}") };
    assert_eq!((rejection.policy(), rejection.reason()), ("hedge", Reason::DeadlineExceeded));
    assert!(backend.times().is_empty());
    assert_eq!((layer.handle().snapshot().deadline_exceeded, layer.handle().snapshot().calls), (1, 3));
}

/// What can't go on is refused, and booked as that, though a shadow has begun meanwhile.
#[tokio::test(start_paused = true)]
async fn the_deadline_ends_the_wait_for_readiness() {
    for shadow in [false, true] {
        let layer = hedge().build().unwrap().plain();
        let mut call = Box::pin(Deadline::after(ms(30)).scope(layer.layer(FailsThenBusy::default()).oneshot(7)));
        let started = Instant::now();
        assert!(poll_once(call.as_mut()).is_pending());
        layer.handle().shadow(shadow);
        let error = call.await.unwrap_err();
        assert!(matches!(error, Error::Rejected(r) if r.reason() == Reason::DeadlineExceeded));
        let snapshot = layer.handle().snapshot();
        let booked = (snapshot.deadline_exceeded, snapshot.would_have_rejected);
        assert_eq!((started.elapsed(), booked), (ms(30), (1, 0)), "{shadow}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_one_though_a_shadow_begins() {
    let layer = hedge().build().unwrap().plain();
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

/// What is pending is not polled a second time because somebody has to look after the turn of the next attempt.
#[tokio::test(start_paused = true)]
async fn a_poll_polls_each_attempt_once() {
    let polls: Arc<Mutex<Vec<u32>>> = Arc::default();
    let backend = service_fn({
        let (polls, made) = (polls.clone(), Arc::new(AtomicUsize::new(0)));
        move |_: u32| {
            let (polls, number) = (polls.clone(), made.fetch_add(1, SeqCst) as u32 + 1);
            std::future::poll_fn(move |_| {
                polls.lock().unwrap().push(number);
                Poll::<Result<u32, Oops>>::Pending
            })
        }
    });
    let layer = hedge().max(2).build().unwrap().plain();
    let mut call = Box::pin(layer.layer(backend).oneshot(7));
    for expected in [&[1][..], &[1, 2], &[1, 2, 3], &[1, 2, 3]] {
        assert!(poll_once(call.as_mut()).is_pending());
        assert_eq!(std::mem::take(&mut *polls.lock().unwrap()), expected);
        advance(ms(10)).await;
    }
}

/// Its one call fails, and then it is not ready any more.
#[derive(Clone, Default)]
struct FailsThenBusy(Arc<AtomicUsize>);

impl Service<u32> for FailsThenBusy {
    type Response = u32;
    type Error = Oops;
    type Future = std::future::Ready<Result<u32, Oops>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Oops>> {
        if self.0.load(SeqCst) == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, _: u32) -> Self::Future {
        self.0.fetch_add(1, SeqCst);
        std::future::ready(Err(Oops(1)))
    }
}

// === budget ===

/// Scenario 97: a budget that is spent leaves the first attempt as it is.
#[tokio::test(start_paused = true)]
async fn a_spent_budget_leaves_the_call_alone() {
    let layer = hedge().budget(Budget::new(0.0, 1, ms(1_000)).unwrap()).max(3).build().unwrap().plain();
    let backend = Backend::taking(&[50; 9]);
    let service = layer.layer(backend.clone());
    assert_eq!(service.clone().oneshot(7).await.unwrap(), 0);
    assert_eq!(service.oneshot(7).await.unwrap(), 2);
    assert_eq!(backend.times(), [0, 10, 50]);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.hedges, snapshot.stopped_by_budget), (2, 1, 2));
}

/// Each call pays once: a hedge by itself does, and one inside a retry on the same budget does not.
#[tokio::test(start_paused = true)]
async fn each_call_pays_once() {
    let left = |budget: &Budget| (0..1_000).take_while(|_| budget.withdraw()).count();
    let retry = |budget: &Budget| {
        let builder = RetryLayer::builder().backoff(Backoff::Constant(ms(1))).budget(budget.clone());
        builder.build().unwrap().flat()
    };
    let new = || Budget::new(0.1, 0, ms(10_000)).unwrap();
    let budget = new();
    let layer = hedge().budget(budget.clone()).build().unwrap().plain();
    for _ in 0..100 {
        layer.layer(Backend::taking(&[])).oneshot(7).await.unwrap();
    }
    assert_eq!(left(&budget), 10);

    let (budget, own) = (new(), new());
    let layer = hedge().budget(budget.clone()).build().unwrap().plain();
    for _ in 0..100 {
        retry(&budget).layer(layer.layer(Backend::taking(&[]))).oneshot(7).await.unwrap();
    }
    assert_eq!(left(&budget), 10);
    // On budgets of their own each pays into its own.
    let other = hedge().budget(own.clone()).build().unwrap().plain();
    for _ in 0..100 {
        retry(&budget).layer(other.layer(Backend::taking(&[]))).oneshot(7).await.unwrap();
    }
    assert_eq!((left(&budget), left(&own)), (10, 10));
}

/// A call that a bulkhead between them holds back begins in a poll, long after the retry has made it.
#[tokio::test(start_paused = true)]
async fn a_call_that_begins_later_pays_once_too() {
    let budget = Budget::new(0.1, 0, ms(10_000)).unwrap();
    let hedge = hedge().after(ms(100)).budget(budget.clone()).build().unwrap().plain();
    let bulkhead = BulkheadLayer::builder().limit(1).queue(100).wait(ms(5_000)).build().unwrap().flat();
    let retry = RetryLayer::builder().backoff(Backoff::Constant(ms(1))).budget(budget.clone()).build().unwrap().flat();
    let service = retry.layer(bulkhead.layer(hedge.layer(Backend::taking(&[1; 100]))));
    let calls = (0..100).map(|_| service.clone().oneshot(7));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!((0..1_000).take_while(|_| budget.withdraw()).count(), 10);
}

/// A caller that gives up has waited for so long at least: a backend that has become slow is seen to be so through a
/// timeout further out, and is not sent everything twice until its good times are forgotten. One that leaves sooner
/// says nothing.
#[tokio::test(start_paused = true)]
async fn what_callers_waited_for_in_vain_counts() {
    let layer =
        HedgeLayer::builder().quantile(0.9).minimum_samples(20).budget(Budget::unlimited()).build().unwrap().plain();
    let call = |takes: u64, patience: u64| {
        let service = layer.layer(Backend::taking(&[takes, takes]));
        async move { tokio::time::timeout(ms(patience), service.oneshot(7)).await.is_ok() }
    };
    for _ in 0..100 {
        assert!(call(5, 300).await);
    }
    for _ in 0..200 {
        assert!(!call(500, 4).await);
    }
    assert_eq!(layer.handle().snapshot().hedges, 0);
    let mut hedges = 0;
    for n in 1..=100 {
        assert!(!call(500, 300).await);
        hedges = layer.handle().snapshot().hedges;
        assert!(hedges == n || n > 12, "{hedges} of {n}");
    }
    // A tenth of all samples is slow with the twelfth, and then 300 ms are what one waits for.
    assert!((11..=13).contains(&hedges), "{hedges}");
}

/// How long the first attempt was waited for is known when the call ends, not when somebody drops its future.
#[tokio::test(start_paused = true)]
async fn what_is_learnt_does_not_wait_for_the_drop() {
    let layer = HedgeLayer::builder().quantile(0.5).minimum_samples(1).budget(Budget::unlimited()).build().unwrap();
    // How long each attempt takes, and its status.
    let call = |attempts: &'static [(u64, u16)]| {
        let made = Arc::new(AtomicUsize::new(0));
        let service = layer.layer(service_fn(move |_: Request<Empty<Bytes>>| {
            let (takes, status) = attempts[made.fetch_add(1, SeqCst)];
            async move {
                sleep(ms(takes)).await;
                Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
            }
        }));
        Box::pin(service.oneshot(Request::new(Empty::new())))
    };
    call(&[(10, 200)]).await.unwrap();
    // The first hangs, and the second ends the call.
    let mut held = call(&[(60_000, 200), (1, 500)]);
    assert_eq!(held.as_mut().await.unwrap().status(), 500);
    sleep(ms(3_000)).await;
    drop(held);
    // 10 ms and 11 ms were seen, and three seconds were not.
    assert!(tokio::time::timeout(ms(15), call(&[(500, 200); 2])).await.is_err());
    assert_eq!(layer.handle().snapshot().hedges, 2);
}

/// An attempt that panics has ended, and badly; whether it is the call or a poll that does, of the first or of a later
/// one.
#[tokio::test(start_paused = true)]
async fn a_panic_is_the_end_of_an_attempt() {
    for (at, in_call) in [(1, true), (1, false), (2, true), (2, false)] {
        for retries in [false, true] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let events = Arc::clone(&seen);
            let observer = move |event: &Event| {
                if let Kind::Attempt { number, outcome, .. } = event.kind {
                    events.lock().unwrap().push((number, outcome));
                }
            };
            let calls = Arc::new(AtomicUsize::new(0));
            let service = service_fn(move |_: u32| {
                let number = calls.fetch_add(1, SeqCst) + 1;
                assert!(number != at || !in_call, "in the call");
                async move {
                    sleep(ms(1)).await;
                    assert!(number != at, "in a poll");
                    Err::<u32, _>(Oops(1))
                }
            });
            let budget = Budget::unlimited();
            let call = if retries {
                let shared = budget.clone();
                let builder = RetryLayer::builder().backoff(Backoff::Constant(ms(0))).observer(observer).budget(budget);
                let call = builder.build().unwrap().plain().layer(service).oneshot(7);
                drop(shared);
                tokio::spawn(call)
            } else {
                let layer = hedge().budget(budget).observer(observer).build().unwrap().plain();
                tokio::spawn(layer.layer(service).oneshot(7))
            };
            assert!(call.await.unwrap_err().is_panic());
            let expected = [(1, Outcome::Failure), (2, Outcome::Failure)];
            assert_eq!(*seen.lock().unwrap(), expected[..at], "{at} {in_call} {retries}");
        }
    }
}

/// A body that panics while an attempt's answer is looked into has ended that attempt.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_body_is_the_end_of_an_attempt() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    let observer = move |event: &Event| {
        if let Kind::Attempt { number, outcome, .. } = event.kind {
            events.lock().unwrap().push((number, outcome));
        }
    };
    let service = service_fn(|_: Request<Empty<Bytes>>| async {
        sleep(ms(1)).await;
        let broken = futures_util::stream::poll_fn(|_| -> Poll<Option<Result<Frame<Bytes>, tower::BoxError>>> {
            panic!("broken")
        });
        let head = Response::builder().header("content-type", "application/grpc");
        Ok::<_, Infallible>(head.body(UnsyncBoxBody::new(StreamBody::new(broken))).unwrap())
    });
    let request = Request::post("/").header("content-type", "application/grpc").body(Empty::new()).unwrap();
    let call = tokio::spawn(hedge().observer(observer).build().unwrap().layer(service).oneshot(request));
    assert!(call.await.unwrap_err().is_panic());
    assert_eq!(*seen.lock().unwrap(), [(1, Outcome::Failure)]);
}

/// A first attempt that panics has failed: how long it took teaches nothing.
#[tokio::test(start_paused = true)]
async fn a_panic_teaches_nothing() {
    let layer = HedgeLayer::builder().quantile(0.5).minimum_samples(1).budget(Budget::unlimited()).build().unwrap();
    let layer = layer.plain();
    let call = |takes: u64, panics: bool| {
        let service = service_fn(move |_: u32| async move {
            sleep(ms(takes)).await;
            assert!(!panics, "broken");
            Ok::<u32, Oops>(7)
        });
        tokio::spawn(layer.layer(service).oneshot(7))
    };
    call(10, false).await.unwrap().unwrap();
    for _ in 0..10 {
        assert!(call(100, true).await.unwrap_err().is_panic());
    }
    // Of the ten each had a hedge after the 10 ms that were seen, and this one has, too.
    call(15, false).await.unwrap().unwrap();
    assert_eq!(layer.handle().snapshot().hedges, 11);
}

/// Of gRPC's tokens failures take, and nothing else: a slow call that ends well is none, nor is a hedge that was not
/// sent.
#[tokio::test(start_paused = true)]
async fn tokens_count_failures() {
    let left = |budget: &Budget| {
        let text = format!("{budget:?}");
        text.split(|c: char| !c.is_ascii_digit()).find_map(|n| n.parse::<u32>().ok()).unwrap()
    };
    let tokens = || Budget::tokens(10, 0.1).unwrap();

    let budget = tokens();
    let layer = hedge().budget(budget.clone()).build().unwrap().plain();
    for _ in 0..20 {
        layer.layer(Backend::taking(&[50, 60])).oneshot(7).await.unwrap();
    }
    assert_eq!((layer.handle().snapshot().hedges, left(&budget)), (20, 10_000));

    // Each attempt that failed takes one, those after which there is none too.
    layer.layer(Backend::new([(0, Err(1)), (0, Err(2))])).oneshot(7).await.unwrap_err();
    assert_eq!(left(&budget), 8_000);
    // Beside one that runs.
    layer.layer(Backend::new([(50, Ok(1)), (5, Err(2))])).oneshot(7).await.unwrap();
    assert_eq!(left(&budget), 7_100);
    // At the half there is no further one.
    for _ in 0..3 {
        budget.withdraw();
    }
    let backend = Backend::new([(50, Ok(1))]);
    layer.layer(backend.clone()).oneshot(7).await.unwrap();
    assert_eq!((backend.times().len(), left(&budget)), (1, 4_200));
    let backend = Backend::new([(0, Err(1))]);
    layer.layer(backend.clone()).oneshot(7).await.unwrap_err();
    assert_eq!((backend.times().len(), left(&budget)), (1, 3_200));

    // What fails within a retry on the same tokens is counted once, here or there.
    let budget = tokens();
    let layer = hedge().budget(budget.clone()).build().unwrap().plain();
    let retry = RetryLayer::builder().attempts(2).backoff(Backoff::Constant(ms(1))).budget(budget.clone());
    let service = retry.build().unwrap().flat().layer(layer.layer(Backend::new([(0, Err(1)); 4])));
    service.oneshot(7).await.unwrap_err();
    assert_eq!(left(&budget), 6_000);

    // In shadow too.
    let budget = tokens();
    let layer = hedge().budget(budget.clone()).shadow(true).build().unwrap().plain();
    layer.layer(Backend::new([(0, Err(1))])).oneshot(7).await.unwrap_err();
    assert_eq!(left(&budget), 9_000);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_not_sent_is_given_back() {
    let budget = Budget::new(0.0, 1, ms(1_000)).unwrap();
    let layer = hedge().budget(budget.clone()).build().unwrap().plain();
    let probe = Probe::new();
    probe.hangs();
    let mut service = layer.layer(BusyLater(probe.clone(), false));
    {
        let mut call = pin!(ServiceExt::<()>::ready(&mut service).await.unwrap().call(()));
        assert!(poll_once(call.as_mut()).is_pending());
        sleep(ms(11)).await;
        assert!(poll_once(call.as_mut()).is_pending());
        assert!(!budget.withdraw(), "one that waits for readiness has not reserved its attempt");
    }
    assert!(budget.withdraw());
}

/// Clones are never ready.
struct BusyLater(Probe, bool);

impl Clone for BusyLater {
    fn clone(&self) -> Self {
        BusyLater(self.0.clone(), true)
    }
}

impl Service<()> for BusyLater {
    type Response = ();
    type Error = ProbeError;
    type Future = <Probe as Service<()>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProbeError>> {
        if self.1 { Poll::Pending } else { Service::<()>::poll_ready(&mut self.0, cx) }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.0.call(())
    }
}

/// What a call of the model does: how long its attempts take, and whether they fail.
type Call = Vec<(u64, bool)>;

fn calls() -> impl Strategy<Value = Vec<(u64, Call)>> {
    let attempt = (0..40u64, any::<bool>());
    proptest::collection::vec((0..30u64, proptest::collection::vec(attempt, 6..=6)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the calls do, retries and hedges together never exceed the budget they share: here all of it is one
    /// window.
    #[test]
    fn a_budget_shared_with_a_retry_is_never_exceeded(calls in calls(), tenths in 0..=5u32, minimum in 0..4u32) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let budget = Budget::new(f64::from(tenths) / 10.0, minimum, Duration::from_secs(1)).unwrap();
            let hedge = HedgeLayer::builder().after(ms(10)).max(2).budget(budget.clone()).build().unwrap();
            let retry = RetryLayer::builder().backoff(Backoff::Constant(ms(3))).budget(budget).build().unwrap();
            let attempts = Arc::new(AtomicUsize::new(0));
            let mut running = Vec::new();
            // The calls come within less than the window, so nothing of it is forgotten.
            for (pause, call) in &calls {
                sleep(ms(*pause % 8)).await;
                let script = call.iter().map(|(takes, ok)| (*takes, if *ok { Ok(1) } else { Err(1) }));
                let backend = Backend::new(script);
                let (service, attempts) = (retry.clone().flat().layer(hedge.clone().plain().layer(backend.clone())), Arc::clone(&attempts));
                running.push(tokio::spawn(async move {
                    let _ = service.oneshot(7).await;
                    attempts.fetch_add(backend.times().len(), SeqCst);
                }));
            }
            for call in running {
                call.await.unwrap();
            }
            let (calls, made) = (calls.len(), attempts.load(SeqCst));
            let (hedges, retries) = (hedge.handle().snapshot().hedges, retry.handle().snapshot());
            let extra = hedges + retries.attempts - retries.calls;
            assert_eq!(made as u64, calls as u64 + extra);
            let most = f64::from(tenths) / 10.0 * calls as f64 + f64::from(minimum);
            assert!(extra as f64 <= most + 1e-9, "{extra} of at most {most}");
        });
    }
}

// === what is told ===

#[tokio::test(start_paused = true)]
async fn an_event_for_each_attempt() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let saw = Arc::clone(&events);
    let layer = hedge()
        .name("search")
        .max(3)
        .observer(move |e: &Event| {
            assert_eq!((e.policy, &*e.name), ("hedge", "search"));
            saw.lock().unwrap().push(e.kind.clone());
        })
        .build()
        .unwrap()
        .plain();
    let attempt = |number, outcome, delay| Kind::Attempt { number, outcome, delay };
    layer.layer(Backend::taking(&[])).oneshot(7).await.unwrap();
    assert_eq!(std::mem::take(&mut *events.lock().unwrap()), [attempt(1, Outcome::Success, None)]);
    // The second fails at 15 and starts the third, which answers at 18.
    let backend = Backend::new([(500, Ok(1)), (5, Err(2)), (3, Ok(3))]);
    layer.layer(backend).oneshot(7).await.unwrap();
    assert_eq!(
        std::mem::take(&mut *events.lock().unwrap()),
        [
            attempt(2, Outcome::Failure, Some(Duration::ZERO)),
            attempt(1, Outcome::Cancelled, None),
            attempt(3, Outcome::Success, None)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn shadow_sends_nothing_twice() {
    let layer = hedge().shadow(true).build().unwrap().plain();
    let backend = Backend::new([(50, Ok(1)), (5, Err(2)), (50, Ok(3)), (50, Ok(4))]);
    let call = || layer.layer(backend.clone()).oneshot(7);
    assert_eq!(call().await.unwrap(), 1);
    assert!(call().await.is_err());
    let late = layer.layer(Backend::taking(&[])).oneshot(7);
    assert_eq!(Deadline::after(ms(0)).scope(late).await.unwrap(), 7);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.hedges, snapshot.would_have_hedged, snapshot.would_have_rejected), (0, 2, 1));
    layer.handle().shadow(false);
    assert_eq!(call().await.unwrap(), 3);
    assert_eq!(layer.handle().snapshot().hedges, 1);
}

#[tokio::test(start_paused = true)]
async fn the_numbers_change_while_it_runs() {
    let layer = hedge().build().unwrap().plain();
    let handle = layer.handle();
    let before = HedgeConfig { after: Some(ms(10)), ..HedgeConfig::default() };
    assert_eq!(handle.snapshot().config, before);
    let backend = Backend::taking(&[1_000; 4]);
    let mut runs = pin!(layer.layer(backend.clone()).oneshot(7));
    assert!(poll_once(runs.as_mut()).is_pending());
    let config = HedgeConfig { after: Some(ms(30)), max: 3, minimum_samples: 7, ..before };
    handle.update(config).unwrap();
    assert_eq!(handle.snapshot().config, config);
    runs.await.unwrap();
    // The wait that had begun went on; those after it were the new ones.
    assert_eq!(backend.times(), [0, 10, 40, 70]);

    // What was measured stays, and answers the new question.
    let layer = hedge().quantile(0.5).minimum_samples(1_000).build().unwrap().plain();
    for _ in 0..10 {
        layer.layer(Backend::taking(&[20])).oneshot(7).await.unwrap();
    }
    layer.layer(Backend::taking(&[200])).oneshot(7).await.unwrap();
    let config = HedgeConfig { quantile: Some(0.5), minimum_samples: 10, ..HedgeConfig::default() };
    for (quantile, least, most) in [(0.5, 20, 21), (0.99, 200, 207)] {
        layer.handle().update(HedgeConfig { quantile: Some(quantile), ..config }).unwrap();
        let backend = Backend::taking(&[1_000, 0]);
        layer.layer(backend.clone()).oneshot(7).await.unwrap();
        let second = backend.times()[1];
        assert!((least..=most).contains(&second), "{quantile}: {second}");
    }
}

#[test]
fn an_update_that_fails_changes_nothing() {
    let bad = HedgeConfig { after: Some(Duration::MAX), quantile: Some(2.0), minimum_samples: 0, max: 11 };
    let one = HedgeConfig::default();
    let (fixed, measured) = (hedge, || hedge().quantile(0.9));
    for (builder, config, fields) in [
        (&fixed as &dyn Fn() -> HedgeBuilder, bad, &["quantile", "after", "minimum_samples", "max"][..]),
        (&fixed, HedgeConfig { quantile: Some(0.5), ..one }, &["quantile"]),
        (&fixed, one, &["after"]),
        (&measured, HedgeConfig { after: Some(ms(1)), ..one }, &["after"]),
        (&measured, one, &["after"]),
        (&measured, HedgeConfig { quantile: Some(1.0), ..one }, &["quantile"]),
    ] {
        let handle = builder().build().unwrap().handle();
        let before = handle.snapshot().config;
        let error = handle.update(config).unwrap_err();
        assert_eq!(error.fields().iter().map(|f| f.field).collect::<Vec<_>>(), fields, "{config:?}");
        assert_eq!(handle.snapshot().config, before);
    }
}

#[test]
fn bad_configurations() {
    let fields =
        |builder: HedgeBuilder| -> Vec<_> { builder.build().unwrap_err().fields().iter().map(|f| f.field).collect() };
    assert_eq!(fields(HedgeLayer::builder()), ["after"]);
    assert_eq!(fields(hedge().after(Duration::MAX)), ["after"]);
    for q in [0.0, 1.0, -0.5, f64::NAN, 95.0] {
        assert_eq!(fields(hedge().quantile(q)), ["quantile"], "{q}");
    }
    assert_eq!(fields(hedge().name("").minimum_samples(0).max(0)), ["name", "minimum_samples", "max"]);
    assert_eq!(fields(hedge().max(11)), ["max"]);
    hedge().after(ms(0)).max(10).build().unwrap();
    // The later of the two.
    hedge().quantile(7.0).after(ms(1)).build().unwrap();
}

// === requests ===

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_clone() {
    struct Job(u32, bool);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let saw = Arc::clone(&seen);
    let service = service_fn(move |job: Job| {
        saw.lock().unwrap().push(job.0);
        async move {
            sleep(ms(100)).await;
            Ok::<_, Oops>(job.0)
        }
    });
    let layer = hedge().max(2).build().unwrap().plain().clone_with(|job: &Job| job.1.then_some(Job(job.0, true)));
    layer.layer(service.clone()).oneshot(Job(1, true)).await.unwrap();
    layer.layer(service).oneshot(Job(2, false)).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [1, 1, 1, 2]);
}

/// What is sent twice on HTTP: idempotent methods, and all if one says so; on gRPC all.
#[tokio::test(start_paused = true)]
async fn methods() {
    async fn attempts(builder: HedgeBuilder, request: Request<Full<Bytes>>) -> usize {
        let seen = Arc::new(AtomicUsize::new(0));
        let saw = Arc::clone(&seen);
        let service = service_fn(move |r: Request<Full<Bytes>>| {
            saw.fetch_add(1, SeqCst);
            async move {
                sleep(ms(100)).await;
                assert_eq!(r.into_body().collect().await.unwrap().to_bytes(), "body");
                Ok::<_, Oops>(Response::new(Empty::<Bytes>::new()))
            }
        });
        builder.build().unwrap().layer(service).oneshot(request).await.unwrap();
        seen.load(SeqCst)
    }
    let request = |method| Request::builder().method(method).body(Full::new(Bytes::from("body"))).unwrap();
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE] {
        assert_eq!(attempts(hedge(), request(method)).await, 2);
    }
    for method in [Method::POST, Method::PATCH, Method::CONNECT] {
        assert_eq!(attempts(hedge(), request(method.clone())).await, 1);
        assert_eq!(attempts(hedge().any_method(true), request(method)).await, 2);
    }
    let mut grpc = request(Method::POST);
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    assert_eq!(attempts(hedge(), grpc).await, 2);
    assert_eq!(attempts(hedge().replay_cap(0), request(Method::GET)).await, 1);
}

/// On HTTP: 503 starts the next, one with `Retry-After` and 429 stop hedging, 500 ends all.
#[tokio::test(start_paused = true)]
async fn statuses() {
    type Script = &'static [(u64, u16, Option<&'static str>)];
    async fn run(script: Script) -> (StatusCode, Vec<u128>) {
        let start = Instant::now();
        let began = Arc::new(Mutex::new(Vec::new()));
        let saw = Arc::clone(&began);
        let service = service_fn(move |_: Request<Empty<Bytes>>| {
            let mut began = saw.lock().unwrap();
            let (takes, status, hint) = script[began.len()];
            began.push(start.elapsed().as_millis());
            async move {
                sleep(ms(takes)).await;
                let mut response = Response::builder().status(status);
                if let Some(hint) = hint {
                    response = response.header("retry-after", hint);
                }
                Ok::<_, Oops>(response.body(Empty::<Bytes>::new()).unwrap())
            }
        });
        let layer = hedge().max(2).build().unwrap();
        let response = layer.layer(service).oneshot(Request::new(Empty::new())).await.unwrap();
        (response.status(), began.lock().unwrap().clone())
    }
    let cases: [(Script, u16, &[u128]); 6] = [
        (&[(5, 503, None), (5, 502, None), (5, 200, None)], 200, &[0, 5, 10]),
        (&[(50, 200, None), (5, 503, Some("1"))], 200, &[0, 10]),
        (&[(50, 200, None), (5, 429, None)], 200, &[0, 10]),
        (&[(5, 429, Some("1"))], 429, &[0]),
        (&[(50, 200, None), (5, 500, None)], 500, &[0, 10]),
        (&[(50, 200, None), (5, 404, None)], 404, &[0, 10]),
    ];
    for (script, status, times) in cases {
        let (got, began) = run(script).await;
        assert_eq!((got.as_u16(), &began[..]), (status, times), "{script:?}");
    }
}

/// The second attempt waits for readiness while the first reads the body past the cap: it is not sent, nor is what it
/// took from the budget kept.
#[tokio::test(start_paused = true)]
async fn a_body_that_passes_the_cap_meanwhile() {
    /// Reads a body of three chunks and answers with its length. Clones are ready after 35 ms.
    struct Reads(Arc<AtomicUsize>, Option<Instant>);

    impl Clone for Reads {
        fn clone(&self) -> Self {
            Reads(Arc::clone(&self.0), Some(Instant::now() + ms(35)))
        }
    }

    type Body = UnsyncBoxBody<Bytes, Infallible>;

    impl Service<Request<Body>> for Reads {
        type Response = Response<Empty<Bytes>>;
        type Error = Oops;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Oops>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Oops>> {
            // The first attempt wakes us.
            if self.1.is_none_or(|at| at <= Instant::now()) { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.0.fetch_add(1, SeqCst);
            Box::pin(async move {
                assert_eq!(request.into_body().collect().await.unwrap().to_bytes().len(), 3_000);
                Ok(Response::new(Empty::new()))
            })
        }
    }

    for (cap, made) in [(2_000, 1), (10_000, 2)] {
        let budget = Budget::new(0.0, 1, ms(1_000)).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let frames = futures_util::stream::iter(0..3).then(async |_| {
            sleep(ms(20)).await;
            Ok(http_body::Frame::data(Bytes::from(vec![0; 1_000])))
        });
        let body = UnsyncBoxBody::new(StreamBody::new(Box::pin(frames)));
        let layer = hedge().replay_cap(cap).budget(budget.clone()).build().unwrap();
        layer.layer(Reads(Arc::clone(&calls), None)).oneshot(Request::new(body)).await.unwrap();
        assert_eq!((calls.load(SeqCst), budget.withdraw()), (made, made == 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_found_in_the_response() {
    let layer = hedge().build().unwrap();
    let service =
        layer.layer(service_fn(async |_: Request<Empty<Bytes>>| Ok::<_, Oops>(Response::new(Empty::<Bytes>::new()))));
    let mut request = Request::new(Empty::new());
    request.extensions_mut().insert(Deadline::after(ms(0)));
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(Rejection::in_response(&response).unwrap().policy(), "hedge");
}

/// By itself a hedge may add one call in twenty and one a second, of the last ten seconds.
#[tokio::test(start_paused = true)]
async fn the_default_budget_is_a_twentieth_and_one_a_second() {
    let hedge = HedgeLayer::builder().after(Duration::ZERO).build().unwrap().plain();
    let service = hedge.layer(tower::service_fn(|()| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(())
    }));
    for _ in 0..1_000 {
        service.clone().oneshot(()).await.unwrap();
    }
    let seen = hedge.handle().snapshot();
    assert_eq!((seen.hedges, seen.stopped_by_budget), (10 + 50, 1_000 - 60));
}
