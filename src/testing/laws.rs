//! Laws that hold for every layer, as functions that panic where one is broken.
//!
//! Each takes a way to wrap a [`Probe`] and a way to make a request, so it serves plain and HTTP forms alike. They want
//! a tokio runtime with a paused clock (`#[tokio::test(start_paused = true)]`).

use std::{
    fmt::Debug,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tower_service::Service;

use crate::{
    BoxError,
    testing::{Probe, ProbeError},
};

/// It is not ready before the inner service is. The instance that was polled ready is the one that is called, and a
/// clone has to be polled ready by itself. (For a while two are ready: a layer that has room for one, like tower's
/// `ConcurrencyLimit`, wants a limit of 2 here.)
pub async fn readiness<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req)
where
    S: Service<Req, Error: Debug> + Clone,
{
    let probe = Probe::new();
    let mut service = wrap(probe.clone());
    probe.is_never_ready();
    assert!(poll_once(pin!(ready(&mut service))).is_pending(), "ready before the inner service is");
    probe.answers();
    for _ in 0..3 {
        within(ready(&mut service)).await.expect("the probe is ready");
        let mut clone = service.clone();
        let polls = probe.ready_polls();
        within(ready(&mut clone)).await.expect("the probe is ready");
        assert!(probe.ready_polls() > polls, "a clone was taken for ready without asking the inner service");
        drop(clone);
        within(ready(&mut service)).await.expect("the probe is ready");
        within(service.call(request())).await.map(drop).expect("the probe answers");
        assert!(probe.ready_instance_was_called(), "another instance than the one polled ready was called");
        assert_eq!(probe.held(), 0, "the instance polled ready was not called");
    }
    drop(service);
    assert_eq!(probe.held(), 0, "readiness is held by nobody who could use it");
}

/// Errors of the inner service, in readiness and in calls, come back with their identity.
pub async fn errors<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req)
where
    S: Service<Req, Error: Into<BoxError>>,
{
    let probe = Probe::new();
    let mut service = wrap(probe.clone());
    probe.is_broken();
    let error = within(ready(&mut service)).await.expect_err("the readiness of the probe is broken");
    assert_eq!(found(error), ProbeError { in_readiness: true });
    probe.fails();
    assert!(within(ready(&mut service)).await.is_ok());
    let error = within(service.call(request())).await.map(drop).expect_err("the probe fails");
    assert_eq!(found(error), ProbeError { in_readiness: false });
}

/// A dropped future takes the inner call with it, and leaves the service usable.
pub async fn cancellation<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req)
where
    S: Service<Req, Error: Debug>,
{
    let probe = Probe::new();
    let mut service = wrap(probe.clone());
    probe.hangs();
    for polled in [false, true] {
        within(ready(&mut service)).await.expect("the probe is ready");
        let mut call = Box::pin(service.call(request()));
        if polled {
            assert!(poll_once(call.as_mut()).is_pending());
            assert_eq!(probe.in_flight(), 1);
        }
        drop(call);
        assert_eq!(probe.in_flight(), 0, "the inner call outlived its caller");
    }
    probe.answers();
    within(ready(&mut service)).await.expect("the probe is ready");
    within(service.call(request())).await.map(drop).expect("the probe answers");
}

/// A panic of the inner service, in `call` or in its future, reaches the caller and breaks nothing.
pub async fn panics<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req)
where
    S: Service<Req, Error: Debug>,
{
    let probe = Probe::new();
    let mut service = wrap(probe.clone());
    probe.panics_in_call();
    within(ready(&mut service)).await.expect("the probe is ready");
    // A layer may make the inner call in its future.
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(Box::pin(service.call(request())).as_mut()))).is_err());
    probe.panics();
    within(ready(&mut service)).await.expect("the probe is ready");
    let mut call = Box::pin(service.call(request()));
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(call.as_mut()))).is_err());
    drop(call);
    assert_eq!(probe.in_flight(), 0);
    probe.answers();
    within(ready(&mut service)).await.expect("the probe is ready");
    within(service.call(request())).await.map(drop).expect("the probe answers");
}

