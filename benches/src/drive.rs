//! The loop body: one call through a service, by hand.

use std::{
    future::Future,
    hint::{black_box, spin_loop},
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use tower::Service;

use crate::case::{Call, Clients};

/// The body of all HTTP cases, in both directions.
pub type NoBody = Empty<Bytes>;

/// A request that the bare service answers.
const GOOD: u64 = 1;
/// A request on which it fails.
pub const BAD: u64 = 0;

/// Calls over clones of a plain service.
pub fn plain<S>(service: S) -> Clients
where
    S: Service<u64> + Clone + Send + Sync + 'static,
{
    Box::new(move || {
        let mut own = Apart(service.clone());
        Box::new(move || one_call(&mut own.0, GOOD))
    })
}

/// Calls over a plain service that can't be cloned.
pub fn own<S: Service<u64> + 'static>(service: S) -> Call {
    let mut own = Apart(service);
    Box::new(move || one_call(&mut own.0, GOOD))
}

/// As [`plain`], with requests that each client makes in a way of its own.
pub fn plain_with<S, R>(service: S, make: fn() -> R) -> Clients
where
    S: Service<u64> + Clone + Send + Sync + 'static,
    R: Fn() -> u64 + 'static,
{
    Box::new(move || {
        let mut own = Apart(service.clone());
        let request = make();
        Box::new(move || one_call(&mut own.0, request()))
    })
}

/// One call, to warm a service up.
pub fn plain_once<S: Service<u64>>(mut service: S, request: u64) {
    one_call(&mut service, request);
}

/// As [`http`], with requests that each client makes in a way of its own.
pub fn http_with<S, M, R>(service: S, make: M) -> Clients
where
    S: Service<Request<NoBody>> + Clone + Send + Sync + 'static,
    M: Fn() -> R + Send + Sync + 'static,
    R: Fn() -> Request<NoBody> + 'static,
{
    Box::new(move || {
        let mut own = Apart(service.clone());
        let request = make();
        Box::new(move || one_call(&mut own.0, request()))
    })
}

/// One call, to warm a service up.
pub fn http_once<S: Service<Request<NoBody>>>(mut service: S, request: Request<NoBody>) {
    one_call(&mut service, request);
}

/// Calls over clones of an HTTP service. A request can't be used twice: making it is part of the call, and of the bare
/// call too.
pub fn http<S>(service: S, request: fn() -> Request<NoBody>) -> Clients
where
    S: Service<Request<NoBody>> + Clone + Send + Sync + 'static,
{
    Box::new(move || {
        let mut own = Apart(service.clone());
        Box::new(move || one_call(&mut own.0, request()))
    })
}

/// A plain service that has failed often enough for any breaker around it to open.
pub fn tripped<S: Service<u64>>(mut service: S) -> S {
    for _ in 0..1_000 {
        one_call(&mut service, BAD);
    }
    service
}

/// What one thread writes must not share a cache line with what the other one writes.
#[repr(align(128))]
struct Apart<T>(T);

#[inline]
fn one_call<S, R>(service: &mut S, request: R) -> bool
where
    S: Service<R>,
{
    let mut cx = Context::from_waker(Waker::noop());
    let ready = to_the_end(|| service.poll_ready(&mut cx));
    let result = match ready {
        Ok(()) => answer(service.call(black_box(request)), &mut cx),
        Err(error) => Err(error),
    };
    // By reference: moving a large response into a black box would be counted as the work of the layer.
    black_box(&result).is_ok()
}

#[inline]
fn answer<F: Future>(future: F, cx: &mut Context<'_>) -> F::Output {
    let mut future = pin!(future);
    to_the_end(|| future.as_mut().poll(cx))
}

/// Polls at once until it is ready. Only futures that fight over an async lock are ever pending here, and for them
/// this is the kindest executor there can be.
#[inline]
fn to_the_end<T>(mut poll: impl FnMut() -> Poll<T>) -> T {
    loop {
        if let Poll::Ready(value) = poll() {
            return value;
        }
        spin_loop();
    }
}
