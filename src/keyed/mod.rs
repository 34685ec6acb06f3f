//! One state for each key, with a bound on how many.
//!
//! Keys come from the outside, so whoever sends requests decides how many there are. The laws here:
//!
//! - **A key has its state, or shares one of a fixed number of overflow states.** Keys of up to 256 bytes are kept
//!   whole and compared byte for byte, and longer ones by 128 bits of a hash that nobody outside can work out: no two
//!   are merged, and no key takes more room than that. Their places are drawn with a hasher that the operating system's
//!   randomness has seeded. Should somebody find out keys whose places meet all the same, they fill one shard with a
//!   few hundred of them, and the rest overflows: what that costs others is bounded, whatever the hasher is worth.
//! - **A state goes only when it says the same as none.** New keys beyond the bound push nobody out: as long as no
//!   state is idle they share the overflow, and they get a state of their own at the first call after one has become
//!   idle. A quota begins with what its overflow state knew, so that moving is no way to start anew.
//! - **A known key costs one hash, one shared lock and one comparison**, whatever comes beside it. Nothing is
//!   allocated.
//!
//! A shard holds some 64 to 128 keys and one overflow state, so there are far fewer overflow states than keys (one at
//! least, 1,024 at most, so that shards are larger where there may be more than 131,072 keys). Its lock is taken shared
//! by every call for a known key, and alone only for a new key and for a sweep. A sweep looks at one shard after
//! another, at most 128 of them, and stops at the first in which something was idle; where nothing is, it is not
//! repeated before something can have become so, or a second has passed. So a flood of new keys costs the known ones
//! close to nothing, and itself a hash and a look at two counters for each request.

