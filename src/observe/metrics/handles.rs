//! The handles of one layer.

use std::sync::OnceLock;

use metrics::{Histogram, Recorder, Unit};

use super::{Who, layers::Trace, series::Counters};
use crate::{
    circuit_breaker::State,
    observe::{Figure, StoppedBy, Watched},
    outcome::Outcome,
    rejection::Reason,
};

const OUTCOMES: [&str; 5] = ["success", "failure", "throttled", "cancelled", "ignored"];
const STATES: [State; 5] = [State::Closed, State::Open, State::HalfOpen, State::ForcedOpen, State::ForcedClosed];
const REASONS: [Reason; Reason::ALL.len()] = Reason::ALL;

/// An event finds its counter by the number of what it tells, so each stands where that number is.
const _: () = {
    let mut n = 0;
    while n < REASONS.len() {
        assert!(REASONS[n] as usize == n);
        n += 1;
    }
    n = 0;
    while n < STATES.len() {
        assert!(STATES[n] as usize == n);
        n += 1;
    }
    assert!(Outcome::Success as usize == 0 && Outcome::Failure as usize == 1 && Outcome::Throttled as usize == 2);
    assert!(Outcome::Cancelled as usize == 3 && Outcome::Ignored as usize == 4);
    assert!(StoppedBy::Budget as usize == 0 && StoppedBy::Deadline as usize == 1);
};

const CALLS: &str = "buttress_calls_total";
const ADMITTED: &str = "buttress_admitted_total";
const REJECTED: &str = "buttress_rejected_total";
const WOULD_HAVE_REJECTED: &str = "buttress_would_have_rejected_total";
const ATTEMPTS: &str = "buttress_attempts_total";
const FURTHER_ATTEMPTS: &str = "buttress_further_attempts_total";
const ATTEMPTS_STOPPED: &str = "buttress_attempts_stopped_total";
const FALLBACKS: &str = "buttress_fallbacks_total";
const PERMITS_EXPIRED: &str = "buttress_permits_expired_total";
const STATE_CHANGES: &str = "buttress_state_changes_total";
const OBSERVER_PANICS: &str = "buttress_observer_panics_total";
const STATE: &str = "buttress_circuit_breaker_state";
const LIMIT: &str = "buttress_limit";
const QUEUE_WAIT: &str = "buttress_queue_wait_seconds";
const OLDEST_WAIT: &str = "buttress_oldest_wait_seconds";

/// Figures of a policy that are gauges when they are published: there, here, and in words.
const FLEETING: [(&str, &str, &str); 12] = [
    ("in_flight", "buttress_in_flight", "Calls in flight."),
    ("waiting", "buttress_waiting", "Calls that wait for their turn."),
    ("oldest_wait", OLDEST_WAIT, "For how long the one has waited who has waited longest."),
    ("failure_rate", "buttress_failure_rate", "The share of failed calls in the window."),
    ("slow_call_rate", "buttress_slow_call_rate", "The share of slow calls in the window."),
    ("probes_out", "buttress_probes_out", "Probes that are running."),
    ("rate", "buttress_rate", "Calls a second that are allowed."),
    ("held_for", "buttress_held_seconds", "For how long nothing is sent, because the backend asked for that."),
    ("budget_left", "buttress_budget_left", "What is left of the budget."),
    ("keys", "buttress_keys", "Keys with a state of their own."),
    ("open_keys", "buttress_open_keys", "Keys whose circuit breaker is open."),
    ("shadow", "buttress_shadow", "1 in shadow."),
];

pub(super) struct Handles {
    pub(super) calls: Counters<{ OUTCOMES.len() }>,
    pub(super) admitted: Counters<1>,
    pub(super) rejected: Counters<{ REASONS.len() }>,
    pub(super) would_have_rejected: Counters<{ REASONS.len() }>,
    pub(super) attempts: Counters<{ OUTCOMES.len() }>,
    pub(super) further_attempts: Counters<{ OUTCOMES.len() }>,
    pub(super) attempts_stopped: Counters<{ StoppedBy::NAMES.len() }>,
    pub(super) fallbacks: Counters<{ OUTCOMES.len() }>,
    pub(super) permits_expired: Counters<1>,
    pub(super) state_changes: Counters<{ STATES.len() }>,
    pub(super) observer_panics: Counters<1>,
    queue_wait: OnceLock<Histogram>,
}

impl Handles {
    /// The reasons that a policy can give begin at zero; what it may never have is not there before it is needed.
    pub(super) fn new(recorder: &dyn Recorder, who: &Who) -> Self {
        describe(recorder);
        let by_reason = |name| Counters::new(name, Some("reason"), REASONS.map(Reason::as_str));
        let by_outcome = |name| Counters::new(name, Some("outcome"), OUTCOMES);
        let handles = Handles {
            calls: by_outcome(CALLS),
            admitted: Counters::new(ADMITTED, None, [""]),
            rejected: by_reason(REJECTED),
            would_have_rejected: by_reason(WOULD_HAVE_REJECTED),
            attempts: by_outcome(ATTEMPTS),
            further_attempts: by_outcome(FURTHER_ATTEMPTS),
            attempts_stopped: Counters::new(ATTEMPTS_STOPPED, Some("by"), StoppedBy::NAMES),
            fallbacks: by_outcome(FALLBACKS),
            permits_expired: Counters::new(PERMITS_EXPIRED, None, [""]),
            state_changes: Counters::new(STATE_CHANGES, Some("state"), STATES.map(State::as_str)),
            observer_panics: Counters::new(OBSERVER_PANICS, None, [""]),
            queue_wait: OnceLock::new(),
        };
        who.reasons.iter().for_each(|reason| handles.rejected.begin(recorder, who, *reason as usize));
        handles
    }

