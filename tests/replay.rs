//! Bodies that can be sent again: what each attempt reads is what was sent, whatever the chunks, the cap, the order in
//! which several attempts read, and the moments at which they come, go and are given up.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use buttress::{BoxError, Replay};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use proptest::prelude::*;

type Boxed = UnsyncBoxBody<Bytes, BoxError>;
type Source = <Boxed as Replay>::Source;

/// What the user's body does when it is polled.
#[derive(Debug, Clone)]
enum Does {
    Chunk(usize),
    /// Nothing yet; something after the next wake.
    Waits,
    /// Nothing yet, but it wakes its reader while it is being polled.
    Yields,
    Trailers,
    Fails,
}

/// A body that follows a script.
struct Script {
    does: VecDeque<Does>,
    next: u8,
    waiting: Arc<Mutex<Option<Waker>>>,
    polls: Arc<AtomicUsize>,
    during: Arc<Mutex<Option<Hook>>>,
    known: Option<u64>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls.fetch_add(1, SeqCst);
        let hook = self.during.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        let Some(does) = self.does.pop_front() else { return Poll::Ready(None) };
        Poll::Ready(match does {
            Does::Chunk(n) => {
                let byte = self.next;
                self.next = byte.wrapping_add(1);
                Some(Ok(Frame::data(Bytes::from(vec![byte; n]))))
            }
            Does::Waits => {
                *self.waiting.lock().unwrap() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Does::Yields => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Does::Trailers => Some(Ok(Frame::trailers(trailers()))),
            Does::Fails => Some(Err("the body failed".into())),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.known.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("7"))])
}

/// The outside world of one body: who wakes it, what it was asked.
#[derive(Default, Clone)]
struct World {
    waiting: Arc<Mutex<Option<Waker>>>,
    polls: Arc<AtomicUsize>,
    during: Arc<Mutex<Option<Hook>>>,
}

impl World {
    fn body(&self, script: &[Does], known: Option<u64>) -> Boxed {
        let does = script.iter().cloned().collect();
        let World { waiting, polls, during } = self.clone();
        UnsyncBoxBody::new(Script { does, next: 0, waiting, polls, during, known })
    }

    fn wake(&self) -> bool {
        let waker = self.waiting.lock().unwrap().take();
        waker.map(Waker::wake).is_some()
    }
}

/// One attempt and the task that reads it.
struct Reader {
    body: Option<Boxed>,
    task: Arc<Task>,
    got: Vec<u8>,
    trailers: bool,
    end: Option<Result<(), String>>,
}

#[derive(Default)]
struct Task(AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Reader {
    fn new(source: &Source) -> Reader {
        let task = Arc::new(Task(AtomicBool::new(true)));
        Reader { body: Some(Replay::attempt(source)), task, got: Vec::new(), trailers: false, end: None }
    }

    /// Polls once. `true`: something came.
    fn poll(&mut self) -> bool {
        let Some(body) = &mut self.body else { return false };
        if self.end.is_some() {
            return false;
        }
        self.task.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&self.task));
        let before = body.size_hint();
        match Pin::new(body).poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Pending => return false,
            Poll::Ready(None) => self.end = Some(Ok(())),
            Poll::Ready(Some(Err(e))) => self.end = Some(Err(e.to_string())),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    assert!(before.upper().is_none_or(|upper| data.len() as u64 <= upper));
                    self.got.extend_from_slice(data);
                } else {
                    self.trailers = true;
                }
            }
        }
        // A task that got something polls again.
        self.task.0.store(true, SeqCst);
        true
    }
}

/// Runs every reader until none of them is woken and the body waits for nobody.
fn settle(world: &World, readers: &mut [Reader]) {
    for _ in 0..10_000 {
        let mut moved = false;
        for reader in readers.iter_mut() {
            while reader.task.0.load(SeqCst) && reader.body.is_some() && reader.end.is_none() {
                moved |= reader.poll();
            }
        }
        if !moved && !world.wake() {
            return;
        }
    }
    panic!("it never settles: somebody wakes itself for ever");
}

