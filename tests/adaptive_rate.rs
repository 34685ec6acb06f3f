//! The adaptive rate in virtual time: when it begins, what it follows, how it comes back.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::Future,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    AdaptiveRateLayer, Answer, CircuitBreakerLayer, Deadline, Error, FallbackContext, FallbackLayer, Key, LimitHeaders,
    Outcome, Quota, RateLimitLayer, Reason, Registry, Rejection,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn layer() -> AdaptiveRateLayer {
    AdaptiveRateLayer::builder().build().unwrap()
}

/// Answers with the status and the headers that the request asks for.
fn echo()
-> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
    service_fn(|request: Request<()>| {
        let mut response = Response::new(Empty::new());
        if let Some(status) = request.headers().get("x-status") {
            *response.status_mut() = status.to_str().unwrap().parse().unwrap();
        }
        for (name, value) in request.headers() {
            if let Some(name) = name.as_str().strip_prefix("x-say-") {
                response.headers_mut().insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.clone());
            }
        }
        ready(Ok(response))
    })
}

fn asks(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

async fn send<S>(service: &S, request: Request<()>) -> Response<()>
where
    S: Service<Request<()>, Response: IsResponse, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap().without_body()
}

trait IsResponse {
    fn without_body(self) -> Response<()>;
}

impl<B> IsResponse for Response<B> {
    fn without_body(self) -> Response<()> {
        self.map(drop)
    }
}

/// When it wants to be asked again, if it refuses.
async fn refusal<S>(service: &S) -> Option<Duration>
where
    S: Service<Request<()>, Response: IsResponse, Error = Infallible> + Clone,
{
    let answer = send(service, asks(&[])).await;
    let rejection = Rejection::in_response(&answer)?;
    assert_eq!(
        (rejection.policy(), rejection.reason(), answer.status().as_u16()),
        ("adaptive_rate", Reason::Throttled, 503)
    );
    rejection.retry_after()
}