    pub(super) fn queue_wait(&self, who: &Who) -> &Histogram {
        match self.queue_wait.get() {
            Some(histogram) => histogram,
            None => {
                let histogram = who.histogram(QUEUE_WAIT);
                self.queue_wait.get_or_init(|| histogram)
            }
        }
    }
}

/// The gauges that are kept right at every moment.
pub(super) fn show_lasting(who: &Who, layer: &dyn Watched) {
    show_state(who, layer);
    if let Some(limit) = limit(layer) {
        show_limit(who, limit, Some(layer));
    }
}

/// Exactly one is 1. Threads that have something to show at once each go on until what they wrote is what is: so
/// whatever is written last, is right.
pub(super) fn show_state(who: &Who, layer: &dyn Watched) {
    while let Some(state) = layer.state() {
        for each in STATES {
            let value = if each == state { 1.0 } else { 0.0 };
            who.gauge(STATE, Some(("state", each.as_str()))).set(value);
        }
        if layer.state() == Some(state) {
            return;
        }
    }
}

/// As [`show_state`]. Of a layer that is gone there is nothing to be compared with.
pub(super) fn show_limit(who: &Who, changed_to: usize, layer: Option<&dyn Watched>) {
    let mut shown = layer.and_then(limit).unwrap_or(changed_to);
    loop {
        who.gauge(LIMIT, None).set(shown as f64);
        match layer.and_then(limit) {
            Some(now) if now != shown => shown = now,
            _ => return,
        }
    }
}

/// The gauges that move with every call.
pub(super) fn show_fleeting(who: &Who, layer: &dyn Watched) {
    let mut seen = Vec::new();
    layer.figures(&mut |name, figure| seen.push((name, figure)));
    for (name, figure) in seen {
        if let Some((_, metric, _)) = FLEETING.iter().find(|(known, ..)| *known == name)
            && let Some(value) = value(figure)
        {
            who.gauge(metric, None).set(value);
        }
    }
}

/// Of a layer that is gone.
pub(super) fn show_gone(trace: &Trace) {
    let who = &trace.who;
    if trace.has_state {
        STATES.iter().for_each(|state| who.gauge(STATE, Some(("state", state.as_str()))).set(0.0));
    }
    let gauges = [("limit", LIMIT)].into_iter().chain(FLEETING.map(|(figure, metric, _)| (figure, metric)));
    for (_, metric) in gauges.filter(|(name, _)| trace.figures.contains(name)) {
        who.gauge(metric, None).set(0.0);
    }
}

fn limit(layer: &dyn Watched) -> Option<usize> {
    let mut limit = None;
    layer.figures(&mut |name, figure| {
        if let ("limit", Figure::Count(n)) = (name, figure) {
            limit = usize::try_from(n).ok();
        }
    });
    limit
}

fn value(figure: Figure) -> Option<f64> {
    match figure {
        Figure::Count(n) => Some(n as f64),
        Figure::Number(n) => Some(n),
        Figure::Time(d) => Some(d.as_secs_f64()),
        Figure::Flag(on) => Some(f64::from(u8::from(on))),
        Figure::Unknown => Some(f64::NAN),
        Figure::Word(_) => None,
    }
}

/// For exporters that show what a metric is.
fn describe(recorder: &dyn Recorder) {
    let counters = [
        (CALLS, "Calls of circuit breakers that have ended, by what they meant."),
        (ADMITTED, "Calls that were let in, by bulkheads and rate limits."),
        (REJECTED, "Calls refused or cut short, by reason."),
        (WOULD_HAVE_REJECTED, "Calls that went on only because of shadow, by reason."),
        (ATTEMPTS, "Attempts that ended, by what they meant."),
        (FURTHER_ATTEMPTS, "Attempts after the first of their call that ended, by what they meant."),
        (ATTEMPTS_STOPPED, "Attempts that were not made, by what forbade them."),
        (FALLBACKS, "Answers given in the place of the backend's, by what its own meant."),
        (PERMITS_EXPIRED, "Permits that stopped counting because their reader stalled."),
        (STATE_CHANGES, "Changes of state, by the new one."),
        (OBSERVER_PANICS, "Panics of observers that were contained."),
    ];
    for (name, text) in counters {
        recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
    }
    recorder.describe_gauge(STATE.into(), None, "1 for the state a circuit breaker is in.".into());
    recorder.describe_gauge(LIMIT.into(), None, "The limit on calls in flight.".into());
    for (_, name, text) in FLEETING {
        let unit = (name == OLDEST_WAIT).then_some(Unit::Seconds);
        recorder.describe_gauge(name.into(), unit, text.into());
    }
    let wait = "How long calls waited for a bulkhead that had to.";
    recorder.describe_histogram(QUEUE_WAIT.into(), Some(Unit::Seconds), wait.into());
}
