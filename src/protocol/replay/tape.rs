//! The record of a body, shared by the attempts that read it.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Wake, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::wake::wake_all;

mod handle;

pub(super) use self::handle::Handle;

/// What each chunk counts beside its length.
pub(super) const PER_CHUNK: usize = 64;

/// One body and what was read of it.
///
/// It is also the waker with which the body is polled: whichever attempt polled last, all are woken, for the one that
/// polled last may be gone, or wait for its transport.
pub(super) struct Recording<B> {
    tape: Mutex<Tape<B>>,
    /// Of the whole body.
    pub(super) hint: SizeHint,
}

struct Tape<B> {
    body: Place<B>,
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// What the record counts, and how much it may.
    size: usize,
    cap: usize,
    records: bool,
    /// Has a frame come, or the end?
    begun: bool,
    failed: bool,
    /// The only attempt that may read.
    only: Option<u32>,
    /// Attempts so far.
    attempts: u32,
    handles: usize,
    /// Attempts that may still read.
    readers: usize,
    /// Has the body called its waker since it was last taken?
    woken: bool,
    waiting: Vec<(u32, Waker)>,
}

/// Where the body is. Nobody polls it under the lock.
enum Place<B> {
    Here(B),
    /// An attempt is polling it right now.
    Taken,
    /// It came to its end, or failed.
    Over,
}

/// What an attempt gets to read.
pub(super) enum Read<B> {
    Frame(Frame<Bytes>),
    End,
    /// This attempt can't have the rest.
    Cut,
    /// Somebody else polls the body right now: [`Recording::wait_for_others`].
    Busy,
    /// Poll it, and say what came: [`Recording::put`], [`Recording::wait`] or [`Recording::fail`].
    Poll(B),
}

impl<B> Recording<B> {
    fn lock(&self) -> MutexGuard<'_, Tape<B>> {
        // User code runs outside of it, so there is nothing that could have broken the tape.
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frame at this place, or the body to poll for it.
    pub(super) fn read(&self, attempt: u32, next: usize) -> Read<B> {
        let mut tape = self.lock();
        if tape.is_cut(attempt) {
            return Read::Cut;
        }
        if next < tape.chunks.len() {
            let last_reader = !tape.is_shared();
            let chunk = &mut tape.chunks[next];
            let chunk = if last_reader { mem::take(chunk) } else { chunk.clone() };
            return Read::Frame(Frame::data(chunk));
        }
        match mem::replace(&mut tape.body, Place::Taken) {
            Place::Here(body) => {
                tape.woken = false;
                Read::Poll(body)
            }
            Place::Taken => Read::Busy,
            Place::Over => {
                tape.body = Place::Over;
                match &tape.trailers {
                    Some(trailers) if next == tape.chunks.len() => Read::Frame(Frame::trailers(trailers.clone())),
                    _ => Read::End,
                }
            }
        }
    }

    /// A frame came; `body` is there if more may come. `None` is the end.
    pub(super) fn put(&self, attempt: u32, frame: Option<&Frame<Bytes>>, body: Option<B>) {
        let mut tape = self.lock();
        tape.begun = true;
        tape.body = body.map_or(Place::Over, Place::Here);
        let dropped = frame.and_then(|frame| tape.record(attempt, frame));
        let waiting = mem::take(&mut tape.waiting);
        drop(tape);
        drop(dropped);
        wake(waiting);
    }

    /// Is the body still polled by somebody else? Then this task is woken when that is over. (A waker is the task's own
    /// code, so it is cloned and dropped outside the lock.)
    pub(super) fn wait_for_others(&self, attempt: u32, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut tape = self.lock();
        if !matches!(tape.body, Place::Taken) {
            return false;
        }
        let replaced = tape.enlist(attempt, waker);
        drop(tape);
        drop(replaced);
        true
    }

    /// Nothing came yet.
    pub(super) fn wait(&self, attempt: u32, waker: &Waker, body: B) {
        let waker = waker.clone();
        let mut tape = self.lock();
        tape.body = Place::Here(body);
        if tape.woken {
            // Others too may have come while it was polled; and this attempt may be given up before it polls again.
            let waiting = mem::take(&mut tape.waiting);
            drop(tape);
            wake_all([waker]);
            wake(waiting);
        } else {
            let replaced = tape.enlist(attempt, waker);
            drop(tape);
            drop(replaced);
        }
    }

