//! The attempts beside the first.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::{Attempt, AttemptProj};
use crate::outline;

pin_project! {
    /// The second attempt has a place in the future of the call. Nearly all calls that have a second one have no third:
    /// each further one is an allocation of its own, for it must not move.
    pub(super) struct Others<F> {
        #[pin]
        second: Attempt<F>,
        more: Vec<Pin<Box<Attempt<F>>>>,
    }
}

impl<F> Others<F> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Others { second: Attempt::Gone, more: Vec::new() }
    }

    /// In the order in which they began.
    pub(super) fn add(self: Pin<&mut Self>, number: u32, inner: F) {
        let mut this = self.project();
        if number == 2 {
            this.second.set(Attempt::Running { inner });
        } else {
            this.more.push(Box::pin(Attempt::Running { inner }));
        }
    }

    /// Is the attempt of this number, from 2, running?
    pub(super) fn is_running(&self, number: u32) -> bool {
        match number {
            2 => self.second.is_running(),
            n => self.more.get(n as usize - 3).is_some_and(|attempt| attempt.is_running()),
        }
    }

    /// The attempt of this number, from 2.
    pub(super) fn attempt(self: Pin<&mut Self>, number: u32) -> Option<Pin<&mut Attempt<F>>> {
        let this = self.project();
        match number {
            2 => Some(this.second),
            n => this.more.get_mut(n as usize - 3).map(Pin::as_mut),
        }
    }
}

impl<F> Attempt<F> {
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Attempt::Running { .. })
    }

    /// Once it is ready it is gone.
    pub(super) fn poll_it(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output>
    where
        F: Future,
    {
        let AttemptProj::Running { inner } = self.as_mut().project() else { return Poll::Pending };
        let polled = outline::poll(inner, cx);
        if polled.is_ready() {
            self.set(Attempt::Gone);
        }
        polled
    }
}
