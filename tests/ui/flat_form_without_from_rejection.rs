//! `.flat()` keeps the error type, so that type must be able to say that a call was refused.

use buttress::TimeoutLayer;
use std::{future::ready, io, time::Duration};
use tower::{Layer, Service, service_fn};

fn main() {
    let layer = TimeoutLayer::builder().after(Duration::from_secs(1)).build().unwrap();
    let service = layer.flat().layer(service_fn(|n: u32| ready(Ok::<u32, io::Error>(n))));
    serve(service);
}

fn serve<S: Service<u32>>(_: S) {}
