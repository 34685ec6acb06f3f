//! A quota for each key of requests that are not HTTP.
#![cfg(feature = "http")]
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress::{
    BoxError, Error, Grant, KeyBytes, MissingKey, Quota, RateLimitBuilder, RateLimitLayer, Reason, Rejection, Store,
};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, service_fn};

#[derive(Debug, Clone)]
struct Job {
    tenant: Option<String>,
}

fn job(tenant: &str) -> Job {
    Job { tenant: Some(tenant.into()) }
}

fn nobodys() -> Job {
    Job { tenant: None }
}

fn tenant(job: &Job) -> Option<KeyBytes<'_>> {
    job.tenant.as_ref().map(KeyBytes::from)
}

fn limit(n: u32) -> RateLimitBuilder {
    RateLimitLayer::builder().quota(Quota::per_second(n))
}

fn works() -> impl Service<Job, Response = (), Error = Infallible, Future = Ready<Result<(), Infallible>>> + Clone {
    service_fn(|_: Job| ready(Ok(())))
}

/// How many of a hundred go right now.
async fn goes<S: Service<Job> + Clone>(service: &S, job: &Job) -> usize {
    let mut n = 0;
    while n < 100 && service.clone().oneshot(job.clone()).await.is_ok() {
        n += 1;
    }
    n
}

#[tokio::test(start_paused = true)]
async fn each_tenant_has_its_own() {
    let layer = limit(3).build_plain_per_key(tenant).unwrap();
    let service = layer.layer(works());
    assert_eq!((goes(&service, &job("a")).await, goes(&service, &job("b")).await), (3, 3));
    // The state is the layer's.
    assert_eq!(goes(&layer.layer(works()), &job("a")).await, 0);
    advance(Duration::from_secs(1)).await;
    assert_eq!(goes(&layer.layer(works()), &job("a")).await, 3);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.keys, snapshot.admitted, snapshot.rejected), (2, 9, 4));
    let refused = service.clone().oneshot(job("a")).await.unwrap_err();
    let Error::Rejected(rejection) = refused else { panic!("{refused}") };
    assert_eq!(
        (rejection.reason(), rejection.retry_after()),
        (Reason::RateLimited, Some(Duration::from_nanos(333_333_334)))
    );
}

#[tokio::test(start_paused = true)]
async fn one_without_a_key() {
    let service = limit(3).build_plain_per_key(tenant).unwrap().layer(works());
    let Error::Rejected(rejection) = service.oneshot(nobodys()).await.unwrap_err() else { panic!() };
    assert_eq!(rejection.reason(), Reason::KeyMissing);
    let shared = limit(3).missing_key(MissingKey::Shared).build_plain_per_key(tenant).unwrap().layer(works());
    assert_eq!((goes(&shared, &nobodys()).await, goes(&shared, &job("a")).await), (3, 3));
    let unlimited = limit(3).missing_key(MissingKey::Unlimited).build_plain_per_key(tenant).unwrap().layer(works());
    assert_eq!((goes(&unlimited, &nobodys()).await, goes(&unlimited, &job("a")).await), (100, 3));
}

#[tokio::test(start_paused = true)]
async fn it_waits_in_the_line_of_its_key() {
    let layer = limit(2).wait(Duration::from_secs(1)).build_plain_per_key(tenant).unwrap();
    let start = Instant::now();
    let calls = ["a", "a", "a", "b", "a", "a"].map(|tenant| {
        let call = layer.layer(works()).oneshot(job(tenant));
        async move { (call.await.is_ok(), start.elapsed().as_millis()) }
    });
    let ended = futures_util::future::join_all(calls).await;
    assert_eq!(ended, [(true, 0), (true, 0), (true, 500), (true, 0), (true, 1_000), (false, 0)]);
}

#[tokio::test(start_paused = true)]
async fn tiers_and_a_bound() {
    let builder = limit(2).max_keys(1).quota_fn(|tenant| (tenant == "gold").then(|| Quota::per_second(5)));
    let layer = builder.build_plain_per_key(tenant).unwrap();
    let service = layer.layer(works());
    assert_eq!(goes(&service, &job("gold")).await, 5);
    // Beyond the bound they share one.
    assert_eq!((goes(&service, &job("a")).await, goes(&service, &job("b")).await), (2, 0));
    assert_eq!(layer.handle().snapshot().keys, 1);
}

