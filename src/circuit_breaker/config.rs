//! What a circuit breaker can be told.

use std::{fmt, time::Duration};

use crate::{
    Until,
    builder::{Identity, shared_setters},
    circuit_breaker::{
        CircuitBreakerLayer, OpenTime,
        common::{Fixed, OpenFn},
        machine::probes,
    },
    config::{Checks, ConfigError},
    window::count,
};

/// The longest time window: a day.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_MINIMUM: u32 = 20;
const DEFAULT_SUCCESSES: u32 = 3;

/// The numbers of a circuit breaker, as plain data. See [`CircuitBreakerBuilder`] for what each means.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitBreakerConfig {
    /// Opens when at least this share of the window failed, 0 to 1. Default: 0.5.
    pub failure_rate: Option<f64>,
    /// Opens when at least this share of the window was slow, 0 to 1. Default: none.
    pub slow_call_rate: Option<f64>,
    /// A call is slow when it took longer than this. 1 ns to 365 days; of no use without a rate, and not checked then.
    /// Default: 1 s.
    pub slow_call: Duration,
    /// Opens at so many failures in a row, from 1. Default: none.
    pub consecutive_failures: Option<u32>,
    /// Over what the shares are taken. Default: the last 10 s.
    pub window: Window,
    /// Shares are judged only of so many calls, from 1. Default: 20.
    pub minimum_calls: u32,
    /// How long it stays open. Default: 5 s, twice as long each time, 60 s at most, with 20 % of jitter.
    pub open: OpenTime,
    /// Stay open at least as long as the server asked for, within the maximum of `open`. Default: false.
    pub obey_retry_after: bool,
    /// Probes at once in half-open, 1 to 64. Default: 3.
    pub probes: u32,
    /// Successful probes that close it, 1 to `probes`. Default: 3.
    pub successes_to_close: u32,
    /// After how long a probe is given up. 1 ns to 365 days. Default: 30 s.
    pub probe_lease: Duration,
    /// After closing, the time in which the share of admitted calls grows from none to all. Default: none.
    pub ramp: Option<Duration>,
    /// Does a throttled call count as one of the `consecutive_failures`? Default: false.
    pub throttled_is_failure: bool,
}

/// Over what a circuit breaker takes its shares. Both really slide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The last so many calls, 1 to 4,096.
    Count(u32),
    /// The calls of so long, 1 ns to 24 hours: every call younger than it, and none older than 1.1 times it (and 11 ns,
    /// for its tenths are whole nanoseconds).
    Time(Duration),
}

impl Default for CircuitBreakerConfig {
    fn default() -> Self {
        CircuitBreakerConfig {
            failure_rate: Some(0.5),
            slow_call_rate: None,
            slow_call: Duration::from_secs(1),
            consecutive_failures: None,
            window: Window::Time(Duration::from_secs(10)),
            minimum_calls: DEFAULT_MINIMUM,
            open: OpenTime::default(),
            obey_retry_after: false,
            probes: 3,
            successes_to_close: DEFAULT_SUCCESSES,
            probe_lease: Duration::from_secs(30),
            ramp: None,
            throttled_is_failure: false,
        }
    }
}

/// Builds a [`CircuitBreakerLayer`]. Without a setter it has the defaults of [`CircuitBreakerConfig`].
#[must_use = "a builder does nothing until `build()`"]
#[derive(Default)]
pub struct CircuitBreakerBuilder {
    identity: Identity,
    config: CircuitBreakerConfig,
    minimum_is_set: bool,
    successes_are_set: bool,
    fixed: Fixed,
}

impl CircuitBreakerBuilder {
    shared_setters!();

