//! The default form wants HTTP.

use buttress::TimeoutLayer;
use std::{convert::Infallible, future::ready, time::Duration};
use tower::{Layer, Service, service_fn};

fn main() {
    let layer = TimeoutLayer::builder().after(Duration::from_secs(1)).build().unwrap();
    let service = layer.layer(service_fn(|n: u32| ready(Ok::<u32, Infallible>(n))));
    serve(service);
}

fn serve<S: Service<u32>>(_: S) {}
