//! The gateway: an axum router that asks the backend, with policies on both sides of the handler.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, sync::Mutex, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderName, StatusCode},
    routing::get,
};
use buttress::{
    BulkheadLayer, CircuitBreaker, CircuitBreakerHandle, CircuitBreakerLayer, ConfigError, DeadlineLayer, Deadlines,
    FallbackHandle, FallbackLayer, Key, LastGood, LimitHeaders, MissingKey, OpenTime, Quota, RateLimitLayer, Registry,
    Retry, RetryHandle, RetryLayer, Timeout, TimeoutLayer, Until,
    observe::{Event, Kind},
};
use serde_json::{Value, json};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tower::ServiceBuilder;

use crate::prices::{OffersRequest, prices_client::PricesClient};

/// What the gateway waits for one call of the backend, to the end of its stream.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(300);
/// What it calls slow.
pub(crate) const SLOW_CALL: Duration = Duration::from_millis(100);
/// How long the breaker stays open.
pub(crate) const OPEN: Duration = Duration::from_millis(500);

/// What each client may ask for in a second.
pub(crate) const QUOTA: u32 = 60;
/// The header that names the client.
pub(crate) const CLIENT: HeaderName = HeaderName::from_static("x-client");

/// The client's stack, from the outside to the channel. No error is mapped and nothing is boxed.
type Client = PricesClient<Deadlines<CircuitBreaker<Retry<Timeout<Channel>>>>>;

/// The gateway, and what can be read of it.
pub(crate) struct Edge {
    pub(crate) app: Router,
    pub(crate) breaker: CircuitBreakerHandle,
    pub(crate) retry: RetryHandle,
    pub(crate) fallback: FallbackHandle,
    pub(crate) refusals: Tally,
    pub(crate) registry: Registry,
}

impl Edge {
    pub(crate) fn new(backend: SocketAddr) -> Result<Edge, Box<dyn std::error::Error>> {
        let refusals = Tally::default();
        let registry = Registry::new();

        // Towards the backend.
        let breaker = CircuitBreakerLayer::builder()
            .name("prices")
            .count_window(50)
            .minimum_calls(20)
            .failure_rate(0.5)
            .slow_calls(SLOW_CALL, 0.5)
            .open(OpenTime::Fixed(OPEN))
            .observer(refusals.observer())
            .registry(&registry)
            .build()?;
        let retry = RetryLayer::builder().name("offers").observer(refusals.observer()).registry(&registry).build()?;
        let attempt = TimeoutLayer::builder()
            .name("attempt")
            .after(ATTEMPT)
            .until(Until::End)
            .observer(refusals.observer())
            .registry(&registry)
            .build()?;
        let channel = Endpoint::from_shared(format!("http://{backend}"))?
            .connect_timeout(ATTEMPT)
            .tcp_nodelay(true)
            .connect_lazy();
        let client = PricesClient::new(
            ServiceBuilder::new()
                .layer(DeadlineLayer::client())
                .layer(breaker.clone())
                .layer(retry.clone())
                .layer(attempt)
                .service(channel),
        );

        // Towards the callers.
        let quota = RateLimitLayer::builder()
            .name("each client")
            .quota(Quota::per_second(QUOTA))
            .per_key(Key::Header(CLIENT))
            .missing_key(MissingKey::Shared)
            .headers(LimitHeaders::Draft10)
            .observer(refusals.observer())
            .registry(&registry)
            .build()?;
        let fallback = Self::fallback(&registry)?;
        let bulkhead = BulkheadLayer::builder()
            .name("gateway")
            .limit(64)
            .queue(64)
            .wait(Duration::from_millis(500))
            .observer(refusals.observer())
            .registry(&registry)
            .build()?;
        let app = Router::new().route("/offers/{article}", get(best_offer)).with_state(client).layer((
            registry.drain_layer(),
            DeadlineLayer::server(Duration::from_secs(2)),
            quota,
            fallback.clone(),
            bulkhead,
        ));
        let (breaker, retry, fallback) = (breaker.handle(), retry.handle(), fallback.handle());
        Ok(Edge { app, breaker, retry, fallback, refusals, registry })
    }

    fn fallback(registry: &Registry) -> Result<FallbackLayer<LastGood>, ConfigError> {
        FallbackLayer::builder()
            .name("last good offers")
            .header(true)
            .registry(registry)
            .build_last_good(LastGood::new(16 << 20, Duration::from_secs(600)))
    }
}

async fn best_offer(State(mut client): State<Client>, Path(article): Path<String>) -> Result<Json<Value>, StatusCode> {
    let best = async {
        let mut offers = client.offers(OffersRequest { article }).await?.into_inner();
        let mut best = None;
        while let Some(offer) = offers.message().await? {
            if best.as_ref().is_none_or(|(cents, _)| offer.cents < *cents) {
                best = Some((offer.cents, offer.seller));
            }
        }
        Ok::<_, Status>(best)
    };
    match best.await {
        Ok(Some((cents, seller))) => Ok(Json(json!({ "cents": cents, "seller": seller }))),
        Ok(None) => Err(StatusCode::NOT_FOUND),
        Err(status) => Err(match status.code() {
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }),
    }
}

/// Who refused how many calls, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<String, u64>>>);

impl Tally {
    fn observer(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let tally = self.clone();
        move |event| {
            let reason = match &event.kind {
                Kind::Rejected { reason } => reason.as_str(),
                Kind::TimedOut => "timeout",
                _ => return,
            };
            *tally.counts().entry(format!("{}/{reason}", event.policy)).or_default() += 1;
        }
    }

    /// What there was since the last time.
    pub(crate) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.counts())
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
