//! A function as a fallback on HTTP and gRPC.

use std::{
    convert::Infallible,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header, request::Parts};
use http_body::Body;

use crate::{
    BoxError,
    fallback::substitute::{Bad, Given, Substitute},
    outcome::Outcome,
    protocol::{
        HeldResponse, Http, HttpContext, ResponseBody,
        names::{GRPC_MESSAGE, GRPC_STATUS},
        number,
    },
    rejection::Rejection,
};

/// What a fallback says in the place of the backend.
///
/// It has to be one that the caller understands, by [`FallbackContext::grpc`]: it is sent as it is.
#[derive(Debug)]
pub enum Answer {
    /// This response. To a HEAD request without its body, of which only the length is said.
    Http(Response<Bytes>),
    /// One gRPC message, encoded but without its prefix, and OK in the trailers.
    GrpcMessage(Bytes),
    /// A gRPC status and its message, which may be any text: a response of trailers only.
    GrpcStatus(u32, String),
    /// Nothing: the backend's own answer, error or refusal is passed on.
    PassOn,
}

/// What a fallback is told.
#[derive(Debug)]
pub struct FallbackContext<'a> {
    /// The head of the request, as the layer sees it: within a router that axum has nested, without the prefix.
    pub parts: &'a Parts,
    /// Is it gRPC, by its content type?
    pub grpc: bool,
    /// What the backend's answer meant. `Ignored` where a policy refused the call.
    pub outcome: Outcome,
    /// The refusal, or the timeout or deadline that ran out.
    pub rejection: Option<&'a Rejection>,
}

impl<F, B, RB, E> Substitute<Request<B>, Response<RB>, E, Http> for F
where
    F: Fn(&FallbackContext<'_>) -> Answer + Clone,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
    E: 'static,
{
    type Kept = Parts;
    type Watch = ();
    type Later = Infallible;

    #[inline]
    fn keep<T>(&self, _: &HttpContext, request: Request<B>, call: impl FnOnce(Request<B>) -> T) -> (Parts, T) {
        let head = copy_of_head(&request);
        (head, call(request))
    }

    #[cold]
    fn answer(
        &self,
        _: &Http,
        parts: &mut Parts,
        context: &HttpContext,
        bad: Bad<HeldResponse<RB>, E>,
    ) -> Gives<RB, E> {
        let rejection = bad.result.as_ref().ok().and_then(HeldResponse::rejection);
        let (grpc, outcome) = (context.is_grpc(), bad.outcome());
        let response = match self(&FallbackContext { parts, grpc, outcome, rejection }) {
            Answer::Http(response) if context.is_head() => without_body(response).map(ResponseBody::text),
            Answer::Http(response) => response.map(ResponseBody::text),
            Answer::GrpcMessage(message) => grpc_message(&message),
            Answer::GrpcStatus(code, message) => grpc_status(code, &message),
            Answer::PassOn => return Given::Nothing(bad.result),
        };
        let (response, outcome) = bad.mark(rejection).put(response);
        Given::Now(response, outcome)
    }

    fn poll_later(later: Pin<&mut Infallible>, _: &mut Context<'_>) -> Poll<Gives<RB, E>> {
        match *later {}
    }
}

type Gives<RB, E> = Given<Response<ResponseBody<RB, ()>>, Infallible, HeldResponse<RB>, E>;

/// Of everything but the body.
fn copy_of_head<B>(request: &Request<B>) -> Parts {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    // The copy of an empty map allocates nothing.
    *head.headers_mut() = request.headers().clone();
    *head.extensions_mut() = request.extensions().clone();
    head.into_parts().0
}

fn without_body(mut response: Response<Bytes>) -> Response<Bytes> {
    let length = mem::take(response.body_mut()).len() as u64;
    if length > 0 && !response.headers().contains_key(header::CONTENT_LENGTH) {
        response.headers_mut().insert(header::CONTENT_LENGTH, number::header_value(length, None));
    }
    response
}

fn grpc_message<RB>(message: &Bytes) -> Response<ResponseBody<RB, ()>> {
    // Its length goes before it, in four bytes.
    let Ok(length) = u32::try_from(message.len()) else {
        return grpc_status(13, "the answer is longer than a gRPC message can be");
    };
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put_slice(message);
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    grpc(ResponseBody::text_and_trailers(frame.freeze(), trailers))
}

fn grpc_status<RB>(code: u32, message: &str) -> Response<ResponseBody<RB, ()>> {
    let mut response = grpc(ResponseBody::default());
    let headers = response.headers_mut();
    headers.insert(GRPC_STATUS, number::header_value(u64::from(code), None));
    if !message.is_empty() {
        // What was escaped is a value.
        headers.insert(GRPC_MESSAGE, HeaderValue::try_from(escaped(message)).unwrap_or(HeaderValue::from_static("")));
    }
    response
}

fn grpc<RB>(body: ResponseBody<RB, ()>) -> Response<ResponseBody<RB, ()>> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Percent-encoding as gRPC has it: all but printable ASCII, and the sign itself.
fn escaped(message: &str) -> String {
    use std::fmt::Write;

    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_escaped() {
        assert_eq!(escaped("all is well"), "all is well");
        assert_eq!(escaped("100 %\n"), "100 %25%0A");
        assert_eq!(escaped("é"), "%C3%A9");
    }
}
