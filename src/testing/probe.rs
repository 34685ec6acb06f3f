//! An inner service that a test steers and questions.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tower_service::Service;

/// An inner service that a test steers and questions. Serves `()` and `http::Request<B>`.
///
/// Clones are instances of one backend: they share what it does and what it has seen, but each has to be polled ready
/// by itself.
///
/// # Panics
///
/// `call` panics on an instance that was not polled ready: that is the mistake it is there to find.
#[derive(Debug)]
pub struct Probe {
    backend: Arc<Mutex<Backend>>,
    /// The number of this instance while it is ready.
    ready: Option<Held>,
    number: u64,
}

#[derive(Debug, Default)]
struct Backend {
    does: Does,
    is_ready: Is,
    instances: u64,
    ready_polls: u64,
    last_ready: Option<u64>,
    last_called: Option<u64>,
    calls: u64,
    held: usize,
    in_flight: usize,
    wakers: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Does {
    #[default]
    Answers,
    Hangs,
    Fails,
    Panics,
    PanicsInCall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Is {
    #[default]
    Ready,
    Pending,
    Broken,
}

/// The error of a [`Probe`]: a failed call, or a failed readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeError {
    /// Did it fail to become ready?
    pub in_readiness: bool,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.in_readiness { "the probe is not ready" } else { "the probe failed" })
    }
}

impl StdError for ProbeError {}

impl Probe {
    /// A backend that is ready and answers at once.
    #[allow(clippy::new_without_default, reason = "a probe is made on purpose")]
    pub fn new() -> Self {
        Probe { backend: Arc::default(), ready: None, number: 0 }
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        lock(&self.backend)
    }

    fn set(&self, does: Does, is_ready: Is) {
        let wakers = {
            let mut backend = self.backend();
            backend.does = does;
            backend.is_ready = is_ready;
            std::mem::take(&mut backend.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// From now on every call, also a running one, answers.
    pub fn answers(&self) {
        self.set(Does::Answers, Is::Ready);
    }

    /// From now on calls hang.
    pub fn hangs(&self) {
        self.set(Does::Hangs, Is::Ready);
    }

    /// From now on calls fail with a [`ProbeError`].
    pub fn fails(&self) {
        self.set(Does::Fails, Is::Ready);
    }

    /// From now on the futures of calls panic.
    pub fn panics(&self) {
        self.set(Does::Panics, Is::Ready);
    }

    /// From now on `call` itself panics.
    pub fn panics_in_call(&self) {
        self.set(Does::PanicsInCall, Is::Ready);
    }

    /// From now on it does not become ready; calls answer.
    pub fn is_never_ready(&self) {
        self.set(Does::Answers, Is::Pending);
    }

    /// From now on its readiness is an error; calls answer.
    pub fn is_broken(&self) {
        self.set(Does::Answers, Is::Broken);
    }

    /// How often readiness was asked for.
    pub fn ready_polls(&self) -> u64 {
        self.backend().ready_polls
    }

    /// How many calls came.
    pub fn calls(&self) -> u64 {
        self.backend().calls
    }

    /// How many calls are running: begun, neither ended nor dropped.
    pub fn in_flight(&self) -> usize {
        self.backend().in_flight
    }

    /// How many instances were polled ready and are neither called nor dropped: what a real service would hold back.
    pub fn held(&self) -> usize {
        self.backend().held
    }

    /// Was the last call made on the instance that was last polled ready?
    pub fn ready_instance_was_called(&self) -> bool {
        let backend = self.backend();
        backend.last_called.is_some() && backend.last_called == backend.last_ready
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        let mut backend = self.backend();
        backend.instances += 1;
        Probe { backend: Arc::clone(&self.backend), ready: None, number: backend.instances }
    }
}

impl Probe {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProbeError>> {
        let mut backend = lock(&self.backend);
        backend.ready_polls += 1;
        match backend.is_ready {
            Is::Broken => Poll::Ready(Err(ProbeError { in_readiness: true })),
            Is::Pending => {
                backend.wakers.push(cx.waker().clone());
                Poll::Pending
            }
            Is::Ready => {
                backend.last_ready = Some(self.number);
                if self.ready.is_none() {
                    backend.held += 1;
                    self.ready = Some(Held(Arc::clone(&self.backend)));
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    fn begin<T>(&mut self, answer: T) -> ProbeFuture<T> {
        assert!(self.ready.take().is_some(), "the probe was called without having been polled ready");
        let panics = {
            let mut backend = self.backend();
            backend.calls += 1;
            backend.last_called = Some(self.number);
            backend.in_flight += 1;
            backend.does == Does::PanicsInCall
        };
        let future = ProbeFuture { running: Some(Running(Arc::clone(&self.backend))), answer: Some(answer) };
        assert!(!panics, "the probe panics in call");
        future
    }
}

impl Service<()> for Probe {
    type Response = ();
    type Error = ProbeError;
    type Future = ProbeFuture<()>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProbeError>> {
        self.poll(cx)
    }

    fn call(&mut self, (): ()) -> ProbeFuture<()> {
        self.begin(())
    }
}

impl<B> Service<Request<B>> for Probe {
    type Response = Response<ProbeBody>;
    type Error = ProbeError;
    type Future = ProbeFuture<Response<ProbeBody>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProbeError>> {
        self.poll(cx)
    }

    fn call(&mut self, _request: Request<B>) -> Self::Future {
        self.begin(Response::new(ProbeBody))
    }
}

/// An empty response body.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProbeBody;

impl Body for ProbeBody {
    type Data = Bytes;
    type Error = ProbeError;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProbeError>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

/// A call of a [`Probe`]. It follows what the probe does while it runs.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ProbeFuture<T> {
    running: Option<Running>,
    answer: Option<T>,
}

impl<T: Unpin> Future for ProbeFuture<T> {
    type Output = Result<T, ProbeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let does = {
            let mut backend = lock(&self.running.as_ref().expect(POLLED).0);
            if backend.does == Does::Hangs {
                backend.wakers.push(cx.waker().clone());
                return Poll::Pending;
            }
            backend.does
        };
        self.running = None;
        match (does, self.answer.take()) {
            (Does::Fails, _) => Poll::Ready(Err(ProbeError { in_readiness: false })),
            (Does::Panics | Does::PanicsInCall, _) => panic!("the probe panics"),
            (_, answer) => Poll::Ready(Ok(answer.expect(POLLED))),
        }
    }
}

const POLLED: &str = "not polled after it was ready";

/// A call that neither ended nor was dropped.
#[derive(Debug)]
struct Running(Arc<Mutex<Backend>>);

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.0).in_flight -= 1;
    }
}

/// Readiness that an instance holds.
#[derive(Debug)]
struct Held(Arc<Mutex<Backend>>);

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.0).held -= 1;
    }
}

/// A probe panics on purpose, and must be of use after that.
fn lock(backend: &Mutex<Backend>) -> MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}
