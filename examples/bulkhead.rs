//! A bulkhead with a queue: who goes in, who waits, who is turned away, and how it is steered while it runs.
#![allow(clippy::disallowed_methods, reason = "it shows how long things took")]

use std::time::Duration;

use buttress::{BulkheadLayer, Priority, Rejection, observe::Event};
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};

/// A report takes a tenth of a second.
async fn report(_: Request<()>) -> Result<Response<Empty<bytes::Bytes>>, std::convert::Infallible> {
    sleep(Duration::from_millis(100)).await;
    Ok(Response::new(Empty::new()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), buttress::ConfigError> {
    let layer = BulkheadLayer::builder()
        .name("reports")
        .limit(2)
        .queue(3)
        .wait(Duration::from_millis(150))
        .priority_fn(|parts| match parts.uri.path() {
            "/boss" => Priority::Critical,
            "/nightly" => Priority::Background,
            _ => Priority::Default,
        })
        .observer(|e: &Event| println!("  event: {} {}: {:?}", e.policy, e.name, e.kind))
        .build()?;
    let (handle, service) = (layer.handle(), layer.layer(service_fn(report)));

    for limit in [2, 4] {
        handle.resize(limit)?;
        println!("eight at once, {limit} may run, 3 may wait for 150 ms:");
        let start = Instant::now();
        let paths = ["/a", "/b", "/nightly", "/c", "/d", "/e", "/boss", "/f"];
        let calls = paths.map(|path| {
            let call = service.clone().oneshot(Request::get(path).body(()).expect("a valid request"));
            async move { (path, call.await, start.elapsed()) }
        });
        for (path, response, took) in join_all(calls).await {
            let response = response.expect("it can't fail");
            let verdict = Rejection::in_response(&response).map_or("done", |r| r.reason().as_str());
            println!("  {path:<8} {verdict:<16} after {:>3} ms", took.as_millis());
        }
    }
    println!("{:?}", handle.snapshot());
    Ok(())
}