#[tokio::test(start_paused = true)]
async fn unlimited_until_the_first_throttled_answer() {
    let layer = layer();
    let service = layer.layer(echo());
    for _ in 0..1_000 {
        assert_eq!(send(&service, asks(&[])).await.status(), 200);
    }
    for status in ["500", "503", "404"] {
        send(&service, asks(&[("x-status", status)])).await;
    }
    assert_eq!(refusal(&service).await, None);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.rate, snapshot.throttled, snapshot.rejected), (None, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_answer_lowers_the_rate_and_time_raises_it() {
    let layer = layer();
    let service = layer.layer(echo());
    // Ten a second for five seconds.
    for _ in 0..50 {
        advance(ms(100)).await;
        send(&service, asks(&[])).await;
    }
    assert_eq!(send(&service, asks(&[("x-status", "429")])).await.status(), 429);
    let rate = layer.handle().snapshot().rate.unwrap();
    assert!((rate - 7.0).abs() < 0.3, "{rate}");
    // Nothing is there at once: that was too much.
    let wait = refusal(&service).await.unwrap();
    assert!(wait > ms(130) && wait < ms(155), "{wait:?}");
    assert_eq!(layer.handle().snapshot().rejected, 1);
    advance(wait - Duration::from_nanos(1)).await;
    assert!(refusal(&service).await.is_some());
    advance(Duration::from_nanos(1)).await;
    assert_eq!(refusal(&service).await, None);
    // Whoever goes on at ten a second finds it there again within two seconds, and more after that.
    for _ in 0..40 {
        advance(ms(100)).await;
        send(&service, asks(&[])).await;
    }
    let rate = layer.handle().snapshot().rate.unwrap();
    assert!((10.0..=20.5).contains(&rate), "{rate}");
}

/// What was under way when the rate was lowered was sent at the old one: however many of it are throttled, that is one
/// cut. What is sent after it counts anew.
#[tokio::test(start_paused = true)]
async fn a_burst_of_throttled_answers_lowers_the_rate_once() {
    let layer = layer();
    let service = layer.layer(service_fn(|request: Request<()>| async move {
        sleep(ms(20)).await;
        echo().oneshot(request).await
    }));
    for _ in 0..50 {
        advance(ms(80)).await;
        send(&service, asks(&[])).await;
    }
    join_all((0..8).map(|_| send(&service, asks(&[("x-status", "429")])))).await;
    let snapshot = layer.handle().snapshot();
    let rate = snapshot.rate.unwrap();
    assert!(snapshot.throttled == 8 && rate > 6.7, "{snapshot:?}");
    sleep(ms(200)).await;
    assert_eq!(send(&service, asks(&[("x-status", "429")])).await.status(), 429);
    let lower = layer.handle().snapshot().rate.unwrap();
    assert!(lower < 0.9 * rate, "{lower} after {rate}");
}

/// A backend that does a thousand a second and throttles what is above, with twice of that coming: it is used.
#[tokio::test(start_paused = true)]
async fn a_backend_under_twice_its_load_is_used() {
    const CAPACITY: f64 = 1_000.0;
    let bucket = Arc::new(Mutex::new((CAPACITY, Instant::now())));
    let good = Arc::new(Mutex::new(0_u32));
    let backend = service_fn({
        let good = Arc::clone(&good);
        move |_: Request<()>| {
            let (now, mut bucket) = (Instant::now(), bucket.lock().unwrap());
            let there = (bucket.0 + CAPACITY * (now - bucket.1).as_secs_f64()).min(CAPACITY);
            let goes = there >= 1.0;
            *bucket = (if goes { there - 1.0 } else { there }, now);
            *good.lock().unwrap() += u32::from(goes);
            async move {
                sleep(ms(20)).await;
                let status = if goes { 200 } else { 429 };
                Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
            }
        }
    });
    let layer = layer();
    for n in 0..60_000_u32 {
        tokio::spawn(layer.layer(backend.clone()).oneshot(Request::new(())));
        if n % 2 == 1 {
            sleep(ms(1)).await;
        }
    }
    let share = f64::from(*good.lock().unwrap()) / (30.0 * CAPACITY);
    assert!(share > 0.9, "{share}");
}

/// smithy-rs 4632: a capacity below zero.
#[tokio::test(start_paused = true)]
async fn never_below_one_in_two_seconds() {
    let layer = layer();
    let service = layer.layer(echo());
    for _ in 0..200 {
        send(&service, asks(&[("x-status", "429")])).await;
        sleep(ms(700)).await;
        let rate = layer.handle().snapshot().rate.unwrap();
        assert!((0.5..1_000.0).contains(&rate), "{rate}");
    }
    sleep(ms(2_000)).await;
    assert_eq!(refusal(&service).await, None);
}

#[tokio::test(start_paused = true)]
async fn grpc_says_it_in_the_head_or_in_the_trailers() {
    for in_trailers in [false, true] {
        let backend = service_fn(move |_: Request<()>| {
            let mut status = HeaderMap::new();
            status.insert("grpc-status", "8".parse().unwrap());
            let trailers = in_trailers.then(|| Ok::<_, Infallible>(Frame::<Bytes>::trailers(status.clone())));
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(trailers)));
            if !in_trailers {
                *response.headers_mut() = status;
            }
            ready(Ok::<_, Infallible>(response))
        });
        let layer = layer();
        let answer = layer.layer(backend).oneshot(asks(&[("content-type", "application/grpc")])).await.unwrap();
        let _ = answer.into_body().collect().await;
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.throttled, snapshot.rate.is_some()), (1, true), "in trailers: {in_trailers}");
    }
}

#[tokio::test(start_paused = true)]
async fn hints_are_followed() {
    for (headers, wait) in [
        (&[("x-status", "429"), ("x-say-retry-after", "7")][..], Some(7)),
        (&[("x-status", "503"), ("x-say-retry-after", "7")], None),
        (&[("x-status", "429"), ("x-say-retry-after", "3600")], Some(60)),
        (&[("x-say-ratelimit", "\"default\";r=0;t=5")], Some(5)),
        (&[("x-say-x-ratelimit-remaining", "0"), ("x-say-x-ratelimit-reset", "4")], Some(4)),
        (&[("x-say-ratelimit", "\"a\";r=0;t=20"), ("x-say-ratelimit-policy", "\"a\";q=10;w=20")], Some(2)),
        (&[("x-say-ratelimit", "\"a\";r=0;t=15"), ("x-say-ratelimit-policy", "\"a\";q=10;w=20")], Some(15)),
        (&[("x-say-ratelimit", "\"default\";r=3;t=5")], None),
        (&[("x-say-ratelimit", "nonsense;;;r=;t=0=")], None),
        (&[("x-status", "500")], None),
        (&[("x-status", "503"), ("x-say-retry-after", "soon")], None),
    ] {
        let layer = layer();
        let service = layer.layer(echo());
        send(&service, asks(headers)).await;
        assert_eq!(layer.handle().snapshot().held_for, wait.map(Duration::from_secs), "{headers:?}");
        assert_eq!(refusal(&service).await, wait.map(Duration::from_secs), "{headers:?}");
        advance(wait.map_or(ms(0), Duration::from_secs)).await;
        assert_eq!(layer.handle().snapshot().held_for, None);
        assert_eq!(refusal(&service).await, None, "{headers:?}");
    }
}

