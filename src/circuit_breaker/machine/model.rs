//! The machine beside a naive one: lists in the place of counters, and no concurrency at all.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

use crate::{
    circuit_breaker::{
        CircuitBreakerConfig, State, Window,
        machine::{Change, Look, Machine, Pass, Refusal, Ticket},
    },
    outcome::Outcome,
    rejection::Reason,
    time::Span,
    window::Sums,
};

const MS: u64 = 1_000_000;

struct Model {
    config: CircuitBreakerConfig,
    state: State,
    generation: u32,
    since: u64,
    until: u64,
    openings: u32,
    ramp_until: u64,
    /// The time of each call, whether it failed and whether it was slow.
    window: VecDeque<(u64, bool, bool)>,
    run: u32,
    slots: Vec<Option<Lease>>,
    good: u32,
    failed: u32,
    opened_by: (Sums, u32),
}

#[derive(Clone, Copy)]
struct Lease {
    call: usize,
    until: u64,
    good_head: bool,
}

impl Model {
    fn new(config: CircuitBreakerConfig) -> Self {
        Model {
            config,
            state: State::Closed,
            generation: 0,
            since: 0,
            until: 0,
            openings: 0,
            ramp_until: 0,
            window: VecDeque::new(),
            run: 0,
            slots: vec![None; 64],
            good: 0,
            failed: 0,
            opened_by: (Sums::default(), 0),
        }
    }

    fn slide(&mut self, now: u64) {
        match self.config.window {
            Window::Count(n) => {
                while self.window.len() > n as usize {
                    self.window.pop_front();
                }
            }
            Window::Time(t) => {
                let tick = t.as_nanos() as u64 / 10;
                self.window.retain(|(at, ..)| now / tick - at / tick <= 10);
            }
        }
    }

    fn sums(&mut self, now: u64) -> Sums {
        self.slide(now);
        Sums {
            calls: self.window.len() as u64,
            failures: self.window.iter().filter(|c| c.1).count() as u64,
            slow: self.window.iter().filter(|c| c.2).count() as u64,
        }
    }

    fn go(&mut self, to: State, now: u64) {
        self.state = to;
        self.generation += 1;
        self.since = now;
        self.ramp_until = 0;
        if to == State::HalfOpen {
            self.slots = vec![None; 64];
            (self.good, self.failed) = (0, 0);
        }
        if matches!(to, State::HalfOpen) {
            self.empty();
        }
    }

    fn empty(&mut self) {
        self.window.clear();
        self.run = 0;
    }

    fn open(&mut self, now: u64) {
        self.opened_by = (self.sums(now), self.run);
        let opening = self.openings;
        self.openings += 1;
        self.go(State::Open, now);
        self.until = now + open_time(opening);
    }

    fn close(&mut self, now: u64) {
        self.go(State::Closed, now);
        self.empty();
        self.openings = 0;
        self.ramp_until = self.config.ramp.map_or(0, |r| now + r.as_nanos() as u64);
    }

    fn admit(&mut self, call: usize, now: u64, random: f64) -> Result<(), Refusal> {
        let refusal = |retry_after| Err(Refusal { reason: Reason::CircuitOpen, retry_after });
        if self.state == State::Open {
            if now <= self.until {
                return refusal(Span(self.until - now));
            }
            self.go(State::HalfOpen, now);
        }
        match self.state {
            State::Closed if now < self.ramp_until => {
                let ramp = self.config.ramp.unwrap().as_nanos() as f64;
                if random < 1.0 - (self.ramp_until - now) as f64 / ramp { Ok(()) } else { refusal(Span::NONE) }
            }
            State::ForcedOpen => Err(Refusal { reason: Reason::ForcedOpen, retry_after: Span::NONE }),
            State::HalfOpen => {
                let out = |slot: &Option<Lease>| slot.is_some_and(|l| now <= l.until);
                let probes = self.config.probes as usize;
                for i in 0..probes {
                    // There may be more out than there may be now.
                    if i + self.slots[i + 1..].iter().filter(|s| out(s)).count() >= probes {
                        break;
                    }
                    let until = now + self.config.probe_lease.as_nanos() as u64;
                    match self.slots[i] {
                        Some(lease) if now <= lease.until => continue,
                        Some(lease) if lease.good_head => {
                            self.slots[i] = None;
                            self.probe_ended(false, now);
                            return self.admit(call, now, random);
                        }
                        _ => {}
                    }
                    self.slots[i] = Some(Lease { call, until, good_head: false });
                    return Ok(());
                }
                refusal(Span::NONE)
            }
            _ => Ok(()),
        }
    }

