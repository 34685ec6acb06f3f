//! The line of those who wait: four bands, the highest first, each first come, first served until overload lasts. What
//! that is [`Patience`] says.

use crate::{
    priority::Priority,
    queue::patience::{Patience, Tight},
    rejection::Reason,
};

const BANDS: usize = 4;
const NONE: u32 = u32::MAX;

/// A band that has been passed over so often is next. With the other bands that may be as late, that stays below 1,000.
const LONGEST_PASSED_OVER: u32 = 1_000 - BANDS as u32;

/// Somebody who comes to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entrant {
    pub(crate) priority: Priority,
    /// From when on it is refused, and with which reason.
    pub(crate) expires: u64,
    pub(crate) why: Reason,
}

/// What has become of somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Waits,
    Granted,
    Refused(Reason),
}

/// Who waits, and those who were called or refused and have not noticed yet. `T` is what each left to be called by.
#[derive(Debug)]
pub(crate) struct Line<T> {
    // Places in one vector, linked by their numbers: every move takes the same few steps however many wait. A place is
    // its owner's until it is taken back, so its number can't come to mean somebody else.
    places: Vec<Place<T>>,
    free: u32,
    bands: [Band; BANDS],
    waiting: usize,
    pub(crate) patience: Patience,
}

#[derive(Debug)]
struct Place<T> {
    fate: Fate,
    payload: T,
    entrant: Entrant,
    since: u64,
    before: u32,
    after: u32,
}

#[derive(Debug, Clone, Copy)]
struct Band {
    oldest: u32,
    newest: u32,
    len: usize,
    /// When the episode began.
    episode: Option<u64>,
    /// Has it become an overload?
    newest_first: bool,
    /// When somebody was last seen waiting, and for how long nobody must be until all is calm.
    busy: u64,
    calm_after: u64,
    /// Since when somebody has always waited, and when that was last for longer than `fifo`.
    never_empty_since: u64,
    crowded_at: u64,
    /// Calls of others since this one was served, or came to be.
    passed_over: u32,
}

impl Band {
    const EMPTY: Band = Band {
        oldest: NONE,
        newest: NONE,
        len: 0,
        episode: None,
        newest_first: false,
        busy: 0,
        calm_after: 0,
        never_empty_since: 0,
        crowded_at: 0,
        passed_over: 0,
    };

    /// Has there been an episode for so long?
    fn lasts(&self, long: u64, now: u64) -> bool {
        self.episode.is_some_and(|since| now.saturating_sub(since) >= long)
    }
}

impl<T> Line<T> {
    pub(crate) fn new(patience: Patience) -> Self {
        Line { places: Vec::new(), free: NONE, bands: [Band::EMPTY; BANDS], waiting: 0, patience }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Since when the one has waited who has waited longest.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.bands.iter().filter(|b| b.len > 0).map(|b| self.places[b.oldest as usize].since).min()
    }

    pub(crate) fn fate(&self, place: u32) -> Fate {
        self.places[place as usize].fate
    }

    pub(crate) fn payload(&mut self, place: u32) -> &mut T {
        &mut self.places[place as usize].payload
    }
}

impl<T: Default> Line<T> {
    /// Takes a place, with at most `most` in the line. Where it is full, a newcomer takes the place of the newest of
    /// the lowest band below its own. `tell` gets what those left who were refused for it.
    pub(crate) fn push(
        &mut self,
        now: u64,
        entrant: Entrant,
        most: usize,
        tell: &mut impl FnMut(T),
    ) -> Result<u32, Reason> {
        self.look(now, tell);
        if self.waiting >= most {
            let below = band(entrant.priority) + 1..BANDS;
            match below.rev().find(|&b| self.bands[b].len > 0) {
                Some(lowest) => self.refuse(self.bands[lowest].newest, Reason::ShedByPriority, tell),
                None => return Err(Reason::BulkheadFull),
            }
        }
        let place = self.place(entrant, now);
        self.link(place);
        Ok(place)
    }

