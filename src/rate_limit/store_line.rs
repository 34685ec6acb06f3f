//! Who waits to ask a store again: a line for each key, in the order in which they came.
//!
//! The first asks for all of them, for those behind it would be told the same. When it is let in, the store has said
//! how many units are left, and so many of those behind it ask at once. So a store is asked about as often as it lets
//! calls in, and not by each that waits each time that it says "later".
//!
//! The law: in a line that is not empty it is somebody's turn.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    task::Waker,
};

/// The lines of all keys. There is none for a key of which nobody waits. Whoever locks it clones what goes in before
/// the lock, and drops and wakes what comes out after it.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    next: u64,
    lines: HashMap<Arc<str>, Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// When the store may be asked again, as it said last.
    at: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// How many of them have their turn.
    turns: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    has_turn: bool,
    waker: Option<Waker>,
}

/// What one of them sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Is it its turn to ask?
    pub(crate) has_turn: bool,
    /// When the store may be asked.
    pub(crate) at: u64,
}

impl Lines {
    /// Somebody came who has not asked yet: if others wait it goes behind them. Gives its number.
    pub(crate) fn join(&mut self, key: &Arc<str>) -> Option<u64> {
        let line = self.lines.get_mut(key)?;
        self.next += 1;
        line.waiting.insert(self.next, Waiting::default());
        Some(self.next)
    }

    /// Somebody has asked, and was told to come back then. Gives its number.
    pub(crate) fn begin(&mut self, key: Arc<str>, at: u64) -> u64 {
        self.next += 1;
        let line = self.lines.entry(key).or_default();
        line.at = at;
        line.waiting.insert(self.next, Waiting::default());
        // It has no waker yet, and looks before it waits.
        line.have_turns(1, &mut Vec::new());
        self.next
    }

    /// It looks, and wants to be told when that changes. Gives back the waker that is of no use any more.
    pub(crate) fn look(&mut self, key: &str, number: u64, waker: Waker) -> (Seen, Option<Waker>) {
        let nobody = Seen { has_turn: true, at: 0 };
        let Some(line) = self.lines.get_mut(key) else { return (nobody, Some(waker)) };
        let Some(own) = line.waiting.get_mut(&number) else { return (nobody, Some(waker)) };
        (Seen { has_turn: own.has_turn, at: line.at }, own.waker.replace(waker))
    }

    /// It has asked, and was told to come back then.
    pub(crate) fn told(&mut self, key: &str, number: u64, at: u64, wake: &mut Vec<Waker>) {
        let Some(line) = self.lines.get_mut(key) else { return };
        line.at = at;
        if let Some(own) = line.waiting.get_mut(&number)
            && own.has_turn
        {
            own.has_turn = false;
            line.turns -= 1;
        }
        line.have_turns(1, wake);
    }

    /// It has asked and was let in, so it leaves; and so many units are left. Gives back its waker.
    pub(crate) fn let_in(&mut self, key: &str, number: u64, left: u32, wake: &mut Vec<Waker>) -> Option<Waker> {
        self.lines.get_mut(key)?.at = 0;
        self.leave_to(key, number, left as usize, wake)
    }

    /// It does not wait any longer. Gives back its waker.
    pub(crate) fn leave(&mut self, key: &str, number: u64, wake: &mut Vec<Waker>) -> Option<Waker> {
        self.leave_to(key, number, 0, wake)
    }

    fn leave_to(&mut self, key: &str, number: u64, others: usize, wake: &mut Vec<Waker>) -> Option<Waker> {
        let line = self.lines.get_mut(key)?;
        let gone = line.waiting.remove(&number)?;
        line.turns -= usize::from(gone.has_turn);
        line.have_turns(others.max(1), wake);
        if line.waiting.is_empty() {
            self.lines.remove(key);
        }
        gone.waker
    }

    /// All look again.
    pub(crate) fn call_all(&mut self, wake: &mut Vec<Waker>) {
        let all = self.lines.values_mut().flat_map(|line| line.waiting.values_mut());
        wake.extend(all.filter_map(|waiting| waiting.waker.take()));
    }
}

