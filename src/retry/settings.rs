//! The settings in force, read without a lock.

use std::{
    fmt,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    protocol::Trust,
    retry::{Backoff, Jitter, RetryConfig},
    rng,
    time::{LONGEST, Span, nanos},
    updating::Updating,
};

pub(crate) type BackoffFn = Box<dyn Fn(u32) -> Duration + Send + Sync>;

/// What a retry was told. The numbers can change, each by itself: a call that looks during an update may see a new one
/// and an old one, and each of the two is valid.
pub(crate) struct Settings {
    attempts: AtomicU32,
    delays: Delays,
    // Each a `Span`.
    max_hint: AtomicU64,
    peek: AtomicU64,
    pub(crate) fixed: Fixed,
    updating: Updating,
}

/// What stays as `build()` made it.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) replay_cap: usize,
    pub(crate) trust: Trust,
    #[cfg(feature = "http")]
    pub(crate) header: Option<http::HeaderName>,
}

impl Settings {
    pub(crate) fn new(config: RetryConfig, backoff_fn: Option<BackoffFn>, fixed: Fixed) -> Self {
        let settings = Settings {
            attempts: AtomicU32::new(0),
            delays: Delays::new(backoff_fn),
            max_hint: AtomicU64::new(0),
            peek: AtomicU64::new(0),
            fixed,
            updating: Updating::default(),
        };
        settings.store(config);
        settings
    }

    pub(crate) fn store(&self, config: RetryConfig) {
        let _one = self.updating.one();
        self.attempts.store(config.attempts, Relaxed);
        self.delays.store(config.backoff);
        self.max_hint.store(nanos(config.max_hint), Relaxed);
        self.peek.store(Span::from(config.peek).0, Relaxed);
    }

    pub(crate) fn load(&self) -> RetryConfig {
        RetryConfig {
            attempts: self.attempts(),
            backoff: self.delays.load(),
            max_hint: Duration::from_nanos(self.max_hint.load(Relaxed)),
            peek: self.peek(),
        }
    }

    pub(crate) fn has_backoff_fn(&self) -> bool {
        self.delays.own.is_some()
    }

    #[inline(always)]
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    pub(crate) fn peek(&self) -> Option<Duration> {
        Span(self.peek.load(Relaxed)).duration()
    }

    /// The delay after so many attempts, if the server asked for this one, and the one drawn before was that. What the
    /// server asks for is not drawn.
    #[inline(always)]
    pub(crate) fn delay(&self, hint: Option<Duration>, n: u32, last: &mut Span) -> Span {
        match hint {
            Some(hint) => Span(nanos(hint).min(self.max_hint.load(Relaxed))),
            None => self.delays.delay(n, last),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("config", &self.load())
            .field("backoff_fn", &self.has_backoff_fn())
            .field("fixed", &self.fixed)
            .finish()
    }
}

/// A [`Backoff`] in words of their own. Whatever mix of two of them a call sees, its delay is one that the one or the
/// other would give, or lies between.
struct Delays {
    /// One of the [`kind`]s.
    kind: AtomicU8,
    // Each a `Span`: the constant or the step is the base.
    base: AtomicU64,
    max: AtomicU64,
    /// The bits of a float.
    factor: AtomicU64,
    own: Option<BackoffFn>,
}

/// Which backoff it is.
mod kind {
    pub(super) const CONSTANT: u8 = 0;
    pub(super) const LINEAR: u8 = 1;
    pub(super) const FULL: u8 = 2;
    pub(super) const EQUAL: u8 = 3;
    pub(super) const NO_JITTER: u8 = 4;
    pub(super) const DECORRELATED: u8 = 5;
    /// Beside one of the others, and before it: there is a function.
    pub(super) const OWN: u8 = 1 << 7;
}

impl Delays {
    fn new(own: Option<BackoffFn>) -> Self {
        let word = || AtomicU64::new(0);
        Delays { kind: AtomicU8::new(kind::CONSTANT), base: word(), max: word(), factor: word(), own }
    }

    fn store(&self, backoff: Backoff) {
        let (kind, base, max, factor) = match backoff {
            Backoff::Constant(delay) => (kind::CONSTANT, delay, delay, 1.0),
            Backoff::Linear { step, max } => (kind::LINEAR, step, max, 1.0),
            Backoff::Exponential { base, factor, max, jitter: Jitter::Full } => (kind::FULL, base, max, factor),
            Backoff::Exponential { base, factor, max, jitter: Jitter::Equal } => (kind::EQUAL, base, max, factor),
            Backoff::Exponential { base, factor, max, jitter: Jitter::None } => (kind::NO_JITTER, base, max, factor),
            Backoff::Decorrelated { base, max } => (kind::DECORRELATED, base, max, 1.0),
        };
        self.base.store(nanos(base), Relaxed);
        self.max.store(nanos(max), Relaxed);
        self.factor.store(factor.to_bits(), Relaxed);
        self.kind.store(if self.own.is_some() { kind | kind::OWN } else { kind }, Relaxed);
    }

    fn load(&self) -> Backoff {
        let base = Duration::from_nanos(self.base.load(Relaxed));
        let max = Duration::from_nanos(self.max.load(Relaxed));
        let factor = f64::from_bits(self.factor.load(Relaxed));
        let exponential = |jitter| Backoff::Exponential { base, factor, max, jitter };
        match self.kind.load(Relaxed) & !kind::OWN {
            kind::LINEAR => Backoff::Linear { step: base, max },
            kind::FULL => exponential(Jitter::Full),
            kind::EQUAL => exponential(Jitter::Equal),
            kind::NO_JITTER => exponential(Jitter::None),
            kind::DECORRELATED => Backoff::Decorrelated { base, max },
            _ => Backoff::Constant(base),
        }
    }

    #[inline(always)]
    fn delay(&self, n: u32, last: &mut Span) -> Span {
        if self.kind.load(Relaxed) == kind::CONSTANT { Span(self.base.load(Relaxed)) } else { self.grown(n, last) }
    }

    #[cold]
    #[inline(never)]
    fn grown(&self, n: u32, last: &mut Span) -> Span {
        *last = Span(nanos(match &self.own {
            Some(own) => own(n).min(LONGEST),
            None => self.load().delay(n, last.duration().unwrap_or_default(), rng::unit),
        }));
        *last
    }
}
