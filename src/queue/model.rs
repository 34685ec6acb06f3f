//! The line against a naive model of its rules, and the room against counting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Wake, Waker},
};

use proptest::prelude::*;

use crate::{
    priority::Priority,
    queue::{
        Entrant, Entry, Left, Patience, Room,
        line::{Fate, Line},
        patience::Tight,
    },
    rejection::Reason,
};

const PATIENCE: Patience =
    Patience { fifo: 50, newest_after: 200, tight: Some(Tight { burst: 300, wait: 5, keep: 2 }) };
const GENTLE: Patience = Patience { tight: None, ..PATIENCE };
/// As the line of an adaptive limit is run: the newest first as soon as somebody has waited.
const STRICT: Patience = Patience { newest_after: 0, ..PATIENCE };

const BY_RANK: [Priority; 4] = [Priority::Critical, Priority::Default, Priority::Sheddable, Priority::Background];

fn entrant(priority: Priority, expires: u64) -> Entrant {
    Entrant { priority, expires, why: Reason::QueueTimeout }
}

// === the line ===

#[derive(Debug, Clone)]
enum Move {
    Push { rank: usize, within: u64 },
    Call,
    TakeBack(usize),
    Advance(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0..4_usize, prop_oneof![Just(10_000), 1..100_u64]).prop_map(|(rank, within)| Move::Push { rank, within }),
        3 => Just(Move::Call),
        1 => any::<usize>().prop_map(Move::TakeBack),
        3 => (0..60_u64).prop_map(Move::Advance),
    ];
    prop::collection::vec(one, 1..300)
}

/// All waiters in one vector, oldest first; every rule as it is told, by going through all of them.
struct Model {
    patience: Patience,
    waiters: Vec<Waiter>,
    bands: [ModelBand; 4],
}

#[derive(Debug, Clone, Copy)]
struct Waiter {
    id: u32,
    rank: usize,
    since: u64,
    expires: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct ModelBand {
    episode: Option<u64>,
    newest_first: bool,
    busy: u64,
    calm_after: u64,
    never_empty_since: u64,
    crowded_at: u64,
    passed_over: u32,
}

impl Model {
    fn of(&self, rank: usize) -> Vec<Waiter> {
        self.waiters.iter().copied().filter(|w| w.rank == rank).collect()
    }

    fn remove(&mut self, id: u32) {
        self.waiters.retain(|w| w.id != id);
    }

    fn lasts(&self, rank: usize, age: u64, now: u64) -> bool {
        self.bands[rank].episode.is_some_and(|t| now - t >= age)
    }

    fn look(&mut self, now: u64) -> Vec<(u32, Fate)> {
        let mut late = Vec::new();
        for rank in 0..4 {
            while let Some(w) = self.of(rank).first().copied().filter(|w| w.expires <= now) {
                self.remove(w.id);
                late.push((w.id, Fate::Refused(Reason::QueueTimeout)));
            }
            let oldest = self.of(rank).first().copied();
            // What each may wait, in all.
            let may = oldest.map_or(u64::MAX, |w| w.expires - w.since);
            let fifo = self.patience.fifo.min(may / 2);
            let newest_after = self.patience.newest_after.min(may);
            if oldest.is_some() {
                self.bands[rank].busy = now;
                let band = &mut self.bands[rank];
                let least = if band.newest_first { band.calm_after } else { u64::MAX };
                band.calm_after = least.min(fifo / 5 * 2);
            }
            let band = &mut self.bands[rank];
            if oldest.is_none() {
                band.never_empty_since = now;
            } else if now - band.never_empty_since > fifo {
                band.crowded_at = now;
            }
            let is_forgotten = oldest.is_none() && newest_after != 0 && now - band.crowded_at > newest_after;
            let newest_first = self.bands[rank].newest_first || self.lasts(rank, newest_after, now);
            let band = &mut self.bands[rank];
            if band.episode.is_none() {
                if oldest.is_some_and(|w| now - w.since > fifo) {
                    band.episode = Some(now);
                }
            } else if oldest.is_some_and(|w| now - w.since <= fifo) && !newest_first
                || now - band.busy > band.calm_after
                || is_forgotten
            {
                band.episode = None;
            }
            let overload = newest_first || self.lasts(rank, newest_after, now);
            self.bands[rank].newest_first = self.bands[rank].episode.is_some() && overload;
            if let Some(tight) = self.patience.tight.filter(|t| self.lasts(rank, t.burst, now)) {
                while let Some(w) = self.of(rank).first().copied() {
                    let few = self.of(rank).len() <= tight.keep;
                    if now - w.since <= tight.wait || few && now - w.since <= tight.burst {
                        break;
                    }
                    self.remove(w.id);
                    late.push((w.id, Fate::Refused(Reason::QueueTimeout)));
                }
            }
        }
        late
    }

