//! Events as a stream with a bound.

use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use super::{Event, Observer};
use crate::wake::wake_all;

/// An observer and a stream of what it is told. The stream keeps the last `capacity` events; what it had to drop for
/// newer ones it says in their place, as [`Streamed::Dropped`]. With a capacity of 0 it only counts.
///
/// ```
/// use buttress::{TimeoutLayer, observe::{self, Kind, Streamed}};
/// use std::{convert::Infallible, time::Duration};
/// use tower::{Layer, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// let (events, mut stream) = observe::channel(1024);
/// let layer = TimeoutLayer::builder().after(Duration::from_millis(1)).observer(events).build()?;
/// let hangs = tower::service_fn(|()| std::future::pending::<Result<(), Infallible>>());
/// assert!(layer.plain().layer(hangs).oneshot(()).await.is_err());
///
/// assert!(matches!(stream.recv().await, Some(Streamed::Event(e)) if e.kind == Kind::TimedOut));
/// # Ok(()) }
/// ```
pub fn channel(capacity: usize) -> (EventSender, EventStream) {
    let ring = Arc::new(Ring { capacity, state: Mutex::default() });
    (EventSender(Arc::new(Source(Arc::clone(&ring)))), EventStream { ring, dropped: 0 })
}

/// The observer that fills an [`EventStream`]. The stream ends when the last clone of it is gone.
#[derive(Debug, Clone)]
pub struct EventSender(Arc<Source>);

/// Events in their order, and how many are missing between them.
///
/// It is a [`Stream`], and [`recv`](EventStream::recv) does without one. Dropping it costs the policies nothing more
/// than a look at whether it is still there.
#[derive(Debug)]
pub struct EventStream {
    ring: Arc<Ring>,
    dropped: u64,
}

/// What comes out of an [`EventStream`].
#[derive(Debug, Clone)]
pub enum Streamed {
    /// Something happened.
    Event(Event),
    /// So many events were dropped here, because nobody took them in time.
    Dropped(u64),
}

struct Ring {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Since the stream was told of it last.
    dropped: u64,
    waker: Option<Waker>,
    has_ended: bool,
    is_deaf: bool,
}

#[derive(Debug)]
struct Source(Arc<Ring>);

impl EventStream {
    /// The next of it; `None` once nobody is left who could tell of anything. Cancel safe: what was not given out
    /// stays.
    pub async fn recv(&mut self) -> Option<Streamed> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`recv`](Self::recv), by hand.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Streamed>> {
        // Cloned and dropped outside of the lock: it is somebody else's.
        let mut waker = Some(cx.waker().clone());
        let mut state = self.ring.lock();
        if state.dropped > 0 {
            let dropped = mem::take(&mut state.dropped);
            self.dropped += dropped;
            return Poll::Ready(Some(Streamed::Dropped(dropped)));
        }
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(Streamed::Event(event)));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        mem::swap(&mut state.waker, &mut waker);
        drop(state);
        Poll::Pending
    }

    /// How many events it has dropped in all.
    pub fn dropped(&self) -> u64 {
        self.dropped + self.ring.lock().dropped
    }
}

impl Stream for EventStream {
    type Item = Streamed;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Streamed>> {
        self.poll_recv(cx)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let mut state = self.ring.lock();
        state.is_deaf = true;
        let gone = (mem::take(&mut state.events), state.waker.take());
        drop(state);
        drop(gone);
    }
}

impl Observer for EventSender {
    fn on_event(&self, event: &Event) {
        self.0.0.push(event);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_ended = true;
        let waker = state.waker.take();
        drop(state);
        wake_all(waker);
    }
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: &Event) {
        let mut state = self.lock();
        if state.is_deaf {
            return;
        }
        if state.events.len() >= self.capacity {
            state.events.pop_front();
            state.dropped += 1;
        }
        if self.capacity > 0 {
            state.events.push_back(event.clone());
        }
        let waker = state.waker.take();
        drop(state);
        wake_all(waker);
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// Senders that come and go while the policies run.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    senders: Mutex<Vec<EventSender>>,
    count: AtomicUsize,
}

impl Hub {
    #[inline]
    pub(crate) fn has_listeners(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    pub(crate) fn subscribe(&self, capacity: usize) -> EventStream {
        let (sender, stream) = channel(capacity);
        self.change(|senders| senders.push(sender));
        stream
    }

    pub(crate) fn send(&self, event: &Event) {
        // Told outside of the lock: whoever is woken is somebody else's.
        let senders = self.change(|senders| senders.clone());
        for sender in senders {
            sender.on_event(event);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<EventSender>) -> T) -> T {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|sender| !sender.0.0.lock().is_deaf);
        let changed = change(&mut senders);
        self.count.store(senders.len(), Relaxed);
        changed
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::observe::Kind;

    fn event(kind: Kind) -> Event {
        Event { policy: "timeout", name: "t".into(), kind, key: None }
    }

    fn limit(to: usize) -> Event {
        event(Kind::LimitChanged { from: 0, to })
    }

    /// What is there now: limits, and dropped ones as negative numbers.
    fn drain(stream: &mut EventStream) -> Vec<i64> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = Vec::new();
        while let Poll::Ready(Some(next)) = stream.poll_recv(&mut cx) {
            seen.push(match next {
                Streamed::Dropped(n) => -(n as i64),
                Streamed::Event(Event { kind: Kind::LimitChanged { to, .. }, .. }) => to as i64,
                Streamed::Event(other) => panic!("{other:?}"),
            });
        }
        seen
    }

    #[test]
    fn the_oldest_go_and_the_gap_is_told() {
        let (sender, mut stream) = channel(2);
        (1..=5).for_each(|n| sender.on_event(&limit(n)));
        assert_eq!(stream.dropped(), 3);
        assert_eq!(drain(&mut stream), [-3, 4, 5]);
        sender.on_event(&limit(6));
        assert_eq!(drain(&mut stream), [6]);
        assert_eq!(stream.dropped(), 3);
        drop(sender);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(stream.poll_recv(&mut cx), Poll::Ready(None)));
    }

    #[test]
    fn without_room_it_only_counts() {
        let (sender, mut stream) = channel(0);
        (1..=3).for_each(|n| sender.on_event(&limit(n)));
        assert_eq!(drain(&mut stream), [-3]);
    }

    #[test]
    fn a_hub_forgets_streams_that_are_gone() {
        let hub = Hub::default();
        assert!(!hub.has_listeners());
        let (mut a, b) = (hub.subscribe(8), hub.subscribe(8));
        hub.send(&limit(1));
        drop(b);
        hub.send(&limit(2));
        assert_eq!(drain(&mut a), [1, 2]);
        drop(a);
        assert!(hub.has_listeners());
        hub.send(&limit(3));
        assert!(!hub.has_listeners());
    }
}
