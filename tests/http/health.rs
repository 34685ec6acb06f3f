//! A gRPC service with the manners of many: the name in the request says which.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress::{CircuitBreakerLayer, Error, Rejection};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Notify;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::{Layer, ServiceExt, service_fn};

use crate::rig::{Hyper, Server, Version, hyper, soon};

#[derive(Clone, Default)]
pub(crate) struct Manners {
    /// Told when a call that hangs has begun.
    pub(crate) hanging: Arc<Notify>,
    timeouts: Arc<Mutex<Vec<Option<String>>>>,
}

impl Manners {
    pub(crate) fn server(&self) -> HealthServer<Manners> {
        HealthServer::new(self.clone())
    }

    /// The `grpc-timeout` of each call so far.
    pub(crate) fn timeouts(&self) -> Vec<Option<Duration>> {
        self.timeouts.lock().unwrap().iter().map(|t| t.as_deref().map(parse_grpc_timeout)).collect()
    }

    fn note<T>(&self, request: &Request<T>) {
        let timeout = request.metadata().get("grpc-timeout").map(|v| v.to_str().unwrap().to_owned());
        self.timeouts.lock().unwrap().push(timeout);
    }

    async fn hang<T>(&self) -> T {
        self.hanging.notify_one();
        std::future::pending().await
    }
}

#[tonic::async_trait]
impl Health for Manners {
    /// `ok`, a code as a number, `refused` by a breaker of its own, `hangs` or `panics`.
    async fn check(&self, r: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.note(&r);
        match &*r.get_ref().service {
            "ok" => Ok(Response::new(MESSAGE)),
            "hangs" => self.hang().await,
            "refused" => Err(refused().await.into()),
            "panics" => panic!("in the handler"),
            code => Err(Status::new(Code::from(code.parse::<i32>().unwrap()), "as you wish")),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Three messages and an end (`ok`), an error (a code as a number), silence (`hangs`) or a panic (`panics`).
    async fn watch(&self, r: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.note(&r);
        let three = stream::iter([Ok(MESSAGE), Ok(MESSAGE), Ok(MESSAGE)]);
        let rest: Self::WatchStream = match &*r.get_ref().service {
            "ok" => Box::pin(stream::empty()),
            "hangs" => Box::pin(stream::pending()),
            "panics" => Box::pin(stream::once(async { panic!("in the stream") })),
            code => {
                let status = Status::new(Code::from(code.parse::<i32>().unwrap()), "as you wish");
                Box::pin(stream::once(async { Err(status) }))
            }
        };
        Ok(Response::new(Box::pin(three.chain(rest))))
    }
}

/// By an open breaker.
async fn refused() -> Rejection {
    let layer = CircuitBreakerLayer::builder().build().unwrap();
    layer.handle().force_open().unwrap();
    match layer.plain().layer(service_fn(async |()| Ok::<_, std::io::Error>(()))).oneshot(()).await {
        Err(Error::Rejected(rejection)) => rejection,
        other => panic!("{other:?}"),
    }
}

const MESSAGE: HealthCheckResponse = HealthCheckResponse { status: 1 };

/// A request for this manner.
pub(crate) fn ask(manner: impl ToString) -> HealthCheckRequest {
    HealthCheckRequest { service: manner.to_string() }
}

/// tonic's own channel, which has a timer on `grpc-timeout`.
pub(crate) fn channel(server: &Server) -> Channel {
    Channel::builder(server.uri("")).connect_lazy()
}

/// A tonic client over hyper's, which has no timer.
pub(crate) fn without_timer(server: &Server) -> HealthClient<Hyper<tonic::body::Body>> {
    HealthClient::with_origin(hyper(Version::H2), server.uri(""))
}

/// Starts a tonic server, or an axum router with tonic's routes in it, under a layer.
macro_rules! layered {
    (tonic, $manners:expr, $layer:expr) => {{
        let (health, layer) = ($manners.server(), $layer);
        $crate::rig::Server::start(|listener, stop| async {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().layer(layer).add_service(health);
            server.serve_with_incoming_shutdown(incoming, stop).await.unwrap();
        })
        .await
    }};
    (axum, $manners:expr, $layer:expr) => {{
        let routes = tonic::service::Routes::new($manners.server()).into_axum_router();
        $crate::rig::Server::axum(axum::Router::new().merge(routes).layer($layer)).await
    }};
}
pub(crate) use layered;

/// A tonic server without a layer.
pub(crate) async fn bare(manners: &Manners) -> Server {
    layered!(tonic, manners, tower::layer::util::Identity::new())
}

/// Reads a stream to its error or its end: the number of messages, and how it ended.
pub(crate) async fn drain(mut messages: tonic::Streaming<HealthCheckResponse>) -> (usize, Result<(), Code>) {
    let mut n = 0;
    loop {
        match soon(messages.message()).await {
            Ok(Some(_)) => n += 1,
            Ok(None) => return (n, Ok(())),
            Err(status) => return (n, Err(status.code())),
        }
    }
}

fn parse_grpc_timeout(text: &str) -> Duration {
    let (digits, unit) = text.split_at(text.len() - 1);
    let n: u64 = digits.parse().unwrap();
    match unit {
        "n" => Duration::from_nanos(n),
        "u" => Duration::from_micros(n),
        "m" => Duration::from_millis(n),
        "S" => Duration::from_secs(n),
        "M" => Duration::from_secs(n * 60),
        "H" => Duration::from_secs(n * 3600),
        _ => panic!("the unit of {text:?}"),
    }
}
