//! How long a breaker stays open.

use std::time::Duration;

use crate::config::Checks;

/// How long a circuit breaker stays open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OpenTime {
    /// Always as long. 1 ns to 365 days.
    Fixed(Duration),
    /// Longer with every re-opening: a backend that fails its probes is left alone for longer.
    Growing {
        /// The first time since it was last closed. 1 ns to `max`.
        first: Duration,
        /// By how much each time is longer than the one before. From 1, finite.
        factor: f64,
        /// The longest, jitter included. `first` to 365 days.
        max: Duration,
        /// Each time is drawn from this share above and below, so that many clients do not come back at once. 0 to 1.
        jitter: f64,
    },
}

impl Default for OpenTime {
    fn default() -> Self {
        OpenTime::Growing { first: Duration::from_secs(5), factor: 2.0, max: Duration::from_secs(60), jitter: 0.2 }
    }
}

impl OpenTime {
    pub(crate) fn check(&self, checks: &mut Checks) {
        match *self {
            OpenTime::Fixed(d) => checks.duration("open", d),
            OpenTime::Growing { first, factor, max, jitter } => {
                checks.duration("open", first);
                checks.duration("open", max);
                checks.require(first <= max, "open", self, "`first` at most `max`");
                checks.require(factor >= 1.0 && factor.is_finite(), "open", self, "a finite `factor` of at least 1");
                checks.require((0.0..=1.0).contains(&jitter), "open", self, "a `jitter` of 0 to 1");
            }
        }
    }

    /// The time of the `opening`-th opening since it was last closed, from 0. `random` is in `0.0..1.0`.
    pub(crate) fn draw(&self, opening: u32, random: f64) -> Duration {
        match *self {
            OpenTime::Fixed(d) => d,
            OpenTime::Growing { first, factor, max, jitter } => {
                // A float of seconds never overflows here: `min` takes infinity too.
                let grown = (first.as_secs_f64() * factor.powf(f64::from(opening))).min(max.as_secs_f64());
                let drawn = grown * (1.0 + jitter * (2.0 * random - 1.0));
                Duration::try_from_secs_f64(drawn).unwrap_or(max).clamp(Duration::from_nanos(1), max)
            }
        }
    }

    /// The longest it can be, also for a server's hint.
    pub(crate) fn longest(&self) -> Duration {
        match *self {
            OpenTime::Fixed(d) => d,
            OpenTime::Growing { max, .. } => max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn grows_to_its_maximum() {
        let open = OpenTime::Growing { first: 5 * S, factor: 1.5, max: 20 * S, jitter: 0.0 };
        let times: Vec<_> = (0..6).map(|n| open.draw(n, 0.5).as_millis()).collect();
        assert_eq!(times, [5_000, 7_500, 11_250, 16_875, 20_000, 20_000]);
        assert_eq!(open.draw(u32::MAX, 0.5), 20 * S);
    }

    #[test]
    fn jitter_goes_both_ways_and_not_above_the_maximum() {
        let open = OpenTime::default();
        assert_eq!((open.draw(0, 0.0), open.draw(0, 0.5)), (4 * S, 5 * S));
        assert!((open.draw(0, 1.0 - f64::EPSILON).as_secs_f64() - 6.0).abs() < 1e-6);
        assert_eq!(open.draw(10, 0.99), 60 * S);
        assert_eq!(OpenTime::Fixed(S).draw(7, 0.9), S);
    }
}
