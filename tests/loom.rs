//! Every interleaving of two or three threads over the breaker's atomics (half-open slots, generations, rotation) and
//! over the waiting room's (acquire, release, wake, expire).
//!
//! `RUSTFLAGS="--cfg loom" cargo test --test loom --release`
#![cfg(loom)]

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Wake, Waker},
    time::Duration,
};

use buttress::{
    CircuitBreakerConfig, OpenTime, Outcome, Quota, State, Window,
    loom::{Admitted, Breaker, Budget, Gate, Limit, Ring, Room},
};
use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

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

/// At most three preemptions: nearly all that threads can do to each other shows with two (CHESS, Musuvathi and
/// Qadeer).
fn check(test: impl Fn() + Sync + Send + 'static) {
    check_with(3, test);
}

/// What adds up whole windows on both sides: two, for there are too many places.
fn check_sums(test: impl Fn() + Sync + Send + 'static) {
    check_with(2, test);
}

fn check_with(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    // A window of ticks is added up over all of its rows.
    builder.max_branches = 10_000;
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

/// A call that has seen one trial stalls until the next one begins, and takes its slot for a moment. That one begins
/// all the same, and is told.
#[test]
fn no_change_is_lost_to_a_call_that_comes_late() {
    check(|| {
        let breaker = Arc::new(opened(&config()));
        let probe = breaker.admit(20).unwrap();
        assert_eq!(breaker.changes(), 2);
        let other = Arc::clone(&breaker);
        both(
            move || {
                other.admit(21);
            },
            || {
                breaker.settle(probe, Outcome::Failure, 21, 0);
                breaker.admit(40)
            },
        );
        // Open, half-open, open, half-open: it goes round.
        assert_eq!((breaker.changes(), breaker.state(40)), (4, State::HalfOpen));
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
    check_sums(move || {
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
fn a_success_in_a_tick_that_has_begun_is_counted_beside_another() {
    let time = CircuitBreakerConfig { window: Window::Time(Duration::from_nanos(100)), ..config() };
    check(move || {
        let breaker = Arc::new(Breaker::new(&time));
        let calls: [Admitted; 3] = std::array::from_fn(|_| breaker.admit(0).unwrap());
        // It begins the tick on the stripe that both then write.
        breaker.settle(calls[0], Outcome::Success, 1, 0);
        let other = Arc::clone(&breaker);
        both(
            move || other.settle(calls[1], Outcome::Success, 1, 0),
            || breaker.settle(calls[2], Outcome::Success, 1, 0),
        );
        assert_eq!(breaker.calls(1), (3, 0));
    });
}

#[test]
fn a_success_under_way_is_of_its_own_window() {
    for window in [Window::Count(4), Window::Time(Duration::from_nanos(100))] {
        let config = CircuitBreakerConfig { window, ..config() };
        let update = config.clone();
        check(move || {
            let breaker = Arc::new(Breaker::new(&config));
            let calls: [Admitted; 2] = std::array::from_fn(|_| breaker.admit(0).unwrap());
            breaker.settle(calls[0], Outcome::Success, 1, 0);
            let other = Arc::clone(&breaker);
            both(move || other.settle(calls[1], Outcome::Success, 1, 0), || breaker.reset(1));
            assert_eq!(breaker.calls(1), (0, 0));
        });
        let config = update.clone();
        check(move || {
            let breaker = Arc::new(Breaker::new(&config));
            let calls: [Admitted; 2] = std::array::from_fn(|_| breaker.admit(0).unwrap());
            breaker.settle(calls[0], Outcome::Success, 1, 0);
            let other = Arc::clone(&breaker);
            let update = update.clone();
            both(move || other.settle(calls[1], Outcome::Success, 1, 0), || breaker.update(&update, 1));
            assert_eq!(breaker.calls(1), (2, 0), "an update of the same window loses nothing");
        });
    }
}

/// Thresholds that are lowered while a success is added up by the old ones: the next call is judged by the new ones.
#[test]
fn an_update_beside_a_success_is_not_overlooked() {
    let time = Window::Time(Duration::from_nanos(100));
    let lax = CircuitBreakerConfig { consecutive_failures: None, failure_rate: Some(1.0), window: time, ..config() };
    let strict = CircuitBreakerConfig { failure_rate: Some(0.2), ..lax.clone() };
    check(move || {
        let breaker = Arc::new(Breaker::new(&lax));
        let calls: [Admitted; 4] = std::array::from_fn(|_| breaker.admit(0).unwrap());
        breaker.settle(calls[0], Outcome::Success, 1, 0);
        breaker.settle(calls[1], Outcome::Failure, 1, 0);
        let (other, strict) = (Arc::clone(&breaker), strict.clone());
        both(move || other.settle(calls[2], Outcome::Success, 1, 0), || breaker.update(&strict, 1));
        breaker.settle(calls[3], Outcome::Success, 1, 0);
        assert_eq!(breaker.state(1), State::Open);
    });
}

/// A success that clears the way while a failure comes: what stands in the gate is never less than there is.
#[test]
fn others_that_come_while_a_success_clears_the_way_are_told_of() {
    for window in [Window::Count(2), Window::Time(Duration::from_nanos(100))] {
        let three = CircuitBreakerConfig { consecutive_failures: Some(3), window, ..config() };
        check(move || {
            let breaker = Arc::new(Breaker::new(&three));
            let calls: [Admitted; 5] = std::array::from_fn(|_| breaker.admit(0).unwrap());
            breaker.settle(calls[0], Outcome::Failure, 1, 0);
            breaker.settle(calls[1], Outcome::Success, 1, 0);
            let other = Arc::clone(&breaker);
            // In a window of two this one pushes the failure out.
            both(
                move || other.settle(calls[2], Outcome::Success, 1, 0),
                || breaker.settle(calls[3], Outcome::Failure, 1, 0),
            );
            breaker.calls(1);
            breaker.settle(calls[4], Outcome::Success, 1, 0);
            let count = window == Window::Count(2);
            assert_eq!(breaker.calls(1).0, if count { 2 } else { 5 });
            assert!(!count || breaker.calls(1).1 <= 1);
        });
    }
}

/// A success in the turn of a window that another thread makes longer: it is in one of both.
#[test]
fn a_success_while_the_window_becomes_another_is_counted_once_at_most() {
    let long = CircuitBreakerConfig { window: Window::Count(8), ..config() };
    check(move || {
        let breaker = Arc::new(Breaker::new(&config()));
        let calls: [Admitted; 3] = std::array::from_fn(|_| breaker.admit(0).unwrap());
        breaker.settle(calls[0], Outcome::Success, 1, 0);
        let (other, long) = (Arc::clone(&breaker), long.clone());
        both(move || other.settle(calls[1], Outcome::Success, 1, 0), || breaker.update(&long, 1));
        let (counted, failed) = breaker.calls(1);
        assert!((1..=2).contains(&counted) && failed == 0, "{counted}");
        breaker.settle(calls[2], Outcome::Success, 1, 0);
        assert_eq!(breaker.calls(1), (counted + 1, 0));
    });
}

#[test]
fn a_bucket_turns_once_and_loses_nothing() {
    check_sums(|| {
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
    check_sums(|| {
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

/// One withdrawal is there: at most one gets it, in whichever of two ticks of the window, and what was not taken is
/// left.
#[test]
fn a_budget_is_never_exceeded() {
    for (first, second) in [(0, 0), (0, 1), (3, 3)] {
        check_sums(move || {
            let budget = Arc::new(Budget::new(0, 1_000_000));
            one_is_there(&budget, first, second);
        });
        // In a tick that runs already.
        check_sums(move || {
            let budget = Arc::new(Budget::new(0, 2_000_000));
            budget.withdraw(first).unwrap();
            one_is_there(&budget, first, second);
        });
    }
}

fn one_is_there(budget: &Arc<Budget>, first: u64, second: u64) {
    let other = Arc::clone(budget);
    let (a, b) = both(move || other.withdraw(first), || budget.withdraw(second));
    let taken = u64::from(a.is_some()) + u64::from(b.is_some());
    assert!(taken <= 1);
    assert_eq!(taken + budget.balance(first.max(second)), 1);
}

/// A deposit pays for a withdrawal whenever it comes, and what is given back can be had again.
#[test]
fn a_budget_loses_nothing() {
    check(|| {
        let budget = Arc::new(Budget::new(1_000_000, 0));
        let other = Arc::clone(&budget);
        let ((), taken) = both(move || other.deposit(0, 0), || budget.withdraw(1));
        assert_eq!(u64::from(taken.is_some()) + budget.balance(1), 1);
    });
    check(|| {
        let budget = Arc::new(Budget::new(0, 1_000_000));
        let taken = budget.withdraw(0).unwrap();
        let other = Arc::clone(&budget);
        let ((), again) = both(move || other.give_back(taken), || budget.withdraw(1));
        assert_eq!(u64::from(again.is_some()) + budget.balance(1), 1);
    });
}

/// Given back in the very tick whose limit is worked out again, with older withdrawals in the window: nobody gets it
/// twice.
#[test]
fn what_is_given_back_is_had_again_once() {
    check(|| {
        let budget = Arc::new(Budget::new(0, 3_000_000));
        budget.withdraw(0).unwrap();
        let taken = budget.withdraw(1).unwrap();
        budget.withdraw(1).unwrap();
        let other = Arc::clone(&budget);
        let ((), again) = both(move || other.give_back(taken), || budget.withdraw(1));
        let rest = (0..3).take_while(|_| budget.withdraw(1).is_some()).count();
        assert_eq!(2 + usize::from(again.is_some()) + rest, 3);
    });
}

/// One that waits counts all the time: as it is put off, while it waits, and as it is made, in the same tick or a later
/// one.
#[test]
fn what_waits_is_never_had_by_another() {
    let cases = [2, 3].into_iter().flat_map(|there| [(there, 0), (there, 1)]);
    for ((there, later), is_made) in cases.flat_map(|case| [(case, false), (case, true)]) {
        check(move || {
            let budget = Arc::new(Budget::new(0, there * 1_000_000));
            budget.withdraw(0).unwrap();
            let taken = budget.withdraw(0).unwrap();
            if is_made {
                budget.put_off(taken);
            }
            let other = Arc::clone(&budget);
            let moves = move || if is_made { other.make(later) } else { other.put_off(taken) };
            let ((), third) = both(moves, || budget.withdraw(later));
            let rest = (0..3).take_while(|_| budget.withdraw(later).is_some()).count();
            assert_eq!(2 + u64::from(third.is_some()) + rest as u64, there);
        });
    }
}

// === the waiting room ===

/// Not one of loom's: what it counts is looked at when all threads have ended.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A room for one, with one in it.
fn taken() -> Arc<Room> {
    let room = Arc::new(Room::new(1));
    assert!(room.enter().is_ok());
    room
}

#[test]
fn one_who_leaves_and_one_who_comes_to_wait_do_not_miss_each_other() {
    check(|| {
        let room = taken();
        let other = Arc::clone(&room);
        let ((), entered) = both(move || other.leave(), || room.enter());
        let is_in = entered.is_ok_and(|()| true) || entered.is_err_and(|place| room.is_in(place, Waker::noop()));
        assert!(is_in, "it waits, and there is room");
        assert_eq!((room.in_flight(), room.somebody_waits()), (1, false));
    });
}

#[test]
fn one_who_looks_while_it_is_called_is_told_or_woken() {
    check(|| {
        let room = taken();
        let place = room.enter().unwrap_err();
        let other = Arc::clone(&room);
        let woken = std::sync::Arc::new(Woken::default());
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        let ((), told) = both(move || other.leave(), || room.is_in(place, &waker));
        assert_eq!(usize::from(told) + woken.0.load(SeqCst), 1);
        assert!(told || room.is_in(place, Waker::noop()));
    });
}

#[test]
fn never_more_than_the_limit_are_in() {
    check(|| {
        let room = taken();
        let (leaves, enters) = (Arc::clone(&room), Arc::clone(&room));
        let leaver = thread::spawn(move || leaves.leave());
        let enterer = thread::spawn(move || enters.enter());
        let mine = room.enter();
        leaver.join().unwrap();
        let theirs = enterer.join().unwrap();
        assert_eq!(room.in_flight(), 1);
        let is_in = |entered: Result<(), u32>| match entered {
            Ok(()) => 1,
            Err(place) => usize::from(room.is_in(place, Waker::noop())),
        };
        assert_eq!(is_in(mine) + is_in(theirs), 1);
    });
}

#[test]
fn nobody_passes_one_who_waits() {
    check(|| {
        let room = taken();
        let first = room.enter().unwrap_err();
        let other = Arc::clone(&room);
        let ((), newcomer) = both(move || other.leave(), || room.enter());
        assert!(newcomer.is_err() && room.is_in(first, Waker::noop()));
        assert!(!room.is_in(newcomer.unwrap_err(), Waker::noop()));
    });
}

#[test]
fn one_who_gives_up_while_it_is_called_leaves_its_permit_to_the_next() {
    check(|| {
        let room = taken();
        let (first, second) = (room.enter().unwrap_err(), room.enter().unwrap_err());
        let other = Arc::clone(&room);
        both(move || other.leave(), || room.give_up(first));
        assert!(room.is_in(second, Waker::noop()));
        room.leave();
        assert_eq!((room.in_flight(), room.somebody_waits()), (0, false));
    });
}

#[test]
fn more_room_is_not_missed_by_one_who_comes_to_wait() {
    check(|| {
        let room = taken();
        let other = Arc::clone(&room);
        let ((), entered) = both(move || other.resize(2), || room.enter());
        assert!(entered.is_ok_and(|()| true) || entered.is_err_and(|place| room.is_in(place, Waker::noop())));
        assert_eq!(room.in_flight(), 2);
    });
}

#[test]
fn a_stream_that_ends_as_its_lease_does_leaves_once() {
    check(|| {
        let room = taken();
        let lease = room.begin_stream(0);
        let waits = room.enter().unwrap_err();
        let other = Arc::clone(&room);
        let (expired, ()) = both(move || other.put_out_stalled(100, || 100), || room.leave_stream(lease));
        assert!(expired <= 1 && room.is_in(waits, Waker::noop()));
        assert_eq!((room.in_flight(), room.somebody_waits()), (1, false));
    });
}

/// Leases become shorter while somebody looks by the old length, for the first time ever.
#[test]
fn a_shorter_lease_is_not_overlooked() {
    check(|| {
        let room = taken();
        let lease = room.begin_stream(0);
        let (other, length) = (Arc::clone(&room), Arc::new(AtomicU64::new(1_000)));
        let lasts = Arc::clone(&length);
        let (before, after) = both(
            move || other.put_out_stalled(50, || lasts.load(Relaxed)),
            || {
                length.store(10, Relaxed);
                room.look_anew();
                room.put_out_stalled(50, || length.load(Relaxed))
            },
        );
        assert_eq!(before + after, 1);
        room.leave_stream(lease);
    });
}

#[test]
fn a_frame_as_the_lease_ends_keeps_the_permit_or_has_lost_it() {
    check(|| {
        let room = taken();
        let mut lease = room.begin_stream(0);
        let other = Arc::clone(&room);
        let (expired, lease) = both(
            move || other.put_out_stalled(100, || 100),
            || {
                room.note_frame(&mut lease, 99);
                lease
            },
        );
        assert_eq!(room.in_flight(), 1 - expired);
        room.leave_stream(lease);
        assert_eq!(room.in_flight(), 0);
    });
}

#[test]
fn two_streams_never_share_a_slot() {
    check(|| {
        let room = Arc::new(Room::new(2));
        assert!(room.enter().is_ok() && room.enter().is_ok());
        // There is one slot to be used again.
        let old = room.begin_stream(0);
        let other = Arc::clone(&room);
        let (theirs, mine) = both(
            move || {
                other.leave_stream(old);
                assert!(other.enter().is_ok());
                other.begin_stream(0)
            },
            || room.begin_stream(0),
        );
        assert_eq!(room.put_out_stalled(100, || 100), 2);
        room.leave_stream(theirs);
        room.leave_stream(mine);
        assert_eq!(room.in_flight(), 0);
    });
}

/// Three a second: a unit is no whole number of nanoseconds.
fn limit(burst: u32) -> Arc<Limit> {
    Arc::new(Limit::new(Quota::per_second(3).burst(burst)))
}

#[test]
fn two_threads_never_take_more_than_the_burst() {
    check(|| {
        let limit = limit(3);
        let other = Arc::clone(&limit);
        let take_two = |limit: &Limit| usize::from(limit.take(7)) + usize::from(limit.take(7));
        let (a, b) = both(move || take_two(&other), || take_two(&limit));
        assert_eq!((a + b, limit.left(7)), (3, 0));
    });
}

#[test]
fn a_quota_that_changes_while_units_are_taken_forgets_none() {
    check(|| {
        let limit = limit(2);
        let other = Arc::clone(&limit);
        let (taken, ()) = both(
            move || usize::from(other.take(7)) + usize::from(other.take(7)) + usize::from(other.take(7)),
            || limit.set(Quota::per_second(7).burst(5), 7),
        );
        // Whichever quota each was taken from, what was taken is gone from the one that is left.
        assert_eq!(limit.left(7) as usize, 5 - taken);
        assert!((2..=3).contains(&taken));
    });
}

#[test]
fn a_refund_is_neither_lost_nor_doubled() {
    check(|| {
        let limit = limit(3);
        assert!(limit.take(0) && limit.take(0));
        let other = Arc::clone(&limit);
        let ((), taken) = both(move || other.refund(1, 0), || limit.take(0));
        assert!(taken);
        assert_eq!(limit.left(0), 1);
    });
}

#[test]
fn a_place_given_up_is_the_next_ones() {
    check(|| {
        let limit = limit(1);
        assert!(limit.take(0));
        let (first, second) = (limit.join(0).unwrap(), limit.join(0).unwrap());
        let other = Arc::clone(&limit);
        let ((), newcomer) = both(move || other.leave(first, 0), || limit.join(0).unwrap());
        // One third of a second, and another.
        assert!(!limit.is_its_turn(second, 333_333_333) && limit.is_its_turn(second, 333_333_334));
        assert!(!limit.is_its_turn(newcomer, 666_666_666) && limit.is_its_turn(newcomer, 666_666_667));
    });
}

// === draining ===

/// A call that comes as the door is shut is refused, or is waited for.
#[test]
fn who_came_in_before_the_door_was_shut_is_waited_for() {
    check(|| {
        let gate = Arc::new(Gate::new());
        let other = Arc::clone(&gate);
        let (is_in, was_empty) = both(
            move || other.enter(0),
            || {
                gate.shut();
                gate.is_empty(Waker::noop())
            },
        );
        assert!(!(is_in && was_empty), "it was said to be empty, and somebody came in");
        if is_in {
            assert!(!gate.is_empty(Waker::noop()));
            gate.leave(0);
        }
        assert!(gate.is_empty(Waker::noop()));
    });
}

/// The last one to leave wakes who waits, whichever that is.
#[test]
fn the_last_to_leave_wakes_who_waits() {
    check(|| {
        let gate = Arc::new(Gate::new());
        assert!(gate.enter(0) && gate.enter(1));
        gate.shut();
        let wakes = std::sync::Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(std::sync::Arc::clone(&wakes));
        let (a, b) = (Arc::clone(&gate), Arc::clone(&gate));
        let first = thread::spawn(move || a.leave(0));
        let second = thread::spawn(move || b.leave(1));
        let was_empty = gate.is_empty(&waker);
        first.join().unwrap();
        second.join().unwrap();
        assert!(was_empty || wakes.0.load(SeqCst) > 0, "nobody was woken");
        assert!(gate.is_empty(Waker::noop()));
    });
}
