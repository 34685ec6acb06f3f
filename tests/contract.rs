//! The laws that hold for every policy, one line a layer. They are `buttress::testing::laws`, for users' layers too.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::time::Duration;

use buttress::{
    AdaptiveRateLayer, Answer, BoxError, BulkheadLayer, CircuitBreakerLayer, Deadline, DeadlineLayer, DrainLayer,
    Error, FallbackContext, FallbackLayer, HedgeLayer, KeyBytes, LastGood, LimitHeaders, OpenTime, Outcome,
    PreviousAttemptsLayer, Quota, RateLimitLayer, Registry, RetryLayer, TimeoutLayer,
    testing::{OutcomesLayer, Probe, ProbeError, laws},
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

type Http = http::Request<()>;
/// With a body that can be sent again.
type Replayed = http::Request<http_body_util::Empty<bytes::Bytes>>;
type Body = http_body_util::Full<bytes::Bytes>;

/// Runs the law for callers whose deadline has passed: every policy that waits refuses them.
macro_rules! too_late {
    ($layer:expr, $request:ty) => {{
        let law = laws::closed_door(|probe| $layer.layer(probe), <$request>::default);
        Deadline::at(Instant::now()).scope(law).await;
    }};
}

/// A layer of the contract, and the request it is given. `refuses` says how it comes to refuse: because a caller is
/// `too_late`, or because it is another layer. A layer that never refuses has no such part.
macro_rules! contract {
    ($name:ident: $layer:expr => $request:ty $(, refuses: $($by:tt)+)?) => {
        mod $name {
            use super::*;

            fn wrap(probe: Probe) -> impl tower::Service<
                Request,
                Response: Send,
                Error: Into<BoxError> + std::fmt::Debug,
                Future: Send,
            > + Clone + Send + Sync + 'static {
                $layer.layer(probe)
            }

            type Request = $request;

            fn request() -> Request {
                Request::default()
            }

            #[tokio::test(start_paused = true)]
            async fn readiness() {
                laws::readiness(wrap, request).await;
            }

            #[tokio::test(start_paused = true)]
            async fn errors() {
                laws::errors(wrap, request).await;
            }

            #[tokio::test(start_paused = true)]
            async fn cancellation() {
                laws::cancellation(wrap, request).await;
            }

            #[tokio::test(start_paused = true)]
            async fn panics() {
                laws::panics(wrap, request).await;
            }

            #[tokio::test(start_paused = true)]
            async fn no_busy_waiting() {
                laws::no_busy_waiting(wrap, request, Duration::from_secs(5)).await;
            }

            #[tokio::test(start_paused = true)]
            async fn crosses_threads() {
                laws::crosses_threads(wrap, request);
            }

            $(
                #[tokio::test(start_paused = true)]
                async fn closed_door() {
                    contract!(@closed $request, $layer, $($by)+);
                }
            )?
        }
    };
    (@closed $request:ty, $layer:expr, too_late) => { too_late!($layer, $request) };
    (@closed $request:ty, $layer:expr, $closed:expr) => {
        laws::closed_door(|probe| $closed.layer(probe), <$request>::default).await
    };
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder().slow_calls(Duration::from_secs(1), 1.0).build().unwrap()
}

/// A breaker that refuses, whatever the time is.
fn open() -> CircuitBreakerLayer {
    let layer = breaker();
    layer.handle().force_open().unwrap();
    layer
}

/// A breaker for each key.
fn breaker_per_key() -> CircuitBreakerLayer {
    let builder = CircuitBreakerLayer::builder().slow_calls(Duration::from_secs(1), 1.0);
    builder.key_fn(|_| Some("k".into())).build().unwrap()
}

/// As [`open`], for all keys.
fn open_per_key() -> CircuitBreakerLayer {
    let layer = breaker_per_key();
    layer.handle().force_open().unwrap();
    layer
}

/// One that opened by itself, for services without heads.
fn opened_per_key() -> CircuitBreakerLayer {
    let builder = CircuitBreakerLayer::builder().consecutive_failures(1).key_fn(|_| None);
    let layer = builder.open(OpenTime::Fixed(Duration::from_secs(3_600))).build().unwrap();
    let _ = futures_util::FutureExt::now_or_never(layer.clone().plain().layer(failing()).oneshot(()));
    layer
}

/// Room for one at a time, and for one more who waits: a law's calls follow each other.
fn bulkhead() -> BulkheadLayer {
    BulkheadLayer::builder().limit(1).queue(1).build().unwrap()
}

/// As [`bulkhead`], for each key.
fn bulkhead_per_key() -> BulkheadLayer {
    BulkheadLayer::builder().limit(1).queue(1).key_fn(|_| Some("k".into())).build().unwrap()
}

