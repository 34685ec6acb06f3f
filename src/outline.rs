//! Calls and polls out of line.
//!
//! Layers are inlined into each other, down to the service at the bottom: that is what makes them cheap. But each place
//! in a layer where its inner service is called has a copy of all that is inside, so that with two of them ten layers
//! were a thousand copies: of code, of time to compile it, and, without optimization, of room on the stack. So a layer
//! calls, polls and asks for readiness in line in one place each, on its common way, and everywhere else through here.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tower_service::Service;

#[inline(never)]
pub(crate) fn poll_ready<S: Service<Req>, Req>(service: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
    service.poll_ready(cx)
}

#[inline(never)]
pub(crate) fn call<S: Service<Req>, Req>(service: &mut S, request: Req) -> S::Future {
    service.call(request)
}

#[inline(never)]
pub(crate) fn poll<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(cx)
}