    fn push(&mut self, now: u64, w: Waiter, most: usize) -> (Vec<(u32, Fate)>, bool) {
        let mut decided = self.look(now);
        if self.waiters.len() >= most {
            let Some(victim) = self.waiters.iter().rev().filter(|v| v.rank > w.rank).max_by_key(|v| (v.rank, v.id))
            else {
                return (decided, false);
            };
            let id = victim.id;
            self.remove(id);
            decided.push((id, Fate::Refused(Reason::ShedByPriority)));
        }
        if self.of(w.rank).is_empty() {
            self.bands[w.rank].passed_over = 0;
        }
        self.waiters.push(w);
        (decided, true)
    }

    fn call(&mut self, now: u64) -> Vec<(u32, Fate)> {
        let mut decided = self.look(now);
        loop {
            let there: Vec<usize> = (0..4).filter(|&r| !self.of(r).is_empty()).collect();
            let starving = there.iter().copied().filter(|&r| self.bands[r].passed_over >= 996);
            let Some(rank) = starving.max_by_key(|&r| (self.bands[r].passed_over, r)).or(there.first().copied()) else {
                return decided;
            };
            let band = self.of(rank);
            let next = if self.bands[rank].newest_first { band[band.len() - 1] } else { band[0] };
            self.remove(next.id);
            if next.expires <= now {
                decided.push((next.id, Fate::Refused(Reason::QueueTimeout)));
                continue;
            }
            for r in there {
                self.bands[r].passed_over += 1;
            }
            self.bands[rank].passed_over = 0;
            decided.push((next.id, Fate::Granted));
            return decided;
        }
    }
}

fn agrees(patience: Patience, most: usize, moves: Vec<Move>) {
    let mut model = Model { patience, waiters: Vec::new(), bands: [ModelBand::default(); 4] };
    let mut line: Line<u32> = Line::new(patience);
    // By id, the place in the line; ids start at 1, so that none is what an emptied payload holds.
    let mut places: Vec<(u32, u32)> = Vec::new();
    let (mut now, mut ids) = (0, 0);
    for m in moves {
        let mut told = Vec::new();
        let mut tell = |id| told.push(id);
        let expected = match m {
            Move::Advance(by) => {
                now += by;
                continue;
            }
            Move::Push { rank, within } => {
                ids += 1;
                let pushed = line.push(now, entrant(BY_RANK[rank], now + within), most, &mut tell);
                let waiter = Waiter { id: ids, rank, since: now, expires: now + within };
                let (decided, in_line) = model.push(now, waiter, most);
                match pushed {
                    Ok(place) => {
                        *line.payload(place) = ids;
                        places.push((ids, place));
                        assert!(in_line);
                    }
                    Err(reason) => assert_eq!((reason, in_line), (Reason::BulkheadFull, false)),
                }
                decided
            }
            Move::Call => {
                let decided = model.call(now);
                let granted = decided.last().is_some_and(|d| d.1 == Fate::Granted);
                assert_eq!(line.call(now, &mut tell), granted);
                decided
            }
            Move::TakeBack(_) if places.is_empty() => continue,
            Move::TakeBack(n) => {
                let (id, place) = places.swap_remove(n % places.len());
                assert_eq!(line.take_back(place), (Fate::Waits, id));
                model.remove(id);
                continue;
            }
        };
        // In this order they are told, and with these fates.
        assert_eq!(told, expected.iter().map(|d| d.0).collect::<Vec<_>>());
        for (id, fate) in expected {
            let at = places.iter().position(|p| p.0 == id).unwrap();
            assert_eq!(line.take_back(places.swap_remove(at).1).0, fate);
        }
        assert_eq!(line.waiting(), model.waiters.len());
        assert!(line.waiting() <= most.max(1));
        assert_eq!(line.oldest(), model.waiters.iter().map(|w| w.since).min());
    }
}

proptest! {
    #[test]
    fn the_line_follows_its_rules(moves in moves(), most in 1..12_usize) {
        agrees(PATIENCE, most, moves.clone());
        agrees(GENTLE, most, moves.clone());
        agrees(STRICT, most, moves);
    }
}

#[test]
fn a_burst_is_served_in_order_and_what_follows_an_overload_newest_first() {
    let mut line: Line<u32> = Line::new(GENTLE);
    let push = |line: &mut Line<u32>, now, id| {
        let place = line.push(now, entrant(Priority::Default, 10_000), 100, &mut |_| {}).unwrap();
        *line.payload(place) = id;
    };
    (1..=8).for_each(|id| push(&mut line, 0, id));
    let mut called = Vec::new();
    // The episode begins at 60, when somebody has waited for more than 50, and is an overload from 260 on.
    for now in [60, 160, 259, 260, 261] {
        line.call(now, &mut |id| called.push(id));
    }
    assert_eq!(called, [1, 2, 3, 8, 7]);
    push(&mut line, 262, 9);
    for now in 263..267 {
        line.call(now, &mut |id| called.push(id));
    }
    assert_eq!(called[5..], [9, 6, 5, 4]);
    // Empty for more than 0.4 of 50: calm again.
    push(&mut line, 288, 10);
    push(&mut line, 289, 11);
    line.call(290, &mut |id| called.push(id));
    assert_eq!(called[9..], [10]);
}

/// After an overload somebody always waits for `long`, then nobody for a moment, so often. Who of two is called then?
fn called_after(rounds: u64, long: u64) -> u32 {
    let mut line: Line<u32> = Line::new(GENTLE);
    let push = |line: &mut Line<u32>, now, id| {
        let place = line.push(now, entrant(Priority::Default, 100_000), 100, &mut |_| {}).unwrap();
        *line.payload(place) = id;
    };
    (1..=5).for_each(|id| push(&mut line, 0, id));
    // From 260 on the newest is first.
    for now in [60, 160, 259, 260, 261] {
        assert!(line.call(now, &mut |_| {}));
    }
    let mut now = 262;
    for _ in 0..rounds {
        push(&mut line, now, 1);
        push(&mut line, now, 2);
        assert!(line.call(now + long / 2, &mut |_| {}));
        assert!(line.call(now + long, &mut |_| {}));
        now += long + 1;
    }
    push(&mut line, now, 1);
    push(&mut line, now, 2);
    let mut called = 0;
    line.call(now, &mut |id| called = id);
    called
}

#[test]
fn an_overload_is_forgotten_only_where_nobody_would_be_late_in_order() {
    assert_eq!([called_after(20, 51), called_after(3, 50), called_after(20, 50)], [2, 2, 1]);
}

#[test]
fn lasting_overload_refuses_all_but_the_newest_few() {
    let mut line: Line<u32> = Line::new(STRICT);
    for id in 1..=6 {
        let place = line.push(0, entrant(Priority::Default, 10_000), 100, &mut |_| {}).unwrap();
        *line.payload(place) = id;
    }
    let mut refused = Vec::new();
    // The episode begins at 51; at 351 it is no burst any more, and the newest two have waited for longer than one.
    for now in [51, 300] {
        line.call(now, &mut |id| refused.push(id));
    }
    assert_eq!(refused, [6, 5], "called, in a burst, the newest first");
    refused.clear();
    let place = line.push(340, entrant(Priority::Default, 10_000), 100, &mut |id| refused.push(id)).unwrap();
    *line.payload(place) = 7;
    assert!(refused.is_empty());
    line.call(351, &mut |id| refused.push(id));
    assert_eq!(refused, [1, 2, 3, 4, 7], "the late ones are refused, oldest first, and the newest is called");
}

#[test]
fn the_lowest_is_served_after_at_most_a_thousand_calls_of_others() {
    for lowest in [Priority::Default, Priority::Background] {
        let mut line: Line<u32> = Line::new(GENTLE);
        let push = |line: &mut Line<u32>, priority, id| {
            let place = line.push(0, entrant(priority, 10_000), 5_000, &mut |_| {}).unwrap();
            *line.payload(place) = id;
        };
        // The bands in between starve as well.
        BY_RANK.iter().filter(|p| **p > lowest).for_each(|p| (0..1_500).for_each(|_| push(&mut line, *p, 1)));
        push(&mut line, lowest, 2);
        let mut others = 0;
        let mut last = 0;
        while last != 2 {
            assert!(line.call(1, &mut |id| last = id));
            others += usize::from(last == 1);
        }
        assert!((990..=1_000).contains(&others), "{others} before {lowest:?}");
    }
}

// === the room ===

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[derive(Debug, Clone)]
enum Act {
    Enter(usize),
    Leave(usize),
    GiveUp(usize),
    Resize(usize),
    Stream,
    Advance(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let one = prop_oneof![
        5 => (0..4_usize).prop_map(Act::Enter),
        4 => any::<usize>().prop_map(Act::Leave),
        2 => any::<usize>().prop_map(Act::GiveUp),
        1 => (1..6_usize).prop_map(Act::Resize),
        1 => Just(Act::Stream),
        1 => (0..40_u64).prop_map(Act::Advance),
    ];
    prop::collection::vec(one, 1..200)
}

struct Waiting {
    place: u32,
    woken: Arc<Woken>,
}

/// Whoever waits has been told when it is called, by its waker and once; nobody waits while there is room; never more
/// are in than may be, unless the limit was lowered; and in the end everything is as it was.
fn counts(acts: Vec<Act>) {
    const LEASE: u64 = 100;
    let (mut limit, mut now) = (2, 0);
    let room = Room::new(limit, GENTLE);
    let (mut inside, mut streams, mut line) = (0_usize, Vec::new(), Vec::<Waiting>::new());
    let pick = |n: usize, len: usize| (len > 0).then(|| n % len);
    for act in acts {
        let before = inside;
        match act {
            Act::Enter(rank) => {
                let expired = room.put_out_stalled(now, || LEASE);
                // Which of the streams they were shows when they end.
                inside -= expired;
                match room.enter(now, entrant(BY_RANK[rank], now + 150), 4) {
                    Entry::In => inside += 1,
                    Entry::Waits(place) => {
                        let woken = Arc::new(Woken::default());
                        assert_eq!(room.poll(place, &Waker::from(Arc::clone(&woken))), None);
                        line.push(Waiting { place, woken });
                    }
                    Entry::Refused(reason) => assert_eq!(reason, Reason::BulkheadFull),
                }
            }
            Act::Leave(_) if inside > streams.len() => {
                inside -= 1;
                if room.leave() {
                    room.let_in(now);
                }
            }
            Act::Leave(n) => {
                if let Some(n) = pick(n, streams.len()) {
                    let was = room.view().in_flight();
                    let waits = room.leave_stream(streams.swap_remove(n));
                    inside -= was - room.view().in_flight();
                    if waits {
                        room.let_in(now);
                    }
                }
            }
            Act::GiveUp(n) => {
                if let Some(n) = pick(n, line.len()) {
                    assert_eq!(room.give_up(line.swap_remove(n).place), Left::Waiting);
                }
            }
            Act::Resize(n) => {
                assert_eq!(room.set_limit(n, now), limit);
                limit = n;
            }
            Act::Stream if inside > streams.len() => streams.extend(room.begin_stream(now)),
            Act::Stream => {}
            Act::Advance(by) => now += by,
        }
        line.retain(|w| match w.woken.0.load(SeqCst) {
            0 => true,
            woken => {
                assert_eq!(woken, 1);
                match room.poll(w.place, Waker::noop()).expect("woken, and nothing is new") {
                    Left::In => inside += 1,
                    Left::Refused(reason) => {
                        assert!(matches!(reason, Reason::ShedByPriority | Reason::QueueTimeout));
                    }
                    Left::Waiting => panic!("woken, and nothing is new"),
                }
                false
            }
        });
        assert_eq!((room.view().in_flight(), room.waiting().0), (inside, line.len()));
        assert!(inside <= limit.max(before), "{inside} in, {limit} may be");
        assert!(line.is_empty() || inside >= limit, "{} wait and there is room", line.len());
        assert_eq!(room.view().somebody_waits(), !line.is_empty());
    }
    // All go, in the order in which a runtime that shuts down may drop them.
    for waiting in line {
        assert_eq!(room.give_up(waiting.place), Left::Waiting);
    }
    for stream in streams {
        assert!(!room.leave_stream(stream));
    }
    while room.view().in_flight() > 0 {
        assert!(!room.leave());
    }
    assert!(!room.view().somebody_waits());
}

proptest! {
    #[test]
    fn the_room_never_holds_more_loses_nobody_and_leaks_nothing(acts in acts()) {
        counts(acts);
    }
}
