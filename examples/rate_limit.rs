//! Quotas per API key with tiers, quotas per client behind a proxy, and the headers that tell of them, on an axum
//! server.
//!
//! `cargo run --example rate_limit` serves itself, calls itself, and says whether all went as it should.

use std::{collections::HashMap, error::Error, net::SocketAddr, process::ExitCode, time::Duration};

use axum::{
    Router,
    http::{HeaderName, StatusCode},
    routing::get,
};
use buttress::{Key, LimitHeaders, MissingKey, Quota, RateLimitLayer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Far apart, so that no unit comes back while this runs.
const HOUR: Duration = Duration::from_secs(3_600);

struct Limits {
    api: RateLimitLayer,
    site: RateLimitLayer,
}

fn limits() -> Result<Limits> {
    // Three an hour for each key, ten for the one that pays; a failed login costs two of them. Without a key: refused.
    let api = RateLimitLayer::builder()
        .name("api")
        .quota(Quota::per(3, HOUR))
        .per_key(Key::Header(HeaderName::from_static("x-api-key")))
        .quota_fn(|key| (key == "gold").then(|| Quota::per(10, HOUR)))
        .charge_fn(|response| if response.status == StatusCode::UNAUTHORIZED { 2 } else { 1 })
        .headers(LimitHeaders::Draft10)
        .build()?;
    // Two an hour for each client of our one proxy. Who comes past the proxy shares a quota with others who do.
    let site = RateLimitLayer::builder()
        .name("site")
        .quota(Quota::per(2, HOUR))
        .per_key(Key::ForwardedFor { proxies: 1 })
        .missing_key(MissingKey::Shared)
        .headers(LimitHeaders::Legacy)
        .build()?;
    Ok(Limits { api, site })
}

async fn serve(limits: &Limits) -> Result<SocketAddr> {
    let app = Router::new()
        .route("/api", get(|| async { "data\n" }))
        .route("/login", get(|| async { StatusCode::UNAUTHORIZED }))
        .layer(limits.api.clone())
        .merge(Router::new().route("/", get(|| async { "hello\n" })).layer(limits.site.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(address)
}

/// An answer: its status and its headers.
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
}

async fn call(server: SocketAddr, path: &str, header: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let mut lines = text.split("\r\n\r\n").next().unwrap_or_default().lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok()).ok_or("no status")?;
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Ok(Answer { status, headers })
}

/// Prints what was seen, and remembers whether it was what was expected.
#[derive(Default)]
struct Expectations {
    missed: u32,
}

impl Expectations {
    fn expect(&mut self, what: &str, seen: impl ToString, expected: impl ToString) {
        let (seen, expected) = (seen.to_string(), expected.to_string());
        if seen == expected {
            println!("  {what}: {seen}");
        } else {
            println!("  {what}: {seen}, BUT EXPECTED {expected}");
            self.missed += 1;
        }
    }

    async fn call(&mut self, server: SocketAddr, path: &str, header: &str, status: u16) -> Result<Answer> {
        let answer = call(server, path, header).await?;
        self.expect(&format!("GET {path}  {}", header.trim_end()), answer.status, status);
        Ok(answer)
    }
}

fn told(answer: &Answer, name: &str) -> String {
    answer.headers.get(name).cloned().unwrap_or_default()
}

async fn run() -> Result<u32> {
    let limits = limits()?;
    let server = serve(&limits).await?;
    let mut expectations = Expectations::default();

    println!("One key:");
    for left in [2, 1, 0] {
        let answer = expectations.call(server, "/api", "x-api-key: silver\r\n", 200).await?;
        // What follows is the number of seconds until all are there again.
        let limit = told(&answer, "ratelimit");
        println!("  ratelimit: {limit}");
        expectations.expect("left", limit.split(";t=").next().unwrap_or_default(), format!("\"default\";r={left}"));
    }
    let refused = expectations.call(server, "/api", "x-api-key: silver\r\n", 429).await?;
    expectations.expect("ratelimit-policy", told(&refused, "ratelimit-policy"), "\"default\";q=3;w=3600");
    let seconds = told(&refused, "retry-after").parse().unwrap_or(0);
    expectations.expect("retry-after some 1200 seconds", (1_000..=1_200).contains(&seconds), true);

    println!("Another key has its own quota, and a tier of its own:");
    for _ in 0..10 {
        expectations.call(server, "/api", "x-api-key: gold\r\n", 200).await?;
    }
    expectations.call(server, "/api", "x-api-key: gold\r\n", 429).await?;

    println!("No key, and failed logins at twice the price:");
    expectations.call(server, "/api", "", 429).await?;
    expectations.call(server, "/login", "x-api-key: guess\r\n", 401).await?;
    expectations.call(server, "/login", "x-api-key: guess\r\n", 401).await?;
    expectations.call(server, "/login", "x-api-key: guess\r\n", 429).await?;

    println!("Clients behind our proxy; what they write themselves stands on the left and changes nothing:");
    for (header, status) in [
        ("x-forwarded-for: 203.0.113.7\r\n", 200),
        ("x-forwarded-for: 1.1.1.1, 203.0.113.7\r\n", 200),
        ("x-forwarded-for: 2.2.2.2, 203.0.113.7\r\n", 429),
        ("x-forwarded-for: 203.0.113.8\r\n", 200),
        ("x-forwarded-for: [2001:db8::1]:443\r\n", 200),
        ("x-forwarded-for: unknown\r\n", 200),
        ("", 200),
        ("", 429),
    ] {
        let answer = expectations.call(server, "/", header, status).await?;
        expectations.expect("x-ratelimit-limit", told(&answer, "x-ratelimit-limit"), 2);
    }

    println!("Seen through the handles, and changed through one: what was used stays used.");
    let (api, site) = (limits.api.handle(), limits.site.handle());
    expectations.expect("api admitted", api.snapshot().admitted, 15);
    expectations.expect("api rejected", api.snapshot().rejected, 4);
    expectations.expect("site keys", site.snapshot().keys, 3);
    api.set_quota(Quota::per(4, HOUR))?;
    expectations.call(server, "/api", "x-api-key: silver\r\n", 200).await?;
    expectations.call(server, "/api", "x-api-key: silver\r\n", 429).await?;
    Ok(expectations.missed)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(0) => {
            println!("rate_limit: all expectations met");
            ExitCode::SUCCESS
        }
        Ok(missed) => {
            println!("rate_limit: {missed} expectations missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("rate_limit: {error}");
            ExitCode::FAILURE
        }
    }
}
