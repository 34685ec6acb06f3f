//! The door, and who is inside.

use std::{
    array, fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    observe::{Kind, Reporter},
    protocol::{Watch, sealed::Sealed},
    rejection::{Reason, Rejection},
    stripe::{MOST, Shared, Striped},
    sync::{
        AtomicBool, AtomicU64, Mutex,
        Ordering::{Relaxed, SeqCst},
    },
    time::{LONGEST, nanos},
    wake::{Wakers, wake_all},
};

/// One for all drain layers of a registry.
pub(crate) struct Gate {
    /// How many came in by each stripe and have not left. Whoever leaves does so where it came in, so none is below
    /// zero.
    inside: [Lane; LANES],
    draining: AtomicBool,
    /// Those who wait until nobody is inside.
    waiting: Mutex<Wakers>,
    reporter: Reporter,
    /// In nanoseconds.
    retry_after: AtomicU64,
    rejected: AtomicU64,
}

/// One for each stripe. The model checker tries every order of the loads of all of them, so it gets two.
const LANES: usize = if cfg!(loom) { 2 } else { MOST };

/// Two cache lines apart from the next one.
#[repr(align(128))]
struct Lane(AtomicU64);

/// A call that is inside, in its response body to the end of that.
pub struct Inside(Shared<Gate>);

impl Gate {
    pub(crate) fn new(reporter: Reporter) -> Self {
        Gate {
            inside: array::from_fn(|_| Lane(AtomicU64::new(0))),
            draining: AtomicBool::new(false),
            waiting: Mutex::new(Wakers::default()),
            reporter,
            retry_after: AtomicU64::new(nanos(Duration::from_secs(1))),
            rejected: AtomicU64::new(0),
        }
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    pub(super) fn name(&self) -> &str {
        self.reporter.name()
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Goes in by this stripe, unless it is draining.
    #[inline(always)]
    pub(crate) fn enter(&self, stripe: usize) -> bool {
        self.inside[stripe % LANES].0.fetch_add(1, SeqCst);
        // After it is counted: whoever drains sets the flag and changes this lane then (see `is_empty`), so if that
        // came before this, the flag is seen here, and if it came after, this call is seen there.
        if self.draining.load(SeqCst) {
            self.leave(stripe);
            return false;
        }
        true
    }

    #[inline(always)]
    pub(crate) fn leave(&self, stripe: usize) {
        self.inside[stripe % LANES].0.fetch_sub(1, SeqCst);
        if self.draining.load(SeqCst) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if !self.is_empty() {
            return;
        }
        let all = self.lock().take();
        wake_all(all);
    }

    /// Asked only while it drains. It adds nothing to each lane, and does not only look at it: so it is in one order
    /// with all who come in and leave, which a look is not.
    fn is_empty(&self) -> bool {
        self.inside.iter().all(|lane| lane.0.fetch_add(0, SeqCst) == 0)
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.inside.iter().map(|lane| lane.0.load(SeqCst)).sum()
    }

    pub(crate) fn shut(&self) {
        self.draining.store(true, SeqCst);
    }

    pub(crate) fn drain(this: &Arc<Striped<Gate>>) -> Drained {
        this.shut();
        let number = this.lock().number();
        Drained { number, gate: Arc::clone(this) }
    }

    /// Is nobody inside? Else the waker is called when that is so.
    pub(crate) fn poll_empty(&self, number: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_empty() {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let old = self.lock().wait(number, waker);
        drop(old);
        // The last one may have left before the waker was there.
        if self.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn give_up(&self, number: u64) {
        let gone = self.lock().leave(number);
        drop(gone);
    }

    fn lock(&self) -> crate::sync::MutexGuard<'_, Wakers> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === refusals ===

    /// Books a refusal and tells of it.
    #[cold]
    pub(super) fn refuse(&self) {
        self.rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::Rejected { reason: Reason::Draining });
    }

    #[cold]
    pub(super) fn rejection(&self) -> Rejection {
        let after = Duration::from_nanos(self.retry_after.load(Relaxed));
        self.reporter.rejection(Reason::Draining).with_retry_after(Some(after))
    }

    pub(crate) fn set_retry_after(&self, after: Duration) {
        self.retry_after.store(nanos(after.min(LONGEST)), Relaxed);
    }

    pub(super) fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }
}

impl Inside {
    /// Of a call that was let in by this reference's stripe.
    #[inline(always)]
    pub(super) fn new(gate: Shared<Gate>) -> Self {
        Inside(gate)
    }
}

impl Drop for Inside {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.leave(self.0.stripe());
    }
}

impl Sealed for Inside {}

/// What the response says does not matter, only when it is over.
impl Watch for Inside {
    type Timer = ();

    const JUDGES: bool = false;
}

/// Ready when nothing is in flight any more behind the drain layers of a registry. Made by
/// [`Registry::drain`](crate::Registry::drain), which has shut the door already: this only waits.
#[derive(Debug)]
#[must_use = "new calls are refused already, but nobody waits for those that run unless this is awaited"]
pub struct Drained {
    number: u64,
    gate: Arc<Striped<Gate>>,
}

impl Future for Drained {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.gate.poll_empty(self.number, cx)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.gate.give_up(self.number);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("draining", &self.is_draining())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inside")
    }
}
