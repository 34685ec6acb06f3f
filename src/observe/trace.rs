//! Events as `tracing` events.

use tracing::{Level, Span};

use super::Kind;
use crate::circuit_breaker::State;

/// A target has to be a constant, so there is one call site a policy and level. A word here for each policy.
macro_rules! event {
    ($level:expr, $policy:expr, $($fields:tt)+) => {
        event!(@ $level, $policy, [
            "circuit_breaker", "bulkhead", "rate_limit", "adaptive_rate", "retry", "hedge", "timeout", "deadline",
            "fallback", "drain"
        ], ($($fields)+))
    };
    (@ $level:expr, $policy:expr, [$($known:literal),+], $fields:tt) => {
        match $policy {
            $($known => event!(@ $level, concat!("buttress::", $known), $fields),)+
            _ => event!(@ $level, "buttress", $fields),
        }
    };
    (@ $level:expr, $target:expr, ($($fields:tt)+)) => {
        tracing::event!(target: $target, $level, $($fields)+)
    };
}

#[cold]
pub(super) fn event(policy: &'static str, name: &str, key: Option<&str>, kind: &Kind) {
    match kind {
        Kind::StateChanged { from, to } => {
            let (before, after) = (from.as_str(), to.as_str());
            if matches!(to, State::Open | State::ForcedOpen) {
                event!(Level::WARN, policy, name, key, from = before, to = after, "state changed");
            } else {
                event!(Level::INFO, policy, name, key, from = before, to = after, "state changed");
            }
        }
        Kind::LimitChanged { from, to } => event!(Level::INFO, policy, name, from, to, "limit changed"),
        Kind::Rejected { reason } => refused(policy, name, reason.as_str(), "rejected"),
        Kind::TimedOut => refused(policy, name, "timeout", "timed out"),
        Kind::WouldHaveRejected { reason } => {
            event!(Level::DEBUG, policy, name, "error.type" = reason.as_str(), "would have rejected");
        }
        Kind::PermitExpired => event!(Level::DEBUG, policy, name, "permit expired"),
        Kind::FellBack { outcome } => event!(Level::DEBUG, policy, name, ?outcome, "fell back"),
        Kind::WouldHaveFallenBack { outcome } => {
            event!(Level::DEBUG, policy, name, ?outcome, "would have fallen back");
        }
        Kind::Attempt { number, .. } => {
            // The first one is no resend.
            if let Some(resends) = number.checked_sub(1).filter(|n| *n > 0) {
                Span::current().record("http.request.resend_count", resends);
            }
        }
    }
}

fn refused(policy: &'static str, name: &str, reason: &'static str, what: &'static str) {
    event!(Level::DEBUG, policy, name, "error.type" = reason, "{what}");
    Span::current().record("error.type", reason);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use tracing::{
        Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };
    use tracing_core::span::Current;

    use super::*;
    use crate::outcome::Outcome;

    /// One span, and what is recorded on it.
    #[derive(Default)]
    struct OneSpan {
        recorded: Arc<Mutex<Vec<String>>>,
        events: Arc<AtomicU64>,
        metadata: Mutex<Option<&'static Metadata<'static>>>,
    }

    struct Fields<'a>(&'a Mutex<Vec<String>>);

    impl Visit for Fields<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push(format!("{}={value:?}", field.name()));
        }
    }

    impl Subscriber for OneSpan {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            *self.metadata.lock().unwrap() = Some(span.metadata());
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, values: &Record<'_>) {
            values.record(&mut Fields(&self.recorded));
        }

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.events.fetch_add(1, Relaxed);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}

        fn current_span(&self) -> Current {
            let metadata = *self.metadata.lock().unwrap();
            metadata.map_or_else(Current::none, |metadata| Current::new(Id::from_u64(1), metadata))
        }
    }

    /// Attempts are numbered on the span of the call, from the second on, and are no events.
    #[test]
    fn attempts_are_a_field_of_the_span() {
        let subscriber = OneSpan::default();
        let (recorded, events) = (Arc::clone(&subscriber.recorded), Arc::clone(&subscriber.events));
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("call", http.request.resend_count = tracing::field::Empty);
            for number in 1..=3 {
                event("retry", "r", None, &Kind::Attempt { number, outcome: Outcome::Failure, delay: None });
            }
        });
        assert_eq!(*recorded.lock().unwrap(), ["http.request.resend_count=1", "http.request.resend_count=2"]);
        assert_eq!(events.load(Relaxed), 0);
    }
}
