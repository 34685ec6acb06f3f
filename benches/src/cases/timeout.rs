//! Timeouts whose inner future is ready at once: the path of nearly every call.

use std::time::Duration;

use buttress::{DeadlineLayer, TimeoutLayer};
use tower::{Layer, timeout::Timeout};

use crate::{
    case::{Case, Clients, Judge},
    cases::bare::{self, Bare},
    drive,
};

const PLAIN: &str = "timeout/buttress plain";
const LONG: Duration = Duration::from_secs(1);

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(PLAIN, plain).judged(Judge::AtMost(105.0)).on_threads(),
        Case::new("timeout/tower plain", tower_plain).judged(Judge::RatioTo(PLAIN)).on_threads(),
        Case::new("timeout/buttress http", http).over(bare::HTTP).judged(Judge::AtMostOf {
            case: PLAIN,
            factor: 1.5,
            plus: 60.0,
        }),
        Case::new("timeout/tower http", tower_http).over(bare::HTTP).judged(Judge::RatioTo("timeout/buttress http")),
        Case::new("timeout/buttress grpc", grpc).over(bare::GRPC),
        Case::new("timeout/buttress deadline server http", deadline_server).over(bare::HTTP),
    ]
}

fn layer() -> TimeoutLayer {
    TimeoutLayer::builder().after(LONG).build().expect("one second is in range")
}

fn plain() -> Clients {
    drive::plain(layer().plain().layer(Bare))
}

fn http() -> Clients {
    drive::http(layer().layer(Bare), bare::http_request)
}

fn grpc() -> Clients {
    drive::http(layer().layer(Bare), bare::grpc_request)
}

fn deadline_server() -> Clients {
    drive::http(DeadlineLayer::server(LONG).layer(Bare), bare::http_request)
}

/// It makes its timer in every call (so it needs a runtime), and turns every error into a boxed one.
fn tower_plain() -> Clients {
    drive::plain(Timeout::new(Bare, LONG))
}

fn tower_http() -> Clients {
    drive::http(Timeout::new(Bare, LONG), bare::http_request)
}
