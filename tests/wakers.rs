//! A waker is somebody else's code: its panic is its own, and keeps nobody else asleep.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, ServiceExt, service_fn};

use buttress::{
    AdaptiveRateLayer, BulkheadLayer, Priority, Quota, RateLimitLayer, Registry,
    observe::{self, Event, Kind},
    testing::Probe,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Of an executor that is full, and thinks that this is worth a panic.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("too many tasks queued");
    }
}

#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn panics() -> Waker {
    Arc::new(Panics).into()
}

fn counts() -> (Arc<Counts>, Waker) {
    let counts = Arc::new(Counts::default());
    (Arc::clone(&counts), counts.into())
}

fn poll<F: Future>(future: &mut Pin<Box<F>>, waker: &Waker) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(waker))
}

fn hangs() -> Probe {
    let probe = Probe::new();
    probe.hangs();
    probe
}

#[tokio::test(start_paused = true)]
async fn of_a_bulkhead_that_grows_all_are_woken() {
    let layer = BulkheadLayer::builder().limit(1).queue(4).wait(MINUTE).build().unwrap().plain();
    let service = layer.layer(hangs());
    let mut calls: Vec<_> = (0..3).map(|_| Box::pin(service.clone().oneshot(()))).collect();
    let (told, waker) = counts();
    for (call, waker) in calls.iter_mut().zip([Waker::noop(), &panics(), &waker]) {
        assert!(poll(call, waker).is_pending());
    }
    layer.handle().resize(3).unwrap();
    assert_eq!((told.0.load(SeqCst), layer.handle().snapshot().in_flight), (1, 3));
    drop(calls);
    assert_eq!((layer.handle().snapshot().in_flight, layer.handle().snapshot().waiting), (0, 0));
}

/// One of low priority is put out for one of a high one, which must not get lost between the two.
#[tokio::test(start_paused = true)]
async fn whoever_is_let_in_for_another_keeps_its_place() {
    let layer = BulkheadLayer::builder().limit(1).queue(1).wait(MINUTE).build().unwrap();
    let service = layer.layer(service_fn(|_: Request<()>| pending::<Result<Response<Empty<Bytes>>, Infallible>>()));
    let call = |priority| {
        let mut request = Request::new(());
        request.extensions_mut().insert::<Priority>(priority);
        Box::pin(service.clone().oneshot(request))
    };
    let mut first = call(Priority::Default);
    assert!(poll(&mut first, Waker::noop()).is_pending());
    let mut low = call(Priority::Background);
    assert!(poll(&mut low, &panics()).is_pending());
    let mut high = call(Priority::Critical);
    assert!(poll(&mut high, Waker::noop()).is_pending());
    drop((first, high));
    assert!(matches!(poll(&mut low, Waker::noop()), Poll::Ready(Ok(r)) if r.status() == 503));
    assert_eq!((layer.handle().snapshot().in_flight, layer.handle().snapshot().waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_a_rate_limit_all_behind_one_that_leaves_are_woken() {
    let layer = RateLimitLayer::builder().quota(Quota::per(1, MINUTE)).wait(10 * MINUTE).build().unwrap().plain();
    let service = layer.layer(hangs());
    let mut calls: Vec<_> = (0..4).map(|_| Box::pin(service.clone().oneshot(()))).collect();
    let (told, waker) = counts();
    for (call, waker) in calls.iter_mut().zip([Waker::noop(), Waker::noop(), &panics(), &waker]) {
        assert!(poll(call, waker).is_pending());
    }
    drop(calls.remove(1));
    assert_eq!((told.0.load(SeqCst), layer.handle().snapshot().waiting), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn of_an_adaptive_rate_all_are_woken() {
    let layer = AdaptiveRateLayer::builder().wait(MINUTE).build().unwrap();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::builder().status(429).body(Empty::<Bytes>::new()).unwrap())
    }));
    service.clone().oneshot(Request::new(())).await.unwrap();
    service.clone().oneshot(Request::new(())).await.unwrap();
    let mut calls: Vec<_> = (0..2).map(|_| Box::pin(service.clone().oneshot(Request::new(())))).collect();
    let (told, waker) = counts();
    for (call, waker) in calls.iter_mut().zip([&panics(), &waker]) {
        assert!(poll(call, waker).is_pending());
    }
    layer.handle().shadow(true);
    assert_eq!(told.0.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn of_a_drain_all_are_woken() {
    let registry = Registry::new();
    let layer = registry.drain_layer().plain();
    let mut call = Box::pin(layer.layer(hangs()).oneshot(()));
    assert!(poll(&mut call, Waker::noop()).is_pending());
    let (mut first, mut second) = (Box::pin(registry.drain()), Box::pin(registry.drain()));
    let (told, waker) = counts();
    assert!(poll(&mut first, &panics()).is_pending() && poll(&mut second, &waker).is_pending());
    drop(call);
    assert_eq!(told.0.load(SeqCst), 1);
}

#[test]
fn of_an_event_stream_the_sender_is_spared() {
    let (sender, mut stream) = observe::channel(8);
    assert!(stream.poll_recv(&mut Context::from_waker(&panics())).is_pending());
    let layer = BulkheadLayer::builder().limit(1).observer(sender).build().unwrap().plain();
    layer.handle().resize(2).unwrap();
    let mut waker = Context::from_waker(Waker::noop());
    let told = pin!(stream.recv()).poll(&mut waker);
    assert!(matches!(told, Poll::Ready(Some(observe::Streamed::Event(Event { kind: Kind::LimitChanged { .. }, .. })))));
}
