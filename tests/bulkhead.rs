//! The bulkhead through its layer, in virtual time. Tests named `s<n>_` are the scenarios of the same number that other
//! projects assert of theirs.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::{Future, pending, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream, stream::FuturesUnordered};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    Boxed, Bulkhead, BulkheadBuilder, BulkheadConfig, BulkheadLayer, BulkheadSnapshot, CircuitBreakerLayer, Deadline,
    Error, Outcome, Plain, Priority, Reason, Rejection, State,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe, ProbeError},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn builder(limit: usize) -> BulkheadBuilder {
    BulkheadLayer::builder().limit(limit)
}

fn build(limit: usize, queue: usize) -> BulkheadLayer {
    builder(limit).queue(queue).wait(ms(1_000)).build().unwrap()
}

/// In flight, waiting.
fn counts(layer: &BulkheadLayer) -> (usize, usize) {
    let snapshot = layer.handle().snapshot();
    (snapshot.in_flight, snapshot.waiting)
}

fn snapshot(layer: &BulkheadLayer) -> BulkheadSnapshot {
    layer.handle().snapshot()
}

/// A plain service behind the bulkhead, and how it is told to end its calls.
fn plain(layer: &BulkheadLayer) -> (Bulkhead<Probe, Plain>, Probe) {
    let probe = Probe::new();
    probe.hangs();
    (layer.clone().plain().layer(probe.clone()), probe)
}

/// A call that is ready to be polled, made the way a client makes it.
fn call<S: Service<()>>(service: &mut S) -> Pin<Box<S::Future>> {
    let ready = poll_fn(|cx| service.poll_ready(cx)).now_or_never();
    assert!(ready.is_some_and(|r| r.is_ok()));
    Box::pin(service.call(()))
}

fn reason<T, E: Into<buttress::BoxError>>(result: Result<T, E>) -> Option<Reason> {
    let error: buttress::BoxError = result.err()?.into();
    Rejection::of(&*error).map(Rejection::reason)
}

/// Polled once: the reason of its refusal, `None` if it is pending or answered.
fn refusal<F, T, E>(call: &mut Pin<Box<F>>) -> Option<Reason>
where
    F: Future<Output = Result<T, E>>,
    E: Into<buttress::BoxError>,
{
    call.as_mut().now_or_never().and_then(reason)
}

/// An inner service whose calls last as long as they are told, and which writes down who began.
type Began = Arc<Mutex<Vec<u32>>>;

fn sleeper(
    began: &Began,
) -> impl Service<(u32, u64), Response = u32, Error = ProbeError, Future: Future + Send> + Clone + use<> {
    let began = Arc::clone(began);
    service_fn(move |(id, lasts): (u32, u64)| {
        began.lock().unwrap().push(id);
        async move {
            sleep(ms(lasts)).await;
            Ok::<_, ProbeError>(id)
        }
    })
}

// === at once ===

