//! Retries: calls that succeed at once, calls whose first attempt fails, and bodies that are recorded.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use buttress::{Backoff, Budget, Replay, RetryBuilder, RetryLayer};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use tower::{
    Layer, Service,
    retry::{
        Policy, Retry,
        budget::{Budget as _, TpsBudget},
    },
};

use crate::{
    case::{Case, Clients, Judge},
    cases::bare::{self, Bare, Failed},
    drive::{BAD, http, plain},
};

const OK: &str = "retry/no failure buttress";
const ONE: &str = "retry/one failure buttress";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(OK, || plain(ours().layer(Bare))).judged(Judge::AtMost(120.0)).on_threads(),
        Case::new("retry/no failure tower TpsBudget", || plain(Retry::new(Towers::new(), Bare)))
            .judged(Judge::RatioTo(OK))
            .on_threads(),
        Case::new("retry/no failure buttress http", || http(layer(builder()).layer(Bare), bare::http_request))
            .over(bare::HTTP),
        Case::new("retry/no failure buttress grpc", || http(layer(builder()).layer(Bare), bare::grpc_request))
            .over(bare::GRPC),
        Case::new(ONE, || plain(ours().layer(Fails))).judged(Judge::AtMost(210.0)).on_threads(),
        Case::new("retry/one failure tower TpsBudget", || plain(Retry::new(Towers::new(), Fails)))
            .judged(Judge::RatioTo(ONE))
            .on_threads(),
        Case::new(BODY, || body(read)).over(BODY),
        Case::new("retry/body of 16 chunks, recorded", || {
            body(|chunks| {
                let source = chunks.split(CAP);
                read(Replay::attempt(&source))
            })
        })
        .over(BODY),
        Case::new("retry/body of 16 chunks, recorded and replayed", || {
            body(|chunks| {
                let source = chunks.split(CAP);
                read(Replay::attempt(&source)) && read(Replay::attempt(&source))
            })
        })
        .over(BODY),
    ]
}

const BODY: &str = "bare/body of 16 chunks";
const CAP: usize = 1024 * 1024;

type Boxed = UnsyncBoxBody<Bytes, Infallible>;

/// A body of chunks that cost nothing to make.
struct Chunks(u32);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        self.0 -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 4096])))))
    }
}

fn body(run: fn(Boxed) -> bool) -> Clients {
    Box::new(move || Box::new(move || run(UnsyncBoxBody::new(Chunks(black_box(16))))))
}

fn read(mut body: Boxed) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut cx) {
        black_box(&frame);
    }
    true
}

fn builder() -> RetryBuilder {
    RetryLayer::builder().backoff(Backoff::Constant(Duration::ZERO))
}

fn layer(builder: RetryBuilder) -> RetryLayer {
    builder.build().expect("a valid configuration")
}

/// With a budget that is never used up: one further attempt for each call.
fn ours() -> RetryLayer<buttress::Plain> {
    let budget = Budget::new(1.0, 10, Duration::from_secs(10)).expect("a valid budget");
    layer(builder().budget(budget)).plain()
}

/// Every other attempt of a thread fails, whichever clone makes it.
#[derive(Debug, Clone, Copy)]
pub struct Fails;

thread_local! {
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

impl Service<u64> for Fails {
    type Response = u64;
    type Error = Failed;
    type Future = Ready<Result<u64, Failed>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: u64) -> Self::Future {
        let failed = FAILED.replace(!FAILED.get());
        Bare.call(if failed { request } else { BAD })
    }
}

/// tower's retry with the policy that its documentation shows: a budget, and no wait.
#[derive(Clone)]
struct Towers {
    budget: Arc<TpsBudget>,
    left: u32,
}

impl Towers {
    fn new() -> Self {
        Towers { budget: Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 1.0)), left: 2 }
    }
}

impl Policy<u64, u64, Failed> for Towers {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, Failed>) -> Option<Ready<()>> {
        if result.is_ok() {
            self.budget.deposit();
            return None;
        }
        if self.left == 0 || !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}
