//! What further attempts are made from.

use std::{
    mem,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body::Body;

use super::{PER_CHUNK, Place, Recording, Tape, wake};

/// Whoever may make further attempts holds one.
pub(in super::super) struct Handle<B>(Arc<Recording<B>>);

impl<B> Handle<B> {
    pub(in super::super) fn new(body: B, cap: usize) -> Self
    where
        B: Body<Data = Bytes>,
    {
        let hint = body.size_hint();
        // A body that says that it is too long need not be recorded to find that out.
        let least = usize::try_from(hint.lower()).unwrap_or(usize::MAX).saturating_add(PER_CHUNK);
        let records = least <= cap;
        let tape = Tape {
            body: Place::Here(body),
            chunks: Vec::new(),
            trailers: None,
            size: 0,
            cap,
            records,
            begun: false,
            failed: false,
            only: (!records).then_some(0),
            attempts: 0,
            handles: 1,
            readers: 0,
            woken: false,
            waiting: Vec::new(),
        };
        Handle(Arc::new(Recording { tape: Mutex::new(tape), hint }))
    }

    /// The shared tape, and the number of the attempt that begins.
    pub(in super::super) fn begin(&self) -> (Arc<Recording<B>>, u32) {
        let mut tape = self.0.lock();
        let attempt = tape.attempts;
        tape.attempts += 1;
        tape.readers += 1;
        (Arc::clone(&self.0), attempt)
    }

    pub(in super::super) fn can_replay(&self) -> bool {
        self.0.lock().records
    }

    /// Is it recorded, or was nothing of it read?
    pub(in super::super) fn is_whole(&self) -> bool {
        let tape = self.0.lock();
        tape.records || tape.is_unread()
    }

    pub(in super::super) fn is_cut(&self, attempt: u32) -> bool {
        self.0.lock().is_cut(attempt)
    }

    pub(in super::super) fn only(&self, attempt: u32) {
        let mut tape = self.0.lock();
        // One that already has what nobody else can have stays the only one.
        if tape.records || tape.is_unread() {
            tape.only = Some(attempt);
        }
        // Those that were given up are told so.
        let waiting = mem::take(&mut tape.waiting);
        drop(tape);
        wake(waiting);
    }
}

impl<B> Clone for Handle<B> {
    fn clone(&self) -> Self {
        self.0.lock().handles += 1;
        Handle(Arc::clone(&self.0))
    }
}

impl<B> Drop for Handle<B> {
    fn drop(&mut self) {
        let mut tape = self.0.lock();
        tape.handles -= 1;
        let body = tape.unread();
        drop(tape);
        drop(body);
    }
}
