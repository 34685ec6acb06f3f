//! The services inside: their cost is that of the loop, and is subtracted from every other case.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, Version, header};
use tower::Service;

use crate::{
    case::{Case, Clients},
    drive::{self, BAD, NoBody},
};

pub const PLAIN: &str = "bare/plain";
pub const HTTP: &str = "bare/http";
pub const GRPC: &str = "bare/grpc";

pub fn cases() -> Vec<Case> {
    fn plain() -> Clients {
        drive::plain(Bare)
    }
    fn http() -> Clients {
        drive::http(Bare, http_request)
    }
    fn grpc() -> Clients {
        drive::http(Bare, grpc_request)
    }
    vec![Case::new(PLAIN, plain).on_threads(), Case::new(HTTP, http).over(HTTP), Case::new(GRPC, grpc).over(GRPC)]
}

/// Answers at once, and fails when it is asked to.
///
/// It can really fail: with an uninhabited error the compiler would drop half of every layer.
#[derive(Debug, Clone, Copy)]
pub struct Bare;

#[derive(Debug)]
pub struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bare service was asked to fail")
    }
}

impl std::error::Error for Failed {}

impl Service<u64> for Bare {
    type Response = u64;
    type Error = Failed;
    type Future = Ready<Result<u64, Failed>>;

    #[inline]
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: u64) -> Self::Future {
        ready(if request == BAD { Err(Failed) } else { Ok(request) })
    }
}

impl Service<Request<NoBody>> for Bare {
    type Response = Response<NoBody>;
    type Error = Failed;
    type Future = Ready<Result<Response<NoBody>, Failed>>;

    #[inline]
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Request<NoBody>) -> Self::Future {
        let old = request.version() == Version::HTTP_09;
        ready(if old { Err(Failed) } else { Ok(Response::new(NoBody::new())) })
    }
}

/// The smallest request there is.
pub fn http_request() -> Request<NoBody> {
    Request::new(NoBody::new())
}

pub fn grpc_request() -> Request<NoBody> {
    let mut request = http_request();
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}