/// Who waits for readiness, or for an answer, is not woken while nothing happens, and is woken when something does.
pub async fn no_busy_waiting<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req, quiet: Duration)
where
    S: Service<Req, Error: Debug>,
{
    let probe = Probe::new();
    let mut service = wrap(probe.clone());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);

    probe.is_never_ready();
    assert!(service.poll_ready(&mut cx).is_pending(), "ready before the inner service is");
    tokio::time::sleep(quiet).await;
    assert_eq!(wakes.0.load(Relaxed), 0, "woken with nothing new");
    probe.answers();
    assert!(wakes.0.swap(0, Relaxed) > 0, "readiness wakes nobody");

    within(ready(&mut service)).await.expect("the probe is ready");
    probe.hangs();
    let mut call = pin!(service.call(request()));
    assert!(call.as_mut().poll(&mut cx).is_pending());
    tokio::time::sleep(quiet).await;
    assert_eq!(wakes.0.load(Relaxed), 0, "woken with nothing new");
    probe.answers();
    assert!(wakes.0.load(Relaxed) > 0, "the answer wakes nobody");
    assert!(call.as_mut().poll(&mut cx).is_ready());
}

/// A layer that refuses now refuses at once, even over a service that never becomes ready, and does not touch it.
pub async fn closed_door<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req)
where
    S: Service<Req>,
{
    let probe = Probe::new();
    let mut service = wrap(probe.clone());
    probe.is_never_ready();
    for _ in 0..2 {
        let polled = poll_once(pin!(ready(&mut service)));
        assert!(polled.is_ready(), "a closed door waits for the house");
        assert!(poll_once(pin!(service.call(request()))).is_ready(), "a refusal waits");
    }
    assert_eq!((probe.ready_polls(), probe.calls()), (0, 0), "a closed door touched the house");
}

/// A layer that closes between readiness and call (`close` makes it) gives back what the readied instance holds,
/// whether or not it is polled ready once more in between.
pub async fn late_refusal<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req, close: impl AsyncFnOnce())
where
    S: Service<Req, Error: Debug> + Clone,
{
    let probe = Probe::new();
    let (mut once, mut twice) = (wrap(probe.clone()), wrap(probe.clone()));
    within(ready(&mut once)).await.expect("the probe is ready");
    within(ready(&mut twice)).await.expect("the probe is ready");
    assert_eq!(probe.held(), 2);
    close().await;
    within(ready(&mut twice)).await.expect("who is ready stays so");
    for service in [&mut once, &mut twice] {
        let call = service.call(request());
        assert!(poll_once(pin!(call)).is_ready(), "a refusal waits");
    }
    assert_eq!(probe.held(), 0, "a refused call keeps the readiness of the inner service");
    assert_eq!(probe.calls(), 0, "a refused call reached the inner service");
}

/// Layer, service and future can cross threads wherever those of the inner service can.
pub fn crosses_threads<S, Req>(wrap: impl Fn(Probe) -> S, request: impl Fn() -> Req)
where
    S: Service<Req> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Response: Send,
{
    fn is_send<T: Send>(_: &T) {}
    let probe = Probe::new();
    let mut service = wrap(probe);
    is_send(&service);
    let ready = poll_once(pin!(ready(&mut service)));
    assert!(matches!(ready, Poll::Ready(Ok(()))));
    is_send(&service.call(request()));
}

async fn ready<S: Service<Req>, Req>(service: &mut S) -> Result<(), S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await
}

/// What hangs breaks a law, and must not make the test hang too. An hour of a paused clock is over at once.
async fn within<F: Future>(future: F) -> F::Output {
    let Ok(output) = tokio::time::timeout(Duration::from_secs(3_600), future).await else {
        panic!("the layer hangs: does it still hold a place for a call that is over?")
    };
    output
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The probe's own error, wherever it is along the sources.
fn found(error: impl Into<BoxError>) -> ProbeError {
    let error = error.into();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<ProbeError>() {
            return *found;
        }
        next = e.source();
    }
    panic!("the inner error is gone: {error}")
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}
