//! What a key of a rate limit takes: a million of them, all of them in use.

use std::{fs, process::ExitCode, time::Duration};

use buttress::{Key, Quota, RateLimitLayer};
use buttress_benches::{cases::bare::Bare, drive};
use http::{HeaderName, HeaderValue, Request};
use tower::Layer;

const KEYS: usize = 1_000_000;
/// Bytes for each key, at most.
const TARGET: f64 = 128.0;

fn main() -> ExitCode {
    let key = HeaderName::from_static("x-api-key");
    let layer = RateLimitLayer::builder()
        .quota(Quota::per(10, Duration::from_secs(3_600)))
        .per_key(Key::Header(key.clone()))
        .max_keys(KEYS)
        .build()
        .expect("a valid configuration");
    let mut service = layer.layer(Bare);
    let before = resident();
    let allocated = allocation_counter::measure(|| {
        for n in 0..KEYS {
            let mut request = Request::new(drive::NoBody::new());
            request.headers_mut().insert(&key, HeaderValue::try_from(format!("client-{n:08}")).expect("a valid value"));
            drive::http_once(&mut service, request);
        }
    });
    let keys = layer.handle().snapshot().keys;
    let per_key = |bytes: f64| bytes / keys as f64;
    let asked_for = per_key(allocated.bytes_current as f64);
    println!("{keys} keys of 15 bytes");
    println!("asked of the allocator: {asked_for:.1} bytes a key");
    let Some(resident) = before.zip(resident()).map(|(before, after)| per_key((after - before) as f64)) else {
        println!("resident: not known here");
        return ExitCode::SUCCESS;
    };
    println!("resident, with what the allocator adds: {resident:.1} bytes a key (target {TARGET})");
    if keys == KEYS && resident <= TARGET { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Bytes of this process that are in memory. Linux alone tells.
fn resident() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