#[tokio::test(start_paused = true)]
async fn s79_two_are_in_the_third_is_refused_and_room_comes_back() {
    let layer = build(2, 0);
    let (mut service, probe) = plain(&layer);
    let (first, second) = (call(&mut service), call(&mut service));
    let mut third = call(&mut service);
    assert_eq!(counts(&layer), (2, 0));
    let error = third.as_mut().now_or_never().unwrap().unwrap_err();
    let rejection = Rejection::of(&error).unwrap();
    assert_eq!((rejection.policy(), rejection.name()), ("bulkhead", "bulkhead"));
    assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::BulkheadFull, None));
    assert!(rejection.is_refusal());
    probe.answers();
    first.await.unwrap();
    assert_eq!(counts(&layer), (1, 0));
    call(&mut service).await.unwrap();
    second.await.unwrap();
    assert_eq!((counts(&layer), snapshot(&layer).rejected), ((0, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn s79_a_wait_of_50_ms_ends_at_50_ms() {
    let layer = builder(1).queue(1).wait(ms(50)).build().unwrap();
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    let start = Instant::now();
    assert_eq!(reason(call(&mut service).await), Some(Reason::QueueTimeout));
    assert_eq!(start.elapsed(), ms(50));
    // It counts from `call`, also for a future that is polled late.
    let late = call(&mut service);
    advance(ms(20)).await;
    let start = Instant::now();
    assert_eq!(reason(late.await), Some(Reason::QueueTimeout));
    assert_eq!((start.elapsed(), snapshot(&layer).rejected), (ms(30), 2));
}

#[tokio::test(start_paused = true)]
async fn s79_one_who_is_interrupted_gives_its_place_back() {
    let layer = build(1, 1);
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    let mut waits = call(&mut service);
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!(refusal(&mut call(&mut service)), Some(Reason::BulkheadFull));
    drop(waits);
    assert_eq!(counts(&layer), (1, 0));
    assert!(call(&mut service).as_mut().now_or_never().is_none(), "there is a place again");
    assert_eq!((counts(&layer), snapshot(&layer).rejected), ((1, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn s81_a_dropped_future_gives_its_permit_back_and_a_ready_service_has_none() {
    let layer = build(1, 0);
    let (mut service, probe) = plain(&layer);
    let mut ready = service.clone();
    // Nothing is taken before `call`: both are ready for the one permit there is.
    assert!(ServiceExt::<()>::ready(&mut ready).now_or_never().is_some());
    assert_eq!((counts(&layer), probe.held()), ((0, 0), 1));
    let runs = call(&mut service);
    assert_eq!(refusal(&mut Box::pin(ready.call(()))), Some(Reason::BulkheadFull));
    drop(runs);
    assert_eq!((counts(&layer), probe.in_flight()), ((0, 0), 0));
    drop((ready, service));
    assert_eq!(counts(&layer), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn s81_waiters_are_served_in_their_order() {
    let (layer, began) = (build(1, 10), Began::default());
    let mut service = layer.clone().plain().layer(sleeper(&began));
    let calls: Vec<_> = (0..8).map(|id| Box::pin(service.call((id, 100)))).collect();
    assert_eq!(counts(&layer), (1, 7));
    // Polled in another order than they came in.
    let start = Instant::now();
    let done = futures_util::future::join_all(calls.into_iter().rev()).await;
    assert!(done.into_iter().all(|r| r.is_ok()));
    assert_eq!((began.lock().unwrap().clone(), start.elapsed()), ((0..8).collect(), ms(800)));
}

#[tokio::test(start_paused = true)]
async fn s111_fifty_services_share_one_limit() {
    let layer = build(10, 0);
    let calls: Vec<_> = (0..50).map(|_| call(&mut plain(&layer).0)).collect();
    let refused = calls.into_iter().map(|mut c| (refusal(&mut c), c)).filter(|c| c.0.is_some()).count();
    assert_eq!((refused, counts(&layer)), (40, (0, 0)));
}

/// Law 3: a refusal decided in `poll_ready` binds the next call, and only that.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_poll_ready_binds_one_call() {
    let layer = build(1, 0);
    let (mut service, probe) = plain(&layer);
    let runs = call(&mut service);
    let polls = probe.ready_polls();
    assert!(ServiceExt::<()>::ready(&mut service).now_or_never().is_some());
    assert_eq!(probe.ready_polls(), polls);
    drop(runs);
    assert_eq!(refusal(&mut Box::pin(service.call(()))), Some(Reason::BulkheadFull));
    probe.answers();
    call(&mut service).await.unwrap();
    // Polled again, it is forgotten.
    probe.hangs();
    let runs = call(&mut service);
    assert!(ServiceExt::<()>::ready(&mut service).now_or_never().is_some());
    drop(runs);
    probe.answers();
    call(&mut service).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn panics_give_the_permit_back() {
    let layer = build(1, 1);
    let (mut service, probe) = plain(&layer);
    probe.panics_in_call();
    assert!(catch_unwind(AssertUnwindSafe(|| call(&mut service))).is_err());
    assert_eq!(counts(&layer), (0, 0));
    probe.panics();
    let mut running = call(&mut service);
    let mut waits = call(&mut service);
    assert!(catch_unwind(AssertUnwindSafe(|| running.as_mut().now_or_never())).is_err());
    drop(running);
    // The one who waited was let in, and panics in its turn: after that, everybody is out.
    assert_eq!(counts(&layer), (1, 0));
    assert!(catch_unwind(AssertUnwindSafe(|| waits.as_mut().now_or_never())).is_err());
    drop(waits);
    assert_eq!(counts(&layer), (0, 0));
}

// === waiting ===

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_pass_one_who_waits() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let runs = call(&mut service);
    let mut first = call(&mut service);
    drop(runs);
    // The permit is the first one's, though it has not noticed yet.
    let mut second = call(&mut service);
    assert_eq!(counts(&layer), (1, 1));
    probe.answers();
    assert!(second.as_mut().now_or_never().is_none());
    assert!(first.as_mut().now_or_never().unwrap().is_ok());
    assert!(second.as_mut().now_or_never().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn one_who_leaves_after_it_was_called_hands_the_permit_on() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let (runs, first, second) = (call(&mut service), call(&mut service), call(&mut service));
    drop(runs);
    assert_eq!(counts(&layer), (1, 1));
    drop(first);
    assert_eq!(counts(&layer), (1, 0));
    probe.answers();
    second.await.unwrap();
    assert_eq!(counts(&layer), (0, 0));
}

/// Law 3: it holds nothing of the inner service while it waits, and asks for readiness itself when it is called.
#[tokio::test(start_paused = true)]
async fn one_who_waits_touches_nothing() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let mut late = service.clone();
    assert!(ServiceExt::<()>::ready(&mut late).now_or_never().is_some());
    let runs = call(&mut service);
    assert_eq!(probe.held(), 1);
    let mut waits = Box::pin(late.call(()));
    assert_eq!(probe.held(), 0, "one that was ready keeps its readiness while it waits");
    let mut unready = call(&mut service);
    let before = (probe.ready_polls(), probe.calls());
    assert!(waits.as_mut().now_or_never().is_none() && unready.as_mut().now_or_never().is_none());
    assert_eq!((probe.ready_polls(), probe.calls()), before);
    drop(runs);
    probe.answers();
    waits.await.unwrap();
    unready.await.unwrap();
    assert!(probe.ready_instance_was_called());
    assert_eq!((probe.held(), counts(&layer)), (0, (0, 0)));
}

/// Asked again, it may find the door shut that it found open: what it holds goes then, not with the next call.
#[tokio::test(start_paused = true)]
async fn readiness_does_not_outlast_an_open_door() {
    for queue in [0, 1] {
        let layer = build(1, queue);
        let (mut service, probe) = plain(&layer);
        let mut other = service.clone();
        assert!(ServiceExt::<()>::ready(&mut service).now_or_never().is_some());
        let runs = call(&mut other);
        assert_eq!(probe.held(), 1);
        assert!(ServiceExt::<()>::ready(&mut service).now_or_never().is_some());
        assert_eq!(probe.held(), 0);
        let waits = Box::pin(service.call(()));
        drop(runs);
        probe.answers();
        assert_eq!(waits.await.is_ok(), queue == 1);
        assert_eq!((probe.held(), counts(&layer)), (0, (0, 0)));
    }
}

/// Nobody polls the one who has waited for too long, and it does not keep others out.
#[tokio::test(start_paused = true)]
async fn one_whose_wait_is_over_takes_no_room() {
    let layer = build(1, 1);
    let (mut service, _probe) = plain(&layer);
    let (_runs, waits) = (call(&mut service), call(&mut service));
    advance(ms(1_000)).await;
    let mut next = call(&mut service);
    assert!(next.as_mut().now_or_never().is_none());
    assert_eq!((reason(waits.await), counts(&layer)), (Some(Reason::QueueTimeout), (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn room_that_comes_between_readiness_and_call_is_taken_and_readiness_asked_for_then() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let runs = call(&mut service);
    assert!(ServiceExt::<()>::ready(&mut service).now_or_never().is_some());
    drop(runs);
    probe.answers();
    service.call(()).await.unwrap();
    assert!(probe.ready_instance_was_called());
    assert_eq!(counts(&layer), (0, 0));
}

/// As one that had its turn.
#[tokio::test(start_paused = true)]
async fn who_comes_in_without_readiness_waits_for_it_no_longer_than_in_the_line() {
    for (within, expected) in [(300, Reason::DeadlineExceeded), (3_000, Reason::QueueTimeout)] {
        let layer = build(1, 5);
        let (mut service, probe) = plain(&layer);
        let runs = call(&mut service);
        assert!(ServiceExt::<()>::ready(&mut service).now_or_never().is_some());
        drop(runs);
        probe.is_never_ready();
        let start = Instant::now();
        let waits = Deadline::after(ms(within)).scope(async { service.call(()).await });
        assert_eq!((reason(waits.await), start.elapsed()), (Some(expected), ms(within.min(1_000))));
        assert_eq!((counts(&layer), snapshot(&layer).rejected, probe.held()), ((0, 0), 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_is_not_ready_keeps_the_permit_and_a_broken_one_gives_it_back() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let (runs, mut waits) = (call(&mut service), call(&mut service));
    probe.is_never_ready();
    drop(runs);
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!(counts(&layer), (1, 0));
    probe.is_broken();
    let error = waits.await.unwrap_err();
    assert_eq!(error.source().and_then(|e| e.downcast_ref()), Some(&ProbeError { in_readiness: true }));
    assert!(Rejection::of(&error).is_none());
    assert_eq!((counts(&layer), snapshot(&layer).rejected), ((0, 0), 0));
}

/// Else it would keep its permit for as long as the inner service hangs, and all that come after it wait in vain.
#[tokio::test(start_paused = true)]
async fn who_has_its_turn_does_not_wait_longer_for_an_inner_service_that_hangs() {
    for (within, expected) in [(300, Reason::DeadlineExceeded), (3_000, Reason::QueueTimeout)] {
        let layer = build(1, 5);
        let (mut service, probe) = plain(&layer);
        let runs = call(&mut service);
        let start = Instant::now();
        let mut waits = Box::pin(Deadline::after(ms(within)).scope(async { call(&mut service).await }));
        assert!(waits.as_mut().now_or_never().is_none());
        sleep(ms(100)).await;
        probe.is_never_ready();
        drop(runs);
        assert_eq!(reason(waits.await), Some(expected));
        assert_eq!(start.elapsed(), ms(within.min(1_000)));
        assert_eq!((counts(&layer), snapshot(&layer).rejected, probe.held()), ((0, 0), 1, 0));
    }
    // In shadow it goes on.
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let runs = call(&mut service);
    let mut waits = call(&mut service);
    probe.is_never_ready();
    drop(runs);
    layer.handle().shadow(true);
    assert!(waits.as_mut().now_or_never().is_none());
    sleep(ms(2_000)).await;
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!((counts(&layer), snapshot(&layer).would_have_rejected), ((1, 0), 1));
    probe.answers();
    waits.await.unwrap();
    assert_eq!(counts(&layer), (0, 0));
}

/// More than the backend can do (80 a second), from callers who wait less than the queue would let them. Served in
/// order, each would be called with too little time left, and all that the backend did would be for nobody.
#[tokio::test(start_paused = true)]
async fn under_overload_the_backend_works_for_callers_that_are_still_there() {
    for (offered, wait, within) in [(200, 500, 10_000), (200, 500, 300), (100, 500, 250), (200, 30_000, 2_000)] {
        let layer = builder(8).queue(1_000).wait(ms(wait)).build().unwrap().plain();
        let service = layer.layer(service_fn(|(): ()| async {
            sleep(ms(100)).await;
            Ok::<_, Infallible>(())
        }));
        let (good, start) = (Arc::new(Mutex::new(0)), Instant::now());
        while start.elapsed() < ms(20_000) {
            let (service, good) = (service.clone(), Arc::clone(&good));
            tokio::spawn(async move {
                let came = Instant::now();
                let call = Deadline::after(ms(within)).scope(service.oneshot(()));
                let answer = tokio::time::timeout(ms(within), call).await;
                if matches!(answer, Ok(Ok(()))) && came.duration_since(start) > ms(10_000) {
                    *good.lock().unwrap() += 1;
                }
            });
            sleep(Duration::from_secs(1) / offered).await;
        }
        sleep(ms(within.min(1_000))).await;
        let good = *good.lock().unwrap();
        assert!(good >= 720, "{good} of 800: {offered} a second, a wait of {wait} ms, {within} ms each");
    }
}

/// An overload of callers who wait for milliseconds is over when nobody has waited for some milliseconds, and not for a
/// share of what others may wait.
#[tokio::test(start_paused = true)]
async fn after_an_overload_of_the_impatient_a_burst_is_served_in_its_order() {
    let layer = builder(1).queue(1_000).wait(ms(30_000)).build().unwrap().plain();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let service = layer.layer(service_fn(move |n: u32| {
        seen.lock().unwrap().push(n);
        async {
            sleep(ms(5)).await;
            Ok::<_, Infallible>(())
        }
    }));
    let go = |n: u32, within: u64| {
        let call = Deadline::after(ms(within)).scope(service.clone().oneshot(n));
        tokio::spawn(async move { _ = call.await })
    };
    for i in 0..200 {
        // A few who have time.
        if i > 100 && i % 20 == 19 {
            go(2, 60_000);
        }
        go(0, 40);
        sleep(ms(2)).await;
    }
    sleep(ms(100)).await;
    // Nearly idle: three meet every five seconds.
    for _ in 0..4 {
        (0..3).for_each(|_| _ = go(1, 60_000));
        sleep(ms(5_000)).await;
    }
    order.lock().unwrap().clear();
    for call in (10..20).map(|n| go(n, 60_000)).collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (10..20).collect::<Vec<_>>());
}

/// At the default wait of 30 s, an overload of a minute; then somebody waits every few seconds, and never for long.
/// Nobody would be late in order any more, so it is order again.
#[tokio::test(start_paused = true)]
async fn an_overload_is_forgotten_although_somebody_waits_now_and_then() {
    let layer = builder(1).queue(10_000).build().unwrap().plain();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let service = layer.layer(service_fn(move |n: u32| {
        seen.lock().unwrap().push(n);
        async {
            sleep(ms(10)).await;
            Ok::<_, Infallible>(())
        }
    }));
    // Twice of what it can do.
    for _ in 0..12_000 {
        tokio::spawn(service.clone().oneshot(0));
        sleep(ms(5)).await;
    }
    for _ in 0..24 {
        (1..4).for_each(|n| _ = tokio::spawn(service.clone().oneshot(n)));
        sleep(ms(5_000)).await;
    }
    let order = order.lock().unwrap();
    assert_eq!(order[order.len() - 3..], [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_to_the_instant() {
    let layer = build(1, 5);
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    for (within, expected) in [(300, Reason::DeadlineExceeded), (3_000, Reason::QueueTimeout)] {
        let start = Instant::now();
        let waits = Deadline::after(ms(within)).scope(async { call(&mut service).await });
        assert_eq!(reason(waits.await), Some(expected));
        assert_eq!(start.elapsed(), ms(within.min(1_000)));
    }
    assert_eq!(counts(&layer), (1, 0));
}

/// Timers are good for a millisecond, and round up: a deadline within one is told of before, and not after.
#[tokio::test(start_paused = true)]
async fn a_deadline_between_two_ticks_is_not_overrun() {
    let layer = build(1, 5);
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    for within in [1_000, 3_500, 3_999, 4_001, 500, 1] {
        let (start, within) = (Instant::now(), Duration::from_micros(within));
        let waits = Deadline::after(within).scope(async { call(&mut service).await });
        assert_eq!(reason(waits.await), Some(Reason::DeadlineExceeded));
        assert_eq!(start.elapsed(), ms(within.as_millis() as u64), "{within:?}");
    }
    assert_eq!(counts(&layer), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_of_request_and_scope_counts() {
    let layer = build(1, 5);
    let mut service = layer.layer(service_fn(|_: Request<()>| pending::<HttpResult>()));
    let _runs = service.call(Request::new(()));
    for (on_request, ambient) in [(200, 300), (300, 200)] {
        let mut request = Request::new(());
        request.extensions_mut().insert(Deadline::after(ms(on_request)));
        let start = Instant::now();
        let waits = Deadline::after(ms(ambient)).scope(async { service.call(request).await });
        let response = waits.await.unwrap();
        assert_eq!((response.status(), start.elapsed()), (StatusCode::GATEWAY_TIMEOUT, ms(200)));
        assert_eq!(Rejection::in_response(&response).unwrap().reason(), Reason::DeadlineExceeded);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_late_already_is_refused_though_there_is_room() {
    let layer = build(1, 5);
    let mut service = layer.layer(service_fn(|_: Request<()>| ready(HttpResult::Ok(Response::new(Full::default())))));
    let mut request = Request::new(());
    request.extensions_mut().insert(Deadline::at(Instant::now()));
    let response = service.call(request).await.unwrap();
    assert_eq!(Rejection::in_response(&response).unwrap().reason(), Reason::DeadlineExceeded);
    assert_eq!((counts(&layer), snapshot(&layer).rejected), ((0, 0), 1));
}

/// It has its turn in time, and nobody polls it before its deadline: then nothing is begun any more, whether that or
/// the longest wait (of a second) would have ended its wait.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_noticed_after_the_deadline_is_too_late() {
    for (deadline, shadow, noticed, goes) in [
        (10, false, 20, false),
        (10, false, 9, true),
        (10, true, 20, true),
        (2_000, false, 2_000, false),
        (2_000, false, 1_999, true),
        (2_000, true, 2_000, true),
    ] {
        let layer = build(1, 5);
        let (mut service, probe) = plain(&layer);
        let first = call(&mut service);
        let mut second = Box::pin(Deadline::after(ms(deadline)).scope(async { call(&mut service).await }));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        layer.handle().shadow(shadow);
        advance(ms(noticed)).await;
        let answer = second.as_mut().now_or_never();
        assert_eq!((answer.is_none(), probe.calls()), (goes, if goes { 2 } else { 1 }), "{noticed} of {deadline}");
        assert!(goes || reason(answer.unwrap()) == Some(Reason::DeadlineExceeded));
        let snapshot = snapshot(&layer);
        assert_eq!((snapshot.rejected, snapshot.would_have_rejected), (u64::from(!goes), u64::from(shadow)));
        assert_eq!(counts(&layer), (usize::from(goes), 0));
    }
}

/// The same for one whose deadline is ambient only where it is called.
#[tokio::test(start_paused = true)]
async fn a_deadline_of_the_call_is_known_after_it() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let first = call(&mut service);
    let mut second = Deadline::after(ms(10)).scope(poll_fn(|_| std::task::Poll::Ready(call(&mut service)))).await;
    assert!(second.as_mut().now_or_never().is_none());
    drop(first);
    advance(ms(20)).await;
    assert_eq!((refusal(&mut second), probe.calls()), (Some(Reason::DeadlineExceeded), 1));
}

/// It was refused in the line, and looks only after a shadow has begun: that is told once.
#[tokio::test(start_paused = true)]
async fn a_shadow_tells_once_of_one_who_waits() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    probe.hangs();
    let _runs = call(&mut service);
    let mut late = Deadline::after(ms(10)).scope(poll_fn(|_| std::task::Poll::Ready(call(&mut service)))).await;
    assert!(late.as_mut().now_or_never().is_none());
    advance(ms(20)).await;
    // Who comes after its deadline finds that it is over.
    let mut next = call(&mut service);
    assert!(next.as_mut().now_or_never().is_none());
    layer.handle().shadow(true);
    assert!(late.as_mut().now_or_never().is_none());
    assert_eq!((probe.calls(), snapshot(&layer).would_have_rejected), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_oldest_wait_is_seen() {
    let layer = build(1, 5);
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    assert_eq!(snapshot(&layer).oldest_wait, None);
    let first = call(&mut service);
    advance(ms(30)).await;
    let _second = call(&mut service);
    assert_eq!(snapshot(&layer).oldest_wait, Some(ms(30)));
    drop(first);
    assert_eq!(snapshot(&layer).oldest_wait, Some(ms(0)));
}

/// A waiting call is woken when it is called, and not before.
#[tokio::test(start_paused = true)]
async fn nobody_is_woken_for_nothing() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let (runs, first, second) = (call(&mut service), call(&mut service), call(&mut service));
    let (mut first, mut second) = (watched(first), watched(second));
    assert!(first.poll().is_none() && second.poll().is_none());
    advance(ms(500)).await;
    assert_eq!((first.wakes(), second.wakes()), (0, 0));
    drop(runs);
    assert_eq!((first.wakes(), second.wakes()), (1, 0));
    probe.answers();
    assert!(first.poll().unwrap().is_ok());
    assert_eq!(second.wakes(), 1);
    assert!(second.poll().unwrap().is_ok());
}

// === by hand ===

#[tokio::test(start_paused = true)]
async fn growing_lets_in_who_waits_and_shrinking_puts_nobody_out() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let mut calls: Vec<_> = (0..5).map(|_| call(&mut service)).collect();
    let handle = layer.handle();
    assert_eq!(counts(&layer), (1, 4));
    handle.resize(3).unwrap();
    assert_eq!(counts(&layer), (3, 2));
    assert!(calls.iter_mut().all(|c| c.as_mut().now_or_never().is_none()));
    assert_eq!(probe.in_flight(), 3);

    handle.resize(1).unwrap();
    assert_eq!((counts(&layer), snapshot(&layer).limit), ((3, 2), 1));
    drop(calls.drain(..2));
    assert_eq!(counts(&layer), (1, 2), "there is room for nobody yet");
    drop(calls.remove(0));
    assert_eq!(counts(&layer), (1, 1));
    probe.answers();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(counts(&layer), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_is_not_taken() {
    let (layer, told) = (build(3, 0), Told::default());
    let watched = told.watch(builder(3)).build().unwrap();
    for limit in [0, usize::MAX] {
        let error = layer.handle().resize(limit).unwrap_err();
        assert_eq!((error.fields().len(), error.fields()[0].field), (1, "limit"));
    }
    let bad = BulkheadConfig { limit: 0, queue: usize::MAX, wait: Duration::MAX, permit_lease: ms(0) };
    let fields = |e: buttress::ConfigError| e.fields().iter().map(|f| f.field).collect::<Vec<_>>();
    assert_eq!(fields(layer.handle().update(bad).unwrap_err()), ["limit", "queue", "wait", "permit_lease"]);
    assert_eq!(snapshot(&layer).limit, 3);
    watched.handle().resize(3).unwrap();
    watched.handle().resize(4).unwrap();
    assert_eq!(told.take(), [Kind::LimitChanged { from: 3, to: 4 }]);
}

#[test]
fn building_names_every_bad_field() {
    let fields = |b: BulkheadBuilder| {
        b.build().unwrap_err().fields().iter().map(|f| (f.field, f.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(fields(BulkheadLayer::builder()), [("limit", "0".to_owned())]);
    let all = builder(0).name("").queue(usize::MAX).wait(ms(0)).permit_lease(Duration::MAX);
    let names: Vec<_> = fields(all).into_iter().map(|f| f.0).collect();
    assert_eq!(names, ["name", "limit", "queue", "wait", "permit_lease"]);
    assert!(builder(1).queue(0).build().is_ok() && builder(1_000_000_000).build().is_ok());
    assert!(BulkheadLayer::from_config(BulkheadConfig { limit: 1, ..BulkheadConfig::default() }).is_ok());
    assert!(BulkheadLayer::from_config(BulkheadConfig::default()).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_update_holds_for_who_comes_after_it() {
    let layer = build(1, 0);
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    let config = BulkheadConfig { limit: 1, queue: 1, wait: ms(70), permit_lease: ms(10) };
    layer.handle().update(config).unwrap();
    assert_eq!(snapshot(&layer).config, config);
    let start = Instant::now();
    assert_eq!(reason(call(&mut service).await), Some(Reason::QueueTimeout));
    assert_eq!(start.elapsed(), ms(70));
}

#[tokio::test(start_paused = true)]
async fn shadow_refuses_nobody_and_counts() {
    let told = Told::default();
    let layer = told.watch(builder(1).queue(1)).shadow(true).build().unwrap();
    let (mut service, _probe) = plain(&layer);
    let calls: Vec<_> = (0..4).map(|_| call(&mut service)).collect();
    // The second would have waited, the others would have been refused.
    assert_eq!((counts(&layer), snapshot(&layer).would_have_rejected), ((4, 0), 2));
    let would = Kind::WouldHaveRejected { reason: Reason::BulkheadFull };
    assert_eq!(told.take(), [would.clone(), would]);
    assert!(snapshot(&layer).shadow);

    layer.handle().shadow(false);
    drop(calls);
    let (_runs, _waits) = (call(&mut service), call(&mut service));
    assert_eq!(refusal(&mut call(&mut service)), Some(Reason::BulkheadFull));
    assert_eq!(snapshot(&layer).rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_shadow_begins_goes_in() {
    let layer = build(1, 5);
    let (mut service, probe) = plain(&layer);
    let (_runs, first, second) = (call(&mut service), call(&mut service), call(&mut service));
    layer.handle().shadow(true);
    assert_eq!(counts(&layer), (3, 0));
    probe.answers();
    first.await.unwrap();
    second.await.unwrap();
    let past = Deadline::at(Instant::now());
    assert!(past.scope(async { call(&mut service).await }).await.is_ok());
    assert_eq!((counts(&layer), snapshot(&layer).would_have_rejected), ((1, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_once() {
    let told = Told::default();
    let layer = told.watch(builder(1).queue(1).wait(ms(10))).build().unwrap();
    let (mut service, _probe) = plain(&layer);
    let (_runs, waits) = (call(&mut service), call(&mut service));
    drop(call(&mut service));
    waits.await.unwrap_err();
    let rejected = |reason| Kind::Rejected { reason };
    assert_eq!(told.take(), [rejected(Reason::BulkheadFull), rejected(Reason::QueueTimeout)]);
    assert_eq!(snapshot(&layer).rejected, 2);
}

// === other forms, other policies ===

#[tokio::test(start_paused = true)]
async fn flat_keeps_the_error_type_and_boxed_makes_it_one() {
    let layer = build(1, 0);
    let (mut service, _probe) = plain(&layer);
    let _runs = call(&mut service);
    let never = || service_fn(|(): ()| pending::<Result<(), Error<ProbeError>>>());
    let mut flat = layer.clone().flat().layer(never());
    assert!(matches!(call(&mut flat).await, Err(Error::Rejected(r)) if r.reason() == Reason::BulkheadFull));
    let mut boxed: Bulkhead<_, Boxed> = layer.clone().boxed().layer(never());
    assert_eq!(reason(call(&mut boxed).await), Some(Reason::BulkheadFull));
}

/// Law 5: neither a refusal nor a deadline that passed in the queue says anything of the backend.
#[tokio::test(start_paused = true)]
async fn a_breaker_outside_counts_no_refusals() {
    let breaker = CircuitBreakerLayer::builder().consecutive_failures(1).build().unwrap();
    let outcomes = OutcomesLayer::new();
    let layer = build(1, 1);
    let inner = layer.clone().plain().layer(service_fn(|(): ()| pending::<Result<(), ProbeError>>()));
    let mut service = outcomes.clone().flat().layer(breaker.clone().flat().layer(inner));
    let _runs = call(&mut service);
    let waits = call(&mut service);
    call(&mut service).await.unwrap_err();
    assert_eq!(reason(waits.await), Some(Reason::QueueTimeout));
    // Far longer than what the breaker blames a backend for.
    let late = Deadline::after(ms(3_000)).scope(async { call(&mut service).await });
    layer.handle().update(BulkheadConfig { wait: ms(9_000), ..snapshot(&layer).config }).unwrap();
    assert_eq!(reason(late.await), Some(Reason::DeadlineExceeded));
    assert_eq!(breaker.handle().snapshot().state, State::Closed);
    assert_eq!(outcomes.handle().take(), [Outcome::Ignored, Outcome::Ignored, Outcome::Cancelled]);
}

// === responses ===

type HttpResult = Result<Response<Full<Bytes>>, Infallible>;
type Chunks = StreamBody<Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

fn chunk(bytes: &'static [u8]) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

/// Streams `n` chunks, a millisecond apart, and then hangs or ends.
fn streams(
    n: usize,
    hangs: bool,
) -> impl Service<Request<()>, Response = Response<Chunks>, Error = Infallible> + Clone {
    service_fn(move |request: Request<()>| {
        let chunks = stream::iter(0..n).then(|_| async {
            sleep(ms(1)).await;
            chunk(b"chunk")
        });
        let rest = if hangs { stream::pending().boxed() } else { stream::empty().boxed() };
        let status = if request.uri().path() == "/500" { 500 } else { 200 };
        let body: Chunks = StreamBody::new(Box::pin(chunks.chain(rest)));
        ready(Ok(Response::builder().status(status).body(body).unwrap()))
    })
}

#[tokio::test(start_paused = true)]
async fn a_stream_holds_its_permit_to_its_end_whatever_its_head_said() {
    for path in ["/", "/500"] {
        let layer = build(1, 0);
        let mut service = layer.layer(streams(3, false));
        let response = service.call(Request::get(path).body(()).unwrap()).await.unwrap();
        assert_eq!(counts(&layer), (1, 0));
        let mut body = Box::pin(response.into_body());
        for _ in 0..3 {
            body.frame().await.unwrap().unwrap();
            assert_eq!(counts(&layer), (1, 0));
        }
        assert!(body.frame().await.is_none());
        assert_eq!(counts(&layer), (0, 0), "it is over, though the body is still there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_gives_its_permit_back_to_who_waits() {
    let layer = build(1, 1);
    let mut service = layer.layer(streams(3, true));
    let response = service.call(Request::new(())).await.unwrap();
    let mut waits = Box::pin(service.call(Request::new(())));
    assert!(waits.as_mut().now_or_never().is_none());
    drop(response);
    assert!(waits.as_mut().now_or_never().is_some());
}

/// Law 6: hyper does not poll every body to its end.
#[tokio::test(start_paused = true)]
async fn a_response_is_over_when_nothing_more_can_come() {
    let layer = build(1, 0);
    let full = |status: u16, text: &'static str| {
        service_fn(move |_: Request<()>| {
            let response = Response::builder().status(status).body(Full::new(Bytes::from_static(text.as_bytes())));
            ready(HttpResult::Ok(response.unwrap()))
        })
    };
    for (method, status, text) in [(Method::GET, 200, ""), (Method::GET, 204, "x"), (Method::HEAD, 200, "x")] {
        let request = Request::builder().method(method).body(()).unwrap();
        let _response = layer.layer(full(status, text)).call(request).await.unwrap();
        assert_eq!(counts(&layer), (0, 0), "{status} {text}");
    }
    let response = layer.layer(full(200, "text")).call(Request::new(())).await.unwrap();
    assert_eq!(counts(&layer), (1, 0));
    let mut body = Box::pin(response.into_body());
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&layer), (0, 0), "all of it was handed out");
}

/// A response whose reader has read `frames` of it.
async fn reads<S, B>(service: &mut S, frames: usize) -> Pin<Box<B>>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Error: std::fmt::Debug>,
{
    let mut body = Box::pin(service.call(Request::new(())).await.unwrap().into_body());
    for _ in 0..frames {
        body.frame().await.unwrap().unwrap();
    }
    body
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_loses_its_permit_to_the_next_call() {
    let told = Told::default();
    let layer = told.watch(builder(2)).build().unwrap();
    let mut service = layer.layer(streams(1_000, true));
    // One that never read anything, and one that did: the lease counts from the head, then from each frame.
    let unread = reads(&mut service, 0).await;
    advance(ms(30_000)).await;
    let read = reads(&mut service, 3).await;
    advance(ms(29_990)).await;
    assert_eq!(status(&mut service).await, 503, "{:?}", snapshot(&layer));
    advance(ms(10)).await;
    assert_eq!(counts(&layer), (2, 0), "nobody has come for it yet");
    let third = reads(&mut service, 0).await;
    assert_eq!((counts(&layer), snapshot(&layer).permits_expired), ((2, 0), 1));
    assert_eq!(told.take(), [Kind::Rejected { reason: Reason::BulkheadFull }, Kind::PermitExpired]);
    // The late end of the one that stalled gives nothing back a second time.
    drop(unread);
    assert_eq!((counts(&layer), status(&mut service).await), ((2, 0), 503));
    drop(read);
    assert_eq!(counts(&layer), (1, 0));
    drop(third);
    assert_eq!(counts(&layer), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn frames_renew_the_lease_and_an_expired_stream_goes_on_uncounted() {
    let layer = builder(1).permit_lease(ms(100)).build().unwrap();
    let mut service = layer.layer(streams(1_000, true));
    let mut body = reads(&mut service, 1).await;
    for _ in 0..5 {
        advance(ms(98)).await;
        assert_eq!(status(&mut service).await, 503);
        body.frame().await.unwrap().unwrap();
    }
    advance(ms(100)).await;
    let other = reads(&mut service, 0).await;
    // It can read on, and its frames take no permit back.
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&layer), (1, 0));
    // That took a millisecond, and the other one reads nothing.
    advance(ms(98)).await;
    assert_eq!(status(&mut service).await, 503);
    drop(body);
    assert_eq!(counts(&layer), (1, 0));
    drop(other);
    assert_eq!(counts(&layer), (0, 0));
}

/// One who waits is a call that has found no room: it looks again when a lease may be over, with no other call's help.
#[tokio::test(start_paused = true)]
async fn one_who_waits_gets_the_permit_of_a_reader_that_stalls() {
    let layer = builder(1).queue(1).wait(ms(10_000)).permit_lease(ms(3_000)).build().unwrap();
    let mut service = layer.layer(streams(1_000, true));
    let start = Instant::now();
    let body = reads(&mut service, 2).await;
    advance(ms(1_000)).await;
    let _mine = service.call(Request::new(())).await.unwrap();
    assert_eq!(start.elapsed(), ms(3_002));
    drop(body);
    assert_eq!(counts(&layer), (1, 0));
}

/// A lease that is made shorter while somebody waits is over for those who have stalled for longer already.
#[tokio::test(start_paused = true)]
async fn a_shorter_lease_lets_in_who_waits() {
    let layer = builder(1).queue(1).wait(ms(100_000)).permit_lease(ms(60_000)).build().unwrap();
    let mut service = layer.layer(streams(1_000, true));
    let body = reads(&mut service, 2).await;
    let mut waits = Box::pin(service.call(Request::new(())));
    assert!(waits.as_mut().now_or_never().is_none());
    advance(ms(10_000)).await;
    let config = BulkheadConfig { permit_lease: ms(5_000), ..snapshot(&layer).config };
    layer.handle().update(config).unwrap();
    let start = Instant::now();
    waits.await.unwrap();
    assert_eq!(start.elapsed(), ms(0));
    drop(body);
}

/// Who waits has set its timer by the longer one.
#[tokio::test(start_paused = true)]
async fn a_shorter_lease_is_waited_for_by_those_who_wait_already() {
    let layer = builder(1).queue(1).wait(ms(100_000)).permit_lease(ms(60_000)).build().unwrap();
    let mut service = layer.layer(streams(1_000, true));
    let body = reads(&mut service, 2).await;
    let start = Instant::now();
    let waits = async { drop(service.call(Request::new(())).await.unwrap()) };
    let shortens = async {
        advance(ms(5_000)).await;
        let config = BulkheadConfig { permit_lease: ms(10_000), ..snapshot(&layer).config };
        layer.handle().update(config).unwrap();
    };
    // Each is polled by its own waker alone.
    let mut both = FuturesUnordered::from_iter([waits.boxed_local(), shortens.boxed_local()]);
    while both.next().await.is_some() {}
    assert_eq!(start.elapsed(), ms(10_000));
    drop(body);
}

/// A limit and a lease that change together: who waits is let in by the new limit.
#[tokio::test(start_paused = true)]
async fn a_shorter_lease_lets_in_by_the_limit_that_came_with_it() {
    let layer = builder(2).queue(1).wait(ms(100_000)).permit_lease(ms(60_000)).build().unwrap();
    let mut service = layer.layer(streams(1_000, true));
    let stalled = reads(&mut service, 2).await;
    advance(ms(10_000)).await;
    let fresh = reads(&mut service, 2).await;
    let mut waits = Box::pin(service.call(Request::new(())));
    assert!(waits.as_mut().now_or_never().is_none());
    let config = BulkheadConfig { limit: 1, permit_lease: ms(5_000), ..snapshot(&layer).config };
    layer.handle().update(config).unwrap();
    assert_eq!(counts(&layer), (1, 1));
    drop(fresh);
    waits.await.unwrap();
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn refusals_speak_both_protocols() {
    let layer = build(1, 0);
    let mut service = layer.layer(service_fn(|_: Request<()>| pending::<HttpResult>()));
    let _runs = service.call(Request::new(()));
    let http = service.call(Request::new(())).await.unwrap();
    assert_eq!((http.status().as_u16(), http.headers().get("retry-after")), (503, None));
    let json = http.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["policy"].as_str(), json["reason"].as_str()), (Some("bulkhead"), Some("bulkhead_full")));
    let request = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
    let grpc = service.call(request).await.unwrap();
    assert_eq!((grpc.status().as_u16(), &grpc.headers()["grpc-status"]), (200, &"8".parse().unwrap()));
}

// === priorities ===

#[tokio::test(start_paused = true)]
async fn a_priority_is_the_functions_or_the_extension_or_default() {
    let by_path = |parts: &http::request::Parts| match parts.uri.path() {
        "/pay" => Priority::Critical,
        _ => Priority::Background,
    };
    for (own, order) in [(false, ["/slow", "/", "/pay"]), (true, ["/pay", "/slow", "/"])] {
        let builder = builder(1).queue(5);
        let layer = if own { builder.priority_fn(by_path) } else { builder }.build().unwrap();
        let began = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&began);
        let mut service = layer.layer(service_fn(move |r: Request<()>| {
            log.lock().unwrap().push(r.uri().path().to_owned());
            ready(HttpResult::Ok(Response::new(Full::default())))
        }));
        let mut hangs = layer.layer(service_fn(|_: Request<()>| pending::<HttpResult>()));
        let runs = hangs.call(Request::new(()));
        let mut request = |path: &str, priority: Option<Priority>| {
            let mut request = Request::get(path).body(()).unwrap();
            if let Some(priority) = priority {
                request.extensions_mut().insert(priority);
            }
            service.call(request)
        };
        let calls = [
            request("/slow", Some(Priority::Critical)),
            request("/", None),
            request("/pay", Some(Priority::Sheddable)),
        ];
        drop(runs);
        futures_util::future::join_all(calls).await;
        assert_eq!(*began.lock().unwrap(), order, "{own}");
    }
}

// === helpers ===

async fn status<S, B>(service: &mut S) -> u16
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    service.call(Request::new(())).await.unwrap().status().as_u16()
}

/// What an observer was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Kind>>>);

impl Told {
    fn watch(&self, builder: BulkheadBuilder) -> BulkheadBuilder {
        let told = self.clone();
        builder.observer(move |e: &Event| told.0.lock().unwrap().push(e.kind.clone()))
    }

    fn take(&self) -> Vec<Kind> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A future, and how often it was woken.
struct Watched<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

fn watched<F>(future: Pin<Box<F>>) -> Watched<F> {
    Watched { future, woken: Arc::default() }
}

impl<F: Future> Watched<F> {
    fn poll(&mut self) -> Option<F::Output> {
        let waker = std::task::Waker::from(Arc::clone(&self.woken));
        match self.future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn wakes(&self) -> usize {
        self.woken.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
