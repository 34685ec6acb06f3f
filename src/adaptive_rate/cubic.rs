//! The cubic rule of the AWS SDKs: how fast to send after a backend has asked for less.
//!
//! A throttled answer lowers the rate to 0.7 of what was being sent. After that it follows a cubic curve: steep at
//! first, flat near the rate at which it was throttled, then steep again, looking for more. It is never above twice the
//! rate that is really sent (by the last half seconds, or by what this one has seen), so that a quiet time earns
//! nothing, and never below one in two seconds. (AWS SDK reference, retry behaviour, "adaptive"; the curve is that of
//! CUBIC for TCP, RFC 9438.)
//!
//! Three differences. A throttled answer may come before any rate was measured, or after a quiet time: the SDKs take
//! that for next to nothing; here it is at least what this half second has seen. What is sent is counted when it is
//! sent, and not by answers: a stream that has no end, and a backend that fails, was sent to all the same. And of the
//! calls that are under way when the rate is lowered no other one lowers it again (the controller sees to that): the
//! SDKs go by each answer, so that eight at once leave a twentieth of the rate. CUBIC itself has one reduction for each
//! window of data (RFC 9438, section 4.6).

/// What is kept when a backend throttles.
const BETA: f64 = 0.7;
/// How steep the curve is.
const SCALE: f64 = 0.4;
/// The weight of the last measurement.
const SMOOTH: f64 = 0.8;
/// Seconds of one measurement.
const BUCKET: f64 = 0.5;
/// Calls per second, at least.
pub(crate) const LEAST: f64 = 0.5;

/// Times in seconds, rates in calls per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cubic {
    measured: f64,
    bucket: f64,
    count: f64,
    curve: Option<Curve>,
    rate: f64,
}

/// Where the curve stands since the last throttled answer.
#[derive(Debug, Clone, Copy)]
struct Curve {
    throttled_at: f64,
    /// The rate at which that was.
    top: f64,
    /// From there to the top again.
    back_after: f64,
}

impl Curve {
    fn new(throttled_at: f64, top: f64) -> Self {
        Curve { throttled_at, top, back_after: (top * (1.0 - BETA) / SCALE).cbrt() }
    }

    fn at(&self, now: f64) -> f64 {
        SCALE * (now - self.throttled_at - self.back_after).powi(3) + self.top
    }
}

impl Cubic {
    pub(crate) fn new(now: f64) -> Self {
        Cubic { measured: 0.0, bucket: bucket_of(now), count: 0.0, curve: None, rate: f64::INFINITY }
    }

    /// So many calls were sent since the last time.
    pub(crate) fn measure(&mut self, now: f64, sent: u64) {
        self.count += sent as f64;
        let bucket = bucket_of(now);
        if bucket > self.bucket {
            let last = self.count / (bucket - self.bucket);
            self.measured = if self.measured == 0.0 { last } else { last * SMOOTH + self.measured * (1.0 - SMOOTH) };
            self.count = 0.0;
            self.bucket = bucket;
        }
    }

    /// The backend asked for less. The new rate.
    pub(crate) fn throttled(&mut self, now: f64) -> f64 {
        let top = self.sent().min(self.rate);
        self.curve = Some(Curve::new(now, top));
        self.set(top * BETA)
    }

    /// It answered. The new rate.
    pub(crate) fn succeeded(&mut self, now: f64) -> Option<f64> {
        let curve = self.curve?;
        Some(self.set(curve.at(now)))
    }

    /// How much is sent. What this half second has seen already is not less in all of it.
    fn sent(&self) -> f64 {
        self.measured.max(self.count / BUCKET)
    }

    fn set(&mut self, rate: f64) -> f64 {
        self.rate = rate.min(2.0 * self.sent()).max(LEAST);
        self.rate
    }
}

fn bucket_of(now: f64) -> f64 {
    (now / BUCKET).floor() * BUCKET
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 59: the values of the SDK's own tests.
    #[test]
    fn the_curve() {
        let curve = Curve::new(5.0, 10.0);
        for (now, rate) in [
            (5.0, 7.0),
            (6.0, 9.648_936_009_66),
            (7.0, 10.000_030_849_917),
            (8.0, 10.453_284_520_772),
            (9.0, 13.408_697_022_224),
            (10.0, 21.266_279_836_9),
            (11.0, 36.425_998_516_1),
        ] {
            assert!((curve.at(now) - rate).abs() < 1e-3, "{} at {now}", curve.at(now));
        }
    }

    #[test]
    fn lowers_rises_and_stays_below_twice_of_what_is_sent() {
        let mut cubic = Cubic::new(0.0);
        assert_eq!(cubic.succeeded(0.1), None, "unlimited until the first throttled answer");
        for half in 1..=10 {
            cubic.measure(f64::from(half) * BUCKET, 5);
        }
        assert_eq!(cubic.throttled(5.0), 7.0);
        assert!((cubic.throttled(5.1) - 4.9).abs() < 1e-9, "of the rate that was allowed, not of what was sent");
        // Ten a second are sent, so it is at most twenty, however long the quiet was.
        assert_eq!(cubic.succeeded(1_000.0), Some(20.0));
    }

    #[test]
    fn a_first_answer_that_is_throttled() {
        let mut cubic = Cubic::new(7.3);
        cubic.measure(7.31, 4);
        assert!((cubic.throttled(7.31) - 5.6).abs() < 1e-9, "eight a second were sent");
        let mut nothing = Cubic::new(0.0);
        assert_eq!(nothing.throttled(0.0), LEAST);
    }

    proptest! {
        /// The capacity that went below zero in an SDK (smithy-rs 4632) can't.
        #[test]
        fn never_below_the_least_and_always_a_number(
            steps in prop::collection::vec((0.0_f64..5.0, 0_u64..1_000, any::<bool>()), 0..200),
        ) {
            let (mut cubic, mut now) = (Cubic::new(0.0), 0.0);
            for (step, answers, throttled) in steps {
                now += step;
                cubic.measure(now, answers);
                let rate = if throttled { Some(cubic.throttled(now)) } else { cubic.succeeded(now) };
                if let Some(rate) = rate {
                    prop_assert!(rate.is_finite() && rate >= LEAST, "{rate}");
                    prop_assert!(rate <= LEAST.max(2.0 * cubic.measured).max(cubic.count / BUCKET * 2.0));
                }
            }
        }
    }
}