use std::{
    fmt,
    sync::{
        Mutex, RwLock, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use hashbrown::HashTable;

use self::{
    digest::{Digests, WHOLE},
    place::Places,
    shard::{Entry, Shard, Table},
};

mod digest;
mod place;
mod shard;
mod stored;

/// What is kept for a key. `C` is what all states have in common: a quota, for one.
pub trait State<C>: Sized {
    /// From when on it says the same as a state that was just made, if nothing comes in between; in nanoseconds. `None`
    /// where that can't be told or somebody holds it: it is asked again after a while.
    fn idle_at(&self, common: &C) -> Option<u64>;

    /// The state of a key that was in the overflow until now.
    fn promoted(overflow: &Self, common: &C, now: u64) -> Self;
}

/// States by key. `now` is in nanoseconds since whenever the caller likes.
pub struct Keyed<S, C = ()> {
    shards: Box<[Shard<S, C>]>,
    places: Places,
    digests: Digests,
    most: usize,
    /// In one shard: four times what comes to one, and some.
    most_in_shard: usize,
    len: AtomicUsize,
    /// As far as is known nothing is idle before. In nanoseconds.
    nothing_idle_before: AtomicU64,
    /// Where the next sweep begins. One sweep at a time; who finds it locked does without.
    sweep: Mutex<usize>,
}

const KEYS_PER_SHARD: usize = 64;
const MOST_SHARDS: usize = 1_024;
/// All of them up to some 16,000 keys: a call for a new key is not held up for longer than they take.
const SHARDS_AT_ONCE: usize = 128;

impl<S: State<C>, C: Clone> Keyed<S, C> {
    /// At most so many keys with a state of their own. The overflow states are made here and now.
    pub fn new(most: usize, common: C, mut overflow: impl FnMut() -> S) -> Self {
        // A power of two, so that its low bits choose.
        let shards = (1_usize << (most / KEYS_PER_SHARD).max(1).ilog2()).min(MOST_SHARDS);
        let shard = |_| Shard {
            table: RwLock::new(Table { entries: HashTable::new(), common: common.clone(), overflow: overflow() }),
            nothing_idle_before: AtomicU64::new(0),
        };
        Keyed {
            shards: (0..shards).map(shard).collect(),
            most_in_shard: most / shards * 4 + KEYS_PER_SHARD,
            places: Places::new(),
            digests: Digests::new(),
            most,
            len: AtomicUsize::new(0),
            nothing_idle_before: AtomicU64::new(0),
            sweep: Mutex::new(0),
        }
    }

    /// How many keys have a state of their own.
    pub fn len(&self) -> usize {
        self.len.load(SeqCst)
    }

    /// Has none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many overflow states there are.
    pub fn overflow_states(&self) -> usize {
        self.shards.len()
    }

    /// Looks at the state of a key, or at the one in which it overflows. A shared lock is held: nothing that a user
    /// supplied may run in there, and nothing that waits.
    #[inline(always)]
    pub fn with<R>(&self, key: &[u8], now: u64, run: impl FnOnce(&C, &S) -> R) -> R {
        if key.len() > WHOLE { self.with_long(key, now, run) } else { self.with_short(key, now, run) }
    }

    #[cold]
    #[inline(never)]
    fn with_long<R>(&self, key: &[u8], now: u64, run: impl FnOnce(&C, &S) -> R) -> R {
        self.with_short(&self.digests.of(key), now, run)
    }

    #[inline(always)]
    fn with_short<R>(&self, key: &[u8], now: u64, run: impl FnOnce(&C, &S) -> R) -> R {
        let hash = self.places.of(key);
        let table = self.shard(hash).read();
        if let Some(entry) = table.entries.find(hash, |e| e.key.is(key)) {
            return run(&table.common, &entry.state);
        }
        drop(table);
        self.with_unknown(hash, key, now, run)
    }

    /// As [`with`](Self::with), for a key that was not found.
    #[cold]
    #[inline(never)]
    fn with_unknown<R>(&self, hash: u64, key: &[u8], now: u64, run: impl FnOnce(&C, &S) -> R) -> R {
        let shard = self.shard(hash);
        let table = shard.read();
        let overflows = if table.entries.len() >= self.most_in_shard {
            !shard.may_be_idle(now)
        } else {
            self.len() >= self.most && !self.may_be_idle(now)
        };
        if overflows {
            return run(&table.common, &table.overflow);
        }
        drop(table);
        self.with_new(hash, key, now, |common, state| run(common, state))
    }

    /// Looks at the state of a key that has one of its own. Makes none. As in [`with`](Self::with) a shared lock is
    /// held.
    pub fn get<R>(&self, key: &[u8], look: impl FnOnce(&S) -> R) -> Option<R> {
        if key.len() > WHOLE {
            return self.get(&self.digests.of(key), look);
        }
        let hash = self.places.of(key);
        let table = self.shard(hash).read();
        table.entries.find(hash, |e| e.key.is(key)).map(|entry| look(&entry.state))
    }

    /// As [`with`](Self::with), to change the state itself. It is the shard's only visitor meanwhile.
    #[cold]
    pub fn with_mut<R>(&self, key: &[u8], now: u64, run: impl FnOnce(&C, &mut S) -> R) -> R {
        if key.len() > WHOLE {
            return self.with_mut(&self.digests.of(key), now, run);
        }
        let hash = self.places.of(key);
        {
            let table = &mut *self.shard(hash).write();
            if let Some(entry) = table.entries.find_mut(hash, |e| e.key.is(key)) {
                return run(&table.common, &mut entry.state);
            }
        }
        self.with_new(hash, key, now, run)
    }

    /// Gives all states something new in common, shard by shard. `change` sees what was, what is, and each state.
    pub fn update(&self, common: &C, mut change: impl FnMut(&C, &C, &mut S)) {
        for shard in &self.shards {
            let table = &mut *shard.write();
            for state in table.entries.iter_mut().map(|e| &mut e.state).chain([&mut table.overflow]) {
                change(&table.common, common, state);
            }
            table.common = common.clone();
            shard.nothing_idle_before.store(0, SeqCst);
        }
        self.nothing_idle_before.store(0, SeqCst);
    }

    /// Looks at all states, those of the overflow too, shard by shard. As in [`with`](Self::with) a shared lock is
    /// held.
    pub fn for_each(&self, mut look: impl FnMut(&S)) {
        for shard in &self.shards {
            let table = shard.read();
            table.entries.iter().map(|e| &e.state).chain([&table.overflow]).for_each(&mut look);
        }
    }

    #[cold]
    #[inline(never)]
    fn with_new<R>(&self, hash: u64, key: &[u8], now: u64, run: impl FnOnce(&C, &mut S) -> R) -> R {
        let shard = self.shard(hash);
        if shard.may_be_idle(now) && shard.read().entries.len() >= self.most_in_shard {
            self.len.fetch_sub(shard.sweep(now), SeqCst);
        }
        let has_room = self.has_room() || (self.may_be_idle(now) && self.sweep(now) && self.has_room());
        let table = &mut *shard.write();
        let Table { entries, common, overflow } = table;
        // Somebody else may have brought it since.
        if let Some(entry) = entries.find_mut(hash, |e| e.key.is(key)) {
            if has_room {
                self.len.fetch_sub(1, SeqCst);
            }
            return run(common, &mut entry.state);
        }
        if !has_room {
            return run(common, overflow);
        }
        if entries.len() >= self.most_in_shard {
            self.len.fetch_sub(1, SeqCst);
            return run(common, overflow);
        }
        let entry = Entry { key: key.into(), state: S::promoted(overflow, common, now) };
        let mut entry = entries.insert_unique(hash, entry, |e| self.places.of(e.key.as_bytes()));
        let result = run(common, &mut entry.get_mut().state);
        // It may be idle sooner than all that are known.
        shard.nothing_idle_before.store(0, SeqCst);
        self.nothing_idle_before.store(0, SeqCst);
        result
    }

    /// Reserves a place for one more key.
    fn has_room(&self) -> bool {
        self.len.fetch_update(SeqCst, SeqCst, |len| (len < self.most).then_some(len + 1)).is_ok()
    }

    fn may_be_idle(&self, now: u64) -> bool {
        now >= self.nothing_idle_before.load(SeqCst)
    }

    /// Drops the idle states of one shard. False: none was found, in as many shards as one call can be made to look at.
    fn sweep(&self, now: u64) -> bool {
        let mut next = match self.sweep.try_lock() {
            Ok(next) => next,
            Err(TryLockError::Poisoned(next)) => next.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        for _ in 0..self.shards.len().min(SHARDS_AT_ONCE) {
            let shard = &self.shards[*next];
            *next = (*next + 1) % self.shards.len();
            if shard.nothing_idle_before.load(SeqCst) > now {
                continue;
            }
            let dropped = shard.sweep(now);
            if dropped > 0 {
                self.len.fetch_sub(dropped, SeqCst);
                return true;
            }
        }
        let earliest = self.shards.iter().map(|s| s.nothing_idle_before.load(SeqCst)).min().unwrap_or(0);
        // Else the next call goes on where this one stopped.
        if earliest > now {
            self.nothing_idle_before.store(earliest, SeqCst);
            // A key may have come into a shard that had been asked; it wrote there first and then where we just did.
            if self.shards.iter().any(|s| s.nothing_idle_before.load(SeqCst) < earliest) {
                self.nothing_idle_before.store(0, SeqCst);
            }
        }
        false
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard<S, C> {
        // The table takes the topmost seven bits and the lowest ones; those in the middle are free.
        &self.shards[(hash >> 40) as usize & (self.shards.len() - 1)]
    }
}

impl<S, C> fmt::Debug for Keyed<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("most", &self.most).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Never;

    impl State<()> for Never {
        fn idle_at(&self, (): &()) -> Option<u64> {
            None
        }

        fn promoted(_: &Self, (): &(), _: u64) -> Self {
            Never
        }
    }

    /// Whoever finds keys whose places all meet fills one shard with them, and no more.
    #[test]
    fn keys_that_meet_do_not_pile_up() {
        let keyed = Keyed::new(10_000, (), || Never);
        let most = keyed.most_in_shard;
        assert_eq!((keyed.overflow_states(), most), (128, 78 * 4 + 64));
        let mut own = 0;
        for n in 0..2_000_u32 {
            let key = n.to_ne_bytes();
            keyed.with_unknown(7, &key, 0, |(), _| ());
            own += usize::from(keyed.shard(7).read().entries.iter().any(|e| e.key.is(&key)));
        }
        assert_eq!((own, keyed.len()), (most, most));
        // The other shards have room. (One of many keys may well be of this one.)
        (0..20_u8).for_each(|n| keyed.with(&[n], 0, |(), _| ()));
        assert!(keyed.len() > most + 10, "{}", keyed.len());
    }

    /// Nobody fills the memory with what only he can read.
    #[test]
    fn a_long_key_takes_no_more_room_than_another() {
        let keyed = Keyed::new(10_000, (), || Never);
        let long = vec![b'x'; 100_000];
        for key in [&long[..], &long[1..], &long[..WHOLE + 1], &long[..WHOLE], &keyed.digests.of(&long)] {
            keyed.with(key, 0, |(), _| ());
            keyed.with_mut(key, 0, |(), _| ());
            assert!(keyed.get(key, |_| ()).is_some());
        }
        // The last is one that nobody knows, and the first key's own.
        assert_eq!(keyed.len(), 4);
        let kept = || {
            keyed
                .shards
                .iter()
                .flat_map(|s| s.read().entries.iter().map(|e| e.key.as_bytes().len()).collect::<Vec<_>>())
        };
        assert_eq!((kept().max(), kept().min()), (Some(WHOLE), Some(24)));
    }

    struct IdleAt(u64);

    impl State<()> for IdleAt {
        fn idle_at(&self, (): &()) -> Option<u64> {
            Some(self.0)
        }

        fn promoted(_: &Self, (): &(), now: u64) -> Self {
            IdleAt(now + 1_000)
        }
    }

    #[test]
    fn a_shard_makes_room_by_itself() {
        let keyed = Keyed::new(10_000, (), || IdleAt(u64::MAX));
        let own = |key: &[u8]| keyed.shard(7).read().entries.iter().any(|e| e.key.is(key));
        for n in 0..2_000_u32 {
            keyed.with_unknown(7, &n.to_ne_bytes(), 0, |(), _| ());
        }
        keyed.with_unknown(7, b"early", 999, |(), _| ());
        // It has been looked at and is not again: no call is held up by one that overflows.
        assert!(!own(b"early") && keyed.shard(7).nothing_idle_before.load(SeqCst) == 1_000);
        keyed.with_unknown(7, b"late", 1_000, |(), _| ());
        assert!(own(b"late"));
        assert_eq!(keyed.len(), 1);
    }
}
