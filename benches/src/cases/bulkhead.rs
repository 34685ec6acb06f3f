//! Bulkheads with room, where every call goes in and out; with a queue, in which every call waits; and full ones, where
//! every call is refused at once.

use std::{
    future::{Future, pending},
    mem,
    pin::pin,
    task::{Context, Poll, Waker},
};

use buttress::{BulkheadLayer, Key};
use tower::{
    Layer, Service,
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
    load_shed::LoadShedLayer,
    service_fn,
};
use tower_resilience::bulkhead::BulkheadLayer as Resilience;

use crate::{
    case::{Case, Clients, Judge},
    cases::bare::{self, Bare, Failed},
    drive::{http, plain},
};

const PLAIN: &str = "bulkhead/room buttress";
const HTTP: &str = "bulkhead/room buttress http";
/// As many as have a state of their own by default.
const KEYS: usize = 10_000;
/// Far above what two threads have in flight.
const LIMIT: usize = 100;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(PLAIN, || plain(layer().plain().layer(Bare))).judged(Judge::AtMost(120.0)).on_threads(),
        Case::new("bulkhead/room buttress queue", || plain(queue().plain().layer(Bare)))
            .judged(Judge::AtMost(120.0))
            .on_threads(),
        Case::new(HTTP, || http(layer().layer(Bare), bare::http_request)).over(bare::HTTP),
        Case::new("bulkhead/room buttress per key", || http(per_key(1).layer(Bare), bare::http_request))
            .over(bare::HTTP)
            .judged(Judge::RatioTo(HTTP)),
        Case::new("bulkhead/room buttress per key 10,000", || http(per_key(KEYS).layer(Bare), bare::http_request))
            .over(bare::HTTP)
            .judged(Judge::RatioTo(HTTP)),
        Case::new("bulkhead/room tower", || plain(ConcurrencyLimitLayer::new(LIMIT).layer(Bare)))
            .judged(Judge::RatioTo(PLAIN))
            .on_threads(),
        Case::new("bulkhead/room tower http", || {
            http(ConcurrencyLimitLayer::new(LIMIT).layer(Bare), bare::http_request)
        })
        .over(bare::HTTP)
        .judged(Judge::RatioTo(HTTP)),
        Case::new("bulkhead/room tower load shed", || plain(shedding(LIMIT).layer(Bare)))
            .judged(Judge::RatioTo(PLAIN))
            .on_threads(),
        Case::new("bulkhead/room tower-resilience", || plain(resilience().layer(Bare)))
            .judged(Judge::RatioTo(PLAIN))
            .on_threads(),
        Case::new("bulkhead/waits buttress", waits),
        Case::new("bulkhead/waits tower", waits_for_tower).judged(Judge::RatioTo("bulkhead/waits buttress")),
        Case::new("bulkhead/full buttress", || plain(full().plain().layer(Bare))).refuses().on_threads(),
        Case::new("bulkhead/full buttress http", || http(full().layer(Bare), bare::http_request))
            // It answers, with a 503.
            .over(bare::HTTP),
    ]
}

fn layer() -> BulkheadLayer {
    BulkheadLayer::builder().limit(LIMIT).build().expect("a valid configuration")
}

/// One key in use beside so many that are known.
fn per_key(keys: usize) -> BulkheadLayer {
    let layer = BulkheadLayer::builder().limit(LIMIT).per_key(Key::GrpcMethod).build().expect("a valid configuration");
    let mut service = layer.layer(Bare);
    for n in 1..keys {
        let mut request = bare::http_request();
        *request.uri_mut() = format!("/{n}").parse().expect("a path");
        drop(service.call(request));
    }
    layer
}

fn queue() -> BulkheadLayer {
    BulkheadLayer::builder().limit(LIMIT).queue(LIMIT).build().expect("a valid configuration")
}

fn full() -> BulkheadLayer {
    let layer = BulkheadLayer::builder().limit(1).build().expect("a valid configuration");
    let mut hangs = layer.clone().plain().layer(service_fn(|_: u64| pending::<Answer>()));
    mem::forget(hangs.call(1));
    layer
}

/// A call runs, a second one waits, is called when the first one ends, and runs to its end.
fn waits() -> Clients {
    let layer = BulkheadLayer::builder().limit(1).queue(1).build().expect("a valid configuration").plain();
    Box::new(move || {
        let (mut hangs, mut waits) = (layer.layer(service_fn(|_: u64| pending::<Answer>())), layer.layer(Bare));
        Box::new(move || {
            let mut cx = Context::from_waker(Waker::noop());
            let runs = hangs.call(1);
            let mut waits = pin!(waits.call(1));
            let waited = waits.as_mut().poll(&mut cx).is_pending();
            drop(runs);
            waited && matches!(waits.as_mut().poll(&mut cx), Poll::Ready(Ok(_)))
        })
    })
}

/// There it waits in `poll_ready`.
fn waits_for_tower() -> Clients {
    let layer = GlobalConcurrencyLimitLayer::new(1);
    Box::new(move || {
        let (mut hangs, mut waits) = (layer.layer(service_fn(|_: u64| pending::<Answer>())), layer.layer(Bare));
        Box::new(move || {
            let mut cx = Context::from_waker(Waker::noop());
            let ready = hangs.poll_ready(&mut cx).is_ready();
            let runs = hangs.call(1);
            let waited = Service::<u64>::poll_ready(&mut waits, &mut cx).is_pending();
            drop(runs);
            let called = Service::<u64>::poll_ready(&mut waits, &mut cx).is_ready();
            let answered = matches!(pin!(waits.call(1)).poll(&mut cx), Poll::Ready(Ok(_)));
            ready && waited && called && answered
        })
    })
}

type Answer = Result<u64, Failed>;

fn shedding(limit: usize) -> tower::layer::util::Stack<ConcurrencyLimitLayer, LoadShedLayer> {
    tower::layer::util::Stack::new(ConcurrencyLimitLayer::new(limit), LoadShedLayer::new())
}

fn resilience() -> Resilience {
    Resilience::builder().max_concurrent_calls(LIMIT).reject_when_full().build().expect("a valid configuration")
}
