//! The backend: a tonic server whose mood can be changed while it runs.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress::DeadlineLayer;
use futures_util::{Stream, StreamExt, stream};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::prices::{
    Offer, OffersRequest,
    prices_server::{Prices, PricesServer},
};

/// How long a slow backend takes: longer than the gateway calls slow, shorter than it waits.
pub(crate) const SLOW: Duration = Duration::from_millis(150);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mood {
    Healthy,
    /// The first attempt of every tenth call is UNAVAILABLE, at once.
    Flaky,
    /// The first offer comes, and then INTERNAL, in the trailers: the head says that all is well.
    Failing,
    Slow,
    /// It takes the call and never answers.
    Hanging,
}

impl Mood {
    pub(crate) const ALL: [(&'static str, Mood); 5] = [
        ("healthy", Mood::Healthy),
        ("flaky", Mood::Flaky),
        ("failing", Mood::Failing),
        ("slow", Mood::Slow),
        ("hanging", Mood::Hanging),
    ];

    fn from(n: u8) -> Mood {
        Mood::ALL.iter().map(|(_, mood)| *mood).find(|mood| *mood as u8 == n).unwrap_or(Mood::Healthy)
    }
}

/// What can be done to the backend and seen of it, whether it runs or not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switch(Arc<State>);

#[derive(Debug, Default)]
struct State {
    mood: AtomicU8,
    hits: AtomicU64,
}

impl Switch {
    pub(crate) fn set(&self, mood: Mood) {
        self.0.mood.store(mood as u8, Relaxed);
    }

    /// Calls that reached it.
    pub(crate) fn hits(&self) -> u64 {
        self.0.hits.load(Relaxed)
    }
}

/// A running backend. It has a runtime of its own, so that it can go at once, connections and all.
pub(crate) struct Backend {
    runtime: Runtime,
    pub(crate) addr: SocketAddr,
}

impl Backend {
    /// Port 0 takes any.
    pub(crate) fn start(addr: SocketAddr, switch: Switch) -> io::Result<Backend> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(addr))?;
        let addr = listener.local_addr()?;
        let incoming = TcpListenerStream::new(listener).inspect(|connection| {
            // Else the last frame of an answer waits some 40 ms for the acknowledgement of the one before.
            let _ = connection.as_ref().map(|c| c.set_nodelay(true));
        });
        // The server's own policy: nobody here works for longer than the caller waits.
        let server = Server::builder()
            .layer(DeadlineLayer::server(Duration::from_secs(5)))
            .add_service(PricesServer::new(Handler(switch)))
            .serve_with_incoming(incoming);
        runtime.spawn(server);
        Ok(Backend { runtime, addr })
    }

    /// As if somebody had pulled the plug.
    pub(crate) fn stop(self) {
        self.runtime.shutdown_background();
    }
}

struct Handler(Switch);

type Offers = Pin<Box<dyn Stream<Item = Result<Offer, Status>> + Send>>;

#[tonic::async_trait]
impl Prices for Handler {
    type OffersStream = Offers;

    async fn offers(&self, request: Request<OffersRequest>) -> Result<Response<Offers>, Status> {
        let state = &self.0.0;
        let hit = state.hits.fetch_add(1, Relaxed);
        let is_first = request.metadata().get("grpc-previous-rpc-attempts").is_none();
        let base = 100 + 7 * request.into_inner().article.len() as u32;
        let offers = [("north", base + 20), ("south", base), ("west", base + 5)]
            .map(|(seller, cents)| Ok(Offer { seller: seller.into(), cents }));
        Ok(Response::new(match Mood::from(state.mood.load(Relaxed)) {
            Mood::Flaky if is_first && hit.is_multiple_of(10) => return Err(Status::unavailable("try again")),
            Mood::Healthy | Mood::Flaky => stream::iter(offers).boxed(),
            Mood::Failing => {
                let first = offers.into_iter().take(1);
                stream::iter(first.chain([Err(Status::internal("the database is away"))])).boxed()
            }
            Mood::Slow => {
                tokio::time::sleep(SLOW).await;
                stream::iter(offers).boxed()
            }
            Mood::Hanging => std::future::pending().await,
        }))
    }
}