    /// Opens when at least this share of the window failed: 0 to 1, default 0.5. Zero means at the first failure once
    /// there are [`minimum_calls`](Self::minimum_calls). Throttled calls (429, RESOURCE_EXHAUSTED) count as failed
    /// here.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.config.failure_rate = Some(rate);
        self
    }

    /// Opens when at least `rate` of the window took longer than `over`. 0 to 1; 1 ns to 365 days. Default: off.
    ///
    /// All that is inside of the breaker is measured: also how long a retry there waits between its attempts, or a call
    /// for its turn at a rate or a bulkhead. Put it inside of those.
    pub fn slow_calls(mut self, over: Duration, rate: f64) -> Self {
        self.config.slow_call = over;
        self.config.slow_call_rate = Some(rate);
        self
    }

    /// Opens at so many failures in a row, whatever the shares and the minimum say. From 1. Default: off.
    pub fn consecutive_failures(mut self, n: u32) -> Self {
        self.config.consecutive_failures = Some(n);
        self
    }

    /// Takes the shares over the last `n` calls, 1 to 4,096.
    ///
    /// Where no minimum is set it is the smaller of 20 and `n`.
    pub fn count_window(mut self, n: u32) -> Self {
        self.config.window = Window::Count(n);
        self
    }

    /// Takes the shares over the calls of the last `t`, 1 ns to 24 hours. Default: 10 s.
    pub fn time_window(mut self, t: Duration) -> Self {
        self.config.window = Window::Time(t);
        self
    }

    /// Judges shares only of so many calls. From 1, at most a count window's length. Default: 20.
    pub fn minimum_calls(mut self, n: u32) -> Self {
        self.config.minimum_calls = n;
        self.minimum_is_set = true;
        self
    }

    /// How long it stays open. Default: 5 s, twice as long with each re-opening, 60 s at most, with 20 % of jitter.
    pub fn open(mut self, open: OpenTime) -> Self {
        self.config.open = open;
        self
    }

    /// How long it stays open, by an own function of how often it has re-opened since it was last closed: 0 at first.
    ///
    /// Called once an opening, outside every lock. A result beyond a year means a year; should it panic, `open` holds.
    pub fn open_fn(mut self, f: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        self.fixed.open_fn = Some(OpenFn(Box::new(f)));
        self
    }

    /// Stay open at least as long as the server asked for (`Retry-After`, `grpc-retry-pushback-ms`) in the answer that
    /// opened it, but no longer than the maximum of `open`. Default: false. What can't be read is ignored.
    pub fn obey_retry_after(mut self, on: bool) -> Self {
        self.config.obey_retry_after = on;
        self
    }

    /// Probes that may run at once in half-open, 1 to 64. Default: 3.
    pub fn probes(mut self, n: u32) -> Self {
        self.config.probes = n;
        self
    }

    /// Successful probes that close it, 1 to `probes`. It opens again as soon as more than `probes` less this many have
    /// failed. Default: 3, or `probes` where that is less.
    pub fn successes_to_close(mut self, n: u32) -> Self {
        self.config.successes_to_close = n;
        self.successes_are_set = true;
        self
    }

    /// After how long a probe is given up and its slot goes to another call. 1 ns to 365 days. Default: 30 s.
    pub fn probe_lease(mut self, d: Duration) -> Self {
        self.config.probe_lease = d;
        self
    }

    /// After closing, admit a share of calls that grows from none to all within `d`. 1 ns to 365 days. Default: off.
    pub fn ramp(mut self, d: Duration) -> Self {
        self.config.ramp = Some(d);
        self
    }

    /// Does a throttled call count as one of the `consecutive_failures`? Default: false, it neither adds nor resets.
    pub fn throttled_is_failure(mut self, on: bool) -> Self {
        self.config.throttled_is_failure = on;
        self
    }

    /// Where the latency of a call ends, for slow calls: at the head (default) or at the end of the body. With `End`,
    /// `text/event-stream` and gRPC streams of more than one message end with their first frame.
    pub fn until(mut self, until: Until) -> Self {
        self.fixed.until = until;
        self
    }

    /// When the caller's deadline ends a call that had at least this long, the backend is to blame: a failure. With
    /// less it is nobody's, so that a caller can't open a shared breaker with short deadlines. 1 ns to 365 days.
    /// Default: 1 s.
    pub fn deadline_blame_after(mut self, d: Duration) -> Self {
        self.fixed.blame_after = d;
        self
    }

    /// Counts nothing of what a policy of this crate has refused on the server's side, as if it stood on this one:
    /// where the server has such policies too. HTTP and gRPC only. Default: false.
    ///
    /// Over a wire a bulkhead that sheds, one tenant's used-up quota, a breaker further down and an instance that
    /// drains look like a server that is broken: 503 or 429, UNAVAILABLE or RESOURCE_EXHAUSTED. In front of a server
    /// that is asked for three times what it can do a breaker then opens, and lets some hundredths of that through. But
    /// a refusal says its [`Reason`](crate::Reason) in the header `x-rejected`, and this goes by it, where the status
    /// is that of the reason; timeouts are failures all the same. It believes the server, and whoever is between: a
    /// server that passes on what its own backend has answered, headers and all, passes the reason on. A fallback
    /// between answers for such a refusal as for a failure: put the breaker inside of it.
    pub fn spare_peers(mut self, on: bool) -> Self {
        self.fixed.spares_peers = on;
        self
    }

    #[cfg(feature = "http")]
    crate::key::key_setters!("breaker", fixed.keys);

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field, with its value and its range.
    pub fn build(mut self) -> Result<CircuitBreakerLayer, ConfigError> {
        if let (false, Window::Count(n)) = (self.minimum_is_set, self.config.window) {
            self.config.minimum_calls = n.clamp(1, DEFAULT_MINIMUM);
        }
        if !self.successes_are_set {
            self.config.successes_to_close = self.config.probes.clamp(1, DEFAULT_SUCCESSES);
        }
        let mut checks = Checks::default();
        self.identity.check("circuit_breaker", &mut checks);
        self.config.check(&mut checks);
        checks.duration("deadline_blame_after", self.fixed.blame_after);
        #[cfg(feature = "http")]
        self.fixed.keys.check(&mut checks);
        checks.finish()?;
        Ok(CircuitBreakerLayer::new(self.identity, self.config, self.fixed))
    }
}

