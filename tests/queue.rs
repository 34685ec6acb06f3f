//! Who is next: the waiting room as callers of a bulkhead see it, in virtual time. Its pure parts are checked against a
//! model of their rules beside their code.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use proptest::prelude::*;
use tokio::{
    sync::oneshot,
    time::{Instant, advance},
};
use tower::{Layer, Service, util::BoxCloneService};

use buttress::{Bulkhead, BulkheadConfig, BulkheadLayer, Deadline, Priority, Reason, Rejection};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

type Inner = BoxCloneService<Request<()>, Response<Empty<Bytes>>, Infallible>;
type Call = Pin<Box<<Bulkhead<Inner> as Service<Request<()>>>::Future>>;

/// A backend whose calls end when they are told to, and all calls to it.
struct House {
    layer: BulkheadLayer,
    service: Bulkhead<Inner>,
    running: Arc<Mutex<HashMap<u32, oneshot::Sender<()>>>>,
    /// Who went in, in this order.
    began: Arc<Mutex<Vec<u32>>>,
    calls: Vec<(u32, Call, Arc<Woken>)>,
    next: u32,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// The number of a call, on its request.
#[derive(Clone, Copy)]
struct Id(u32);

impl House {
    fn new(layer: BulkheadLayer) -> Self {
        let (running, began) = (Arc::<Mutex<HashMap<_, _>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (runs, begins) = (Arc::clone(&running), Arc::clone(&began));
        let inner = tower::service_fn(move |request: Request<()>| {
            let Id(id) = *request.extensions().get().unwrap();
            let (end, ended) = oneshot::channel();
            runs.lock().unwrap().insert(id, end);
            begins.lock().unwrap().push(id);
            async {
                ended.await.unwrap();
                Ok::<_, Infallible>(Response::new(Empty::new()))
            }
        });
        let service = layer.layer(BoxCloneService::new(inner));
        House { layer, service, running, began, calls: Vec::new(), next: 0 }
    }

    /// Comes, and is polled once. Its number, and the reason if it is refused at once.
    fn come(&mut self, priority: Priority, within: Option<u64>) -> (u32, Option<Reason>) {
        let id = self.next;
        self.next += 1;
        let mut request = Request::new(());
        request.extensions_mut().insert(Id(id));
        request.extensions_mut().insert(priority);
        if let Some(within) = within {
            request.extensions_mut().insert(Deadline::after(ms(within)));
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(self.service.poll_ready(&mut cx).is_ready());
        let call = Box::pin(self.service.call(request));
        self.calls.push((id, call, Arc::new(Woken(AtomicBool::new(true)))));
        let refused = self.poll().into_iter().find(|r| r.0 == id);
        (id, refused.map(|r| r.1))
    }

    /// Polls whom something has woken, until nothing is new. Gives back who was refused.
    fn poll(&mut self) -> Vec<(u32, Reason)> {
        let mut refused = Vec::new();
        while let Some(n) = self.calls.iter().position(|c| c.2.0.swap(false, SeqCst)) {
            let (id, call, woken) = &mut self.calls[n];
            let waker = Waker::from(Arc::clone(woken));
            if let Poll::Ready(Ok(response)) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
                refused.extend(Rejection::in_response(&response).map(|r| (*id, r.reason())));
                drop(self.calls.remove(n));
            }
        }
        refused
    }

    fn end(&mut self, id: u32) {
        self.running.lock().unwrap().remove(&id).unwrap().send(()).unwrap();
        assert_eq!(self.poll(), []);
    }

    /// The caller leaves.
    fn leave(&mut self, id: u32) {
        self.calls.retain(|c| c.0 != id);
        self.running.lock().unwrap().remove(&id);
        self.poll();
    }

    fn began(&self) -> Vec<u32> {
        std::mem::take(&mut self.began.lock().unwrap())
    }

    fn counts(&self) -> (usize, usize) {
        let snapshot = self.layer.handle().snapshot();
        (snapshot.in_flight, snapshot.waiting)
    }
}

fn house(limit: usize, queue: usize, wait: u64) -> House {
    House::new(BulkheadLayer::builder().limit(limit).queue(queue).wait(ms(wait)).build().unwrap())
}

#[tokio::test(start_paused = true)]
async fn higher_bands_first_and_in_each_the_first_that_came() {
    use Priority::{Background, Critical, Default, Sheddable};
    let mut house = house(1, 20, 1_000);
    let (first, _) = house.come(Default, None);
    for priority in [Background, Default, Sheddable, Critical, Default, Critical, Background, Sheddable] {
        assert_eq!(house.come(priority, None).1, None);
    }
    assert_eq!((house.began(), house.counts()), (vec![first], (1, 8)));
    let mut order = Vec::new();
    let mut running = first;
    for _ in 0..8 {
        advance(ms(10)).await;
        house.end(running);
        let began = house.began();
        assert_eq!(began.len(), 1);
        running = began[0];
        order.push(running);
    }
    assert_eq!(order, [4, 6, 2, 5, 3, 8, 1, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_sheds_the_newest_of_the_lowest_band_for_one_that_matters_more() {
    use Priority::{Background, Critical, Default, Sheddable};
    let mut house = house(1, 3, 1_000);
    house.come(Default, None);
    for priority in [Background, Sheddable, Background] {
        house.come(priority, None);
    }
    // Nobody is lower than the lowest, and nobody gives way to its like.
    assert_eq!(house.come(Background, None).1, Some(Reason::BulkheadFull));
    let mut shed = |priority| {
        let id = house.next;
        let mut request = Request::new(());
        request.extensions_mut().insert(Id(id));
        request.extensions_mut().insert(priority);
        house.next += 1;
        house.calls.push((id, Box::pin(house.service.call(request)), Arc::new(Woken(AtomicBool::new(true)))));
        house.poll()
    };
    assert_eq!(shed(Default), [(3, Reason::ShedByPriority)]);
    assert_eq!(shed(Critical), [(1, Reason::ShedByPriority)]);
    assert_eq!(shed(Default), [(2, Reason::ShedByPriority)]);
    assert_eq!(shed(Default), [(8, Reason::BulkheadFull)]);
    assert_eq!(shed(Critical), [(7, Reason::ShedByPriority)]);
    assert_eq!(house.layer.handle().snapshot().rejected, 6);
    assert_eq!(house.counts(), (1, 3));
}

/// Starving the lowest would be worse than refusing it.
#[tokio::test(start_paused = true)]
async fn the_lowest_is_served_after_at_most_a_thousand_others() {
    let mut house = house(1, 10, 1_000_000);
    let (mut running, _) = house.come(Priority::Critical, None);
    let (lowest, _) = house.come(Priority::Background, None);
    house.come(Priority::Critical, None);
    house.began();
    let mut others = 0;
    loop {
        house.end(running);
        running = house.began()[0];
        if running == lowest {
            break;
        }
        others += 1;
        // tokio's channels let a task do only so much between two rests.
        tokio::task::yield_now().await;
        house.come(Priority::Critical, None);
    }
    assert!((900..=1_000).contains(&others), "{others}");
}

#[tokio::test(start_paused = true)]
async fn one_whose_time_is_over_is_never_called() {
    let mut house = house(1, 10, 1_000);
    let (first, _) = house.come(Priority::Default, None);
    let late = Deadline::after(ms(50)).instant();
    house.come(Priority::Critical, Some(50));
    house.come(Priority::Default, None);
    // Its timer would fire now as well, but nobody has polled it.
    advance(ms(50)).await;
    assert_eq!(Instant::now(), late);
    house.running.lock().unwrap().remove(&first).unwrap().send(()).unwrap();
    assert_eq!(house.poll(), [(1, Reason::DeadlineExceeded)]);
    assert_eq!((house.began(), house.counts()), (vec![0, 2], (1, 0)));
}

/// A burst, however long its queue is, is served in its order: it is no overload, even if half of it comes too late.
#[tokio::test(start_paused = true)]
async fn a_burst_is_served_in_order() {
    let mut house = house(1, 100, 1_000);
    for _ in 0..100 {
        house.come(Priority::Default, None);
    }
    for id in 0..49 {
        advance(ms(20)).await;
        house.end(id);
    }
    assert_eq!(house.began(), (0..50).collect::<Vec<_>>());
    advance(ms(20)).await;
    let late = house.poll();
    assert_eq!((late.len(), late[0]), (50, (50, Reason::QueueTimeout)));
}

/// Twice what the backend can do, for as long as anybody waits and half as long again: from then on the newest is
/// served, and who is served has hardly waited. When it is over, it is in order again.
#[tokio::test(start_paused = true)]
async fn lasting_overload_is_served_newest_first() {
    let mut house = house(1, 1_000, 1_000);
    let start = Instant::now();
    house.come(Priority::Default, None);
    let mut called = Vec::new();
    while start.elapsed() < ms(10_000) {
        advance(ms(10)).await;
        house.poll();
        assert_eq!(house.come(Priority::Default, None).1, None);
        if start.elapsed().as_millis().is_multiple_of(20) {
            let running = *house.running.lock().unwrap().keys().next().unwrap();
            house.end(running);
            called.push((start.elapsed(), *house.began().last().unwrap()));
        }
    }
    // In order as long as it may be a burst: the wait grows.
    let (_, id) = called.iter().find(|c| c.0 >= ms(1_400)).unwrap();
    assert!(*id <= 71, "{id}");
    // And then it is the newest that is called, which has just come.
    for (at, id) in called.iter().filter(|c| c.0 > ms(3_000)) {
        let newest = u32::try_from(at.as_millis() / 10).unwrap();
        assert!(newest - id <= 1, "{id} of {newest} at {at:?}");
    }
    // Those who were passed over wait no longer than they may.
    assert!(house.counts().1 <= 51, "{:?}", house.counts());
    advance(ms(1_000)).await;
    house.poll();
    let running = *house.running.lock().unwrap().keys().next().unwrap();
    house.end(running);
    advance(ms(201)).await;
    let ids: Vec<_> = (0..3).map(|_| house.come(Priority::Default, None).0).collect();
    house.began();
    house.end(ids[0]);
    assert_eq!(house.began(), [ids[1]], "calm again");
}

// === whatever happens ===

#[derive(Debug, Clone)]
enum Act {
    Come { priority: Priority, within: Option<u64> },
    End(usize),
    Leave(usize),
    Resize(usize),
    Advance(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    use Priority::{Background, Critical, Default, Sheddable};
    let priority = prop::sample::select(vec![Background, Sheddable, Default, Critical]);
    let within = prop::option::weighted(0.3, 1..200_u64);
    let one = prop_oneof![
        6 => (priority, within).prop_map(|(priority, within)| Act::Come { priority, within }),
        4 => any::<usize>().prop_map(Act::End),
        2 => any::<usize>().prop_map(Act::Leave),
        1 => (1..5_usize).prop_map(Act::Resize),
        2 => (1..50_u64).prop_map(Act::Advance),
    ];
    prop::collection::vec(one, 1..120)
}

/// What the bulkhead ought to do, in the fewest words.
#[derive(Default)]
struct Model {
    limit: usize,
    now: u64,
    running: Vec<u32>,
    /// Number, priority, end.
    waiting: Vec<(u32, Priority, u64)>,
    began: Vec<(u32, Priority, u64)>,
    /// Of those who came with a deadline.
    impatient: Vec<Priority>,
}

impl Model {
    const QUEUE: usize = 6;
    const WAIT: u64 = 3_600_000;

    fn call(&mut self) {
        self.waiting.retain(|w| w.2 > self.now);
        while self.running.len() < self.limit {
            let Some(highest) = self.waiting.iter().map(|w| w.1).max() else { return };
            let next = self.waiting.iter().position(|w| w.1 == highest).unwrap();
            let next = self.waiting.remove(next);
            self.running.push(next.0);
            self.began.push(next);
        }
    }

    /// Deadlines make callers impatient: where some have waited for long the newest may be called in place of the
    /// oldest.
    fn follow(&mut self, began: &[u32]) {
        let expected = std::mem::take(&mut self.began);
        let others: Vec<_> = began.iter().filter(|id| expected.iter().all(|e| e.0 != **id)).collect();
        assert_eq!(began.len(), expected.len());
        for oldest in expected.iter().filter(|e| !began.contains(&e.0)) {
            let newest = self.waiting.iter().rposition(|w| w.1 == oldest.1);
            let newest = newest.map(|n| std::mem::replace(&mut self.waiting[n], *oldest).0);
            let may_be = newest.is_some_and(|id| others.contains(&&id)) && self.impatient.contains(&oldest.1);
            assert!(may_be, "{newest:?} in place of {oldest:?} of {began:?}");
            self.waiting.sort_unstable();
            self.running.retain(|r| *r != oldest.0);
            self.running.extend(newest);
        }
    }

    fn come(&mut self, id: u32, priority: Priority, end: u64) -> bool {
        self.waiting.push((id, priority, end));
        if end < self.now + Self::WAIT {
            self.impatient.push(priority);
        }
        self.call();
        if self.waiting.len() > Self::QUEUE {
            // The newest of the lowest, which may be the newcomer itself.
            let lowest = self.waiting.iter().map(|w| w.1).min().unwrap();
            let newest = self.waiting.iter().rposition(|w| w.1 == lowest).unwrap();
            return self.waiting.remove(newest).0 != id;
        }
        true
    }
}

/// Never more than the limit in flight, exact order, no lost wake-up (only who was woken is polled), nothing leaked.
async fn follows_the_model(acts: Vec<Act>) {
    // Longer than the test lasts, so that without deadlines nothing counts as overload.
    let layer = BulkheadLayer::builder().limit(2).queue(Model::QUEUE).wait(ms(Model::WAIT)).build().unwrap();
    let mut house = House::new(layer);
    let mut model = Model { limit: 2, ..Model::default() };
    for act in acts {
        // tokio's channels let a task do only so much between two rests.
        tokio::task::yield_now().await;
        match act {
            Act::Come { priority, within } => {
                let id = house.next;
                let taken = model.come(id, priority, model.now + within.unwrap_or(Model::WAIT));
                assert_eq!(house.come(priority, within).1.is_none(), taken);
            }
            Act::End(n) if !model.running.is_empty() => {
                let id = model.running.remove(n % model.running.len());
                model.call();
                house.end(id);
            }
            Act::Leave(n) if !house.calls.is_empty() => {
                let id = house.calls[n % house.calls.len()].0;
                model.running.retain(|r| *r != id);
                model.waiting.retain(|w| w.0 != id);
                model.call();
                house.leave(id);
            }
            Act::End(_) | Act::Leave(_) => {}
            Act::Resize(limit) => {
                model.limit = limit;
                model.call();
                let config = house.layer.handle().snapshot().config;
                house.layer.handle().update(BulkheadConfig { limit, ..config }).unwrap();
                house.poll();
            }
            Act::Advance(by) => {
                model.now += by;
                model.call();
                advance(ms(by)).await;
                house.poll();
            }
        }
        // Those who are called at once begin in the order in which they are polled.
        model.follow(&house.began());
        assert_eq!(house.counts(), (model.running.len(), model.waiting.len()));
        assert_eq!(house.calls.len(), model.running.len() + model.waiting.len());
    }
    while let Some((id, ..)) = house.calls.last() {
        let id = *id;
        house.leave(id);
    }
    assert_eq!(house.counts(), (0, 0));
}

/// On real threads: everybody who waits is served or leaves, and never more than three are inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_among_threads() {
    let layer = BulkheadLayer::builder().limit(3).queue(10_000).wait(Duration::from_secs(600)).build().unwrap();
    let (inside, most, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let (now_in, at_most) = (Arc::clone(&inside), Arc::clone(&most));
    let service = layer.clone().plain().layer(tower::service_fn(move |yields: u32| {
        let (now_in, at_most) = (Arc::clone(&now_in), Arc::clone(&at_most));
        async move {
            let inside = now_in.fetch_add(1, SeqCst) + 1;
            at_most.fetch_max(inside, SeqCst);
            let leaves = leaving(now_in);
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            drop(leaves);
            Ok::<_, std::io::Error>(())
        }
    }));
    let tasks: Vec<_> = (0..2_000_u32)
        .map(|n| {
            let mut service = service.clone();
            tokio::spawn(async move {
                let mut calls = 0;
                for round in 0..10 {
                    let call = service.call(n % 3);
                    // A caller in seven leaves before its call is over, wherever that is then.
                    if (n + round) % 7 == 0 {
                        let mut call = Box::pin(call);
                        let _ = futures_util::FutureExt::now_or_never(call.as_mut());
                        tokio::task::yield_now().await;
                    } else {
                        call.await.unwrap();
                        calls += 1;
                    }
                }
                calls
            })
        })
        .collect();
    for task in tasks {
        served.fetch_add(task.await.unwrap(), SeqCst);
    }
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting, inside.load(SeqCst)), (0, 0, 0));
    assert!(most.load(SeqCst) <= 3, "{most:?}");
    let expected = (0..2_000).flat_map(|n| (0..10).map(move |round| n + round)).filter(|n| n % 7 != 0).count();
    assert_eq!(served.into_inner(), expected);
}

/// Counts one less when it is dropped.
fn leaving(inside: Arc<AtomicUsize>) -> impl Sized {
    struct Leaves(Arc<AtomicUsize>);
    impl Drop for Leaves {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    Leaves(inside)
}

proptest! {
    #[test]
    fn order_limit_wakes_and_cancellation(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(follows_the_model(acts));
    }
}
