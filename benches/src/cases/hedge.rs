//! A hedge that does not fire: the path of nearly every call.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use buttress::{HedgeBuilder, HedgeLayer};
use tower::{
    Layer, Service,
    hedge::{Hedge, Policy},
};

use crate::{
    case::{Case, Clients, Judge},
    cases::bare::{self, Bare},
    drive,
};

const AFTER: &str = "hedge/not fired, fixed delay buttress";
const LATER: Duration = Duration::from_secs(1);

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(AFTER, || drive::plain(layer(after()).plain().layer(Bare))).judged(Judge::AtMost(60.0)).on_threads(),
        Case::new("hedge/not fired, quantile buttress", || drive::plain(layer(quantile()).plain().layer(Bare)))
            .judged(Judge::AtMost(60.0)),
        Case::new("hedge/not fired, quantile tower", || drive::plain(Towers::new()))
            .judged(Judge::RatioTo(AFTER))
            .on_threads(),
        Case::new("hedge/not fired, buttress http", http).over(bare::HTTP),
        Case::new("hedge/not fired, buttress grpc", grpc).over(bare::GRPC),
    ]
}

fn layer(builder: HedgeBuilder) -> HedgeLayer {
    builder.build().expect("a valid configuration")
}

fn after() -> HedgeBuilder {
    HedgeLayer::builder().after(LATER)
}

fn quantile() -> HedgeBuilder {
    HedgeLayer::builder().quantile(0.95)
}

fn http() -> Clients {
    drive::http(layer(after()).layer(Bare), bare::http_request)
}

fn grpc() -> Clients {
    drive::http(layer(after()).layer(Bare), bare::grpc_request)
}

/// tower's hedge with a policy that lets everything through. It is not `Clone`, so each clone here is another one, with
/// a histogram of its own.
struct Towers(Hedge<Bare, Everything>);

#[derive(Clone, Copy)]
struct Everything;

impl Policy<u64> for Everything {
    fn clone_request(&self, request: &u64) -> Option<u64> {
        Some(*request)
    }

    fn can_retry(&self, _: &u64) -> bool {
        true
    }
}

impl Towers {
    fn new() -> Self {
        Towers(Hedge::new::<u64>(Bare, Everything, 50, 0.95, Duration::from_secs(30)))
    }
}

impl Clone for Towers {
    fn clone(&self) -> Self {
        Towers::new()
    }
}

impl Service<u64> for Towers {
    type Response = u64;
    type Error = tower::BoxError;
    type Future = <Hedge<Bare, Everything> as Service<u64>>::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        Service::<u64>::poll_ready(&mut self.0, cx)
    }

    #[inline]
    fn call(&mut self, request: u64) -> Self::Future {
        self.0.call(request)
    }
}