/// One instance of three drains and says when to come back; one route of ten has an open breaker and says so, too. That
/// stops nobody who calls the others.
#[tokio::test(start_paused = true)]
async fn a_failure_that_says_when_to_come_back_speaks_for_itself() {
    async fn good<S>(inner: S, calls: u32, path: fn(u32) -> &'static str) -> u32
    where
        S: Service<Request<()>, Response: IsResponse, Error = Infallible> + Clone,
    {
        let service = layer().layer(over_a_wire(inner));
        let mut good = 0;
        for n in 0..calls {
            sleep(ms(10)).await;
            let request = Request::get(path(n)).header("x-status", if path(n) == "/bad" { "500" } else { "200" });
            good += u32::from(send(&service, request.body(()).unwrap()).await.status() == 200);
        }
        good
    }

    let registry = Registry::new();
    let drains = registry.drain_layer().layer(echo());
    drop(registry.drain());
    let turn = Arc::new(AtomicU32::new(0));
    let balancer = service_fn(move |request: Request<()>| {
        let (drains, its_turn) = (drains.clone(), turn.fetch_add(1, SeqCst).is_multiple_of(3));
        async move {
            Ok::<_, Infallible>(match its_turn {
                true => drains.oneshot(request).await?.map(drop),
                false => echo().oneshot(request).await?.map(drop),
            })
        }
    });
    assert_eq!(good(balancer, 3_000, |_| "/").await, 2_000);

    let breaker = CircuitBreakerLayer::builder().per_key(Key::GrpcMethod).build().unwrap();
    let path = |n: u32| if n.is_multiple_of(10) { "/bad" } else { "/good" };
    assert_eq!(good(breaker.layer(echo()), 6_000, path).await, 5_400);
}

/// What comes over a wire: status and headers, and no extensions.
fn over_a_wire<S>(inner: S) -> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible> + Clone
where
    S: Service<Request<()>, Response: IsResponse, Error = Infallible> + Clone,
{
    service_fn(move |request| {
        let inner = inner.clone();
        async move {
            let mut response = inner.oneshot(request).await?.without_body().map(|()| Empty::new());
            response.extensions_mut().clear();
            Ok(response)
        }
    })
}

/// A backend whose units come back one by one tells of them. A client that hears of them gets as many as there are, and
/// not what there is once a minute.
#[tokio::test(start_paused = true)]
async fn a_quota_that_is_told_of_is_used() {
    for headers in [LimitHeaders::Off, LimitHeaders::Draft10] {
        let quota = RateLimitLayer::builder().quota(Quota::per(600, ms(60_000))).headers(headers).build().unwrap();
        let client = AdaptiveRateLayer::builder().wait(ms(500)).build().unwrap();
        let service = client.layer(over_a_wire(quota.layer(echo())));
        let (start, mut last, mut longest, mut good) = (Instant::now(), Instant::now(), ms(0), 0);
        // Fifteen a second, where ten are there.
        while start.elapsed() < ms(400_000) {
            sleep(ms(66)).await;
            if send(&service, asks(&[])).await.status() == 200 {
                longest = longest.max(last.elapsed());
                last = Instant::now();
                good += 1;
            }
        }
        // A throttled answer over HTTP says "in a second", for a second is the least that it can say.
        assert!(longest <= ms(1_600), "{headers:?}: nothing for {longest:?}");
        assert!(good > 3_500, "{headers:?}: {good} of 4,600 that there are");
    }
}

/// A hundred calls in each whole minute, as most counters do it, where five a second come: until the minute is over
/// nothing is there, and the client knows it before it is refused.
#[tokio::test(start_paused = true)]
async fn a_quota_of_whole_minutes_is_kept() {
    let layer = layer();
    let (start, used) = (Instant::now(), Arc::new(Mutex::new((0, 0))));
    let backend = service_fn(move |_: Request<()>| {
        let now = start.elapsed().as_secs();
        let mut used = used.lock().unwrap();
        if used.0 != now / 60 {
            *used = (now / 60, 0);
        }
        used.1 += 1;
        let left = 100_u64.saturating_sub(used.1);
        let answer = Response::builder()
            .status(if used.1 > 100 { 429 } else { 200 })
            .header("ratelimit-policy", "\"a\";q=100;w=60")
            .header("ratelimit", format!("\"a\";r={left};t={}", 60 - now % 60));
        ready(Ok::<_, Infallible>(answer.body(Empty::<Bytes>::new()).unwrap()))
    });
    let service = layer.layer(backend);
    let mut good = 0;
    while start.elapsed() < Duration::from_secs(600) {
        sleep(ms(200)).await;
        good += u32::from(send(&service, asks(&[])).await.status() == 200);
    }
    let snapshot = layer.handle().snapshot();
    assert_eq!((good, snapshot.throttled, snapshot.rate), (1_000, 0, None));
}

/// What a policy of our own further in says of its quota the backend has not said.
#[tokio::test(start_paused = true)]
async fn a_refusal_from_further_in_holds_nobody_up() {
    let key = Key::Header(http::HeaderName::from_static("x-key"));
    let each = RateLimitLayer::builder().quota(Quota::per(1, ms(30_000))).per_key(key).headers(LimitHeaders::Both);
    let each = each.cost_fn(|parts| u32::from(parts.headers["x-key"] == "a") * 2).build().unwrap();
    let (a, b) = (&[("x-key", "a")][..], &[("x-key", "b")][..]);
    let service = layer().layer(each.layer(echo()));
    assert_eq!(send(&service, asks(a)).await.status(), 429);
    assert_eq!(send(&service, asks(b)).await.status(), 200);

    // Nor did it say what answers in the place of that.
    let instead = FallbackLayer::from_fn(|_: &FallbackContext<'_>| {
        let head = Response::builder().header("ratelimit", "\"default\";r=0;t=30");
        Answer::Http(head.body(Bytes::new()).unwrap())
    });
    let service = layer().layer(instead.layer(each.layer(echo())));
    assert_eq!(send(&service, asks(a)).await.headers()["ratelimit"], "\"default\";r=0;t=30");
    assert_eq!(send(&service, asks(b)).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn whoever_may_wait_waits_and_holds_nothing() {
    let layer = AdaptiveRateLayer::builder().wait(ms(2_200)).build().unwrap();
    let service = layer.layer(echo());
    send(&service, asks(&[("x-status", "429"), ("x-say-retry-after", "1")])).await;
    let start = Instant::now();
    let calls = join_all((0..5).map(|_| async {
        let status = send(&service, asks(&[])).await.status().as_u16();
        (status, start.elapsed().as_millis())
    }));
    let went = calls.await;
    // Two a second were sent, so it is 1.4 now: one each 714 ms, and nothing in the first second. At that rate the
    // third would be the last, at 2,143 ms. The first answer brings it to two a second, for those who wait too: 0.4 of
    // a unit is there by then, and the rest takes 300 ms. (Timers are whole milliseconds.)
    assert_eq!(went, [(200, 1_000), (200, 1_301), (200, 1_800), (503, 0), (503, 0)]);

    let probe = Probe::new();
    let mut service = layer.layer(probe.clone());
    let call = ServiceExt::<Request<()>>::ready(&mut service).await.unwrap().call(asks(&[]));
    assert_eq!((probe.held(), probe.ready_polls()), (0, 0), "a closed door is not touched");
    call.await.unwrap();
    assert!(probe.ready_instance_was_called());
}

#[tokio::test(start_paused = true)]
async fn a_place_given_up_is_had_by_the_next() {
    let layer = AdaptiveRateLayer::builder().wait(Duration::from_secs(60)).build().unwrap();
    let service = layer.layer(echo());
    send(&service, asks(&[("x-status", "429")])).await;
    let start = Instant::now();
    drop(service.clone().oneshot(asks(&[])));
    let mut left = Box::pin(service.clone().oneshot(asks(&[])));
    assert!(futures_util::FutureExt::now_or_never(left.as_mut()).is_none());
    assert_eq!(layer.handle().snapshot().waiting, 1);
    drop(left);
    assert_eq!(layer.handle().snapshot().waiting, 0);
    assert_eq!(send(&service, asks(&[])).await.status(), 200);
    let took = start.elapsed();
    assert!(took <= ms(2_000), "{took:?}");
}

/// A backend that answers as it is told, and when its calls came.
#[derive(Clone, Default)]
struct Told {
    headers: Arc<Mutex<Vec<(&'static str, &'static str)>>>,
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl Told {
    fn says(&self, headers: &[(&'static str, &'static str)]) {
        *self.headers.lock().unwrap() = headers.to_vec();
    }

    fn since(&self, from: Instant) -> usize {
        self.calls.lock().unwrap().iter().filter(|at| **at > from).count()
    }
}

impl Service<Request<()>> for Told {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        self.calls.lock().unwrap().push(Instant::now());
        let mut response = Response::builder();
        for (name, value) in &*self.headers.lock().unwrap() {
            response = match *name {
                "status" => response.status(value.parse::<u16>().unwrap()),
                name => response.header(name, *value),
            };
        }
        ready(Ok(response.body(Empty::new()).unwrap()))
    }
}

/// A hundred calls wait at seventy a second, and then the backend throttles: what they may do is of the rate that is in
/// force when they do it, not of the one when they came.
#[tokio::test(start_paused = true)]
async fn a_lower_rate_and_a_hint_are_for_those_who_wait_too() {
    for hint in [None, Some(("retry-after", "10"))] {
        let layer = AdaptiveRateLayer::builder().wait(ms(2_000)).build().unwrap();
        let backend = Told::default();
        let service = layer.layer(backend.clone());
        for _ in 0..200 {
            send(&service, asks(&[])).await;
            sleep(ms(10)).await;
        }
        backend.says(&[("status", "429")]);
        send(&service, asks(&[])).await;
        backend.says(&[]);
        assert!(layer.handle().snapshot().rate.unwrap() > 60.0);
        for _ in 0..100 {
            let service = service.clone();
            tokio::spawn(async move { send(&service, asks(&[])).await });
        }
        sleep(ms(100)).await;
        backend.says(&[("status", "429")].into_iter().chain(hint).collect::<Vec<_>>());
        sleep(ms(200)).await;
        let (rate, now) = (layer.handle().snapshot().rate.unwrap(), Instant::now());
        sleep(ms(1_000)).await;
        let sent = backend.since(now) as f64;
        assert!(sent <= if hint.is_some() { 0.0 } else { rate + 1.0 }, "{sent} at {rate} a second");
        // Who would come to its turn too late knows it at once.
        let snapshot = layer.handle().snapshot();
        assert!(hint.is_none() || snapshot.rejected >= 80, "{}", snapshot.rejected);
    }
}

/// Calls that came at the floor, one in two seconds, do not keep a backend that is well again from its full rate.
#[tokio::test(start_paused = true)]
async fn a_higher_rate_is_for_those_who_wait_too() {
    for wait in [1_000, 30_000] {
        let layer = AdaptiveRateLayer::builder().wait(ms(wait)).build().unwrap();
        let backend = Told::default();
        let service = layer.layer(backend.clone());
        let offer = async |seconds: u64| {
            for _ in 0..seconds * 100 {
                let service = service.clone();
                tokio::spawn(async move { send(&service, asks(&[])).await });
                sleep(ms(10)).await;
            }
        };
        offer(5).await;
        backend.says(&[("status", "429")]);
        offer(20).await;
        backend.says(&[]);
        offer(20).await;
        let now = Instant::now();
        offer(1).await;
        assert!(backend.since(now) >= 90, "{} after a wait of {wait} ms", backend.since(now));
    }
}

/// A waker is somebody else's code: it runs under no lock of ours, and its panic breaks nothing.
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_does_not_break_the_rule() {
    #[derive(Default)]
    struct Panics {
        armed: AtomicBool,
        woken: AtomicBool,
    }
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.woken.store(true, SeqCst);
            assert!(!self.armed.load(SeqCst), "in a waker");
        }
    }
    let layer = AdaptiveRateLayer::builder().wait(ms(30_000)).build().unwrap();
    let backend = Told::default();
    let service = layer.layer(backend.clone());
    backend.says(&[("status", "429")]);
    send(&service, asks(&[])).await;
    sleep(ms(3_000)).await;
    let mut made = service.clone();
    let throttled = ServiceExt::<Request<()>>::ready(&mut made).await.unwrap().call(asks(&[]));
    let waker = Arc::new(Panics::default());
    let mut waits = Box::pin(service.clone().oneshot(asks(&[])));
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker.clone().into())).is_pending());
    waker.armed.store(true, SeqCst);
    assert_eq!(throttled.await.unwrap().status(), 429, "the panic is not that of the call that wakes another");
    assert!(waker.woken.load(SeqCst), "a lower rate is for those who wait");
    waker.armed.store(false, SeqCst);
    drop(waits);
    backend.says(&[]);
    for _ in 0..100 {
        send(&service, asks(&[])).await;
        sleep(ms(100)).await;
    }
    assert!(layer.handle().snapshot().rate.unwrap() > 5.0, "{:?}", layer.handle().snapshot());
}