    /// Calls the next in line. False if nobody waits. `tell` gets what those left who are called, or refused because
    /// they have waited for too long.
    pub(crate) fn call(&mut self, now: u64, tell: &mut impl FnMut(T)) -> bool {
        self.look(now, tell);
        while let Some(turn) = self.turn() {
            let band = &self.bands[turn];
            let next = if band.newest_first { band.newest } else { band.oldest };
            let Entrant { expires, why, .. } = self.places[next as usize].entrant;
            if expires <= now {
                self.refuse(next, why, tell);
                continue;
            }
            self.pass_over(turn);
            self.decide(next, Fate::Granted, tell);
            return true;
        }
        false
    }

    /// Gives a place back, and says what had become of its owner.
    pub(crate) fn take_back(&mut self, place: u32) -> (Fate, T) {
        let fate = self.fate(place);
        if fate == Fate::Waits {
            self.unlink(place);
        }
        let payload = std::mem::take(self.payload(place));
        self.places[place as usize].after = self.free;
        self.free = place;
        (fate, payload)
    }

    /// Calls everybody, whatever the limit. Gives back how many.
    pub(crate) fn call_all(&mut self, tell: &mut impl FnMut(T)) -> usize {
        let all = self.waiting;
        for band in 0..BANDS {
            while self.bands[band].len > 0 {
                self.decide(self.bands[band].oldest, Fate::Granted, tell);
            }
        }
        all
    }

    /// What those left who wait, and leave anew when they have looked again.
    pub(crate) fn payloads(&mut self) -> impl Iterator<Item = T> {
        let waiting = self.places.iter_mut().filter(|place| place.fate == Fate::Waits);
        waiting.map(|place| std::mem::take(&mut place.payload))
    }

    /// Whose turn is it? The highest band's, unless one was passed over for too long.
    fn turn(&self) -> Option<usize> {
        let there = || (0..BANDS).filter(|&b| self.bands[b].len > 0);
        let starving = there().filter(|&b| self.bands[b].passed_over >= LONGEST_PASSED_OVER);
        starving.max_by_key(|&b| self.bands[b].passed_over).or_else(|| there().next())
    }

    fn pass_over(&mut self, turn: usize) {
        for (n, band) in self.bands.iter_mut().enumerate() {
            let others = n != turn && band.len > 0;
            band.passed_over = if others { band.passed_over + 1 } else { 0 };
        }
    }

    /// Where do the bands stand, and who has waited too long for that?
    fn look(&mut self, now: u64, tell: &mut impl FnMut(T)) {
        let Patience { fifo, newest_after, tight } = self.patience;
        for n in 0..BANDS {
            // Who has not noticed yet must not stand in the way of those who come.
            while let Some(Entrant { why, .. }) = self.first(n).filter(|e| e.expires <= now) {
                self.refuse(self.bands[n].oldest, why, tell);
            }
            let oldest = self.waited(n, now).map(|waited| (waited, self.may_wait(n)));
            let band = &mut self.bands[n];
            // Where callers have less time than `fifo` is made for, they would all be gone before it is reached.
            let (fifo, newest_after) = match oldest {
                Some((_, may)) => (fifo.min(may / 2), newest_after.min(may)),
                None => (fifo, newest_after),
            };
            if oldest.is_some() {
                band.busy = now;
                // An overload is over by the patience of those who made it.
                let calm = fifo / 5 * 2;
                band.calm_after = if band.newest_first { calm.min(band.calm_after) } else { calm };
            }
            // In order nobody would wait for longer than the line is never empty.
            match oldest {
                None => band.never_empty_since = now,
                Some(_) if now.saturating_sub(band.never_empty_since) > fifo => band.crowded_at = now,
                Some(_) => {}
            }
            // Where the newest is first at once, each empty moment would be the end.
            let is_forgotten =
                oldest.is_none() && newest_after > 0 && now.saturating_sub(band.crowded_at) > newest_after;
            let late = oldest.is_some_and(|(waited, _)| waited > fifo);
            band.newest_first |= band.lasts(newest_after, now);
            match band.episode {
                None if late => band.episode = Some(now),
                // In order, an oldest who has not waited for long says that the line is short. Newest first it does
                // not: those who have waited are passed over then.
                Some(_) if !band.newest_first && oldest.is_some() && !late => band.episode = None,
                Some(_) if is_forgotten || now.saturating_sub(band.busy) > band.calm_after => band.episode = None,
                _ => {}
            }
            band.newest_first = band.episode.is_some() && (band.newest_first || band.lasts(newest_after, now));
            if let Some(tight) = tight.filter(|t| self.bands[n].lasts(t.burst, now)) {
                self.refuse_late(n, now, tight, tell);
            }
        }
    }

