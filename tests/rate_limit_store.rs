//! Rate limits with a store of quotas outside of the layer, in virtual time: when it is asked, and what becomes of its
//! answers.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, Ready, ready},
    num::NonZeroU32,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::Empty;
use tokio::{
    task::JoinHandle,
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    CircuitBreakerLayer, Deadline, Error, Grant, Key, LimitHeaders, MissingKey, Quota, RateLimitBuilder,
    RateLimitLayer, Reason, Rejection, State, Store, testing::Probe,
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn limit(quota: Quota) -> RateLimitBuilder {
    RateLimitLayer::builder().quota(quota)
}

fn per_header(quota: Quota) -> RateLimitBuilder {
    limit(quota).per_key(Key::Header(HeaderName::from_static("x-api-key")))
}

fn keyed(key: &str) -> Request<()> {
    Request::builder().header("x-api-key", key).body(()).unwrap()
}

type Answer = Result<Response<Empty<Bytes>>, Infallible>;

fn http()
-> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible, Future = Ready<Answer>> + Clone {
    service_fn(|_: Request<()>| ready(Ok(Response::new(Empty::new()))))
}

async fn readied<S: Service<R, Error: std::fmt::Debug>, R>(service: &mut S) -> &mut S {
    service.ready().await.unwrap()
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Always the same answer.
#[derive(Debug, Clone, Copy)]
struct Fixed(Grant);

impl Store<Arc<str>> for Fixed {
    type Acquire = Ready<Grant>;
    fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Ready<Grant> {
        ready(self.0)
    }
}

/// Counts down per key, and answers after a while.
struct Distant {
    left: Mutex<HashMap<String, u32>>,
    after: Duration,
}

impl Store<Arc<str>> for Distant {
    type Acquire = Pin<Box<dyn Future<Output = Grant> + Send>>;
    fn acquire(&self, key: &Arc<str>, cost: NonZeroU32) -> Self::Acquire {
        let mut left = self.left.lock().unwrap();
        let left = left.entry(key.to_string()).or_insert(3);
        let grant = match left.checked_sub(cost.get()) {
            Some(rest) => {
                *left = rest;
                Grant::Granted { remaining: rest, reset: ms(2_500) }
            }
            None => {
                *left = 3;
                Grant::Denied { retry_after: ms(400) }
            }
        };
        let after = self.after;
        Box::pin(async move {
            if !after.is_zero() {
                sleep(after).await;
            }
            grant
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_in_the_place_of_our_own() {
    for after in [ms(0), ms(20)] {
        let probe = Probe::new();
        let store = Distant { left: Mutex::default(), after };
        let layer = per_header(Quota::per_second(3)).headers(LimitHeaders::Draft10).store(store).build().unwrap();
        let mut service = layer.layer(probe.clone());
        let start = Instant::now();
        for n in 0..3 {
            let call = readied::<_, Request<()>>(&mut service).await.call(keyed("a"));
            let mut call = pin!(call);
            let polled = poll_once(call.as_mut());
            assert_eq!(polled.is_ready(), after.is_zero());
            let answer = match polled {
                Poll::Ready(answer) => answer.unwrap(),
                Poll::Pending => {
                    assert_eq!(probe.held(), 0, "while the store is asked nothing is held");
                    call.await.unwrap()
                }
            };
            assert_eq!(answer.headers()["ratelimit"], format!("\"default\";r={};t=3", 2 - n));
        }
        assert_eq!(start.elapsed(), 3 * after);
        let refused = readied::<_, Request<()>>(&mut service).await.call(keyed("a")).await.unwrap();
        assert_eq!(Rejection::in_response(&refused).unwrap().retry_after(), Some(ms(400)));
        assert_eq!(refused.headers()["ratelimit"], "\"default\";r=0;t=1");
        assert_eq!(readied::<_, Request<()>>(&mut service).await.call(keyed("b")).await.unwrap().status(), 200);
        assert_eq!((probe.calls(), probe.held()), (4, 0));
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.admitted, snapshot.rejected, snapshot.keys), (4, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_store_and_asks_again() {
    let store = Distant { left: Mutex::default(), after: ms(0) };
    let layer = limit(Quota::per_second(3)).wait(ms(400)).store(store).build().unwrap();
    let service = layer.plain().layer(Probe::new());
    let start = Instant::now();
    for _ in 0..4 {
        service.clone().oneshot(()).await.unwrap();
    }
    assert_eq!(start.elapsed(), ms(400));
    let never = limit(Quota::per_second(3)).store(Fixed(Grant::Never)).build().unwrap();
    let Err(Error::Rejected(r)) = never.plain().layer(Probe::new()).oneshot(()).await else { panic!("not refused") };
    assert_eq!((r.reason(), r.retry_after()), (Reason::CostAboveBurst, None));
}

/// Those who wait for a store to be asked again are seen, and gone when they leave; nobody waits once it is in shadow.
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_store_are_seen_and_go_in_shadow() {
    let later = Fixed(Grant::Denied { retry_after: ms(50_000) });
    let layer = limit(Quota::per_second(3)).wait(ms(60_000)).store(later).build().unwrap();
    let probe = Probe::new();
    let service = layer.clone().plain().layer(probe.clone());
    let start = Instant::now();
    let waits = |n: usize| (0..n).map(|_| tokio::spawn(service.clone().oneshot(()))).collect::<Vec<_>>();
    let (stays, leaves) = (waits(3), waits(2));
    sleep(ms(1_000)).await;
    assert_eq!(layer.handle().snapshot().waiting, 5);
    leaves.iter().for_each(JoinHandle::abort);
    sleep(ms(1_000)).await;
    assert_eq!(layer.handle().snapshot().waiting, 3);
    layer.handle().shadow(true);
    for call in stays {
        call.await.unwrap().unwrap();
    }
    let snapshot = layer.handle().snapshot();
    assert_eq!((start.elapsed(), probe.calls(), probe.held()), (ms(2_000), 3, 0));
    assert_eq!((snapshot.waiting, snapshot.admitted, snapshot.rejected, snapshot.would_have_rejected), (0, 3, 0, 0));
}

/// A store that says zero is asked each millisecond, and what a call is and costs is looked at anew each time.
#[tokio::test(start_paused = true)]
async fn a_store_that_says_at_once_is_asked_each_millisecond() {
    struct AtOnce(Arc<AtomicU32>);
    impl Store<Arc<str>> for AtOnce {
        type Acquire = Ready<Grant>;
        fn acquire(&self, _key: &Arc<str>, cost: NonZeroU32) -> Ready<Grant> {
            assert_eq!(self.0.fetch_add(1, SeqCst) + 1, cost.get());
            ready(Grant::Denied { retry_after: ms(0) })
        }
    }
    let (asked, costs) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
    let layer = limit(Quota::per_second(3)).wait(ms(5)).cost_fn(move |_| costs.fetch_add(1, SeqCst) + 1);
    let layer = layer.store(AtOnce(Arc::clone(&asked))).build().unwrap();
    let start = Instant::now();
    assert_eq!(layer.layer(http()).oneshot(Request::default()).await.unwrap().status(), 429);
    assert_eq!((asked.load(SeqCst), start.elapsed()), (6, ms(5)));
}

/// Without tokio's timer nothing can be waited for: a panic that leaves nothing behind.
#[test]
fn a_pause_without_a_timer_leaves_nobody_waiting() {
    let later = Fixed(Grant::Denied { retry_after: ms(100) });
    let layer = limit(Quota::per_second(3)).wait(ms(60_000)).store(later).build().unwrap();
    let service = layer.clone().plain().layer(Probe::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run = std::panic::AssertUnwindSafe(|| runtime.block_on(service.oneshot(())));
    assert!(std::panic::catch_unwind(run).is_err());
    assert_eq!(layer.handle().snapshot().waiting, 0);
}

/// A store that does not answer holds a call until its deadline at most, whichever it has.
#[tokio::test(start_paused = true)]
async fn a_store_is_waited_for_until_the_deadline() {
    let distant = |after| Distant { left: Mutex::default(), after };
    for wait in [None, Some(ms(100))] {
        for (takes, passed) in [(600_000, true), (501, true), (499, false)] {
            for ambient in [false, true] {
                let layer = limit(Quota::per_second(3));
                let layer =
                    wait.into_iter().fold(layer, RateLimitBuilder::wait).store(distant(ms(takes))).build().unwrap();
                let probe = Probe::new();
                let service = layer.layer(probe.clone());
                let deadline = Deadline::after(ms(500));
                let start = Instant::now();
                let mut request = Request::new(());
                let response = if ambient {
                    deadline.scope(service.oneshot(request)).await.unwrap()
                } else {
                    request.extensions_mut().insert(deadline);
                    service.oneshot(request).await.unwrap()
                };
                let reason = Rejection::in_response(&response).map(Rejection::reason);
                assert_eq!(reason, passed.then_some(Reason::DeadlineExceeded), "{takes}");
                assert_eq!(start.elapsed(), ms(takes.min(500)));
                assert_eq!((probe.calls(), probe.held()), (u64::from(!passed), 0));
                let snapshot = layer.handle().snapshot();
                assert_eq!((snapshot.admitted, snapshot.rejected), (u64::from(!passed), u64::from(passed)));
            }
        }
    }
    // In shadow it goes on then.
    let layer = limit(Quota::per_second(3)).shadow(true).store(distant(ms(600_000))).build().unwrap();
    let start = Instant::now();
    Deadline::after(ms(500)).scope(layer.clone().plain().layer(Probe::new()).oneshot(())).await.unwrap();
    assert_eq!((start.elapsed(), layer.handle().snapshot().would_have_rejected), (ms(500), 1));
}

/// Its answer is there in time, and nobody looks at it before the deadline.
#[tokio::test(start_paused = true)]
async fn a_stores_answer_that_is_noticed_after_the_deadline_is_too_late() {
    // It takes so long, or is there at once for a call that nobody polls before that.
    for (after, noticed, status) in [(100, 150, 200), (100, 151, 504), (0, 150, 200), (0, 151, 504)] {
        let store = Distant { left: Mutex::default(), after: ms(after) };
        let layer = limit(Quota::per_second(3)).store(store).build().unwrap();
        let mut service = layer.layer(http());
        let mut request = keyed("a");
        request.extensions_mut().insert(Deadline::after(ms(150)));
        let mut call = pin!(readied::<_, Request<()>>(&mut service).await.call(request));
        assert!(after == 0 || poll_once(call.as_mut()).is_pending());
        advance(ms(noticed)).await;
        let Poll::Ready(answer) = poll_once(call.as_mut()) else { panic!("it still waits") };
        assert_eq!(answer.unwrap().status(), status);
    }
}

/// In shadow nobody waits for what a store says is not there yet.
#[tokio::test(start_paused = true)]
async fn in_shadow_a_store_that_says_later_delays_nobody() {
    let store = Distant { left: Mutex::default(), after: ms(0) };
    let layer = limit(Quota::per_second(3)).shadow(true).wait(ms(1_000)).store(store).build().unwrap();
    let start = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(layer.layer(http()).oneshot(Request::default()).await.unwrap().status(), 200);
    }
    assert_eq!(start.elapsed(), ms(0));
}

/// A breaker around it does not blame a backend that was never called.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_passed_here_is_nobodys_failure() {
    let store = Distant { left: Mutex::default(), after: ms(600_000) };
    let layer = limit(Quota::per_second(3)).store(store).build().unwrap();
    let breaker = CircuitBreakerLayer::builder().consecutive_failures(1).build().unwrap();
    let service = breaker.layer(layer.layer(http()));
    let slow = Deadline::after(ms(2_000)).scope(service.clone().oneshot(Request::default()));
    assert_eq!(slow.await.unwrap().status(), 504);
    assert_eq!(breaker.handle().snapshot().state, State::Closed);
}

/// It was told to come back before its deadline, and is polled after that: no unit is spent on it.
#[tokio::test(start_paused = true)]
async fn who_comes_back_after_its_deadline_asks_for_nothing() {
    let asked = Arc::new(AtomicU32::new(0));
    for (noticed, status, questions) in [(150, 200, 2), (151, 504, 1)] {
        asked.store(0, SeqCst);
        let layer = limit(Quota::per_second(3)).wait(ms(60_000)).store(SecondTime(Arc::clone(&asked))).build().unwrap();
        let mut service = layer.layer(http());
        let mut request = Request::new(());
        request.extensions_mut().insert(Deadline::after(ms(150)));
        let mut call = pin!(readied::<_, Request<()>>(&mut service).await.call(request));
        assert!(poll_once(call.as_mut()).is_pending());
        advance(ms(noticed)).await;
        let Poll::Ready(answer) = poll_once(call.as_mut()) else { panic!("it still waits") };
        assert_eq!((answer.unwrap().status().as_u16(), asked.load(SeqCst)), (status, questions));
    }
}

/// Lets a call in that asks a second time.
struct SecondTime(Arc<AtomicU32>);

impl Store<Arc<str>> for SecondTime {
    type Acquire = Ready<Grant>;
    fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Ready<Grant> {
        ready(match self.0.fetch_add(1, SeqCst) {
            0 => Grant::Denied { retry_after: ms(100) },
            _ => Grant::Granted { remaining: 0, reset: ms(100) },
        })
    }
}

/// A key that is gone when it is looked at again is missing, as at the first look.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_gone_when_a_call_comes_back_is_missing() {
    for (missing, reason) in [(MissingKey::Reject, Some(Reason::KeyMissing)), (MissingKey::Unlimited, None)] {
        let looks = AtomicU32::new(0);
        let key = move |_: &http::request::Parts| (looks.fetch_add(1, SeqCst) == 0).then(|| "a".to_owned());
        let store = SecondTime(Arc::default());
        let layer = limit(Quota::per_second(3)).key_fn(key).missing_key(missing).wait(ms(1_000)).store(store);
        let layer = layer.build().unwrap();
        let answer = layer.clone().layer(http()).oneshot(Request::default()).await.unwrap();
        assert_eq!(Rejection::in_response(&answer).map(Rejection::reason), reason);
        let snapshot = layer.handle().snapshot();
        let rejected = u64::from(reason.is_some());
        assert_eq!((snapshot.admitted, snapshot.rejected, snapshot.waiting), (1 - rejected, rejected, 0));
    }
}
