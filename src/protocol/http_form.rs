//! The HTTP and gRPC form.

use std::{mem, sync::Arc, task::Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request, response};
use http_body::Body;

use crate::{
    deadline::Deadline,
    priority::Priority,
    protocol::{
        BoxError, Head, Http, HttpClassify, Protocol, ResponseBody, Watch, classify, head, names,
        refusal::{self, Form},
        transport,
    },
    rejection::Rejection,
};

/// What is kept of a request: gRPC or not, and what its method says about the response's body.
#[derive(Debug, Clone)]
pub struct HttpContext {
    grpc: bool,
    bodiless: Bodiless,
    /// Only where a custom classification asks for it; boxed, so that nobody else carries it.
    pub(super) method: Option<Box<Method>>,
}

/// Responses that have no body whatever their headers announce (RFC 9110, 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bodiless {
    Always,
    OnSuccess,
    ByStatus,
}

impl Http {
    pub(crate) fn with_classify(classify: impl HttpClassify) -> Self {
        Http { classify: Some(Arc::new(classify)) }
    }

    pub(crate) fn has_own_classification(&self) -> bool {
        self.classify.is_some()
    }
}

impl<B, RB, E> Protocol<Request<B>, Response<RB>, E> for Http
where
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
    E: 'static,
{
    type Context = HttpContext;
    type Response<W: Watch> = Response<ResponseBody<RB, W>>;
    type Error = E;

    const IS_HTTP: bool = true;

    #[inline(always)]
    fn context(&self, request: &Request<B>) -> HttpContext {
        HttpContext {
            grpc: is_grpc(request.headers()),
            bodiless: match *request.method() {
                Method::HEAD => Bodiless::Always,
                Method::CONNECT => Bodiless::OnSuccess,
                _ => Bodiless::ByStatus,
            },
            method: self.classify.is_some().then(|| Box::new(request.method().clone())),
        }
    }

    #[inline]
    fn deadline(request: &Request<B>) -> Option<Deadline> {
        request.extensions().get().copied()
    }

    #[inline]
    fn priority(request: &Request<B>) -> Option<Priority> {
        request.extensions().get().copied()
    }

    #[inline]
    fn grpc_headers<'a>(context: &HttpContext, request: &'a mut Request<B>) -> Option<&'a mut HeaderMap> {
        context.grpc.then(|| request.headers_mut())
    }

    #[inline]
    fn has_a_timer_below(context: &HttpContext) -> bool {
        context.grpc
    }

    /// CANCELLED or DEADLINE_EXCEEDED in the head, and not by a policy of ours, which says itself whose clock it was.
    #[cold]
    #[inline(never)]
    fn is_of_a_timer(answer: &Response<RB>) -> bool {
        let code = classify::grpc_status(answer.headers()).flatten();
        matches!(code, Some(1 | 4)) && Rejection::in_response(answer).is_none()
    }

    fn with_parts<T>(request: &mut Request<B>, look: impl FnOnce(&request::Parts) -> T) -> Option<T> {
        // `Parts` can only be had of a whole request: one without a body lends its own for the look. The request stays
        // where it is, for it is large, and calls without such a function shall not pay for its being moved.
        let mut head = Request::new(());
        swap_heads(&mut head, request);
        let (parts, ()) = head.into_parts();
        let seen = look(&parts);
        swap_heads(&mut Request::from_parts(parts, ()), request);
        Some(seen)
    }

    #[inline]
    fn head(request: &Request<B>) -> Option<Head<'_>> {
        Some(Head { uri: request.uri(), headers: request.headers(), extensions: request.extensions() })
    }

    #[inline]
    fn answer_headers<W: Watch>(answer: &mut Self::Response<W>) -> Option<&mut HeaderMap> {
        Some(answer.headers_mut())
    }

    #[inline]
    fn headers_of_the_backend<W: Watch>(answer: &Self::Response<W>) -> Option<&HeaderMap> {
        (!head::is_of_a_policy(answer.extensions())).then(|| answer.headers())
    }

    fn with_answer_parts<W: Watch, T>(
        answer: &mut Self::Response<W>,
        look: impl FnOnce(&response::Parts) -> T,
    ) -> Option<T> {
        // As `with_parts`.
        let mut head = Response::new(());
        swap_answer_heads(&mut head, answer);
        let (parts, ()) = head.into_parts();
        let seen = look(&parts);
        swap_answer_heads(&mut Response::from_parts(parts, ()), answer);
        Some(seen)
    }

    #[inline(always)]
    fn reject<W: Watch>(&self, context: &HttpContext, rejection: Rejection) -> Result<Self::Response<W>, E> {
        Ok(context.refuse(rejection).map(ResponseBody::text))
    }

    fn is_http1(context: &HttpContext, request: &Request<B>) -> bool {
        !context.grpc && request.version() <= Version::HTTP_11
    }

    #[cold]
    fn close_connection<W: Watch>(answer: &mut Self::Response<W>) {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }

    #[inline(always)]
    fn finish<W: Watch>(
        &self,
        context: &HttpContext,
        result: Result<Response<RB>, E>,
        watch: &mut Option<W>,
    ) -> Poll<Result<Self::Response<W>, E>> {
        let Some(watch) = watch.take() else {
            return match result {
                Ok(response) => Poll::Ready(Ok(response.map(ResponseBody::unwatched))),
                Err(error) => Poll::Ready(Err(error)),
            };
        };
        match result {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                // Each way out by itself: where they met again, both would move the head once more.
                match self.judge(context, &parts, &body, watch) {
                    Some(judge) => Poll::Ready(Ok(Response::from_parts(parts, ResponseBody::watched(body, judge)))),
                    None => Poll::Ready(Ok(Response::from_parts(parts, ResponseBody::unwatched(body)))),
                }
            }
            Err(error) => {
                failed(watch, &error);
                Poll::Ready(Err(error))
            }
        }
    }

    fn error(error: E) -> E {
        error
    }
}