/// Full for services without heads.
fn full_per_key() -> BulkheadLayer {
    let layer = BulkheadLayer::builder().limit(1).key_fn(|_| None).build().unwrap();
    fill(&layer);
    layer
}

/// A bulkhead that is full for as long as a test lasts.
fn full() -> BulkheadLayer {
    let layer = BulkheadLayer::builder().limit(1).build().unwrap();
    fill(&layer);
    layer
}

/// Makes a call that never ends.
fn fill(layer: &BulkheadLayer) {
    let hangs = tower::service_fn(|()| std::future::pending::<Result<(), std::io::Error>>());
    std::mem::forget(layer.clone().plain().layer(hangs).call(()));
}

/// A program that is about to stop.
fn draining() -> DrainLayer {
    let registry = Registry::new();
    drop(registry.drain());
    registry.drain_layer()
}

fn timeout() -> TimeoutLayer {
    TimeoutLayer::builder().after(Duration::from_secs(10)).build().unwrap()
}

fn retry() -> RetryLayer {
    RetryLayer::builder().build().unwrap()
}

fn pass_on(_: &FallbackContext<'_>) -> Answer {
    Answer::PassOn
}

/// A backup that is of no use.
fn failing() -> Probe {
    let probe = Probe::new();
    probe.fails();
    probe
}

contract!(timeout_http: timeout() => Http, refuses: too_late);
contract!(timeout_plain: timeout().plain() => (), refuses: too_late);
contract!(timeout_boxed: timeout().boxed() => (), refuses: too_late);
contract!(deadline_server: DeadlineLayer::server(Duration::from_secs(10)) => Http, refuses: too_late);
contract!(deadline_client: DeadlineLayer::client() => Http, refuses: too_late);
contract!(breaker_http: breaker() => Http, refuses: open());
contract!(breaker_plain: breaker().plain() => (), refuses: open().plain());
contract!(breaker_boxed: breaker().boxed() => (), refuses: open().boxed());
contract!(breaker_per_key: breaker_per_key() => Http, refuses: open_per_key());
contract!(breaker_per_key_plain: breaker_per_key().plain() => (), refuses: opened_per_key().plain());
contract!(retry_http: retry() => Replayed, refuses: too_late);
contract!(retry_plain: retry().plain() => (), refuses: too_late);
contract!(retry_boxed: retry().boxed() => (), refuses: too_late);
contract!(retry_by_function: retry().plain().clone_with(|(): &()| Some(())) => (), refuses: too_late);
contract!(previous_attempts: PreviousAttemptsLayer::new() => Http);
contract!(fallback_http: FallbackLayer::from_fn(pass_on) => Http);
contract!(fallback_plain: FallbackLayer::plain_from_fn(|_: &Error<ProbeError>| None::<()>) => ());
contract!(fallback_boxed: FallbackLayer::boxed_from_fn(|_: &BoxError| None::<()>) => ());
contract!(fallback_backup: FallbackLayer::to_service(failing()) => http::Request<Body>);
contract!(fallback_last_good: FallbackLayer::last_good(LastGood::new(1_000, Duration::from_secs(1))) => Http);
contract!(bulkhead_http: bulkhead() => Http, refuses: full());
contract!(bulkhead_plain: bulkhead().plain() => (), refuses: full().plain());
contract!(bulkhead_boxed: bulkhead().boxed() => (), refuses: full().boxed());
contract!(bulkhead_per_key: bulkhead_per_key() => Http, refuses: too_late);
contract!(bulkhead_per_key_plain: bulkhead_per_key().plain() => (), refuses: full_per_key().plain());
contract!(bulkhead_deadline: bulkhead() => Http, refuses: too_late);
contract!(rate_http: rate() => Http, refuses: used_up());
contract!(rate_http_headers: rate_with_headers(1_000) => Http, refuses: used_up_with_headers());
contract!(rate_per_key: rate_per_key() => Http, refuses: too_late);
contract!(rate_per_key_plain: rate_per_key_plain() => (), refuses: too_late);
contract!(rate_deadline: rate() => Http, refuses: too_late);
contract!(rate_plain: rate().plain() => (), refuses: used_up().plain());
contract!(rate_boxed: rate().boxed() => (), refuses: used_up().boxed());
contract!(adaptive_http: adaptive() => Http, refuses: slowed());
contract!(adaptive_plain: adaptive().plain() => (), refuses: slowed().plain());
contract!(adaptive_boxed: adaptive().boxed() => (), refuses: slowed().boxed());
contract!(drain_http: Registry::new().drain_layer() => Http, refuses: draining());
contract!(drain_plain: Registry::new().drain_layer().plain() => (), refuses: draining().plain());
contract!(drain_boxed: Registry::new().drain_layer().boxed() => (), refuses: draining().boxed());
contract!(hedge_http: hedge() => Replayed, refuses: too_late);
contract!(hedge_plain: hedge().plain() => (), refuses: too_late);
contract!(hedge_boxed: hedge().boxed() => (), refuses: too_late);
contract!(hedge_by_function: hedge().plain().clone_with(|(): &()| Some(())) => (), refuses: too_late);
contract!(outcomes_http: OutcomesLayer::new() => Http);
contract!(outcomes_plain: OutcomesLayer::new().plain() => ());

