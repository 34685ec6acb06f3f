//! Bounded state by key: against a naive model, under floods, from many threads.
#![allow(missing_docs, reason = "a test")]

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use buttress::keyed::{Keyed, State};
use proptest::prelude::*;

/// Idle from this instant on.
struct Busy(AtomicU64);

impl Busy {
    fn until(at: u64) -> Self {
        Busy(AtomicU64::new(at))
    }
}

impl State<()> for Busy {
    fn idle_at(&self, (): &()) -> Option<u64> {
        match self.0.load(Relaxed) {
            u64::MAX => None,
            at => Some(at),
        }
    }

    fn promoted(overflow: &Self, (): &(), _now: u64) -> Self {
        Busy::until(overflow.0.load(Relaxed))
    }
}

fn keyed(most: usize) -> Keyed<Busy> {
    Keyed::new(most, (), || Busy::until(0))
}

const SECOND: u64 = 1_000_000_000;

/// Keeps a key busy until then; what it was before.
fn use_it(keyed: &Keyed<Busy>, key: &[u8], now: u64, until: u64) -> u64 {
    keyed.with(key, now, |(), state| state.0.swap(until, Relaxed))
}

#[test]
fn keys_are_whole_and_do_not_meet() {
    let keyed = keyed(100_000);
    for n in 0..50_000_u64 {
        assert_eq!(use_it(&keyed, &n.to_le_bytes(), 0, n + 1), 0);
    }
    let long = vec![b'x'; 100_000];
    // Looking makes none.
    assert_eq!(keyed.get(&long, |_| ()), None);
    assert_eq!((keyed.get(&7_u64.to_le_bytes(), |state| state.0.load(Relaxed)), keyed.len()), (Some(8), 50_000));
    assert_eq!(use_it(&keyed, &long, 0, 7), 0);
    assert_eq!(use_it(&keyed, &long[1..], 0, 8), 0);
    assert_eq!(use_it(&keyed, b"", 0, 9), 0);
    assert_eq!(keyed.len(), 50_003);
    for n in 0..50_000_u64 {
        assert_eq!(use_it(&keyed, &n.to_le_bytes(), u64::MAX, 0), n + 1);
    }
    assert_eq!(use_it(&keyed, &long, 0, 7), 7);
}

#[test]
fn overflow_states_are_fewer_than_keys() {
    for (most, states) in [(1, 1), (2, 1), (127, 1), (128, 2), (1_000, 8), (10_000, 128), (1_000_000, 1_024)] {
        assert_eq!(keyed(most).overflow_states(), states, "{most}");
    }
}

#[test]
fn a_flood_pushes_nobody_out_who_is_busy() {
    let keyed = keyed(10_000);
    for n in 0..5_000_u64 {
        use_it(&keyed, &n.to_le_bytes(), 0, 10 * SECOND + n);
    }
    for n in 5_000..105_000_u64 {
        use_it(&keyed, &n.to_le_bytes(), 0, 20 * SECOND);
    }
    assert_eq!(keyed.len(), 10_000);
    for n in 0..5_000_u64 {
        assert_eq!(use_it(&keyed, &n.to_le_bytes(), 0, 10 * SECOND + n), 10 * SECOND + n);
    }
    // Once one is idle the next new key has its place: here the idle ones are those known before.
    assert_eq!(use_it(&keyed, b"new", 10 * SECOND, 30 * SECOND), 20 * SECOND, "it was in the overflow");
    let before = keyed.len();
    assert!(before <= 10_000);
    assert_eq!(use_it(&keyed, b"new", 10 * SECOND, 31 * SECOND), 30 * SECOND);
}

#[test]
fn idle_states_make_room_at_once_wherever_they_are() {
    let keyed = keyed(1_000);
    for n in 0..1_000_u64 {
        use_it(&keyed, &n.to_le_bytes(), 0, 100 * SECOND);
    }
    for now in 1..50 {
        // One of them is idle, in whatever shard, but nobody said so: it is found within a second.
        let idle = now * 17_u64 % 1_000;
        use_it(&keyed, &idle.to_le_bytes(), now * SECOND, now * SECOND);
        assert_eq!(keyed.len(), 1_000);
        let key = [b"new", &now.to_le_bytes()[..]].concat();
        use_it(&keyed, &key, (now + 1) * SECOND, 100 * SECOND);
        assert_eq!(keyed.len(), 1_000);
        assert_eq!(use_it(&keyed, &key, (now + 1) * SECOND, 100 * SECOND), 100 * SECOND);
    }
}