const CUT: &str = "another attempt has the rest of this request body";

fn script() -> impl Strategy<Value = Vec<Does>> {
    let does = prop_oneof![
        4 => (0..200usize).prop_map(Does::Chunk),
        2 => Just(Does::Waits),
        1 => Just(Does::Yields),
    ];
    (
        proptest::collection::vec(does, 0..16),
        prop_oneof![6 => Just(None), 2 => Just(Some(Does::Trailers)), 1 => Just(Some(Does::Fails))],
    )
        .prop_map(|(mut script, last)| {
            script.extend(last);
            script
        })
}

/// What is done to the attempts, each number taken modulo how many there are.
#[derive(Debug, Clone)]
enum Op {
    Poll(usize),
    Attempt,
    Drop(usize),
    Wake,
    Only(usize),
    NoMore,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (0..8usize).prop_map(Op::Poll),
        2 => Just(Op::Attempt),
        2 => (0..8usize).prop_map(Op::Drop),
        4 => Just(Op::Wake),
        1 => (0..8usize).prop_map(Op::Only),
        1 => Just(Op::NoMore),
    ];
    proptest::collection::vec(op, 0..80)
}

fn whole(script: &[Does]) -> (Vec<u8>, usize, bool, bool) {
    let (mut bytes, mut size, mut next) = (Vec::new(), 0, 0u8);
    for does in script {
        match does {
            Does::Chunk(n) => {
                bytes.extend(vec![next; *n]);
                next = next.wrapping_add(1);
                size += n + 64;
            }
            Does::Trailers => size += 64 + "x-sum".len() + 1,
            _ => {}
        }
    }
    let has = |f: fn(&Does) -> bool| script.iter().any(f);
    (bytes, size, has(|d| matches!(d, Does::Trailers)), has(|d| matches!(d, Does::Fails)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_attempt_reads_what_was_sent(script in script(), ops in ops(), cap in prop_oneof![Just(0), 0..3000usize, Just(1 << 20)]) {
        let (bytes, size, has_trailers, fails) = whole(&script);
        let world = World::default();
        let mut source = Some(world.body(&script, None).split(cap));
        let mut readers = vec![Reader::new(source.as_ref().unwrap())];
        // Those that were ever the only one. Whoever was not is cut, for a moment or for good.
        let mut only = Vec::new();
        for op in ops {
            let n = readers.len();
            match op {
                Op::Poll(i) => drop(readers[i % n].poll()),
                Op::Attempt => readers.extend(source.as_ref().map(Reader::new)),
                Op::Drop(i) => drop(readers[i % n].body.take()),
                Op::Wake => drop(world.wake()),
                Op::Only(i) => {
                    if let Some(source) = &source {
                        Boxed::only(source, (i % n) as u32);
                        only.push(i % n);
                    }
                }
                Op::NoMore => source = None,
            }
        }
        settle(&world, &mut readers);
        let left = readers.iter().enumerate().filter(|(_, r)| r.body.is_some());
        for (i, reader) in left {
            prop_assert!(bytes.starts_with(&reader.got), "attempt {} read something else", i);
            match &reader.end {
                None => prop_assert!(false, "attempt {} of a body that is over still waits", i),
                Some(Ok(())) => {
                    prop_assert!(!fails);
                    prop_assert_eq!(&reader.got, &bytes, "attempt {} ended early", i);
                    prop_assert_eq!(reader.trailers, has_trailers);
                }
                Some(Err(e)) if e == CUT => {
                    let given_up = only.iter().any(|o| *o != i);
                    prop_assert!(given_up || size > cap || cap < 64 || fails, "attempt {} was cut for nothing", i);
                }
                Some(Err(e)) => {
                    prop_assert_eq!(e, "the body failed");
                    prop_assert!(fails);
                }
            }
        }
        // Where nobody left and nobody was given up, one attempt at least has had all.
        if !fails && only.is_empty() && readers.iter().all(|r| r.body.is_some()) {
            prop_assert!(readers.iter().any(|r| r.end == Some(Ok(()))));
        }
    }

    /// As a retry uses it: one attempt after the other, each given up before the next one begins.
    #[test]
    fn one_after_the_other(script in script(), reads in proptest::collection::vec(0..12usize, 0..4), cap in 0..2500usize) {
        let (bytes, size, has_trailers, fails) = whole(&script);
        let world = World::default();
        let source = world.body(&script, None).split(cap);
        let mut gone = Vec::new();
        for (n, polls) in reads.into_iter().enumerate() {
            if !Boxed::can_replay(&source) {
                break;
            }
            let mut reader = Reader::new(&source);
            for _ in 0..polls {
                reader.poll();
                world.wake();
            }
            prop_assert!(bytes.starts_with(&reader.got));
            Boxed::only(&source, n as u32 + 1);
            // The transport holds on to it, and may even try to read on.
            let had = reader.got.len();
            reader.poll();
            prop_assert!(reader.got.len() == had || !Boxed::can_replay(&source) || reader.end.is_some());
            gone.push(reader);
        }
        if Boxed::can_replay(&source) {
            let mut last = [Reader::new(&source)];
            drop(source);
            settle(&world, &mut last);
            let [last] = last;
            if fails {
                prop_assert!(last.end.unwrap().is_err());
            } else {
                prop_assert_eq!(last.end, Some(Ok(())));
                prop_assert_eq!(last.got, bytes);
                prop_assert_eq!(last.trailers, has_trailers);
            }
        } else {
            prop_assert!(size > cap || cap < 64 || fails);
        }
    }
}

fn ended(reader: &mut Reader) -> Result<Vec<u8>, String> {
    while reader.poll() {}
    reader.end.clone().expect("it is over").map(|()| reader.got.clone())
}

/// The transport of a call that was given up polls the body on a thread of its own, just when it is given up.
#[test]
fn given_up_in_the_middle_of_a_poll() {
    for (drops_source, cap) in [(false, 1 << 16), (true, 1 << 16), (true, 200), (false, 200)] {
        let world = World::default();
        let script = [Does::Chunk(50), Does::Chunk(100), Does::Chunk(10)];
        let source = world.body(&script, None).split(cap);
        let mut first = Reader::new(&source);
        assert!(first.poll());
        let second = Arc::new(Mutex::new(None));
        let (made, kept) = (Arc::clone(&second), source.clone());
        // `source` and `kept` are the only two handles: with `drops_source` both are gone before the chunk is there.
        let mut outer = Some(source);
        let dropped = drops_source.then(|| outer.take());
        *world.during.lock().unwrap() = Some(Box::new(move || {
            let reader = Reader::new(&kept);
            Boxed::only(&kept, 1);
            *made.lock().unwrap() = Some(reader);
            drop(kept);
            drop(dropped);
        }));
        first.poll();
        // One chunk more than the cap is all that this can come to.
        assert!(outer.as_ref().is_none_or(Boxed::can_replay));
        let mut second = second.lock().unwrap().take().unwrap();
        let all = ended(&mut second).unwrap();
        assert_eq!((all.len(), all.iter().filter(|b| **b == 1).count()), (160, 100), "{drops_source} {cap}");
        assert_eq!(ended(&mut first), Err(CUT.to_owned()));
    }
}

/// The one that polled last is gone. Whoever came to wait while it polled must still be woken.
#[test]
fn a_reader_that_is_gone_swallows_no_wake_up() {
    let world = World::default();
    let source = world.body(&[Does::Yields, Does::Chunk(1)], None).split(1 << 16);
    let mut readers = [Reader::new(&source), Reader::new(&source)];
    let other = Arc::new(Mutex::new(Some(Reader::new(&source))));
    let during = Arc::clone(&other);
    *world.during.lock().unwrap() = Some(Box::new(move || {
        // Comes while the body is being polled.
        during.lock().unwrap().as_mut().unwrap().poll();
    }));
    assert!(!readers[0].poll());
    readers[0].body = None;
    let mut waits = [other.lock().unwrap().take().unwrap()];
    settle(&world, &mut waits);
    assert_eq!(waits[0].got, [0]);
    assert!(readers[1].poll());
}

#[test]
fn the_cap_counts_chunks_too() {
    let poll_all = |sizes: &[usize], cap| {
        let script: Vec<_> = sizes.iter().map(|n| Does::Chunk(*n)).collect();
        let source = World::default().body(&script, None).split(cap);
        let mut reader = Reader::new(&source);
        assert_eq!(ended(&mut reader).unwrap().len(), sizes.iter().sum::<usize>());
        Boxed::can_replay(&source)
    };
    assert!(poll_all(&[100, 100], 328));
    assert!(!poll_all(&[100, 100], 327));
    assert!(!poll_all(&[0; 10], 639));
    assert!(poll_all(&[0; 10], 640));
}

/// A body that announces its length need not be recorded to find out that it is too long, and no second attempt waits.
#[test]
fn an_announced_length_above_the_cap() {
    let world = World::default();
    let source = world.body(&[Does::Chunk(100)], Some(100)).split(163);
    assert!(!Boxed::can_replay(&source));
    assert_eq!(world.polls.load(SeqCst), 0);
    assert_eq!(ended(&mut Reader::new(&source)).unwrap().len(), 100);
    let source = World::default().body(&[Does::Chunk(100)], Some(100)).split(164);
    assert!(Boxed::can_replay(&source));
    // It is whole until somebody reads it, or is about to.
    let world = World::default();
    let source = world.body(&[Does::Chunk(100)], Some(100)).split(163);
    let seen = Arc::new(Mutex::new(None));
    let (sees, polled) = (Arc::clone(&seen), source.clone());
    *world.during.lock().unwrap() = Some(Box::new(move || *sees.lock().unwrap() = Some(Boxed::is_whole(&polled))));
    assert!(Boxed::is_whole(&source));
    let mut reader = Reader::new(&source);
    reader.poll();
    assert_eq!((*seen.lock().unwrap(), Boxed::is_whole(&source)), (Some(false), false));
}

#[test]
fn a_panicking_body_breaks_nobody_else() {
    let world = World::default();
    let source = world.body(&[Does::Chunk(1)], None).split(1 << 16);
    let mut readers = [Reader::new(&source), Reader::new(&source)];
    *world.during.lock().unwrap() = Some(Box::new(|| panic!("in the body")));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| readers[0].poll())).is_err());
    assert_eq!(ended(&mut readers[1]), Err(CUT.to_owned()));
    assert!(!Boxed::can_replay(&source));
}