/// Law 3, second half: the deadline passes between readiness and call.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_gives_readiness_back() {
    let deadline = Deadline::after(Duration::from_millis(10));
    let passes = || async { tokio::time::advance(Duration::from_millis(20)).await };
    let on_request = move || {
        let mut request = Http::default();
        request.extensions_mut().insert(deadline);
        request
    };
    laws::late_refusal(|p| timeout().layer(p), on_request, passes).await;
    let deadline = Deadline::after(Duration::from_millis(10));
    let on_request = move || {
        let mut request = Http::default();
        request.extensions_mut().insert(deadline);
        request
    };
    laws::late_refusal(|p| DeadlineLayer::client().layer(p), on_request, passes).await;
    let plain = laws::late_refusal(|p| timeout().plain().layer(p), || (), passes);
    Deadline::after(Duration::from_millis(10)).scope(plain).await;

    let deadline = Deadline::after(Duration::from_millis(10));
    let on_request = move || {
        let mut request = Replayed::default();
        request.extensions_mut().insert(deadline);
        request
    };
    laws::late_refusal(|p| retry().layer(p), on_request, passes).await;

    for breaker in [breaker(), breaker_per_key()] {
        let opens = || async { breaker.handle().force_open().unwrap() };
        laws::late_refusal(|p| breaker.layer(p), Http::default, opens).await;
    }

    for queue in [0, 1] {
        let bulkhead = BulkheadLayer::builder().limit(1).queue(queue).build().unwrap();
        let fills = || async {
            fill(&bulkhead);
            if queue > 0 {
                // The one place there is to wait in.
                let mut waits = bulkhead.layer(Probe::new());
                std::mem::forget(waits.call(Http::default()));
            }
        };
        laws::late_refusal(|p| bulkhead.layer(p), Http::default, fills).await;
    }
    let registry = Registry::new();
    let drains = || async { drop(registry.drain()) };
    laws::late_refusal(|p| registry.drain_layer().layer(p), Http::default, drains).await;
    let deadline = Deadline::after(Duration::from_millis(10));
    let plain = laws::late_refusal(|p| bulkhead().plain().layer(p), || (), passes);
    deadline.scope(plain).await;
    let deadline = Deadline::after(Duration::from_millis(10));
    let plain = laws::late_refusal(|p| retry().plain().layer(p), || (), passes);
    deadline.scope(plain).await;
    let deadline = Deadline::after(Duration::from_millis(10));
    let plain = laws::late_refusal(|p| rate().plain().layer(p), || (), passes);
    deadline.scope(plain).await;
}

/// A rate that no law reaches.
fn rate() -> RateLimitLayer {
    RateLimitLayer::builder().quota(Quota::per_second(1_000)).build().unwrap()
}

fn rate_per_key() -> RateLimitLayer {
    let builder = RateLimitLayer::builder().quota(Quota::per_second(1_000)).key_fn(|_| Some("k".into()));
    builder.wait(Duration::from_secs(1)).build().unwrap()
}

/// One of which nothing is left. It has refused nobody yet.
fn used_up() -> RateLimitLayer {
    let layer = RateLimitLayer::builder().quota(Quota::per(1, Duration::from_secs(3_600))).build().unwrap();
    let _ = futures_util::FutureExt::now_or_never(layer.clone().plain().layer(Probe::new()).oneshot(()));
    layer
}

/// One that goes the long way.
fn rate_per_key_plain()
-> RateLimitLayer<buttress::KeyedBy<buttress::Plain, impl Fn(&()) -> Option<KeyBytes<'_>> + Clone>> {
    let quota = RateLimitLayer::builder().quota(Quota::per_second(1_000_000));
    quota.build_plain_per_key(|(): &()| Some(KeyBytes::from(7_u64))).unwrap()
}

fn rate_with_headers(units: u32) -> RateLimitLayer {
    let quota = Quota::per(units, Duration::from_secs(3_600));
    RateLimitLayer::builder().quota(quota).headers(LimitHeaders::Draft10).charge_fn(|_| 1).build().unwrap()
}

fn used_up_with_headers() -> RateLimitLayer {
    let layer = rate_with_headers(1);
    let _ = futures_util::FutureExt::now_or_never(layer.layer(Probe::new()).oneshot(Http::default()));
    layer
}

fn adaptive() -> AdaptiveRateLayer {
    AdaptiveRateLayer::builder().build().unwrap()
}

