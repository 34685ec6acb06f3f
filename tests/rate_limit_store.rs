//! Rate limits with a store of quotas outside of the layer, in virtual time: who is asked when, and in which order.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, Ready, pending, ready},
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
    CircuitBreakerLayer, Deadline, Error, Grant, Key, LimitHeaders, Quota, RateLimitBuilder, RateLimitLayer, Reason,
    Rejection, State, Store, testing::Probe,
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

// === the line of those who wait ===

/// Has so many units, and one more each so often, of each key: a bucket far away. Every question takes a while.
struct Paced {
    burst: u32,
    each: Duration,
    takes: Duration,
    /// When all of a key's are there.
    full_at: Mutex<HashMap<String, Instant>>,
    asked: Arc<AtomicU32>,
}

impl Paced {
    fn new(burst: u32, each: Duration, takes: Duration) -> (Self, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        (Paced { burst, each, takes, full_at: Mutex::default(), asked: Arc::clone(&asked) }, asked)
    }
}

impl Store<Arc<str>> for Paced {
    type Acquire = Pin<Box<dyn Future<Output = Grant> + Send>>;
    fn acquire(&self, key: &Arc<str>, cost: NonZeroU32) -> Self::Acquire {
        self.asked.fetch_add(1, SeqCst);
        let (now, mut all) = (Instant::now(), self.full_at.lock().unwrap());
        let full_at = all.entry(key.to_string()).or_insert(now);
        let (next, latest) = ((*full_at).max(now) + cost.get() * self.each, now + self.burst * self.each);
        let grant = if next <= latest {
            *full_at = next;
            let left = (latest - next).as_nanos() / self.each.as_nanos();
            Grant::Granted { remaining: left as u32, reset: next - now }
        } else {
            Grant::Denied { retry_after: next - latest }
        };
        let takes = self.takes;
        Box::pin(async move {
            if !takes.is_zero() {
                sleep(takes).await;
            }
            grant
        })
    }
}

/// Which call came when to the inner service.
type Came = Arc<Mutex<Vec<(u64, Duration)>>>;

fn noting(
    came: &Came,
) -> impl Service<Request<u64>, Response = Response<Empty<Bytes>>, Error = Infallible, Future = Ready<Answer>>
+ Clone
+ Send
+ use<> {
    let (came, start) = (Arc::clone(came), Instant::now());
    service_fn(move |request: Request<u64>| {
        came.lock().unwrap().push((*request.body(), start.elapsed()));
        ready(Ok(Response::new(Empty::new())))
    })
}

fn numbered(key: &str, n: u64) -> Request<u64> {
    keyed(key).map(|()| n)
}

/// In the order in which they came, and the store is asked about twice for each that goes: when it goes, and when the
/// next one is told to come back.
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_store_go_in_order_and_one_of_them_asks() {
    let came = Came::default();
    let (store, asked) = Paced::new(1, ms(100), ms(0));
    let layer = per_header(Quota::per_second(10)).wait(ms(60_000)).store(store).build().unwrap();
    let service = layer.layer(noting(&came));
    let calls: Vec<_> = (0..200).map(|n| tokio::spawn(service.clone().oneshot(numbered("a", n)))).collect();
    sleep(ms(5)).await;
    // Whoever comes while others wait is one of them, and does not ask.
    assert_eq!((asked.load(SeqCst), layer.handle().snapshot().waiting), (2, 199));
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let expected: Vec<_> = (0..200).map(|n| (n, n as u32 * ms(100))).collect();
    assert_eq!(*came.lock().unwrap(), expected);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.waiting, snapshot.admitted, snapshot.rejected), (0, 200, 0));
    assert_eq!(asked.load(SeqCst), 2 * 200 - 1);
}

/// As many ask at once as the store has said that there are units.
#[tokio::test(start_paused = true)]
async fn what_a_store_has_left_is_for_those_behind() {
    for takes in [ms(0), ms(10)] {
        let came = Came::default();
        let store = Lumps { takes, used: Mutex::default(), start: Instant::now() };
        let layer = per_header(Quota::per_second(10)).wait(ms(60_000)).store(store).build().unwrap();
        let service = layer.layer(noting(&came));
        let calls: Vec<_> = (0..50).map(|n| tokio::spawn(service.clone().oneshot(numbered("a", n)))).collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status(), 200);
        }
        let came = came.lock().unwrap();
        assert_eq!(came.len(), 50);
        // One asks first, and nine more once it was told how many there are.
        for (place, (n, at)) in came.iter().enumerate() {
            let begins = ms(1_000) * (place as u32 / 10);
            assert_eq!(*n, place as u64);
            assert!((begins..=begins + 2 * takes).contains(at), "{n} at {at:?}");
        }
    }
}

