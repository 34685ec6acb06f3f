//! Two threads, each pinned to a core of its own, that run calls for a moment, alone or together.

use std::{
    fs,
    hint::{black_box, spin_loop},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use crate::case::{Call, Clients};

/// Short, so that few rounds are interrupted and slow changes of the machine hit all cases alike.
const ROUND: Duration = Duration::from_micros(1_500);
/// How long the calls between two looks at the clock should take: far longer than the look.
const STRIDE: Duration = Duration::from_micros(10);

/// The two threads. They end when this is dropped.
pub struct Pair {
    orders: [Sender<Order>; 2],
    reports: [Receiver<Option<f64>>; 2],
    pinned: bool,
}

/// Runs one case until the round is over.
struct Order {
    case: usize,
    /// Starts when this many threads have come.
    together: usize,
    arrived: Arc<AtomicUsize>,
}

impl Pair {
    /// Each thread gets a client of its own of each of the services, made where it is used.
    pub fn new(services: Vec<Clients>, runtime: &Handle) -> Self {
        let services = Arc::new(services);
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let start = |n: usize| {
            let (order, orders) = channel();
            let (report, reports) = channel();
            let (core, services, runtime) = (cores.get(n).copied(), Arc::clone(&services), runtime.clone());
            thread::spawn(move || {
                let _entered = runtime.enter();
                core.map(core_affinity::set_for_current);
                let mut clients: Vec<Client> = services.iter().map(|service| Client::new(service())).collect();
                for Order { case, together, arrived } in orders {
                    let client: &mut Client = &mut clients[case];
                    arrived.fetch_add(1, SeqCst);
                    while arrived.load(SeqCst) < together {
                        spin_loop();
                    }
                    if report.send(client.round()).is_err() {
                        return;
                    }
                }
            });
            (order, reports)
        };
        let [(a, from_a), (b, from_b)] = [start(0), start(1)];
        Pair { orders: [a, b], reports: [from_a, from_b], pinned: cores.len() >= 2 }
    }

    /// Are there two cores to compare?
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Calls per second of one thread while the other sleeps. `None`: it was interrupted.
    pub fn alone(&self, thread: usize, case: usize) -> Option<f64> {
        self.order(&[thread], case)
    }

    /// Calls per second of both at once. `None`: one was interrupted.
    pub fn together(&self, case: usize) -> Option<f64> {
        self.order(&[0, 1], case)
    }

    fn order(&self, threads: &[usize], case: usize) -> Option<f64> {
        let arrived = Arc::new(AtomicUsize::new(0));
        for &n in threads {
            let order = Order { case, together: threads.len(), arrived: Arc::clone(&arrived) };
            self.orders[n].send(order).expect("the thread waits for orders");
        }
        let reports: Vec<_> = threads.iter().map(|&n| self.reports[n].recv().expect("the thread reports")).collect();
        reports.into_iter().sum()
    }
}

struct Client {
    call: Call,
    stride: u32,
}

impl Client {
    fn new(call: Call) -> Self {
        let mut client = Client { call, stride: 1 };
        while client.stride < 1 << 20 {
            let start = Instant::now();
            client.step();
            if start.elapsed() >= STRIDE {
                break;
            }
            client.stride *= 2;
        }
        client
    }

    fn round(&mut self) -> Option<f64> {
        let interrupted = interruptions();
        let start = Instant::now();
        let mut calls = 0;
        let took = loop {
            self.step();
            calls += u64::from(self.stride);
            let took = start.elapsed();
            if took >= ROUND {
                break took;
            }
        };
        (interruptions() == interrupted).then(|| calls as f64 / took.as_secs_f64())
    }

    fn step(&mut self) {
        for _ in 0..self.stride {
            black_box((self.call)());
        }
    }
}

/// How often this thread lost its core to another one. Where the system does not say, never.
fn interruptions() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}