/// In shadow nobody waits, nor do those who have begun to.
#[tokio::test(start_paused = true)]
async fn shadow_lets_go_who_waits() {
    let layer = AdaptiveRateLayer::builder().wait(ms(60_000)).build().unwrap();
    let service = layer.layer(echo());
    send(&service, asks(&[("x-status", "429"), ("x-say-retry-after", "30")])).await;
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { send(&service, asks(&[])).await.status() })
        })
        .collect();
    sleep(ms(1_000)).await;
    layer.handle().shadow(true);
    let start = Instant::now();
    for call in waits {
        assert_eq!((call.await.unwrap().as_u16(), start.elapsed()), (200, ms(0)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_past_the_deadline_is_refused_at_once() {
    let layer = AdaptiveRateLayer::builder().wait(Duration::from_secs(60)).build().unwrap();
    let service = layer.layer(echo());
    send(&service, asks(&[("x-status", "429"), ("x-say-retry-after", "5")])).await;
    let start = Instant::now();
    let call = Deadline::after(ms(4_000)).scope(send(&service, asks(&[])));
    assert_eq!((call.await.status().as_u16(), start.elapsed()), (503, ms(0)));
}

/// Its turn has come, or there was none to wait for any more, and the inner service hangs: by the deadline the unit
/// goes back.
#[tokio::test(start_paused = true)]
async fn who_may_go_waits_for_the_inner_service_by_its_deadline() {
    for (waits, shadow) in [(false, false), (true, false), (true, true)] {
        let layer = AdaptiveRateLayer::builder().wait(ms(5_000)).build().unwrap();
        let service = layer.layer(echo());
        send(&service, asks(&[("x-status", "429"), ("x-say-retry-after", "1")])).await;
        let probe = Probe::new();
        let mut service = layer.layer(probe.clone());
        ServiceExt::<Request<()>>::ready(&mut service).await.unwrap();
        if !waits {
            advance(ms(5_000)).await;
        }
        probe.is_never_ready();
        let start = Instant::now();
        let mut call = Box::pin(Deadline::after(ms(3_000)).scope(async { service.call(asks(&[])).await }));
        assert!(futures_util::FutureExt::now_or_never(call.as_mut()).is_none());
        layer.handle().shadow(shadow);
        if shadow {
            sleep(ms(4_000)).await;
            assert!(futures_util::FutureExt::now_or_never(call.as_mut()).is_none());
            probe.answers();
            assert_eq!(call.await.unwrap().status(), 200);
            assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
            continue;
        }
        let response = call.await.unwrap();
        let rejection = Rejection::in_response(&response).unwrap();
        assert_eq!((rejection.reason(), start.elapsed()), (Reason::DeadlineExceeded, ms(3_000)));
        assert_eq!((response.status().as_u16(), layer.handle().snapshot().rejected), (504, 1));
        // Its unit is the next one's, at once.
        probe.answers();
        let start = Instant::now();
        ServiceExt::<Request<()>>::ready(&mut service).await.unwrap();
        assert_eq!(service.call(asks(&[])).await.unwrap().status(), 200);
        assert_eq!(start.elapsed(), ms(0));
    }
}

/// Its turn comes in time, and nobody polls it before its deadline.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_noticed_after_the_deadline_is_too_late() {
    for (noticed, status) in [(1_500, 200), (1_501, 504)] {
        let layer = AdaptiveRateLayer::builder().wait(ms(5_000)).build().unwrap();
        let mut service = layer.layer(echo());
        send(&service, asks(&[("x-status", "429"), ("x-say-retry-after", "1")])).await;
        let call = async {
            ServiceExt::<Request<()>>::ready(&mut service).await.unwrap();
            service.call(asks(&[])).await.unwrap()
        };
        let mut call = Box::pin(Deadline::after(ms(1_500)).scope(call));
        assert!(futures_util::FutureExt::now_or_never(call.as_mut()).is_none());
        advance(ms(noticed)).await;
        let response = futures_util::FutureExt::now_or_never(call.as_mut()).expect("its turn has come");
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(layer.handle().snapshot().rejected, u64::from(status == 504));
    }
}

/// Takes as long as the request says.
fn slow()
-> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
    let echo = echo();
    service_fn(move |request: Request<()>| {
        let takes = request.headers().get("x-takes").map(|ms| ms.to_str().unwrap().parse().unwrap());
        let echo = echo.clone();
        async move {
            sleep(ms(takes.unwrap_or(0))).await;
            echo.oneshot(request).await
        }
    })
}

/// What is sent counts when it is sent: of many calls under way the first answer may be the one that is throttled, at
/// the start and after a quiet time, and those after it change nothing.
#[tokio::test(start_paused = true)]
async fn a_throttled_burst_lowers_the_rate_by_what_was_sent() {
    for quiet in [0, 100_000] {
        let layer = layer();
        let service = layer.layer(slow());
        sleep(ms(quiet)).await;
        let first = asks(&[("x-status", "429"), ("x-takes", "20")]);
        let requests = std::iter::once(first).chain((1..100).map(|_| asks(&[("x-takes", "30")])));
        let calls: Vec<_> = requests.map(|request| tokio::spawn(service.clone().oneshot(request))).collect();
        sleep(ms(25)).await;
        let rate = layer.handle().snapshot().rate.unwrap();
        assert!((138.0..=140.1).contains(&rate), "100 in this half second are 200 a second: {rate}");
        for call in calls {
            call.await.unwrap().unwrap();
        }
        sleep(ms(15)).await;
        assert!(layer.handle().snapshot().rate.unwrap() >= rate, "successes lower nothing");
    }
}

/// How many of 100 a second go in the last of so many seconds, after one throttled answer. The answers are what the
/// function says, and nobody reads them.
async fn last_second<B, F>(seconds: u32, answer: impl Fn() -> F + Clone + Send + 'static) -> u32
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Default + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
{
    let layer = layer();
    let throttles = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&throttles);
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let (throttled, answer) = (now.swap(false, SeqCst), answer.clone());
        async move {
            let throttled = throttled.then(|| Response::builder().status(429).body(B::default()).unwrap());
            Ok::<_, Infallible>(match throttled {
                Some(response) => response,
                None => answer().await,
            })
        }
    }));
    let (mut went, mut kept) = (0, Vec::new());
    for n in 0..seconds * 100 {
        throttles.store(n == 300, SeqCst);
        let response = service.clone().oneshot(asks(&[])).await.unwrap();
        went += u32::from(n >= (seconds - 1) * 100 && Rejection::in_response(&response).is_none());
        kept.push(response);
        sleep(ms(10)).await;
    }
    went
}