/// One whose backend has just asked for less.
fn slowed() -> AdaptiveRateLayer {
    let layer = adaptive();
    let throttles = tower::service_fn(|(): ()| std::future::ready(Err::<(), _>(std::io::Error::other("less"))));
    let service = layer.clone().plain_with(|_: Result<&(), &std::io::Error>| Outcome::Throttled).layer(throttles);
    let _ = futures_util::FutureExt::now_or_never(service.oneshot(()));
    layer
}

/// Law 3, second half, of the rates.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_a_rate_gives_readiness_back() {
    for per_key in [false, true] {
        let builder = RateLimitLayer::builder().quota(Quota::per(1, Duration::from_secs(3_600)));
        let builder = if per_key { builder.key_fn(|_| Some("k".into())) } else { builder };
        let rate = builder.build().unwrap();
        let uses_it_up = || async {
            rate.layer(Probe::new()).oneshot(Http::default()).await.unwrap();
        };
        laws::late_refusal(|p| rate.layer(p), Http::default, uses_it_up).await;
    }

    let adaptive = adaptive();
    let slows = || async {
        let throttles = tower::service_fn(|(): ()| std::future::ready(Err::<(), _>(std::io::Error::other("less"))));
        let plain = adaptive.clone().plain_with(|_: Result<&(), &std::io::Error>| Outcome::Throttled);
        assert!(plain.layer(throttles).oneshot(()).await.is_err());
    };
    laws::late_refusal(|p| adaptive.layer(p), Http::default, slows).await;
}

/// Of later attempts: `tests/hedge.rs`. The laws count the calls that they see.
fn hedge() -> HedgeLayer {
    HedgeLayer::builder().after(Duration::from_secs(10)).max(2).build().unwrap()
}

/// Law 3, second half, of a hedge.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_a_hedge_gives_readiness_back() {
    let passes = || async { tokio::time::advance(Duration::from_millis(20)).await };
    let plain = laws::late_refusal(|p| hedge().plain().layer(p), || (), passes);
    Deadline::after(Duration::from_millis(10)).scope(plain).await;
}

/// A closure has no `Debug`, a layer that judges by one has.
#[test]
fn layers_that_judge_by_a_closure_can_be_shown() {
    let judge = |_: Result<&(), &std::io::Error>| Outcome::Failure;
    let breaker = || CircuitBreakerLayer::builder().build().unwrap();
    let shown = [
        format!("{:?}", breaker().plain_with(judge)),
        format!("{:?}", breaker().flat_with(judge)),
        format!("{:?}", breaker().boxed_with(judge)),
        format!("{:?}", RetryLayer::builder().build().unwrap().plain_with(judge)),
        format!("{:?}", breaker().plain_with(judge).layer(())),
    ];
    for (shown, form) in shown.iter().zip(["Plain", "Flat", "Boxed", "Plain", "Plain"]) {
        assert!(
            shown.ends_with(&format!("protocol: {form} }}")) || shown.contains(&format!("protocol: {form},")),
            "{shown}"
        );
    }
}

// === the laws see who breaks them ===

/// Readies one instance and calls another.
#[derive(Clone)]
struct CallsAnother(Probe);

impl Service<()> for CallsAnother {
    type Response = ();
    type Error = ProbeError;
    type Future = tower::util::Oneshot<Probe, ()>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), ProbeError>> {
        Service::<()>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.0.clone().oneshot(())
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the instance polled ready was not called")]
async fn a_layer_that_calls_another_instance_is_seen() {
    laws::readiness(CallsAnother, || ()).await;
}

/// Is ready whatever is inside, and wakes whoever is not.
#[derive(Clone)]
struct Hasty<const BUSY: bool>(Probe);

impl<const BUSY: bool> Service<()> for Hasty<BUSY> {
    type Response = ();
    type Error = ProbeError;
    type Future = <Probe as Service<()>>::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), ProbeError>> {
        let ready = Service::<()>::poll_ready(&mut self.0, cx);
        if !BUSY {
            return std::task::Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        ready
    }

    fn call(&mut self, (): ()) -> Self::Future {
        Service::<()>::call(&mut self.0, ())
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "ready before the inner service is")]
async fn a_layer_that_is_ready_too_early_is_seen() {
    laws::readiness(Hasty::<false>, || ()).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "woken with nothing new")]
async fn a_layer_that_waits_busily_is_seen() {
    laws::no_busy_waiting(Hasty::<true>, || (), Duration::from_secs(1)).await;
}

/// A test of a layer that hangs must not hang.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "the layer hangs")]
async fn a_layer_that_hangs_is_seen() {
    // Room for one, and the law readies two.
    laws::readiness(|probe| tower::limit::ConcurrencyLimit::new(probe, 1), || ()).await;
}