#[test]
fn full_and_empty_are_cloned() {
    let source = Full::new(Bytes::from("hello")).split(69);
    assert!(Full::<Bytes>::can_replay(&source));
    assert!(!Full::<Bytes>::can_replay(&Full::new(Bytes::from("hello")).split(68)));
    assert_eq!(<Full<Bytes> as Replay>::attempt(&source).size_hint().exact(), Some(5));
    Empty::<Bytes>::new().split(0);
    assert!(Empty::<Bytes>::can_replay(&()));
    let nothing = Empty::<Bytes>::new().map_err(|e| match e {}).boxed_unsync().split(0);
    assert!(Boxed::can_replay(&nothing));
    assert!(<Boxed as Replay>::attempt(&nothing).is_end_stream());
}

/// Its error type has room for ours, so a transport that still sends an attempt that was given up is told to stop.
#[test]
fn a_body_of_io_errors_is_cut_with_one() {
    type Body = UnsyncBoxBody<Bytes, std::io::Error>;
    let whole = Full::new(Bytes::from_static(b"whole")).map_err(|e| match e {});
    let source = Body::new(http_body_util::StreamBody::new(http_body_util::BodyStream::new(whole))).split(1 << 16);
    let mut first = Body::attempt(&source);
    let _second = Body::attempt(&source);
    Body::only(&source, 1);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Some(Err(error))) = Pin::new(&mut first).poll_frame(&mut cx) else { panic!("it is not cut") };
    assert_eq!(error.to_string(), CUT);
}
