//! A generated tonic client around a layered channel: its errors stay what they were, and a deadline in the code that
//! calls it bounds the call and travels to the server.

use std::{pin::Pin, time::Duration};

use buttress::{Deadline, DeadlineLayer, TimeoutLayer};
use tokio::{net::TcpListener, time::sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::ServiceBuilder;

struct Backend;

#[tonic::async_trait]
impl Health for Backend {
    async fn check(&self, r: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let told = r.metadata().get("grpc-timeout").map(|v| format!("{v:?}"));
        println!("  backend: grpc-timeout is {}", told.as_deref().unwrap_or("not set"));
        match r.get_ref().service.as_str() {
            "slow" => sleep(Duration::from_secs(5)).await,
            "away" => return Err(Status::unavailable("back in a minute")),
            _ => {}
        }
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not in this example"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder().add_service(HealthServer::new(Backend));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let timeout = TimeoutLayer::builder().name("health").after(Duration::from_millis(200)).build()?;
    let stack = ServiceBuilder::new().layer(DeadlineLayer::client()).layer(timeout.clone());
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    let mut client = HealthClient::new(stack.service(channel));

    for service in ["well", "away", "slow"] {
        println!("calling {service:?}, at most 200 ms");
        let answer = client.check(HealthCheckRequest { service: service.into() }).await;
        println!("  client:  {:?}", answer.map(|r| r.get_ref().status).map_err(|s| (s.code(), s.message().to_owned())));
    }
    println!("calling \"slow\" within a deadline of 50 ms");
    let call = client.check(HealthCheckRequest { service: "slow".into() });
    let answer = Deadline::after(Duration::from_millis(50)).scope(call).await;
    println!("  client:  {:?}", answer.map(drop).map_err(|s| (s.code(), s.message().to_owned())));
    println!("seen through the handle: {:?}", timeout.handle().snapshot());
    Ok(())
}