    fn refuse_late(&mut self, n: usize, now: u64, tight: Tight, tell: &mut impl FnMut(T)) {
        while let Some(waited) = self.waited(n, now) {
            let spared = self.bands[n].len <= tight.keep && waited <= tight.burst;
            if waited <= tight.wait || spared {
                break;
            }
            self.refuse(self.bands[n].oldest, Reason::QueueTimeout, tell);
        }
    }

    fn first(&self, n: usize) -> Option<Entrant> {
        (self.bands[n].len > 0).then(|| self.places[self.bands[n].oldest as usize].entrant)
    }

    /// For how long the oldest of a band has waited.
    fn waited(&self, n: usize, now: u64) -> Option<u64> {
        let band = &self.bands[n];
        (band.len > 0).then(|| now.saturating_sub(self.places[band.oldest as usize].since))
    }

    /// For how long the oldest of a band may wait in all.
    fn may_wait(&self, n: usize) -> u64 {
        let Place { since, entrant, .. } = &self.places[self.bands[n].oldest as usize];
        entrant.expires.saturating_sub(*since)
    }

    fn refuse(&mut self, place: u32, reason: Reason, tell: &mut impl FnMut(T)) {
        self.decide(place, Fate::Refused(reason), tell);
    }

    fn decide(&mut self, place: u32, fate: Fate, tell: &mut impl FnMut(T)) {
        self.unlink(place);
        self.places[place as usize].fate = fate;
        tell(std::mem::take(self.payload(place)));
    }

    fn place(&mut self, entrant: Entrant, now: u64) -> u32 {
        let new = Place { fate: Fate::Waits, payload: T::default(), entrant, since: now, before: NONE, after: NONE };
        let place = self.free;
        if place == NONE {
            self.places.push(new);
            return (self.places.len() - 1) as u32;
        }
        self.free = self.places[place as usize].after;
        self.places[place as usize] = new;
        place
    }

    fn link(&mut self, place: u32) {
        let band = &mut self.bands[band(self.places[place as usize].entrant.priority)];
        let last = std::mem::replace(&mut band.newest, place);
        band.len += 1;
        self.waiting += 1;
        match last {
            NONE => {
                band.oldest = place;
                band.passed_over = 0;
            }
            last => self.places[last as usize].after = place,
        }
        self.places[place as usize].before = last;
    }

    fn unlink(&mut self, place: u32) {
        let Place { before, after, entrant, .. } = self.places[place as usize];
        let band = &mut self.bands[band(entrant.priority)];
        band.len -= 1;
        self.waiting -= 1;
        match before {
            NONE => band.oldest = after,
            before => self.places[before as usize].after = after,
        }
        match after {
            NONE => band.newest = before,
            after => self.places[after as usize].before = before,
        }
    }
}

/// The number of a priority's band, the highest first.
fn band(priority: Priority) -> usize {
    match priority {
        Priority::Critical => 0,
        Priority::Default => 1,
        Priority::Sheddable => 2,
        Priority::Background => 3,
    }
}