/// Ten units in each second, all at its beginning.
struct Lumps {
    start: Instant,
    takes: Duration,
    used: Mutex<(u64, u32)>,
}

impl Store<Arc<str>> for Lumps {
    type Acquire = Pin<Box<dyn Future<Output = Grant> + Send>>;
    fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Self::Acquire {
        let (gone, takes) = (self.start.elapsed(), self.takes);
        let mut used = self.used.lock().unwrap();
        if used.0 != gone.as_secs() {
            *used = (gone.as_secs(), 0);
        }
        let reset = ms(1_000 * (gone.as_secs() + 1)) - gone;
        let grant = if used.1 < 10 {
            used.1 += 1;
            Grant::Granted { remaining: 10 - used.1, reset }
        } else {
            Grant::Denied { retry_after: reset.saturating_sub(takes) }
        };
        Box::pin(async move {
            if !takes.is_zero() {
                sleep(takes).await;
            }
            grant
        })
    }
}

/// Nobody waits for units of somebody else.
#[tokio::test(start_paused = true)]
async fn each_key_has_a_line_of_its_own() {
    let came = Came::default();
    let (store, _) = Paced::new(1, ms(100), ms(0));
    let service = per_header(Quota::per_second(10)).wait(ms(60_000)).store(store).build().unwrap().layer(noting(&came));
    let calls: Vec<_> = (0..10)
        .flat_map(|n| ["a", "b"].map(|key| tokio::spawn(service.clone().oneshot(numbered(key, n)))))
        .chain([tokio::spawn(service.clone().oneshot(numbered("c", 0)))])
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let expected: Vec<_> = (0..10).flat_map(|n| [(n, n as u32 * ms(100)); 2]).collect();
    let mut came = came.lock().unwrap().clone();
    came.sort_unstable();
    assert_eq!(came, [[(0, ms(0))].as_slice(), &expected].concat());
}

/// One that leaves passes its turn on: while it pauses, while it asks, and from amidst of the line.
#[tokio::test(start_paused = true)]
async fn whoever_leaves_the_line_of_a_store_keeps_nobody_waiting() {
    for (takes, leaves_at) in [(ms(0), ms(50)), (ms(40), ms(150))] {
        let came = Came::default();
        let (store, _) = Paced::new(1, ms(100), takes);
        let layer = per_header(Quota::per_second(10)).wait(ms(60_000)).store(store).build().unwrap();
        let service = layer.layer(noting(&came));
        let call = |n| tokio::spawn(service.clone().oneshot(numbered("a", n)));
        let first = call(0);
        sleep(ms(1)).await;
        let others: Vec<_> = (1..6).map(call).collect();
        sleep(leaves_at).await;
        for n in [0, 2] {
            others[n].abort();
        }
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        for (n, call) in others.into_iter().enumerate() {
            assert_eq!(call.await.is_ok(), n != 0 && n != 2);
        }
        let order: Vec<_> = came.lock().unwrap().iter().map(|(n, _)| *n).collect();
        assert_eq!((order, layer.handle().snapshot().waiting), (vec![0, 2, 4, 5], 0));
    }
}

/// Whoever can't be served in time knows at once, by what the store has told the others.
#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_is_refused_without_a_question() {
    let (store, asked) = Paced::new(1, ms(5_000), ms(0));
    let layer = per_header(Quota::per_second(10)).headers(LimitHeaders::Draft10).wait(ms(5_000)).store(store);
    let layer = layer.build().unwrap();
    let service = layer.clone().layer(http());
    service.clone().oneshot(keyed("a")).await.unwrap();
    let waits = tokio::spawn(service.clone().oneshot(keyed("a")));
    sleep(ms(1_000)).await;
    assert_eq!(asked.load(SeqCst), 2);
    let mut hurries = keyed("a");
    hurries.extensions_mut().insert(Deadline::after(ms(3_999)));
    let start = Instant::now();
    let refused = service.clone().oneshot(hurries).await.unwrap();
    let rejection = Rejection::in_response(&refused).unwrap();
    assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::RateLimited, Some(ms(4_000))));
    assert_eq!(refused.headers()["ratelimit"], "\"default\";r=0;t=4");
    assert_eq!(refused.headers()["retry-after"], "4");
    assert_eq!((start.elapsed(), asked.load(SeqCst)), (ms(0), 2));
    assert_eq!(waits.await.unwrap().unwrap().status(), 200);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected, snapshot.waiting), (2, 1, 0));
}

