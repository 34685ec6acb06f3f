//! Every interleaving of two or three threads over the breaker's atomics: half-open slots, generations, rotation.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --test loom --release`
#![cfg(loom)]

use std::time::Duration;

use buttress::{
    CircuitBreakerConfig, OpenTime, Outcome, State, Window,
    loom::{Admitted, Breaker, Ring},
};
use loom::{model::Builder, sync::Arc, thread};

fn config() -> CircuitBreakerConfig {
    CircuitBreakerConfig {
        failure_rate: None,
        consecutive_failures: Some(1),
        window: Window::Count(4),
        minimum_calls: 1,
        open: OpenTime::Fixed(Duration::from_nanos(10)),
        probes: 1,
        successes_to_close: 1,
        probe_lease: Duration::from_nanos(100),
        ..CircuitBreakerConfig::default()
    }
}

/// At most three preemptions: what two threads can do to each other shows with two (CHESS, Musuvathi and Qadeer).
fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

fn opened(config: &CircuitBreakerConfig) -> Breaker {
    let breaker = Breaker::new(config);
    let call = breaker.admit(0).unwrap();
    assert!(breaker.settle(call, Outcome::Failure, 0, 0));
    breaker
}

fn both<A: 'static, B>(a: impl FnOnce() -> A + 'static, b: impl FnOnce() -> B) -> (A, B) {
    let thread = thread::spawn(a);
    let b = b();
    (thread.join().unwrap(), b)
}

#[test]
fn one_slot_goes_to_one_call() {
    check(|| {
        let breaker = Arc::new(opened(&config()));
        let other = Arc::clone(&breaker);
        let (a, b) = both(move || other.admit(20), || breaker.admit(20));
        assert_eq!(usize::from(a.is_some()) + usize::from(b.is_some()), 1);
        assert_eq!((breaker.state(20), breaker.probes_out(20)), (State::HalfOpen, 1));
    });
}

#[test]
fn a_slot_given_back_can_be_had_again() {
    check(|| {
        let breaker = Arc::new(opened(&config()));
        let probe = breaker.admit(20).unwrap();
        let other = Arc::clone(&breaker);
        let ((), second) = both(move || other.release(probe, 21), || breaker.admit(21));
        // Either it came too early, or it has the slot; nothing is lost in between.
        assert_eq!(breaker.probes_out(21), u32::from(second.is_some()));
        assert_eq!(second.is_some() || breaker.admit(22).is_some(), true);
    });
}

#[test]
fn a_hung_probe_that_comes_back_does_not_take_the_next_ones_slot() {
    check(|| {
        let breaker = Arc::new(opened(&config()));
        let hung = breaker.admit(20).unwrap();
        let other = Arc::clone(&breaker);
        // Its lease is over at 120.
        let (late, next) = both(move || other.settle(hung, Outcome::Failure, 130, 0), || breaker.admit(130));
        assert!(!late && next.is_some());
        assert_eq!((breaker.state(130), breaker.probes_out(130)), (State::HalfOpen, 1));
    });
}

#[test]
fn a_late_verdict_changes_nothing() {
    check(|| {
        let breaker = Arc::new(Breaker::new(&config()));
        let straggler = breaker.admit(0).unwrap();
        let call = breaker.admit(0).unwrap();
        assert!(breaker.settle(call, Outcome::Failure, 0, 0));
        let probe = breaker.admit(20).unwrap();
        let other = Arc::clone(&breaker);
        let (late, closed) = both(
            move || other.settle(straggler, Outcome::Failure, 21, 0),
            || breaker.settle(probe, Outcome::Success, 21, 1),
        );
        assert!(!late && closed);
        assert_eq!((breaker.state(21), breaker.calls(21)), (State::Closed, (0, 0)));
    });
}

#[test]
fn a_result_under_way_does_not_end_up_in_an_emptied_window() {
    check(|| {
        let two = CircuitBreakerConfig { consecutive_failures: Some(2), ..config() };
        let breaker = Arc::new(Breaker::new(&two));
        let call = breaker.admit(0).unwrap();
        let other = Arc::clone(&breaker);
        both(move || other.settle(call, Outcome::Failure, 1, 0), || breaker.reset(1));
        assert_eq!((breaker.state(1), breaker.calls(1)), (State::Closed, (0, 0)));
    });
}