/// What a policy further in refused was not sent.
#[tokio::test(start_paused = true)]
async fn what_is_refused_further_in_was_not_sent() {
    let layer = layer();
    let inner = RateLimitLayer::builder().quota(Quota::per_second(10).burst(1)).build().unwrap();
    let service = layer.layer(inner.layer(echo()));
    for _ in 0..500 {
        send(&service, asks(&[])).await;
        advance(ms(10)).await;
    }
    advance(ms(100)).await;
    send(&service, asks(&[("x-status", "429")])).await;
    let rate = layer.handle().snapshot().rate.unwrap();
    assert!((6.0..9.0).contains(&rate), "ten a second were sent: {rate}");
}

/// Whether anybody reads what a backend answers, or whether it ends, is no matter of the backend; and one that fails
/// was sent to all the same.
#[tokio::test(start_paused = true)]
async fn comes_back_whatever_becomes_of_the_bodies() {
    let unread = || ready(Response::new(http_body_util::Full::new(Bytes::from("hello"))));
    assert_eq!(last_second(20, unread).await, 100);
    type Endless = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
    let endless = || {
        ready(Response::new(Endless::new(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, _>>()))))
    };
    assert_eq!(last_second(20, endless).await, 100);
    let fails = || {
        let status = if fastrand::u8(0..100) < 60 { 500 } else { 200 };
        ready(Response::builder().status(status).body(Empty::new()).unwrap())
    };
    assert!(last_second(20, fails).await >= 95);
}

