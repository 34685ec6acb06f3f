//! Deadlines so far away that they are meant to be none.

use std::{convert::Infallible, io, time::Duration};

use buttress::{BulkheadLayer, CircuitBreakerLayer, Deadline, Quota, RateLimitLayer, State};
use tokio::time::{advance, sleep};
use tower::{Layer, ServiceExt, service_fn};

/// In nanoseconds some of these wrap round to just before now.
fn far() -> [Duration; 6] {
    let most = u64::MAX;
    [
        Duration::from_millis(most),
        Duration::from_micros(most),
        Duration::from_nanos(most),
        Duration::from_secs(most / 4),
        Duration::from_secs(20_000_000_000),
        Duration::MAX,
    ]
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_waits() {
    for far in far() {
        let layer =
            RateLimitLayer::builder().quota(Quota::per_second(1)).wait(Duration::from_secs(10)).build().unwrap();
        let service = layer.plain().layer(service_fn(|(): ()| async { Ok::<_, Infallible>(()) }));
        advance(Duration::from_millis(50)).await;
        service.clone().oneshot(()).await.unwrap();
        assert!(Deadline::after(far).scope(service.oneshot(())).await.is_ok(), "{far:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_queues() {
    for far in far() {
        let layer = BulkheadLayer::builder().limit(1).queue(1).wait(Duration::from_secs(10)).build().unwrap();
        let service = layer.plain().layer(service_fn(|(): ()| async {
            sleep(Duration::from_millis(500)).await;
            Ok::<_, Infallible>(())
        }));
        advance(Duration::from_millis(50)).await;
        let (first, second) =
            tokio::join!(service.clone().oneshot(()), Deadline::after(far).scope(service.oneshot(())));
        assert!(first.is_ok() && second.is_ok(), "{far:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_blames_the_backend() {
    for far in far() {
        let layer = CircuitBreakerLayer::builder().consecutive_failures(3).build().unwrap();
        let backend = service_fn(|(): ()| async { Err::<(), _>(io::Error::other("down")) });
        let service = layer.clone().plain().layer(backend);
        advance(Duration::from_millis(50)).await;
        for _ in 0..3 {
            Deadline::after(far).scope(service.clone().oneshot(())).await.unwrap_err();
        }
        assert_eq!(layer.handle().snapshot().state, State::Open, "{far:?}");
    }
}
