//! What a retry or a hedge has to do at least, written down by hand for this bench alone: how much of their cost is
//! their duties?
//!
//! The deadline of the task, before readiness and before the call; a counted reference on a line of the thread's own; a
//! count, and a deposit that mostly goes without a look at the clock; an instance and a request to spare; a way out of
//! line for a call that has to wait; our error type. For a further attempt: whose error it is, one look at the clock,
//! one compare-and-swap on a limit that is known, readiness. There is no form, no verdict, no backoff, no hint, no
//! other kind of budget, no shadow, nobody who steers. It is the path of a hedge that does not fire, too.

use std::{
    cell::Cell,
    error::Error,
    future::Future,
    hint::black_box,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};

use buttress::Rejection;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use crate::{
    case::{Case, Clients},
    cases::{
        bare::{Bare, Failed},
        retry::Fails,
    },
    drive,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("floor/of a retry or a hedge, no failure", || clients(Bare)),
        Case::new("floor/of a retry, one failure", || clients(Fails)),
    ]
}

fn clients<S>(inner: S) -> Clients
where
    S: Service<u64, Response = u64, Error = Failed> + Clone + Send + Sync + 'static,
{
    let state = Arc::new(State {
        attempts: 3,
        is_heard: black_box(false),
        epoch: Instant::now(),
        until: AtomicU64::new(u64::MAX),
        limit: AtomicU64::new(u64::MAX),
        taken: AtomicU64::new(0),
    });
    let stripe = || {
        let counts = || AtomicU64::new(0);
        Arc::new(Stripe { state: Arc::clone(&state), calls: counts(), further: counts(), deposits: counts() })
    };
    let stripes = [stripe(), stripe(), stripe(), stripe()].into();
    drive::plain(Floor { inner, is_refused: false, stripes })
}

#[derive(Clone)]
struct Floor<S> {
    inner: S,
    is_refused: bool,
    stripes: Arc<[Arc<Stripe>]>,
}

#[repr(align(128))]
struct Stripe {
    state: Arc<State>,
    calls: AtomicU64,
    further: AtomicU64,
    deposits: AtomicU64,
}

struct State {
    attempts: u32,
    is_heard: bool,
    epoch: Instant,
    until: AtomicU64,
    limit: AtomicU64,
    taken: AtomicU64,
}

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(0) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl<S> Service<u64> for Floor<S>
where
    S: Service<u64, Response = u64, Error = Failed> + Clone,
{
    type Response = u64;
    type Error = buttress::Error<Failed>;
    type Future = Call<S>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if DEADLINE.get().is_some_and(is_over) {
            self.is_refused = true;
            return Poll::Ready(Ok(()));
        }
        self.is_refused = false;
        self.inner.poll_ready(cx).map_err(buttress::Error::Inner)
    }

    #[inline]
    fn call(&mut self, request: u64) -> Call<S> {
        let deadline = DEADLINE.get();
        let stripe = Arc::clone(&self.stripes[THREAD.get() % 4]);
        if self.is_refused || deadline.is_some_and(is_over) {
            return Call { attempt: None, spare: None, stripe, deadline, number: 0 };
        }
        stripe.calls.fetch_add(1, Relaxed);
        stripe.deposit();
        let spare = Some((self.inner.clone(), request));
        Call { attempt: Some(self.inner.call(request)), spare, stripe, deadline, number: 1 }
    }
}

pin_project! {
    struct Call<S: Service<u64>> {
        #[pin]
        attempt: Option<S::Future>,
        spare: Option<(S, u64)>,
        stripe: Arc<Stripe>,
        deadline: Option<Instant>,
        number: u32,
    }
}

impl<S> Future for Call<S>
where
    S: Service<u64, Response = u64, Error = Failed>,
{
    type Output = Result<u64, buttress::Error<Failed>>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let Some(attempt) = this.attempt.as_mut().as_pin_mut() else { return wait(cx) };
            let failed = match attempt.poll(cx) {
                Poll::Ready(Ok(answer)) => {
                    this.stripe.state.tell();
                    return Poll::Ready(Ok(answer));
                }
                Poll::Ready(Err(failed)) => failed,
                Poll::Pending => return wait(cx),
            };
            let state = &this.stripe.state;
            let may = !is_ours(&failed) && *this.number < state.attempts && this.deadline.is_none();
            let Some((mut service, request)) = this.spare.take().filter(|_| may && state.withdraw()) else {
                return Poll::Ready(Err(buttress::Error::Inner(failed)));
            };
            state.tell();
            this.attempt.set(None);
            match service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failed)) => return Poll::Ready(Err(buttress::Error::Inner(failed))),
                Poll::Pending => return wait(cx),
            }
            this.stripe.further.fetch_add(1, Relaxed);
            *this.number += 1;
            this.attempt.set(Some(service.call(request)));
            *this.spare = Some((service, request));
        }
    }
}

#[cold]
#[inline(never)]
fn is_over(deadline: Instant) -> bool {
    deadline <= Instant::now()
}

/// Here timers would be made, and further attempts. The cases never get here.
#[cold]
#[inline(never)]
fn wait<T>(cx: &mut Context<'_>) -> Poll<T> {
    black_box(cx);
    Poll::Pending
}

/// Errors are somebody else's code: it is asked along the whole chain.
#[inline(never)]
fn is_ours(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<Rejection>() {
            return true;
        }
        next = error.source();
    }
    false
}

impl Stripe {
    #[inline(always)]
    fn deposit(&self) {
        let word = self.deposits.fetch_add(1, SeqCst);
        if word & 0xffff >= word >> 16 & 0xffff {
            self.look();
        }
    }

    /// Here the clock would be asked.
    #[cold]
    #[inline(never)]
    fn look(&self) {
        self.deposits.store(0xffff_0000, SeqCst);
    }
}

impl State {
    #[inline(always)]
    fn tell(&self) {
        if self.is_heard {
            told();
        }
    }

    #[inline(always)]
    fn withdraw(&self) -> bool {
        let now = Instant::now().duration_since(self.epoch);
        let now = now.as_secs() * 1_000_000_000 + u64::from(now.subsec_nanos());
        let (limit, seen) = (self.limit.load(SeqCst), self.taken.load(SeqCst));
        now < self.until.load(SeqCst)
            && seen < limit
            && self.taken.compare_exchange(seen, seen + 1, SeqCst, SeqCst).is_ok()
            && self.limit.load(SeqCst) > seen
    }
}

#[cold]
#[inline(never)]
fn told() {
    black_box(());
}