#[tokio::test(start_paused = true)]
async fn plain_services_with_an_own_word_for_throttled() {
    let layer = layer().plain_with(|r: Result<&(), &std::io::Error>| match r {
        Ok(()) => Outcome::Success,
        Err(_) => Outcome::Throttled,
    });
    let service =
        layer.layer(service_fn(|less: bool| ready(if less { Err(std::io::Error::other("less")) } else { Ok(()) })));
    assert!(matches!(service.clone().oneshot(true).await, Err(Error::Inner(_))));
    let Err(Error::Rejected(rejection)) = service.clone().oneshot(false).await else { panic!("not refused") };
    assert_eq!((rejection.reason(), rejection.is_refusal()), (Reason::Throttled, true));
}

#[tokio::test(start_paused = true)]
async fn refusals_of_others_say_nothing_and_ours_are_none_of_the_backend() {
    let inner = RateLimitLayer::builder().quota(Quota::per_second(1)).build().unwrap();
    let (layer, outcomes) = (layer(), OutcomesLayer::new());
    let service = outcomes.layer(layer.layer(inner.layer(echo())));
    send(&service, asks(&[])).await;
    // A 429 that a policy further in made.
    assert_eq!(send(&service, asks(&[])).await.status(), 429);
    assert_eq!(layer.handle().snapshot().throttled, 0);
    let service = outcomes.layer(layer.layer(echo()));
    send(&service, asks(&[("x-status", "429")])).await;
    assert!(refusal(&service).await.is_some());
    use Outcome::*;
    assert_eq!(outcomes.handle().take(), [Success, Ignored, Throttled, Ignored]);
}