    fn settle(&mut self, call: usize, generation: u32, outcome: Option<Outcome>, slow: bool, now: u64) {
        if generation != self.generation {
            return;
        }
        let (mut outcome, mut slow) = (outcome, slow);
        if self.state == State::HalfOpen {
            let Some(i) = self.slots.iter().position(|s| s.is_some_and(|l| l.call == call)) else { return };
            let lease = self.slots[i].take().unwrap();
            if now > lease.until {
                if outcome.is_none() && lease.good_head {
                    return self.probe_ended(false, now);
                }
                // By its head, of which nothing is slow.
                outcome = outcome.and(lease.good_head.then_some(Outcome::Success));
                slow = false;
            }
        }
        let Some(outcome) = outcome else { return };
        let failed = outcome != Outcome::Success;
        self.window.push_back((now, failed, slow));
        match outcome {
            Outcome::Success => self.run = 0,
            Outcome::Throttled if !self.config.throttled_is_failure => {}
            _ => self.run += 1,
        }
        match self.state {
            State::HalfOpen => self.probe_ended(failed || slow, now),
            State::Closed => {
                let sums = self.sums(now);
                let crosses = |part: u64, rate: Option<f64>| {
                    rate.is_some_and(|r| part > 0 && part as f64 / sums.calls as f64 >= r - 1e-12)
                };
                let rates = sums.calls >= u64::from(self.config.minimum_calls)
                    && (crosses(sums.failures, self.config.failure_rate)
                        || crosses(sums.slow, self.config.slow_call_rate));
                let adds = outcome == Outcome::Failure || failed && self.config.throttled_is_failure;
                let in_a_row = adds && self.config.consecutive_failures.is_some_and(|n| self.run >= n);
                if rates || in_a_row {
                    self.open(now);
                }
            }
            _ => {}
        }
    }

    fn update(&mut self, config: CircuitBreakerConfig, now: u64) {
        self.slide(now);
        match (self.config.window, config.window) {
            (a, b) if a == b => {}
            (Window::Count(_), Window::Count(n)) => {
                while self.window.len() > n as usize {
                    self.window.pop_front();
                }
            }
            (Window::Count(_), Window::Time(_)) => self.window.iter_mut().for_each(|c| c.0 = now),
            (Window::Time(t), to) => {
                // All that is left of a time is its tick, and within it the bad ones are spread evenly.
                let tick = t.as_nanos() as u64 / 10;
                let mut ticks: Vec<Vec<_>> = vec![Vec::new(); 11];
                for call in self.window.drain(..) {
                    ticks[(now / tick - call.0 / tick) as usize].push(call);
                }
                for (back, calls) in ticks.into_iter().enumerate().rev() {
                    let (failed, slow) = (calls.iter().filter(|c| c.1).count(), calls.iter().filter(|c| c.2).count());
                    let at = now.saturating_sub(back as u64 * tick);
                    let n = calls.len() as f64;
                    let before = |some: usize, i: usize| (some as f64 / n * i as f64 + 1e-9).round() as u64;
                    let is_one = |some: usize, i: usize| before(some, i + 1) > before(some, i);
                    self.window.extend((0..calls.len()).map(|i| (at, is_one(failed, i), is_one(slow, i))));
                }
                if let Window::Count(n) = to {
                    while self.window.len() > n as usize {
                        self.window.pop_front();
                    }
                }
            }
        }
        if self.ramp_until > now {
            let nanos = |r: Option<Duration>| r.map_or(0, |r| r.as_nanos());
            let left = u128::from(self.ramp_until - now) * nanos(config.ramp) / nanos(self.config.ramp).max(1);
            self.ramp_until = if left == 0 { 0 } else { now + left as u64 };
        }
        self.config = config;
    }

    fn probe_ended(&mut self, failed: bool, now: u64) {
        *(if failed { &mut self.failed } else { &mut self.good }) += 1;
        if !failed && self.good >= self.config.successes_to_close {
            self.close(now);
        } else if failed && self.failed > self.config.probes.saturating_sub(self.config.successes_to_close) {
            self.open(now);
        }
    }
}

