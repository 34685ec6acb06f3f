//! How deep a stack of layers is. Layers are inlined into each other, and one that had its inner service in two places
//! would have two copies of all that is inside: in a build without optimization each has its place on the stack, and
//! ten layers would be more than a thread has.

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    hint::black_box,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use buttress::{
    AdaptiveRateLayer, BulkheadLayer, CircuitBreakerLayer, DeadlineLayer, HedgeLayer, Key, Quota, RateLimitLayer,
    RetryLayer, TimeoutLayer,
};

type Call = Request<Full<Bytes>>;

thread_local! {
    static DEEPEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[inline(never)]
fn here() -> usize {
    let mark = 0_u8;
    std::ptr::from_ref(black_box(&mark)) as usize
}

fn mark() {
    DEEPEST.set(DEEPEST.get().min(here()));
}

fn backend() -> impl Service<Call, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone + Send {
    service_fn(|_: Call| {
        mark();
        async {
            mark();
            Ok(Response::new(Full::new(Bytes::from("x"))))
        }
    })
}

/// How many bytes lie between the caller and the backend.
async fn depth<S, B>(service: S) -> usize
where
    S: Service<Call, Response = Response<B>, Error = Infallible>,
{
    let mut service = service;
    service.ready().await.unwrap();
    let request = Request::get("/").header("x-tenant", "a").body(Full::new(Bytes::new())).unwrap();
    DEEPEST.set(usize::MAX);
    let top = here();
    let mut call = Box::pin(service.call(request));
    let called = top - DEEPEST.get();
    DEEPEST.set(usize::MAX);
    let mut polled = 0;
    let answer = poll_fn(|cx: &mut Context<'_>| {
        let top = here();
        let poll = call.as_mut().poll(cx);
        polled = polled.max(top.saturating_sub(DEEPEST.get()));
        poll
    });
    Poll::Ready(answer.await.unwrap()).map(drop).is_ready();
    called.max(polled)
}

fn rate() -> RateLimitLayer {
    RateLimitLayer::builder().quota(Quota::per_second(100)).build().unwrap()
}

fn bulkhead() -> BulkheadLayer {
    BulkheadLayer::builder().limit(10).build().unwrap()
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder().build().unwrap()
}

fn tenant() -> Key {
    Key::Header("x-tenant".parse().unwrap())
}

/// Pairs of layers upon each other. Each holds the future of those inside a few times while it is made; more than that
/// would be copies of their code.
#[tokio::test]
async fn it_grows_by_the_layer() {
    let pair = || (bulkhead(), breaker());
    let two = depth((pair(), pair()).layer(backend())).await;
    let four = depth((pair(), pair(), pair(), pair()).layer(backend())).await;
    assert!(four <= 4 * two, "{two}, {four}");
}

/// One limit for all and one for each tenant, of rate, bulkhead and breaker; and then what makes calls again.
#[tokio::test]
async fn ten_layers_fit_a_thread() {
    let stack = ServiceBuilder::new()
        .layer(DeadlineLayer::server(Duration::from_secs(1)))
        .layer(RateLimitLayer::builder().quota(Quota::per_second(100)).per_key(tenant()).build().unwrap())
        .layer(rate())
        .layer(BulkheadLayer::builder().limit(10).per_key(tenant()).build().unwrap())
        .layer(bulkhead())
        .layer(breaker())
        .layer(CircuitBreakerLayer::builder().per_key(tenant()).build().unwrap())
        .layer(RetryLayer::builder().build().unwrap())
        .layer(HedgeLayer::builder().after(Duration::from_millis(50)).build().unwrap())
        .layer(AdaptiveRateLayer::builder().build().unwrap())
        .layer(TimeoutLayer::builder().after(Duration::from_secs(1)).build().unwrap());
    // A thread of tokio has 2 MiB, and there is more than this on it.
    let depth = depth(stack.service(backend())).await;
    assert!(depth < 512 * 1024, "{depth} bytes");
}
