//! Any tower service: in the plain form a refusal is an error beside the service's own, which comes back unchanged.

use std::{io, time::Duration};

use buttress::{Deadline, Error, Rejection, TimeoutLayer, observe::Event};
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};

/// Reads a value, slowly for some keys.
async fn lookup(key: &'static str) -> Result<String, io::Error> {
    match key {
        "missing" => return Err(io::Error::new(io::ErrorKind::NotFound, "no such key")),
        "slow" => sleep(Duration::from_secs(5)).await,
        _ => {}
    }
    Ok(format!("value of {key}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layer = TimeoutLayer::builder()
        .name("store")
        .after(Duration::from_millis(100))
        .observer(|e: &Event| println!("  event: {} {}: {:?}", e.policy, e.name, e.kind))
        .build()?
        .plain();
    let mut store = layer.layer(service_fn(lookup));

    for key in ["apple", "missing", "slow"] {
        println!("{key}:");
        match store.ready().await?.call(key).await {
            Ok(value) => println!("  {value}"),
            Err(Error::Inner(e)) => println!("  the store says: {e} ({:?})", e.kind()),
            Err(e) => println!("  refused: {e}; retry after {:?}", Rejection::of(&e).and_then(Rejection::retry_after)),
        }
    }

    println!("slow, for a caller with 20 ms left:");
    let call = async { store.ready().await?.call("slow").await };
    if let Err(e) = Deadline::after(Duration::from_millis(20)).scope(call).await {
        println!("  refused: {e}");
    }
    println!("{:?}", layer.handle().snapshot());
    Ok(())
}