impl Line {
    /// It is the turn of the first of them, so many with those who have it already.
    fn have_turns(&mut self, so_many: usize, wake: &mut Vec<Waker>) {
        let more = so_many.saturating_sub(self.turns);
        // Those who have it are in front, so there are few to be passed over.
        for next in self.waiting.values_mut().filter(|waiting| !waiting.has_turn).take(more) {
            next.has_turn = true;
            self.turns += 1;
            wake.extend(next.waker.take());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        task::Wake,
    };

    use proptest::prelude::*;

    use super::*;

    /// One that waits: was it woken since it looked?
    #[derive(Debug, Default)]
    struct Sleeper(AtomicBool);

    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    /// A line as a list: who waits, in order, what each of them saw last, and when the store may be asked.
    #[derive(Debug, Default)]
    struct Model {
        waits: Vec<(u64, Option<Seen>, Arc<Sleeper>)>,
    }

    fn told_to_come(lines: &Lines) -> Option<u64> {
        Some(lines.lines.get("a")?.at)
    }

    fn look(lines: &mut Lines, model: &mut Model, at: usize) -> Seen {
        let (number, saw, sleeper) = &mut model.waits[at];
        sleeper.0.store(false, Relaxed);
        let (seen, _) = lines.look("a", *number, Arc::clone(sleeper).into());
        *saw = Some(seen);
        seen
    }

    proptest! {
        /// In a line that is not empty it is somebody's turn; whoever gets it was told; who came first gets it first;
        /// never more have it than the store said, beside those who had it.
        #[test]
        fn it_is_always_somebodys_turn(steps in prop::collection::vec((0_u8..5, any::<prop::sample::Index>(), 0_u32..5), 1..200)) {
            let (mut lines, mut model) = (Lines::default(), Model::default());
            for (step, index, units) in steps {
                let mut wake = Vec::new();
                let chosen = (!model.waits.is_empty()).then(|| index.index(model.waits.len().max(1)));
                match (step, chosen) {
                    (0, _) => {
                        let number = lines.join(&"a".into());
                        prop_assert_eq!(number.is_some(), !model.waits.is_empty());
                        model.waits.extend(number.map(|number| (number, None, Arc::default())));
                    }
                    (1, _) => model.waits.push((lines.begin("a".into(), u64::from(units)), None, Arc::default())),
                    (_, None) => {}
                    (2, Some(at)) => {
                        look(&mut lines, &mut model, at);
                    }
                    (3, Some(at)) => {
                        lines.told("a", model.waits[at].0, u64::from(units), &mut wake);
                        prop_assert_eq!(told_to_come(&lines), Some(u64::from(units)));
                        model.waits[at].1 = None;
                    }
                    (_, Some(at)) if units == 0 => {
                        let number = model.waits.remove(at).0;
                        lines.leave("a", number, &mut wake);
                    }
                    (_, Some(at)) => {
                        let number = model.waits.remove(at).0;
                        lines.let_in("a", number, units - 1, &mut wake);
                        prop_assert_eq!(told_to_come(&lines), (!model.waits.is_empty()).then_some(0));
                    }
                }
                wake.into_iter().for_each(Waker::wake);
                prop_assert_eq!(lines.lines.is_empty(), model.waits.is_empty());
                let Some(line) = lines.lines.get("a") else { continue };
                let have: Vec<_> = line.waiting.values().map(|waiting| waiting.has_turn).collect();
                prop_assert_eq!(have.iter().filter(|has| **has).count(), line.turns);
                prop_assert!(line.turns > 0);
                for ((_, saw, sleeper), has) in model.waits.iter().zip(have) {
                    let does_not_know = has && saw.is_some_and(|saw| !saw.has_turn);
                    prop_assert!(!does_not_know || sleeper.0.load(Relaxed), "it sleeps through its turn");
                }
            }
            // Each in order, if nobody asks for more.
            while !model.waits.is_empty() {
                let first = (0..model.waits.len()).find(|at| look(&mut lines, &mut model, *at).has_turn);
                let number = model.waits.remove(first.unwrap()).0;
                lines.leave("a", number, &mut Vec::new());
            }
            prop_assert!(lines.lines.is_empty());
        }
    }

    #[test]
    fn as_many_have_their_turn_as_there_are_units() {
        let mut lines = Lines::default();
        let first = lines.begin("a".into(), 7);
        let others: Vec<_> = (0..5).map(|_| lines.join(&"a".into()).unwrap()).collect();
        let have = |lines: &Lines| lines.lines["a"].turns;
        assert_eq!((have(&lines), told_to_come(&lines)), (1, Some(7)));
        lines.let_in("a", first, 3, &mut Vec::new());
        assert_eq!((have(&lines), told_to_come(&lines)), (3, Some(0)));
        // Two of the three are for those who ask already.
        lines.let_in("a", others[0], 3, &mut Vec::new());
        assert_eq!(have(&lines), 3);
        lines.let_in("a", others[1], 0, &mut Vec::new());
        assert_eq!(have(&lines), 2);
    }
}