    /// The body failed, or panicked: this attempt knows, and no other can have all of it.
    pub(super) fn fail(&self, attempt: u32) {
        let mut tape = self.lock();
        tape.body = Place::Over;
        tape.failed = true;
        // From here on nobody else can be made the only one either: to him it would look like the end.
        tape.records = false;
        tape.only = Some(attempt);
        let gone = (mem::take(&mut tape.chunks), tape.trailers.take());
        let waiting = mem::take(&mut tape.waiting);
        drop(tape);
        drop(gone);
        wake(waiting);
    }

    /// An attempt is gone.
    pub(super) fn leave(&self) {
        let mut tape = self.lock();
        tape.readers -= 1;
        let body = tape.unread();
        drop(tape);
        drop(body);
    }

    /// Is there nothing left to read at this place?
    pub(super) fn is_over(&self, attempt: u32, next: usize) -> bool {
        let tape = self.lock();
        let over = matches!(tape.body, Place::Over) && !tape.failed;
        let rest = tape.chunks.len() + usize::from(tape.trailers.is_some());
        over && next >= rest && !tape.is_cut(attempt)
    }
}

impl<B> Tape<B> {
    /// Once nobody will read, the body goes. It may hold the waker that it was polled with, which is the tape, and
    /// would live on with it for as long as whoever feeds it waits: who feeds it shall learn that nobody reads.
    fn unread(&mut self) -> Place<B> {
        if self.readers > 0 || self.handles > 0 {
            return Place::Over;
        }
        mem::replace(&mut self.body, Place::Over)
    }

    /// Whoever is given it now has all of it. (Who polls it right now may be about to read.)
    fn is_unread(&self) -> bool {
        !self.begun && matches!(self.body, Place::Here(_))
    }

    fn is_cut(&self, attempt: u32) -> bool {
        self.only.is_some_and(|only| only != attempt)
    }

    /// May anybody but one read what is recorded?
    fn is_shared(&self) -> bool {
        self.handles > 0 || self.only.is_none() && self.attempts > 1
    }

    fn enlist(&mut self, attempt: u32, waker: Waker) -> Option<Waker> {
        match self.waiting.iter_mut().find(|(a, _)| *a == attempt) {
            Some((_, old)) => Some(mem::replace(old, waker)),
            None => {
                self.waiting.push((attempt, waker));
                None
            }
        }
    }

    /// What is given back is dropped outside the lock: a chunk may run its owner's code then.
    fn record(&mut self, attempt: u32, frame: &Frame<Bytes>) -> Option<(Vec<Bytes>, Option<HeaderMap>)> {
        if !self.records {
            return None;
        }
        // One that was given up while it polled has what the only one that is left will need, whatever the cap.
        if !self.is_cut(attempt) {
            if !self.is_shared() {
                // Nobody will read it again. (What is there may still be read by the one that is left.)
                self.records = false;
                return None;
            }
            self.size = self.size.saturating_add(PER_CHUNK + length(frame));
            if self.size > self.cap {
                self.records = false;
                self.only = Some(attempt);
                return Some((mem::take(&mut self.chunks), self.trailers.take()));
            }
        }
        if let Some(data) = frame.data_ref() {
            self.chunks.push(data.clone());
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        None
    }
}

fn wake(waiting: Vec<(u32, Waker)>) {
    wake_all(waiting.into_iter().map(|(_, waker)| waker));
}

fn length(frame: &Frame<Bytes>) -> usize {
    let trailers = || frame.trailers_ref().into_iter().flatten().map(|(k, v)| k.as_str().len() + v.len()).sum();
    frame.data_ref().map_or_else(trailers, Bytes::len)
}

impl<B: Send> Wake for Recording<B> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waiting = {
            let mut tape = self.lock();
            tape.woken = true;
            mem::take(&mut tape.waiting)
        };
        wake(waiting);
    }
}