impl Http {
    #[inline(always)]
    pub(super) fn watch<RB, W>(
        &self,
        context: &HttpContext,
        parts: response::Parts,
        body: RB,
        watch: W,
    ) -> Response<ResponseBody<RB, W>>
    where
        RB: Body<Data = Bytes>,
        W: Watch,
    {
        // Each way out by itself: where they met again, both would move the head once more.
        match self.judge(context, &parts, &body, watch) {
            Some(judge) => Response::from_parts(parts, ResponseBody::watched(body, judge)),
            None => Response::from_parts(parts, ResponseBody::unwatched(body)),
        }
    }
}

impl HttpContext {
    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc
    }

    pub(crate) fn is_head(&self) -> bool {
        self.bodiless == Bodiless::Always
    }

    /// Out of the way of calls that go on.
    #[cold]
    #[inline(never)]
    fn refuse(&self, rejection: Rejection) -> Response<Bytes> {
        let form = if self.grpc { Form::Grpc } else { Form::Http { is_head: self.is_head() } };
        refusal::response(form, rejection)
    }

    /// Does the answer to a gRPC request speak gRPC? Whatever else answers, a proxy or a handler that has never heard
    /// of gRPC, has no status at its end, and what it says is said in HTTP. Else any caller could have every answer
    /// taken for a failure by one header of its own, and open the breaker of all.
    #[inline]
    pub(super) fn is_answered_in_grpc(&self, parts: &response::Parts) -> bool {
        self.grpc && speaks_grpc(parts)
    }

    pub(super) fn has_no_body(&self, status: StatusCode) -> bool {
        match self.bodiless {
            Bodiless::Always => true,
            Bodiless::OnSuccess if status.is_success() => true,
            _ => status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED),
        }
    }
}

/// Out of the way of those that are answered.
#[cold]
#[inline(never)]
fn failed<W: Watch, E: 'static>(mut watch: W, error: &E) {
    watch.settle(transport::end_of(transport::as_error(error)));
}

fn swap_heads<A, B>(a: &mut Request<A>, b: &mut Request<B>) {
    mem::swap(a.method_mut(), b.method_mut());
    mem::swap(a.uri_mut(), b.uri_mut());
    mem::swap(a.version_mut(), b.version_mut());
    mem::swap(a.headers_mut(), b.headers_mut());
    mem::swap(a.extensions_mut(), b.extensions_mut());
}

fn swap_answer_heads<A, B>(a: &mut Response<A>, b: &mut Response<B>) {
    mem::swap(a.status_mut(), b.status_mut());
    mem::swap(a.version_mut(), b.version_mut());
    mem::swap(a.headers_mut(), b.headers_mut());
    mem::swap(a.extensions_mut(), b.extensions_mut());
}

#[inline(never)]
fn speaks_grpc(parts: &response::Parts) -> bool {
    let headers = &parts.headers;
    let looks_like_it = !headers.contains_key(header::CONTENT_TYPE) || has_grpc_type(headers);
    parts.status == StatusCode::OK && looks_like_it || headers.contains_key(names::GRPC_STATUS)
}

/// `application/grpc`, then the end, `+` or `;`. gRPC-Web is HTTP: its clients read a problem document.
#[inline]
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    !headers.is_empty() && has_grpc_type(headers)
}

#[inline(never)]
fn has_grpc_type(headers: &HeaderMap) -> bool {
    const PREFIX: &[u8] = b"application/grpc";
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    match value.as_bytes().split_at_checked(PREFIX.len()) {
        Some((prefix, rest)) => prefix.eq_ignore_ascii_case(PREFIX) && matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static [u8]) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(name, HeaderValue::from_bytes(value).unwrap());
        h
    }

    #[test]
    fn which_requests_are_grpc() {
        for (value, grpc) in [
            (&b"application/grpc"[..], true),
            (b"application/grpc+proto", true),
            (b"application/grpc;charset=utf-8", true),
            (b"Application/GRPC", true),
            (b"application/grpc-web", false),
            (b"application/grpc-web+proto", false),
            (b"application/grpcx", false),
            (b"application/json", false),
            (b"", false),
        ] {
            assert_eq!(is_grpc(&headers("content-type", value)), grpc, "{value:?}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
