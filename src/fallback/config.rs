//! What a fallback answers, and its builder.

use std::fmt;

use crate::{
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    fallback::FallbackLayer,
    outcome::{End, Outcome},
};

/// What is answered, and how the answer is marked: a bit for each, for every call carries it along.
#[derive(Clone, Copy)]
pub(crate) struct When(u8);

const REFUSALS: u8 = 1 << 6;
const HEADER: u8 = 1 << 7;

impl Default for When {
    fn default() -> Self {
        When(REFUSALS | bit(Outcome::Failure))
    }
}

impl When {
    pub(crate) fn on(self, refusals: bool, outcomes: &[Outcome]) -> Self {
        let refusals = if refusals { REFUSALS } else { 0 };
        let outcomes = outcomes.iter().fold(0, |bits, o| bits | bit(*o)) & !bit(Outcome::Success);
        When(self.0 & HEADER | refusals | outcomes)
    }

    pub(crate) fn with_header(self, on: bool) -> Self {
        When(if on { self.0 | HEADER } else { self.0 & !HEADER })
    }

    pub(crate) fn header(self) -> bool {
        self.0 & HEADER != 0
    }

    pub(crate) fn has(self, end: End) -> bool {
        let bits = match end {
            End::Refused => REFUSALS,
            end => bit(end.outcome()),
        };
        self.0 & bits != 0
    }
}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Outcome::{Cancelled, Failure, Ignored, Throttled};

        let outcomes: Vec<_> = [Failure, Throttled, Cancelled, Ignored]
            .into_iter()
            .filter(|outcome| self.has(End::Outcome(*outcome)))
            .collect();
        f.debug_struct("When")
            .field("refusals", &self.has(End::Refused))
            .field("outcomes", &outcomes)
            .field("header", &self.header())
            .finish()
    }
}

/// Five of them, and two bits more.
const fn bit(outcome: Outcome) -> u8 {
    1 << outcome as u8
}

/// Builds a [`FallbackLayer`] with a name, observers or shadow. The last call says what answers.
///
/// ```
/// use buttress::{Answer, FallbackContext, FallbackLayer, observe::Event};
///
/// # fn main() -> Result<(), buttress::ConfigError> {
/// let layer = FallbackLayer::builder()
///     .name("prices")
///     .observer(|e: &Event| eprintln!("{} {}: {:?}", e.policy, e.name, e.kind))
///     .build_from_fn(|_: &FallbackContext<'_>| Answer::GrpcStatus(14, "prices are away".into()))?;
/// assert_eq!(layer.name(), "prices");
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until it builds"]
#[derive(Debug, Default)]
pub struct FallbackBuilder {
    identity: Identity,
    when: When,
}

impl FallbackBuilder {
    shared_setters!();

    /// As [`FallbackLayer::on`].
    pub fn on(mut self, refusals: bool, outcomes: &[Outcome]) -> Self {
        self.when = self.when.on(refusals, outcomes);
        self
    }

    /// As [`FallbackLayer::header`].
    pub fn header(mut self, on: bool) -> Self {
        self.when = self.when.with_header(on);
        self
    }

    pub(crate) fn build<F, P>(self, substitute: F, protocol: P) -> Result<FallbackLayer<F, P>, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("fallback", &mut checks);
        checks.finish()?;
        Ok(FallbackLayer::new(self.identity, substitute, protocol).when(self.when))
    }

    /// As [`FallbackLayer::plain_from_fn`].
    ///
    /// # Errors
    ///
    /// A bad name.
    pub fn build_plain_from_fn<E, R, F>(self, f: F) -> Result<FallbackLayer<F, crate::Plain>, ConfigError>
    where
        F: Fn(&crate::Error<E>) -> Option<R> + Clone,
    {
        self.build(f, crate::Plain::default())
    }

    /// As [`FallbackLayer::flat_from_fn`].
    ///
    /// # Errors
    ///
    /// A bad name.
    pub fn build_flat_from_fn<E, R, F>(self, f: F) -> Result<FallbackLayer<F, crate::Flat>, ConfigError>
    where
        F: Fn(&E) -> Option<R> + Clone,
    {
        self.build(f, crate::Flat::default())
    }

    /// As [`FallbackLayer::boxed_from_fn`].
    ///
    /// # Errors
    ///
    /// A bad name.
    pub fn build_boxed_from_fn<R, F>(self, f: F) -> Result<FallbackLayer<F, crate::Boxed>, ConfigError>
    where
        F: Fn(&crate::BoxError) -> Option<R> + Clone,
    {
        self.build(f, crate::Boxed::default())
    }
}

#[cfg(feature = "http")]
impl FallbackBuilder {
    /// As [`FallbackLayer::from_fn`].
    ///
    /// # Errors
    ///
    /// A bad name.
    pub fn build_from_fn<F>(self, f: F) -> Result<FallbackLayer<F>, ConfigError>
    where
        F: Fn(&crate::FallbackContext<'_>) -> crate::Answer,
    {
        self.build(f, crate::Http::default())
    }

    /// As [`FallbackLayer::to_service`].
    ///
    /// # Errors
    ///
    /// A bad name.
    pub fn build_to_service<B>(self, backup: B) -> Result<FallbackLayer<crate::Backup<B>>, ConfigError> {
        self.build(crate::Backup::new(backup), crate::Http::default())
    }

    /// As [`FallbackLayer::last_good`].
    ///
    /// # Errors
    ///
    /// A bad name.
    pub fn build_last_good(self, l: crate::LastGood) -> Result<FallbackLayer<crate::LastGood>, ConfigError> {
        self.build(l, crate::Http::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_and_outcomes_are_apart() {
        let deadline = End::DeadlinePassed { had: None };
        let failed = End::Outcome(Outcome::Failure);
        let default = When::default();
        assert!(default.has(End::Refused) && default.has(failed) && default.has(End::TimedOut));
        for end in [deadline, End::Outcome(Outcome::Success), End::Outcome(Outcome::Throttled)] {
            assert!(!default.has(end), "{end:?}");
        }
        let refusals = When::default().on(true, &[]);
        assert!(refusals.has(End::Refused) && !refusals.has(failed) && !refusals.has(End::TimedOut));
        let failures = When::default().on(false, &[Outcome::Failure, Outcome::Throttled, Outcome::Cancelled]);
        assert!(!failures.has(End::Refused) && failures.has(failed) && failures.has(deadline));
        assert!(failures.has(End::Outcome(Outcome::Throttled)));
        // A success is never answered.
        assert!(!When::default().on(true, &[Outcome::Success]).has(End::Outcome(Outcome::Success)));
        // `Ignored` is what a classification says, not what a refusal is.
        assert!(!When::default().on(false, &[Outcome::Ignored]).has(End::Refused));
    }
}