#[tokio::test(start_paused = true)]
async fn shadow_and_events() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let observer = move |e: &Event| log.lock().unwrap().push(e.kind.clone());
    let layer = AdaptiveRateLayer::builder().name("s3").shadow(true).observer(observer).build().unwrap();
    assert_eq!(layer.name(), "s3");
    let service = layer.layer(echo());
    send(&service, asks(&[("x-status", "429")])).await;
    assert_eq!(refusal(&service).await, None);
    assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
    layer.handle().shadow(false);
    assert!(refusal(&service).await.is_some());
    let reason = Reason::Throttled;
    assert_eq!(*events.lock().unwrap(), [Kind::WouldHaveRejected { reason }, Kind::Rejected { reason }]);
    let bad = AdaptiveRateLayer::builder().wait(Duration::ZERO).name("").build().unwrap_err();
    assert_eq!(bad.fields().iter().map(|f| f.field).collect::<Vec<_>>(), ["name", "wait"]);
}

/// Ten clients over one backend that allows fifty a second: nearly all of that is used, and little is refused by it.
#[tokio::test(start_paused = true)]
async fn a_backend_that_throttles_is_used_and_not_hammered() {
    let backend = RateLimitLayer::builder().quota(Quota::per_second(50).burst(10)).build().unwrap();
    let seen = Arc::new(Mutex::new((0_u32, 0_u32)));
    let inner = {
        let (backend, seen) =
            (backend.plain().layer(service_fn(|(): ()| ready(Ok::<_, Infallible>(())))), Arc::clone(&seen));
        service_fn(move |(): ()| {
            let (backend, seen) = (backend.clone(), Arc::clone(&seen));
            async move {
                let answer = backend.oneshot(()).await.map_err(|_| std::io::Error::other("less"));
                let mut seen = seen.lock().unwrap();
                seen.0 += 1;
                seen.1 += u32::from(answer.is_err());
                answer
            }
        })
    };
    let clients = (0..10).map(|_| {
        let layer = AdaptiveRateLayer::builder().wait(Duration::from_secs(10)).build().unwrap();
        let layer = layer.plain_with(|r: Result<&(), &std::io::Error>| match r {
            Ok(()) => Outcome::Success,
            Err(_) => Outcome::Throttled,
        });
        let service = layer.layer(inner.clone());
        async move {
            let end = Instant::now() + Duration::from_secs(120);
            while Instant::now() < end {
                let _ = service.clone().oneshot(()).await;
                sleep(ms(20)).await;
            }
        }
    });
    join_all(clients).await;
    let (sent, throttled) = *seen.lock().unwrap();
    let good = f64::from(sent - throttled) / (50.0 * 120.0);
    // Without a policy 500 a second are sent, and nine of ten are throttled.
    assert!(good > 0.75, "{good} of what the backend gives, {throttled} of {sent} throttled");
    assert!(f64::from(throttled) < 0.25 * f64::from(sent), "{throttled} of {sent} throttled");
}
