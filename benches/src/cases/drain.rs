//! A drain layer that lets everything through.

use buttress::Registry;
use tower::Layer;

use crate::{
    case::Case,
    cases::bare::{self, Bare},
    drive::{http, plain},
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("drain/lets through", || plain(Registry::new().drain_layer().plain().layer(Bare))).on_threads(),
        Case::new("drain/lets through http", || http(Registry::new().drain_layer().layer(Bare), bare::http_request))
            .over(bare::HTTP),
    ]
}
