//! A fallback that is not needed: the path of nearly every call.

use buttress::{Answer, Error, FallbackContext, FallbackLayer};
use tower::Layer;

use crate::{
    case::{Case, Clients, Judge},
    cases::bare::{self, Bare, Failed},
    drive,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("fallback/idle buttress plain", plain).judged(Judge::AtMost(40.0)).on_threads(),
        Case::new("fallback/idle buttress http", http).over(bare::HTTP),
        Case::new("fallback/idle buttress grpc", grpc).over(bare::GRPC),
    ]
}

fn plain() -> Clients {
    drive::plain(FallbackLayer::plain_from_fn(|_: &Error<Failed>| Some(0)).layer(Bare))
}

fn pass_on(_: &FallbackContext<'_>) -> Answer {
    Answer::PassOn
}

fn http() -> Clients {
    drive::http(FallbackLayer::from_fn(pass_on).layer(Bare), bare::http_request)
}

fn grpc() -> Clients {
    drive::http(FallbackLayer::from_fn(pass_on).layer(Bare), bare::grpc_request)
}