/// With more shards than one call looks at, some calls later.
#[test]
fn a_million_keys_make_room_too() {
    let keyed = keyed(200_000);
    for n in 0..200_000_u64 {
        use_it(&keyed, &n.to_le_bytes(), 0, 100 * SECOND);
    }
    assert_eq!((keyed.len(), keyed.overflow_states()), (200_000, 1_024));
    // Nobody says that one of them is idle: that is found out within a second.
    for (now, idle) in [(3, 17_u64), (6, 123_456), (9, 199_999)] {
        use_it(&keyed, &idle.to_le_bytes(), now * SECOND, SECOND);
        let now = (now + 1) * SECOND;
        let key = [b"new", &idle.to_le_bytes()[..]].concat();
        let own = (0..9).find(|_| {
            use_it(&keyed, &key, now, 100 * SECOND);
            keyed.with(&idle.to_le_bytes(), now, |(), state| state.0.load(Relaxed)) != SECOND
        });
        assert!(own.is_some(), "{idle} keeps its place");
        assert_eq!(keyed.len(), 200_000);
    }
}

#[test]
fn a_state_that_is_held_stays() {
    let keyed = keyed(1);
    use_it(&keyed, b"a", 0, u64::MAX);
    use_it(&keyed, b"b", 1_000 * SECOND, 5);
    assert_eq!(keyed.len(), 1);
    assert_eq!(use_it(&keyed, b"a", 2_000 * SECOND, u64::MAX), u64::MAX);
}

#[test]
fn each_state_is_seen_once_and_those_of_the_overflow_too() {
    let keyed = keyed(200);
    for n in 0..300_u64 {
        use_it(&keyed, &n.to_le_bytes(), 0, SECOND + n);
    }
    let (mut seen, mut all) = (0, 0);
    keyed.for_each(|state| {
        seen += usize::from((SECOND..SECOND + 200).contains(&state.0.load(Relaxed)));
        all += 1;
    });
    assert_eq!((seen, all), (200, 200 + keyed.overflow_states()));
}

#[test]
fn many_threads_never_exceed_the_bound() {
    let keyed = keyed(200);
    thread::scope(|scope| {
        for t in 0..4_u64 {
            let keyed = &keyed;
            scope.spawn(move || {
                for n in 0..20_000_u64 {
                    let key = (n * (t + 1) % 1_000).to_le_bytes();
                    use_it(keyed, &key, n * 1_000, n * 1_000 + n % 7_000);
                    assert!(keyed.len() <= 200);
                }
            });
        }
    });
    // The count is that of the entries: all can be dropped, and as many come back.
    for n in 0..200_u64 {
        use_it(&keyed, &(1_000_000 + n).to_le_bytes(), 1_000_000 * SECOND, 2_000_000 * SECOND);
    }
    assert_eq!(keyed.len(), 200);
}

proptest! {
    /// The model has no bound: what a key that was not in the overflow finds is what it left, or it was idle.
    #[test]
    fn as_a_map_without_a_bound(
        most in 1_usize..40,
        steps in prop::collection::vec((0_u8..60, 0_u64..2_000_000_000, 0_u64..5_000_000_000), 1..300),
    ) {
        let keyed = keyed(most);
        let mut model: HashMap<u8, u64> = HashMap::new();
        let mut now = 0;
        for (key, pause, busy) in steps {
            now += pause;
            let found = use_it(&keyed, &[key], now, now + busy);
            let left = model.insert(key, now + busy).unwrap_or(0);
            prop_assert!(keyed.len() <= most);
            // As long as there was room for all, it is exactly the map; idle states may be gone.
            if model.len() <= most {
                prop_assert!(found == left || (left <= now && found <= now), "{found} is not {left}");
            }
        }
    }
}
