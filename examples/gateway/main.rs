//! The main job of this crate: an axum gateway in front of a tonic backend that fails in every way there is.
//!
//! ```sh
//! cargo run --release --example gateway              # a row a phase, and what was expected of it
//! cargo run --release --example gateway -- --json    # the raw counts
//! cargo run --release --example gateway -- --serve   # stays up, for curl
//! ```
//!
//! Both are real servers on loopback ports, with a real protobuf service between them. Thirty-two callers ask the
//! gateway for the best offer for an article. The backend is healthy, refuses every tenth call, fails in its trailers,
//! is slow, hangs, is gone, and comes back. Nobody out there shall see an error, and the backend shall be left alone
//! while it is unwell. Then one client asks for far more than its share, and the others shall not notice.

mod backend;
mod edge;
mod load;
#[allow(unreachable_pub, missing_docs, clippy::all, reason = "generated")]
mod prices;
mod report;
mod watch;

use std::{
    env,
    error::Error,
    io::{self, IsTerminal},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use axum::{extract::Path, http::StatusCode, routing::post};
use buttress::State;
use tokio::{net::TcpListener, time::sleep};

use crate::{
    backend::{Backend, Mood, Switch},
    edge::{ATTEMPT, Edge, QUOTA},
    load::{CALLERS, Callers, Seen},
    report::{Bound, Expectation, Phase},
};

/// Calls in each phase; of those in which the backend is unwell at least a thousand.
const CALLS: u64 = 1_600;
/// How long a gateway that is told to stop waits for the calls that run.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a caller rests between two calls. It makes a phase last for several open times.
const PAUSE: Duration = Duration::from_millis(40);

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => run(false).await,
        ["--json"] => run(true).await,
        ["--serve"] => serve().await,
        _ => {
            eprintln!("usage: gateway [--json | --serve]");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that runs.
struct World {
    switch: Switch,
    backend: Option<Backend>,
    backend_addr: SocketAddr,
    edge: Edge,
    gateway: SocketAddr,
}

impl World {
    async fn start() -> Result<World, Box<dyn Error>> {
        let switch = Switch::default();
        let backend = {
            let switch = switch.clone();
            // It has a runtime of its own, which can't be made inside of this one.
            tokio::task::spawn_blocking(move || Backend::start(([127, 0, 0, 1], 0).into(), switch)).await??
        };
        let backend_addr = backend.addr;
        let edge = Edge::new(backend_addr)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let gateway = listener.local_addr()?;
        let seen = watch::routes(&edge.registry)?;
        Ok(World { switch, backend: Some(backend), backend_addr, edge, gateway }).inspect(|world| {
            let app = world.edge.app.clone().route("/backend/{mood}", post(set_mood(world.switch.clone()))).merge(seen);
            tokio::spawn(axum::serve(listener, app).into_future());
        })
    }

    async fn set(&mut self, weather: Weather) -> io::Result<()> {
        match weather {
            Weather::Gone => {
                if let Some(backend) = self.backend.take() {
                    backend.stop();
                }
            }
            Weather::Is(mood) => {
                self.switch.set(mood);
                if self.backend.is_none() {
                    let (addr, switch) = (self.backend_addr, self.switch.clone());
                    let started = tokio::task::spawn_blocking(move || Backend::start(addr, switch)).await?;
                    self.backend = Some(started?);
                }
            }
        }
        Ok(())
    }

    fn breaker(&self) -> State {
        self.edge.breaker.snapshot().state
    }
}

/// Dropping a runtime waits for it, which must not happen inside of another one.
impl Drop for World {
    fn drop(&mut self) {
        if let Some(backend) = self.backend.take() {
            backend.stop();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Is(Mood),
    /// The port is closed.
    Gone,
}

const PHASES: [(&str, Weather); 7] = [
    ("healthy", Weather::Is(Mood::Healthy)),
    ("flaky", Weather::Is(Mood::Flaky)),
    ("failing", Weather::Is(Mood::Failing)),
    ("slow", Weather::Is(Mood::Slow)),
    ("hanging", Weather::Is(Mood::Hanging)),
    ("gone", Weather::Gone),
    ("recovered", Weather::Is(Mood::Healthy)),
];

async fn run(as_json: bool) -> Result<bool, Box<dyn Error>> {
    let mut world = World::start().await?;
    let callers = Callers::new(world.gateway);
    let mut phases = Vec::new();
    if !as_json {
        Phase::print_header();
    }
    for (name, weather) in PHASES {
        world.set(weather).await?;
        let phase = measure(&world, &callers, name, weather).await;
        if !as_json {
            phase.print();
        }
        phases.push(phase);
        // Each phase begins with a backend that is well and a closed breaker.
        world.set(Weather::Is(Mood::Healthy)).await?;
        recover(&world, &callers).await?;
    }
    let phase = greedy(&world, &callers).await;
    if !as_json {
        phase.print();
    }
    phases.push(phase);
    let failures: Vec<String> = phases.iter().flat_map(Phase::failures).collect();
    let all_met = failures.is_empty();
    if as_json {
        let phases: Vec<_> = phases.iter().map(Phase::json).collect();
        println!("{:#}", serde_json::json!({ "phases": phases, "failed_expectations": failures }));
    } else if all_met {
        println!("gateway: all expectations met");
    }
    for failure in &failures {
        eprintln!("gateway: {failure}");
    }
    Ok(all_met)
}

async fn measure(world: &World, callers: &Callers, name: &'static str, weather: Weather) -> Phase {
    let mut phase = phase(world, name, callers.run(CALLS, PAUSE, progress_of(name))).await;
    phase.expectations = expectations(&phase, weather);
    phase
}

/// What happens while these calls are made.
async fn phase(world: &World, name: &'static str, calls: impl Future<Output = Seen>) -> Phase {
    world.edge.refusals.take();
    let (hits, attempts) = (world.switch.hits(), world.edge.retry.snapshot().attempts);
    let seen = calls.await;
    Phase {
        name,
        seen,
        refused: world.edge.refusals.take(),
        attempts: world.edge.retry.snapshot().attempts - attempts,
        backend_hits: world.switch.hits() - hits,
        breaker: world.breaker().as_str(),
        expectations: Vec::new(),
    }
}

/// A client that asks as fast as it can, beside one that does not.
async fn greedy(world: &World, callers: &Callers) -> Phase {
    let (greedy, polite) = (callers.named("greedy"), callers.named("polite"));
    #[allow(clippy::disallowed_methods, reason = "a quota is so much in so long")]
    let start = tokio::time::Instant::now();
    let mut seen_by_polite = Seen::default();
    let mut phase = phase(world, "greedy", async {
        let (asks, share) = (5 * CALLS, u64::from(QUOTA));
        let (mut all, polite) = tokio::join!(
            greedy.run(asks, Duration::ZERO, progress_of("greedy")),
            // All of it at once, which a quota allows.
            polite.run(share, PAUSE, |_| {}),
        );
        seen_by_polite = polite.clone();
        all.add(polite);
        all
    })
    .await;
    let served = phase.seen.ok - seen_by_polite.ok;
    let most = f64::from(QUOTA) * (1.0 + start.elapsed().as_secs_f64());
    let expect = |what, figure: u64, bound| Expectation { what, figure: figure as f64, bound };
    phase.expectations = vec![
        expect("calls that failed", phase.seen.failed, Bound::Is(0.0)),
        expect("calls of the polite one that were served", seen_by_polite.ok, Bound::Is(f64::from(QUOTA))),
        expect("calls of the greedy one that were served", served, Bound::AtMost(most.ceil())),
        expect("calls of the greedy one that were refused", phase.seen.limited, Bound::AtLeast(4.0 * CALLS as f64)),
    ];
    phase
}

/// A line that is written over, where there is somebody to watch it.
fn progress_of(name: &'static str) -> impl Fn(u64) {
    let watched = io::stderr().is_terminal();
    if !watched {
        eprintln!("{name}: {CALLS} calls");
    }
    move |calls| {
        if watched {
            eprint!("\r{name}: {calls} of {CALLS} calls \r");
        }
    }
}

fn expectations(phase: &Phase, weather: Weather) -> Vec<Expectation> {
    let expect = |what, figure: u64, bound| Expectation { what, figure: figure as f64, bound };
    let calls = CALLS as f64;
    let amplification = phase.attempts as f64 / calls;
    let mut all = vec![
        expect("calls that failed", phase.seen.failed, Bound::Is(0.0)),
        Expectation { what: "attempts for each call", figure: amplification, bound: Bound::AtMost(1.3) },
    ];
    match weather {
        Weather::Is(mood @ (Mood::Healthy | Mood::Flaky)) => all.extend([
            expect("calls with the backend's own answer", phase.seen.ok, Bound::Is(calls)),
            match mood {
                Mood::Flaky => {
                    expect("calls that reached the backend", phase.backend_hits, Bound::AtLeast(1.05 * calls))
                }
                _ => expect("calls that reached the backend", phase.backend_hits, Bound::Is(calls)),
            },
            expect("calls that the breaker refused", phase.refused_by_breaker(), Bound::Is(0.0)),
            expect("breaker is closed", u64::from(phase.breaker == "closed"), Bound::Is(1.0)),
        ]),
        Weather::Is(_) | Weather::Gone => all.extend([
            expect("calls that reached the backend", phase.backend_hits, Bound::AtMost(0.2 * calls)),
            expect("calls that the breaker refused", phase.refused_by_breaker(), Bound::AtLeast(0.7 * calls)),
            expect("breaker is not closed", u64::from(phase.breaker != "closed"), Bound::Is(1.0)),
            // Half of the callers never wait for the backend at all.
            expect("p50 in ms", phase.seen.percentile(0.5) as u64, Bound::AtMost(50.0)),
            // And nobody waits for much longer than three attempts take.
            expect("p99 in ms", phase.seen.percentile(0.99) as u64, Bound::AtMost(5.0 * ATTEMPT.as_millis() as f64)),
        ]),
    }
    if matches!(weather, Weather::Is(Mood::Failing | Mood::Hanging) | Weather::Gone) {
        all.push(expect("calls with the last good answer", phase.seen.degraded, Bound::Is(calls)));
    }
    all
}

/// A few calls at a time until the breaker has closed.
async fn recover(world: &World, callers: &Callers) -> Result<(), Box<dyn Error>> {
    for _ in 0..100 {
        if world.breaker() == State::Closed {
            // One full window of good calls, so that nothing of the last phase is left in it.
            callers.run(50, Duration::ZERO, |_| {}).await;
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
        callers.run(CALLERS, Duration::ZERO, |_| {}).await;
    }
    Err("the breaker does not close again".into())
}

/// For `--serve`: changes the backend's mood from outside.
fn set_mood(
    switch: Switch,
) -> impl Fn(Path<String>) -> std::future::Ready<(StatusCode, String)> + Clone + Send + 'static {
    move |Path(name)| {
        std::future::ready(match Mood::ALL.iter().find(|(known, _)| *known == name) {
            Some((_, mood)) => {
                switch.set(*mood);
                (StatusCode::OK, format!("the backend is {name}\n"))
            }
            None => (StatusCode::NOT_FOUND, "healthy, flaky, failing, slow or hanging\n".to_owned()),
        })
    }
}

async fn serve() -> Result<bool, Box<dyn Error>> {
    let world = World::start().await?;
    let gateway = world.gateway;
    println!("the gateway is up; stop it with Ctrl-C");
    println!("  curl -i http://{gateway}/offers/apple");
    println!("  curl -X POST http://{gateway}/backend/failing     (healthy, flaky, slow, hanging)");
    println!("  curl http://{gateway}/metrics                     (with --features metrics)");
    println!("  curl http://{gateway}/policies                    (with --features serde)");
    let mut last = world.breaker();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                // What runs ends, what comes is sent elsewhere.
                let _ = tokio::time::timeout(DRAIN, world.edge.registry.drain()).await;
                let answered = world.edge.fallback.snapshot().answered;
                println!("{} calls reached the backend, {answered} got the last good answer", world.switch.hits());
                return Ok(true);
            }
            _ = ticks.tick() => {
                let now = world.breaker();
                if now != last {
                    println!("breaker: {last} -> {now}");
                    last = now;
                }
            }
        }
    }
}