#[test]
fn a_result_counts_while_a_hand_is_at_work() {
    let two = || CircuitBreakerConfig { consecutive_failures: Some(2), ..config() };
    check(move || {
        let breaker = Arc::new(Breaker::new(&two()));
        let call = breaker.admit(0).unwrap();
        let other = Arc::clone(&breaker);
        both(move || other.settle(call, Outcome::Failure, 1, 0), || breaker.update(&two(), 1));
        assert_eq!(breaker.calls(1), (1, 1));
    });
}

#[test]
fn a_probes_verdict_counts_while_a_hand_is_at_work() {
    check(|| {
        let breaker = Arc::new(opened(&config()));
        let probe = breaker.admit(20).unwrap();
        let other = Arc::clone(&breaker);
        let (closed, ()) = both(move || other.settle(probe, Outcome::Success, 21, 0), || breaker.update(&config(), 21));
        assert!(closed);
        assert_eq!((breaker.state(21), breaker.probes_out(21)), (State::Closed, 0));
    });
}

#[test]
fn a_hand_and_a_trip_leave_one_of_their_states() {
    check(|| {
        let breaker = Arc::new(Breaker::new(&config()));
        let call = breaker.admit(0).unwrap();
        let other = Arc::clone(&breaker);
        both(move || other.settle(call, Outcome::Failure, 1, 0), || breaker.force_closed(1));
        // Whoever was first: the hand has the last word.
        assert_eq!(breaker.state(1), State::ForcedClosed);
    });
}

fn trips_once(config: CircuitBreakerConfig) {
    check(move || {
        let breaker = Arc::new(Breaker::new(&config));
        let calls: [Admitted; 2] = std::array::from_fn(|_| breaker.admit(0).unwrap());
        let other = Arc::clone(&breaker);
        let (a, b) = both(
            move || other.settle(calls[0], Outcome::Failure, 1, 0),
            || breaker.settle(calls[1], Outcome::Failure, 1, 1),
        );
        assert!(a ^ b, "{a} {b}");
        assert_eq!(breaker.state(1), State::Open);
    });
}

#[test]
fn two_failures_in_a_row_trip_once() {
    trips_once(CircuitBreakerConfig { consecutive_failures: Some(2), ..config() });
}

#[test]
fn the_rate_of_a_count_window_trips_once() {
    let rate = CircuitBreakerConfig { consecutive_failures: None, failure_rate: Some(1.0), ..config() };
    trips_once(CircuitBreakerConfig { minimum_calls: 2, ..rate });
}

#[test]
fn the_rate_of_a_time_window_trips_once() {
    let rate = CircuitBreakerConfig { consecutive_failures: None, failure_rate: Some(1.0), ..config() };
    trips_once(CircuitBreakerConfig { minimum_calls: 2, window: Window::Time(Duration::from_nanos(100)), ..rate });
}

#[test]
fn a_bucket_turns_once_and_loses_nothing() {
    check(|| {
        let ring = Arc::new(Ring::new());
        ring.record(1, 0, 0, true);
        let other = Arc::clone(&ring);
        // Sixteen ticks later it is the same bucket.
        both(move || other.record(1, 16, 0, true), || ring.record(1, 16, 0, true));
        assert_eq!(ring.sums(1, 16), (2, 2));
    });
}

#[test]
fn a_record_that_was_held_up_does_not_undo_a_newer_tick() {
    check(|| {
        let ring = Arc::new(Ring::new());
        let (second, third) = (Arc::clone(&ring), Arc::clone(&ring));
        let late = thread::spawn(move || second.record(1, 0, 0, false));
        let next = thread::spawn(move || third.record(1, 16, 0, false));
        ring.record(2, 16, 0, false);
        late.join().unwrap();
        next.join().unwrap();
        assert_eq!(ring.sums(2, 16).0, 1);
    });
}