fn open_time(opening: u32) -> u64 {
    100 * MS * (u64::from(opening) + 1)
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Call(f64),
    /// Which of the running calls, how it ends (`None`: it says nothing), and whether it was slow.
    End(usize, Option<Outcome>, bool),
    Head(usize),
    Hand(State),
    Reset,
    Update(CircuitBreakerConfig),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(Some(Outcome::Success)),
        4 => Just(Some(Outcome::Failure)),
        1 => Just(Some(Outcome::Throttled)),
        1 => Just(None),
    ];
    let by_hand = prop_oneof![Just(State::ForcedOpen), Just(State::ForcedClosed), Just(State::HalfOpen)];
    let step = prop_oneof![
        6 => prop_oneof![0..30u64, 90..130u64, Just(5_000)].prop_map(Step::Wait),
        12 => (0.0..1.0).prop_map(Step::Call),
        12 => (0..8usize, outcome, prop::bool::weighted(0.2)).prop_map(|(i, o, s)| Step::End(i, o, s)),
        2 => (0..8usize).prop_map(Step::Head),
        1 => by_hand.prop_map(Step::Hand),
        1 => Just(Step::Reset),
        1 => configs().prop_map(Step::Update),
    ];
    proptest::collection::vec(step, 1..300)
}

fn configs() -> impl Strategy<Value = CircuitBreakerConfig> {
    let ms = Duration::from_millis;
    let window = prop_oneof![(2..30u32).prop_map(Window::Count), (20..400u64).prop_map(move |t| Window::Time(ms(t)))];
    let rate =
        || prop::option::of(prop_oneof![Just(0.0), Just(0.5), Just(1.0), (1..30u32).prop_map(|n| 1.0 / f64::from(n))]);
    let ramp = prop::option::weighted(0.3, (1..200u64).prop_map(ms));
    (window, rate(), rate(), prop::option::of(1..6u32), 1..8u32, (1..5u32, 0..5u32), ramp, any::<bool>()).prop_map(
        move |(
            window,
            failure_rate,
            slow_call_rate,
            consecutive_failures,
            minimum,
            (needed, more),
            ramp,
            throttled,
        )| {
            CircuitBreakerConfig {
                window,
                failure_rate,
                slow_call_rate,
                consecutive_failures,
                minimum_calls: if let Window::Count(n) = window { minimum.min(n) } else { minimum },
                probes: needed + more,
                successes_to_close: needed,
                probe_lease: ms(50),
                ramp,
                throttled_is_failure: throttled,
                ..CircuitBreakerConfig::default()
            }
        },
    )
}

/// Plays the shell: says how long an opening lasts.
fn shell(machine: &Machine, change: Option<Change>, now: u64) {
    if let Some(change) = change.filter(|c| c.to == State::Open) {
        machine.stay_open(change.generation, now + open_time(change.opening));
    }
}