/// When the store says that it takes too long for the first, all of whom that is true go, and none of them asks.
#[tokio::test(start_paused = true)]
async fn what_the_first_is_told_is_told_to_all() {
    /// Says half a second, and then a long time.
    struct Longer(Arc<AtomicU32>);
    impl Store<Arc<str>> for Longer {
        type Acquire = Ready<Grant>;
        fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Ready<Grant> {
            let retry_after = if self.0.fetch_add(1, SeqCst) == 0 { ms(500) } else { ms(20_000) };
            ready(Grant::Denied { retry_after })
        }
    }
    let asked = Arc::new(AtomicU32::new(0));
    let layer = limit(Quota::per_second(1)).wait(ms(10_000)).store(Longer(Arc::clone(&asked))).build().unwrap();
    let service = layer.clone().plain().layer(Probe::new());
    let start = Instant::now();
    let calls: Vec<_> = (0..100).map(|_| tokio::spawn(service.clone().oneshot(()))).collect();
    for call in calls {
        let Err(Error::Rejected(rejection)) = call.await.unwrap() else { panic!("not refused") };
        assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::RateLimited, Some(ms(20_000))));
    }
    assert_eq!((start.elapsed(), asked.load(SeqCst)), (ms(500), 2));
}

/// A store that never answers the first keeps the others no longer than they may wait; by its deadline a call is gone,
/// and asks for nothing any more.
#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_holds_nobody_longer_than_it_may_wait() {
    /// Denies the first question, and has no answer to the second.
    struct Lost(Arc<AtomicU32>);
    impl Store<Arc<str>> for Lost {
        type Acquire = Pin<Box<dyn Future<Output = Grant> + Send>>;
        fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Self::Acquire {
            match self.0.fetch_add(1, SeqCst) {
                0 => Box::pin(ready(Grant::Denied { retry_after: ms(100) })),
                1 => Box::pin(pending()),
                _ => Box::pin(ready(Grant::Granted { remaining: 0, reset: ms(100) })),
            }
        }
    }
    let asked = Arc::new(AtomicU32::new(0));
    let layer = limit(Quota::per_second(1)).wait(ms(1_000)).store(Lost(Arc::clone(&asked))).build().unwrap();
    let service = layer.clone().plain().layer(Probe::new());
    let start = Instant::now();
    let first: JoinHandle<_> = tokio::spawn(service.clone().oneshot(()));
    sleep(ms(1)).await;
    let other = tokio::spawn(service.clone().oneshot(()));
    let late = Deadline::after(ms(500)).scope(service.clone().oneshot(())).await;
    let Err(Error::Rejected(rejection)) = late else { panic!("{late:?}") };
    assert_eq!((rejection.reason(), start.elapsed()), (Reason::DeadlineExceeded, ms(501)));
    assert_eq!(asked.load(SeqCst), 2);
    other.await.unwrap().unwrap();
    assert_eq!((start.elapsed(), asked.load(SeqCst), layer.handle().snapshot().waiting), (ms(1_001), 3, 1));
    first.abort();
    assert!(first.await.is_err());
    assert_eq!(layer.handle().snapshot().waiting, 0);
}

/// A call that has another key when it is looked at anew goes to the line of that, and keeps nobody of its old key
/// waiting.
#[tokio::test(start_paused = true)]
async fn a_key_that_changes_is_another_line() {
    /// Has one unit each 100 ms for a, and none for b in the first second.
    struct Two(Instant, AtomicU32);
    impl Store<Arc<str>> for Two {
        type Acquire = Ready<Grant>;
        fn acquire(&self, key: &Arc<str>, _cost: NonZeroU32) -> Ready<Grant> {
            let (gone, granted) = (self.0.elapsed(), Grant::Granted { remaining: 0, reset: ms(100) });
            let next = if &**key == "b" { ms(1_000) } else { self.1.load(SeqCst) * ms(100) };
            if gone < next {
                return ready(Grant::Denied { retry_after: next - gone });
            }
            self.1.fetch_add(1, SeqCst);
            ready(granted)
        }
    }
    let looks = AtomicU32::new(0);
    // The second call is b from its second question on.
    let key = move |parts: &http::request::Parts| {
        let changes = parts.headers["x-api-key"] == "changes" && looks.fetch_add(1, SeqCst) > 0;
        Some(if changes { "b" } else { "a" }.to_owned())
    };
    let came = Came::default();
    let store = Two(Instant::now(), AtomicU32::new(0));
    let layer = limit(Quota::per_second(10)).key_fn(key).wait(ms(60_000)).store(store).build().unwrap();
    let service = layer.clone().layer(noting(&came));
    let calls: Vec<_> = ["", "changes", "", ""]
        .into_iter()
        .zip(0..)
        .map(|(key, n)| tokio::spawn(service.clone().oneshot(numbered(key, n))))
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let expected = [(0, ms(0)), (2, ms(100)), (3, ms(200)), (1, ms(1_000))];
    assert_eq!((&came.lock().unwrap()[..], layer.handle().snapshot().waiting), (&expected[..], 0));
}
