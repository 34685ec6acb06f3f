//! The laws that hold for every policy, one line a layer. They are `buttress::testing::laws`, for users' layers too.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::time::Duration;

use buttress::{
    Answer, BoxError, BulkheadLayer, CircuitBreakerLayer, Deadline, DeadlineLayer, Error, FallbackContext,
    FallbackLayer, LastGood, PreviousAttemptsLayer, RetryLayer, TimeoutLayer,
    testing::{OutcomesLayer, Probe, ProbeError, laws},
};
use tokio::time::Instant;
use tower::{Layer, Service};

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

/// Room for one at a time, and for one more who waits: a law's calls follow each other.
fn bulkhead() -> BulkheadLayer {
    BulkheadLayer::builder().limit(1).queue(1).build().unwrap()
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
contract!(bulkhead_deadline: bulkhead() => Http, refuses: too_late);
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

    let breaker = breaker();
    let opens = || async { breaker.handle().force_open().unwrap() };
    laws::late_refusal(|p| breaker.layer(p), Http::default, opens).await;

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
    let deadline = Deadline::after(Duration::from_millis(10));
    let plain = laws::late_refusal(|p| bulkhead().plain().layer(p), || (), passes);
    deadline.scope(plain).await;
}
