//! A budget for each host that a client calls.
#![cfg(feature = "http")]

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{Attempts, Backoff, BoxError, Budget, HedgeLayer, Key, RetryLayer, Stopped};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = Empty<Bytes>;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::new()).unwrap()
}

/// Calls by host, whose backends answer with this status.
#[derive(Clone, Default)]
struct Hosts(Arc<Mutex<HashMap<String, usize>>>);

impl Hosts {
    fn service<F>(
        &self,
        answer: impl Fn(&str) -> F + Clone,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone
    where
        F: Future<Output = StatusCode> + Send,
    {
        let calls = self.0.clone();
        service_fn(move |request: Request<Body>| {
            let host = request.uri().host().unwrap_or("-").to_owned();
            let answer = answer(&host);
            *calls.lock().unwrap().entry(host).or_default() += 1;
            async move {
                let mut response = Response::new(Body::new());
                *response.status_mut() = answer.await;
                Ok(response)
            }
        })
    }

    fn calls(&self, host: &str) -> usize {
        self.0.lock().unwrap().get(host).copied().unwrap_or(0)
    }
}

fn retry(budget: &Budget) -> RetryLayer {
    RetryLayer::builder().backoff(Backoff::Constant(Duration::ZERO)).budget(budget.clone()).build().unwrap()
}

fn down(_: &str) -> std::future::Ready<StatusCode> {
    std::future::ready(StatusCode::SERVICE_UNAVAILABLE)
}

#[tokio::test(start_paused = true)]
async fn one_host_does_not_use_up_what_another_has() {
    let budget = Budget::new(0.0, 4, ms(1_000)).unwrap().per_key(Key::Authority).unwrap();
    let hosts = Hosts::default();
    let service = retry(&budget).layer(hosts.service(down));
    for _ in 0..5 {
        service.clone().oneshot(get("http://a:80/")).await.unwrap();
    }
    assert_eq!(hosts.calls("a"), 5 + 4);
    let last = service.clone().oneshot(get("http://a:80/")).await.unwrap();
    assert_eq!(last.extensions().get::<Attempts>().unwrap().stopped, Stopped::Budget);
    // Another host, another port: each has its own. A user is no part of the host.
    service.clone().oneshot(get("http://b/")).await.unwrap();
    service.clone().oneshot(get("http://a:81/")).await.unwrap();
    service.clone().oneshot(get("http://me@a:80/")).await.unwrap();
    assert_eq!((hosts.calls("b"), hosts.calls("a")), (3, 5 + 4 + 1 + 3 + 1));
    // Without a host they share one, which is the one for hands.
    service.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(hosts.calls("-"), 3);
    assert!(budget.withdraw() && budget.withdraw() && !budget.withdraw());
    // The host is asked for in the header where the URI has none.
    let mut request = get("/");
    request.headers_mut().insert("host", "c".parse().unwrap());
    service.oneshot(request).await.unwrap();
    assert_eq!(hosts.calls("-"), 6);
}

#[tokio::test(start_paused = true)]
async fn each_host_earns_its_own_share() {
    let budget = Budget::new(0.5, 0, ms(1_000)).unwrap().per_key(Key::Authority).unwrap();
    let hosts = Hosts::default();
    let up = retry(&budget).layer(hosts.service(|_| std::future::ready(StatusCode::OK)));
    for _ in 0..9 {
        up.clone().oneshot(get("http://a/")).await.unwrap();
    }
    let service = retry(&budget).layer(hosts.service(down));
    service.clone().oneshot(get("http://b/")).await.unwrap();
    assert_eq!(hosts.calls("b"), 1, "one call is half a further attempt");
    for _ in 0..3 {
        service.clone().oneshot(get("http://a/")).await.unwrap();
    }
    // Of 10, 11 and 12 calls the half: 5, which is two, two and one; and one more with the twelfth.
    assert_eq!(hosts.calls("a"), 9 + 3 + 6);
    // After a window all is forgotten.
    sleep(ms(1_200)).await;
    service.oneshot(get("http://a/")).await.unwrap();
    assert_eq!(hosts.calls("a"), 9 + 3 + 6 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_and_a_retry_around_it_share_the_budget_of_a_host_and_pay_once() {
    let budget = Budget::new(0.1, 0, ms(10_000)).unwrap().per_key(Key::Authority).unwrap();
    let hosts = Hosts::default();
    let slow = |host: &str| {
        let takes = if host == "slow" { 50 } else { 1 };
        async move {
            sleep(ms(takes)).await;
            StatusCode::OK
        }
    };
    let hedge = HedgeLayer::builder().after(ms(10)).budget(budget.clone()).build().unwrap();
    let service = retry(&budget).layer(hedge.layer(hosts.service(slow)));
    for _ in 0..40 {
        service.clone().oneshot(get("http://slow/")).await.unwrap();
        service.clone().oneshot(get("http://quick/")).await.unwrap();
    }
    // A tenth of forty: had both paid it were eight.
    assert_eq!((hosts.calls("slow"), hosts.calls("quick")), (44, 40));
    let snapshot = hedge.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.hedges), (80, 4));
}

/// Hosts beyond the bound share budgets, and those that were there keep their own; what is as new makes room.
#[tokio::test(start_paused = true)]
async fn many_hosts_are_bounded() {
    let budget = Budget::new(0.0, 2, ms(1_000)).unwrap().per_key(Key::Authority).unwrap();
    let hosts = Hosts::default();
    let service = retry(&budget).layer(hosts.service(down));
    for n in 0..12_000 {
        service.clone().oneshot(get(&format!("http://h{n}/"))).await.unwrap();
    }
    assert_eq!((0..10_000).map(|n| hosts.calls(&format!("h{n}"))).sum::<usize>(), 30_000);
    let beyond = (10_000..12_000).map(|n| hosts.calls(&format!("h{n}"))).sum::<usize>();
    assert_eq!(beyond, 2_000 + 2 * 128, "128 states for all of them");
    sleep(ms(1_200)).await;
    service.clone().oneshot(get("http://h11999/")).await.unwrap();
    service.oneshot(get("http://h11998/")).await.unwrap();
    assert!(hosts.calls("h11999") >= 4 && hosts.calls("h11998") >= 4);
}

/// Services that are not HTTP have no keys: all their calls share the common budget, as if it had none.
#[tokio::test(start_paused = true)]
async fn plain_services_share_the_common_one() {
    let share = || Budget::new(0.5, 0, ms(10_000)).unwrap();
    let attempts = |budget: Budget| async move {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let layer = RetryLayer::builder().attempts(2).backoff(Backoff::Constant(Duration::ZERO)).budget(budget);
        let service = layer.build().unwrap().boxed().layer(service_fn(move |(): ()| {
            counted.fetch_add(1, SeqCst);
            async { Err::<(), BoxError>("down".into()) }
        }));
        for _ in 0..10 {
            service.clone().oneshot(()).await.unwrap_err();
        }
        calls.load(SeqCst)
    };
    assert_eq!(attempts(share()).await, 15);
    assert_eq!(attempts(share().per_key(Key::Authority).unwrap()).await, 15);
}

#[tokio::test(start_paused = true)]
async fn what_a_plain_call_has_taken_comes_back() {
    let budget = Budget::new(0.0, 1, ms(1_000)).unwrap().per_key(Key::Authority).unwrap();
    let layer = RetryLayer::builder().backoff(Backoff::Constant(ms(100))).budget(budget.clone()).build().unwrap();
    let service = layer.boxed().layer(service_fn(|(): ()| async { Err::<(), BoxError>("down".into()) }));
    let call = service.oneshot(());
    assert!(tokio::time::timeout(ms(10), call).await.is_err(), "it waits for its second attempt");
    assert!(budget.withdraw());
}

#[test]
fn what_can_have_no_key() {
    let share = || Budget::new(0.5, 0, ms(10_000)).unwrap();
    let fields = |error: buttress::ConfigError| error.fields().iter().map(|f| f.field).collect::<Vec<_>>();
    assert_eq!(fields(share().per_key(Key::ForwardedFor { proxies: 0 }).unwrap_err()), ["per_key"]);
    assert_eq!(fields(Budget::tokens(10, 0.1).unwrap().per_key(Key::Authority).unwrap_err()), ["per_key"]);
    // Another key in its place, and no bound for none.
    let both = share().per_key(Key::GrpcMethod).unwrap().per_key(Key::Authority).unwrap();
    assert!(format!("{both:?}").contains("Authority"));
    assert!(Budget::unlimited().per_key(Key::Authority).unwrap().withdraw());
}