fn play(config: CircuitBreakerConfig, start: u64, steps: Vec<Step>, small: bool) -> Result<(), TestCaseError> {
    let machine = if small { Machine::small(&config, start) } else { Machine::new(&config, start) };
    let mut model = Model::new(config);
    model.since = start;
    let (mut now, mut number) = (start, 0);
    let mut running: Vec<(usize, Ticket, Option<Pass>, u32)> = Vec::new();
    for step in steps {
        match step {
            Step::Wait(ms) => now += ms * MS,
            Step::Call(random) => {
                number += 1;
                let mut expected = model.admit(number, now, random);
                let shut = match machine.look(|| now) {
                    Look::Passes => None,
                    Look::Refuses(refusal) => Some(refusal),
                    Look::Unclear => machine.is_shut(now),
                };
                let pass = machine.admit_plain();
                let plain = pass.map(|pass| Ticket::plain(pass.generation())).or_else(|| machine.admit_closed());
                let (answer, change) = match plain {
                    Some(ticket) => (Ok(ticket), None),
                    None => machine.admit(now, random),
                };
                shell(&machine, change, now);
                if change.is_some_and(|c| c.to == State::Open) {
                    // A probe that had outstayed its lease opened it just now: how long for is not known yet.
                    expected = expected.map_err(|r| Refusal { retry_after: Span::NONE, ..r });
                }
                prop_assert_eq!(answer.map(drop), expected);
                prop_assert!(shut.is_none() || shut == expected.err());
                running.extend(answer.map(|ticket| (number, ticket, pass, model.generation)));
            }
            Step::End(i, outcome, slow) if i < running.len() => {
                let (call, ticket, pass, generation) = running.swap_remove(i);
                model.settle(call, generation, outcome, slow, now);
                let change = match (outcome, pass) {
                    (Some(Outcome::Success), Some(pass)) if !slow && call % 4 > 0 => machine.succeed(pass, now, i),
                    (Some(outcome), _) => machine.settle(ticket, outcome, slow, now, i),
                    (None, _) => machine.release(ticket, now),
                };
                shell(&machine, change, now);
            }
            Step::Head(i) if i < running.len() => {
                let (call, ticket, _, generation) = running[i];
                machine.good_head(ticket, || now);
                let here = generation == model.generation;
                // A head that comes after its lease says nothing any more.
                for lease in model.slots.iter_mut().flatten().filter(|l| here && l.call == call && now <= l.until) {
                    lease.good_head = true;
                }
            }
            Step::Hand(to) => {
                let from = model.state;
                let legal = to != State::HalfOpen || from == State::Open;
                let moved = machine.move_by_hand(to, now);
                prop_assert_eq!(
                    moved.map(|c| c.is_some()),
                    if from == to {
                        Ok(false)
                    } else if legal {
                        Ok(true)
                    } else {
                        Err(from)
                    }
                );
                if from != to && legal {
                    model.go(to, now);
                }
            }
            Step::Reset => {
                prop_assert_eq!(machine.reset(now).is_some(), model.state != State::Closed);
                model.go(State::Closed, now);
                model.empty();
                model.openings = 0;
            }
            Step::Update(config) => {
                machine.update(&config, now);
                model.update(config, now);
            }
            Step::End(..) | Step::Head(_) => {}
        }
        machine.check_gate();
        let status = machine.status(now);
        let (sums, run) = if model.state == State::Open { model.opened_by } else { (model.sums(now), model.run) };
        let out = model.slots.iter().flatten().filter(|l| now <= l.until && model.state == State::HalfOpen).count();
        prop_assert_eq!((status.state, status.since), (model.state, model.since));
        prop_assert_eq!((status.sums, status.consecutive), (sums, run));
        prop_assert_eq!(status.probes_out, out as u32);
        prop_assert_eq!(status.open_until, (model.state == State::Open).then_some(model.until));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn equals_the_naive_one(config in configs(), steps in steps(), small in any::<bool>()) {
        play(config, 0, steps, small)?;
    }

    /// Where the numbers of ticks wrap: a tick of 2 ms, begun shortly before each power of two.
    #[test]
    fn equals_the_naive_one_across_wraps(config in configs(), steps in steps(), power in 8..40u32, before in 0..40u64) {
        let config = CircuitBreakerConfig { window: Window::Time(Duration::from_millis(20)), ..config };
        play(config, ((1 << power) - before) * 2 * MS, steps, false)?;
    }
}

/// A day of success must not make it blind.
#[test]
fn trips_after_a_hundred_thousand_successes() {
    for window in [Window::Count(100), Window::Time(Duration::from_secs(10))] {
        let config = CircuitBreakerConfig { window, ..CircuitBreakerConfig::default() };
        let machine = Machine::new(&config, 0);
        let mut now = 0;
        for i in 0..100_000 {
            now = i * MS;
            assert_eq!(machine.settle(machine.admit_closed().unwrap(), Outcome::Success, false, now, 0), None);
        }
        // Half of the window has to fail: 50 of 100 calls, or half of the calls of the last 10 to 11 s.
        let failures = (1..).find(|_| {
            now += MS;
            machine.settle(machine.admit_closed().unwrap(), Outcome::Failure, false, now, 0).is_some()
        });
        match window {
            Window::Count(_) => assert_eq!(failures, Some(50)),
            Window::Time(_) => assert!((5_000..=5_500).contains(&failures.unwrap()), "{failures:?}"),
        }
    }
}

#[test]
fn an_update_keeps_what_the_window_knows() {
    let count = |n| Window::Count(n);
    let time = |s| Window::Time(Duration::from_secs(s));
    for (from, to, calls, failures) in [
        (count(10), count(20), 10, 4),
        (count(10), count(5), 5, 2),
        (time(10), time(20), 12, 4),
        (time(10), time(5), 12, 4),
        (count(10), time(10), 10, 4),
        (time(10), count(20), 12, 4),
        (time(10), count(12), 12, 4),
    ] {
        let config = |window| CircuitBreakerConfig {
            window,
            failure_rate: Some(0.9),
            minimum_calls: 2,
            ..CircuitBreakerConfig::default()
        };
        let machine = Machine::new(&config(from), 0);
        let running = machine.admit_closed().unwrap();
        for i in 0..12 {
            let outcome = if i % 5 > 2 { Outcome::Failure } else { Outcome::Success };
            machine.settle(machine.admit_closed().unwrap(), outcome, false, i * 300 * MS, i as usize);
        }
        let now = 3_400 * MS;
        machine.update(&config(to), now);
        let sums = machine.status(now).sums;
        assert_eq!((sums.calls, sums.failures), (calls, failures), "{from:?} to {to:?}");
        // A call that was running counts in the new one.
        machine.settle(running, Outcome::Success, false, now, 0);
        let more = if [count(5), count(12)].contains(&to) { calls } else { calls + 1 };
        assert_eq!(machine.status(now).sums.calls, more, "{from:?} to {to:?}");
    }
}

/// Two probes with the same lease in the same slot, in two generations that begin in one instant.
#[test]
fn the_head_of_an_earlier_probe_says_nothing_of_a_later_one() {
    let config = CircuitBreakerConfig {
        consecutive_failures: Some(1),
        probes: 1,
        successes_to_close: 1,
        probe_lease: Duration::from_millis(50),
        ..CircuitBreakerConfig::default()
    };
    let machine = Machine::new(&config, 0);
    let open = || machine.settle(machine.admit_closed().unwrap(), Outcome::Failure, false, 0, 0).unwrap();
    let probe = || {
        open();
        machine.move_by_hand(State::HalfOpen, 0).unwrap().unwrap();
        machine.admit(0, 0.0).0.unwrap()
    };
    let earlier = probe();
    machine.reset(0);
    let later = probe();
    machine.good_head(earlier, || 0);
    // Its lease is over, and it had no head: given up, so the next call is a probe too.
    let (next, change) = machine.admit(100 * MS, 0.0);
    assert!(next.is_ok() && change.is_none());
    assert_eq!(machine.settle(later, Outcome::Failure, false, 100 * MS, 0), None);
    assert_eq!(machine.status(100 * MS).state, State::HalfOpen);
}

/// One of two calls fails, and half is too much: whoever is last opens it, the failure or the success that completes
/// the minimum. With threads, because it rests on a single order of all writes and reads, which loom does not know.
#[test]
fn a_success_and_a_failure_open_it_whoever_is_last() {
    for window in [Window::Count(4), Window::Time(Duration::from_secs(1))] {
        let config = CircuitBreakerConfig { window, minimum_calls: 2, ..CircuitBreakerConfig::default() };
        for _ in 0..2_000 {
            let (machine, start) = (Machine::new(&config, 0), std::sync::Barrier::new(2));
            let (ticket, pass) = (machine.admit_closed().unwrap(), machine.admit_plain().unwrap());
            let (a, b) = std::thread::scope(|s| {
                let failure = s.spawn(|| {
                    start.wait();
                    machine.settle(ticket, Outcome::Failure, false, 1, 0)
                });
                start.wait();
                let success = machine.succeed(pass, 1, 1);
                (failure.join().unwrap(), success)
            });
            assert!(a.is_some() ^ b.is_some(), "{a:?} {b:?}");
            assert_eq!(machine.status(1).sums, Sums { calls: 2, failures: 1, slow: 0 });
        }
    }
}

/// Successes that look at one word, beside failures that have to tell of themselves there, and hands. Whatever they did
/// to each other, it is told of, and a window full of successes clears the way again.
#[test]
fn threads_leave_a_gate_that_tells_of_others() {
    for window in [Window::Count(16), Window::Time(Duration::from_secs(1))] {
        let config = CircuitBreakerConfig { window, failure_rate: None, ..CircuitBreakerConfig::default() };
        let machine = Machine::new(&config, 0);
        std::thread::scope(|s| {
            for thread in 0..4 {
                let (machine, config) = (&machine, &config);
                s.spawn(move || {
                    for i in 0..5_000 {
                        let pass = machine.admit_plain();
                        let ticket = pass.map_or(Ticket::UNCOUNTED, |pass| Ticket::plain(pass.generation()));
                        match pass {
                            Some(pass) if i % 7 != thread => machine.succeed(pass, 1, thread),
                            _ => machine.settle(ticket, Outcome::Failure, false, 1, thread),
                        };
                        if thread == 0 && i % 100 == 0 {
                            machine.update(config, 1);
                        }
                    }
                });
            }
        });
        machine.check_gate();
        for _ in 0..16 {
            machine.succeed(machine.admit_plain().unwrap(), 1, 0);
        }
        let sums = machine.status(1).sums;
        assert!(!machine.gate().has_others(), "{window:?}");
        match window {
            Window::Count(n) => assert_eq!(sums, Sums { calls: n.into(), failures: 0, slow: 0 }),
            Window::Time(_) => assert!(sums.calls >= 16),
        }
    }
}