#[derive(Debug)]
struct Refused(Rejection);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Refused(rejection)
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_other_forms_too() {
    let flat = limit(1).build_flat_per_key(tenant).unwrap();
    let mut service = flat.layer(service_fn(|_: Job| ready(Ok::<_, Refused>(()))));
    service.ready().await.unwrap().call(job("a")).await.unwrap();
    let Refused(rejection) = service.ready().await.unwrap().call(job("a")).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::RateLimited);

    let boxed = limit(1).build_boxed_per_key(tenant).unwrap();
    let mut service = boxed.clone().layer(service_fn(|_: Job| ready(Ok::<_, BoxError>(()))));
    service.ready().await.unwrap().call(job("a")).await.unwrap();
    let error = service.ready().await.unwrap().call(job("a")).await.unwrap_err();
    assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::RateLimited);
    // In a form that knows no keys all calls share one quota, which is not that of a key.
    let common = boxed.plain().layer(works());
    assert_eq!((goes(&common, &job("a")).await, goes(&common, &job("b")).await), (1, 0));
}

/// Numbers, text and addresses are keys, none of which is another.
#[tokio::test(start_paused = true)]
async fn numbers_and_addresses_are_keys() {
    let service = service_fn(|_: u64| ready(Ok::<_, Infallible>(())));
    let layer = limit(1).build_plain_per_key(|n: &u64| Some((*n).into())).unwrap().layer(service);
    for n in [0, 1, 256, u64::MAX] {
        assert!(layer.clone().oneshot(n).await.is_ok() && layer.clone().oneshot(n).await.is_err(), "{n}");
    }
    let service = service_fn(|_: IpAddr| ready(Ok::<_, Infallible>(())));
    let layer = limit(1).build_plain_per_key(|ip: &IpAddr| Some((*ip).into())).unwrap().layer(service);
    for (ip, is_new) in [
        ("1.2.3.4", true),
        ("::ffff:1.2.3.4", false),
        ("1.2.3.5", true),
        ("2001:db8::1", true),
        ("2001:db8::2", false),
        ("2001:db8:0:1::1", true),
    ] {
        assert_eq!(layer.clone().oneshot(ip.parse().unwrap()).await.is_ok(), is_new, "{ip}");
    }
}

/// What it is asked for.
struct Asked(Arc<Mutex<Vec<String>>>);

impl Store<Arc<str>> for Asked {
    type Acquire = Ready<Grant>;

    fn acquire(&self, key: &Arc<str>, _cost: NonZeroU32) -> Ready<Grant> {
        self.0.lock().unwrap().push(key.to_string());
        ready(Grant::Granted { remaining: 1, reset: Duration::ZERO })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_is_asked_for_the_key_as_text() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let builder = || limit(1).name("jobs").missing_key(MissingKey::Shared).store(Asked(Arc::clone(&asked)));
    let service = builder().build_plain_per_key(tenant).unwrap().layer(works());
    service.clone().oneshot(job("acme")).await.unwrap();
    service.clone().oneshot(nobodys()).await.unwrap();
    let service = service_fn(|_: u64| ready(Ok::<_, Infallible>(())));
    let numbers = builder().build_plain_per_key(|n: &u64| Some((*n).into())).unwrap().layer(service);
    for n in [42, 200] {
        numbers.clone().oneshot(n).await.unwrap();
    }
    // Who calls itself as the layer is called is not one of those without a key.
    let service = builder().build_plain_per_key(tenant).unwrap().layer(works());
    service.oneshot(job("jobs")).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["acme", "jobs", "42", "200", "\u{7f}6a6f6273"]);
}

#[tokio::test(start_paused = true)]
async fn numbers_have_tiers() {
    let builder = limit(1).quota_fn(|key| (["42", "200"].contains(&key)).then(|| Quota::per_second(3)));
    let layer = builder.build_plain_per_key(|n: &u64| Some((*n).into())).unwrap();
    let service = layer.layer(service_fn(|_: u64| ready(Ok::<_, Infallible>(()))));
    for (n, goes) in [(42, 3), (200, 3), (7, 1), (u64::MAX, 1)] {
        for at in 0..4 {
            assert_eq!(service.clone().oneshot(n).await.is_ok(), at < goes, "{n}");
        }
    }
}

#[test]
fn only_one_way_to_find_a_key() {
    let error = limit(1).per_key(buttress::Key::ConnectInfo).build_plain_per_key(tenant).unwrap_err();
    assert_eq!(error.fields().iter().map(|f| f.field).collect::<Vec<_>>(), ["per_key"]);
}