impl CircuitBreakerConfig {
    pub(crate) fn checked(&self) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        self.check(&mut checks);
        checks.finish()
    }

    fn check(&self, checks: &mut Checks) {
        let triggers =
            [self.failure_rate.is_some(), self.slow_call_rate.is_some(), self.consecutive_failures.is_some()];
        let some = "at least one of `failure_rate`, `slow_call_rate` and `consecutive_failures`";
        checks.require(triggers.contains(&true), "failure_rate", self.failure_rate, some);
        for (field, rate) in [("failure_rate", self.failure_rate), ("slow_call_rate", self.slow_call_rate)] {
            if let Some(rate) = rate {
                // NaN is in no range.
                checks.require((0.0..=1.0).contains(&rate), field, rate, "0 to 1");
            }
        }
        if self.slow_call_rate.is_some() {
            checks.duration("slow_call", self.slow_call);
        }
        if let Some(n) = self.consecutive_failures {
            checks.require(n > 0, "consecutive_failures", n, "at least 1");
        }
        self.check_window(checks);
        self.open.check(checks);
        checks.require((1..=probes::MOST).contains(&self.probes), "probes", self.probes, "1 to 64");
        let needed = self.successes_to_close;
        checks.require(needed > 0, "successes_to_close", needed, "at least 1");
        let expected = format!("at most `probes`, {}: it is above what probes can give", self.probes);
        checks.require(needed <= self.probes.max(1), "successes_to_close", needed, &expected);
        checks.duration("probe_lease", self.probe_lease);
        if let Some(ramp) = self.ramp {
            checks.duration("ramp", ramp);
        }
    }

    fn check_window(&self, checks: &mut Checks) {
        let minimum = self.minimum_calls;
        match self.window {
            Window::Count(n) => {
                checks.require((1..=count::MOST).contains(&n), "window", n, "1 to 4096 calls");
                checks.require(
                    minimum <= n.max(1),
                    "minimum_calls",
                    minimum,
                    &format!("at most the count window, {n}"),
                );
            }
            Window::Time(t) => {
                let ok = !t.is_zero() && t <= LONGEST_WINDOW;
                checks.require(ok, "window", t, "a duration from 1ns to 24 hours");
            }
        }
        checks.require(minimum > 0, "minimum_calls", minimum, "at least 1");
    }
}

impl fmt::Debug for CircuitBreakerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerBuilder")
            .field("identity", &self.identity)
            .field("config", &self.config)
            .field("fixed", &self.fixed)
            .finish()
    }
}
