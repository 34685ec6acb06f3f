//! A rate limit against a naive one that goes from millisecond to millisecond: costs, charges after the fact, calls
//! that wait and leave, quotas that change. Each call ends at the same instant in both, and in the same way.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress::{Quota, RateLimitLayer};
use bytes::Bytes;
use http::{Request, Response, request, response};
use http_body_util::Empty;
use proptest::prelude::*;
use tokio::{
    task::{JoinHandle, yield_now},
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt, service_fn};

/// A unit in parts, so that what comes back in a millisecond is whole whatever the interval.
const UNIT: i64 = 40;

/// Milliseconds between two units.
fn interval() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![2, 4, 5, 10, 20, 40])
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Call { cost: i64, charge: i64 },
    Leave(prop::sample::Index),
    Quota { interval: i64, burst: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1_u64..30).prop_map(Step::Wait),
        // Some cost nothing at the door, and some more than there ever is.
        5 => (prop_oneof![8 => 1_i64..4, 1 => Just(0), 1 => Just(9)], 0_i64..8)
            .prop_map(|(cost, charge)| Step::Call { cost, charge }),
        1 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => (interval(), 3_i64..8).prop_map(|(interval, burst)| Step::Quota { interval, burst }),
    ]
}

// === the naive one ===

struct Naive {
    now: u64,
    interval: i64,
    burst: i64,
    /// In parts of a unit; below zero where more was charged than was there.
    left: i64,
    patience: u64,
    line: VecDeque<Waits>,
    /// When each call ended, and how; `None` while it waits.
    ended: Vec<Option<End>>,
}

type End = (u64, u16);

#[derive(Clone, Copy)]
struct Waits {
    call: usize,
    cost: i64,
    charge: i64,
    since: u64,
}

impl Naive {
    fn new(interval: i64, burst: i64, patience: u64) -> Self {
        let (line, ended) = (VecDeque::new(), Vec::new());
        Naive { now: 0, interval, burst, left: burst * UNIT, patience, line, ended }
    }

    fn wait(&mut self, millis: u64) {
        for _ in 0..millis {
            self.now += 1;
            self.left += UNIT / self.interval;
            self.look();
        }
    }

    fn call(&mut self, cost: i64, charge: i64) {
        let call = self.ended.len();
        self.ended.push(None);
        let ahead: i64 = self.line.iter().map(|waits| waits.cost).sum();
        if cost == 0 {
            self.goes(call, charge);
        } else if cost > self.burst || !self.comes_by(ahead + cost, self.now + self.patience) {
            self.ended[call] = Some((self.now, 429));
        } else {
            self.line.push_back(Waits { call, cost, charge, since: self.now });
        }
        self.look();
    }

    fn leave(&mut self, call: usize) {
        self.line.retain(|waits| waits.call != call);
        self.look();
    }

    /// What was used stays used.
    fn quota(&mut self, interval: i64, burst: i64) {
        self.left += (burst - self.burst) * UNIT;
        (self.interval, self.burst) = (interval, burst);
        self.look();
    }

    /// One after the other looks what has become of its turn, until nothing changes for anybody.
    fn look(&mut self) {
        let (mut at, mut ahead) = (0, 0);
        while let Some(&Waits { call, cost, charge, since }) = self.line.get(at) {
            let goes = at == 0 && self.left >= cost * UNIT;
            if !goes && self.comes_by(ahead + cost, since + self.patience) {
                (at, ahead) = (at + 1, ahead + cost);
                continue;
            }
            self.line.remove(at);
            if goes {
                self.goes(call, charge);
            } else {
                self.ended[call] = Some((self.now, 429));
            }
        }
        if self.line.is_empty() {
            self.left = self.left.min(self.burst * UNIT);
        }
    }

    fn goes(&mut self, call: usize, charge: i64) {
        self.ended[call] = Some((self.now, 200));
        // More than everything can't be there, however much comes back.
        self.left = (self.left - charge * UNIT).min(self.burst * UNIT);
    }

    fn comes_by(&self, units: i64, latest: u64) -> bool {
        let lacks = units * UNIT - self.left;
        lacks <= UNIT / self.interval * (latest - self.now) as i64
    }
}

// === both ===

async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

async fn same(interval: i64, burst: i64, patience: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let quota = |interval: i64, burst: i64| Quota::per(1, Duration::from_millis(interval as u64)).burst(burst as u32);
    let layer = RateLimitLayer::builder()
        .quota(quota(interval, burst))
        .wait(Duration::from_millis(patience))
        .cost_fn(|parts: &request::Parts| parts.headers["cost"].to_str().unwrap().parse().unwrap())
        .charge_fn(|parts: &response::Parts| parts.headers["charge"].to_str().unwrap().parse().unwrap())
        .build()
        .unwrap();
    let service = layer.layer(service_fn(|request: Request<()>| {
        let charge = &request.headers()["charge"];
        ready(Ok::<_, Infallible>(Response::builder().header("charge", charge).body(Empty::<Bytes>::new()).unwrap()))
    }));
    let mut naive = Naive::new(interval, burst, patience);
    let start = Instant::now();
    let ended: Arc<Mutex<Vec<Option<End>>>> = Arc::default();
    let mut calls: Vec<JoinHandle<()>> = Vec::new();
    for step in steps {
        match step {
            Step::Wait(millis) => {
                sleep(Duration::from_millis(millis)).await;
                naive.wait(millis);
            }
            Step::Call { cost, charge } => {
                let (number, ended) = (calls.len(), Arc::clone(&ended));
                ended.lock().unwrap().push(None);
                let request = Request::builder().header("cost", cost).header("charge", charge).body(()).unwrap();
                let call = service.clone().oneshot(request);
                calls.push(tokio::spawn(async move {
                    let status = call.await.unwrap().status().as_u16();
                    ended.lock().unwrap()[number] = Some((start.elapsed().as_millis() as u64, status));
                }));
                settle().await;
                naive.call(cost, charge);
            }
            Step::Leave(which) if !calls.is_empty() => {
                let call = which.index(calls.len());
                calls[call].abort();
                settle().await;
                naive.leave(call);
            }
            Step::Leave(_) => {}
            Step::Quota { interval, burst } => {
                layer.handle().set_quota(quota(interval, burst)).unwrap();
                naive.quota(interval, burst);
            }
        }
        settle().await;
        prop_assert_eq!(layer.handle().snapshot().waiting, naive.line.len(), "at {} ms", naive.now);
        prop_assert_eq!(&*ended.lock().unwrap(), &naive.ended);
    }
    sleep(Duration::from_secs(20)).await;
    naive.wait(20_000);
    prop_assert_eq!(&*ended.lock().unwrap(), &naive.ended);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_naive_one(
        interval in interval(),
        burst in 3_i64..8,
        patience in 1_u64..120,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(same(interval, burst, patience, steps))?;
    }
}
