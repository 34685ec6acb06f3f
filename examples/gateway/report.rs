//! What is printed: a row a phase, what was expected of it, or everything as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::load::Seen;

/// One phase as it was.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) seen: Seen,
    /// By policy and reason.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Calls of the backend that were made for them, each attempt one.
    pub(crate) attempts: u64,
    pub(crate) backend_hits: u64,
    pub(crate) breaker: &'static str,
    pub(crate) expectations: Vec<Expectation>,
}

/// A figure and its bound.
#[derive(Debug)]
pub(crate) struct Expectation {
    pub(crate) what: &'static str,
    pub(crate) figure: f64,
    pub(crate) bound: Bound,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    Is(f64),
    AtMost(f64),
    AtLeast(f64),
}

impl Expectation {
    pub(crate) fn is_met(&self) -> bool {
        match self.bound {
            Bound::Is(n) => self.figure == n,
            Bound::AtMost(n) => self.figure <= n,
            Bound::AtLeast(n) => self.figure >= n,
        }
    }

    fn text(&self) -> String {
        let (sign, bound) = match self.bound {
            Bound::Is(n) => ("=", n),
            Bound::AtMost(n) => ("<=", n),
            Bound::AtLeast(n) => (">=", n),
        };
        let mark = if self.is_met() { "ok  " } else { "FAIL" };
        format!("{mark} {}: {} (expected {sign} {})", self.what, short(self.figure), short(bound))
    }
}

/// Whole numbers as such.
fn short(n: f64) -> String {
    if n.fract() == 0.0 { format!("{n:.0}") } else { format!("{n:.2}") }
}

impl Phase {
    /// Calls that the breaker did not let through.
    pub(crate) fn refused_by_breaker(&self) -> u64 {
        self.refused.get("circuit_breaker/circuit_open").copied().unwrap_or_default()
    }

    pub(crate) fn print_header() {
        println!(
            "{:<10} {:>8} {:>6} {:>8} {:>7} {:>6} {:>8} {:>7} {:>7} {:>7}  {:<9} refused by",
            "phase",
            "requests",
            "ok",
            "degraded",
            "limited",
            "failed",
            "attempts",
            "backend",
            "p50 ms",
            "p99 ms",
            "breaker"
        );
    }

    pub(crate) fn print(&self) {
        let refused: Vec<_> = self.refused.iter().map(|(who, n)| format!("{who} {n}")).collect();
        println!(
            "{:<10} {:>8} {:>6} {:>8} {:>7} {:>6} {:>8} {:>7} {:>7.1} {:>7.1}  {:<9} {}",
            self.name,
            self.seen.requests(),
            self.seen.ok,
            self.seen.degraded,
            self.seen.limited,
            self.seen.failed,
            self.attempts,
            self.backend_hits,
            self.seen.percentile(0.5),
            self.seen.percentile(0.99),
            self.breaker,
            if refused.is_empty() { "-".to_owned() } else { refused.join(", ") },
        );
        for expectation in &self.expectations {
            println!("           {}", expectation.text());
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "phase": self.name,
            "requests": self.seen.requests(),
            "ok": self.seen.ok,
            "degraded": self.seen.degraded,
            "limited": self.seen.limited,
            "failed": self.seen.failed,
            "refused": self.refused,
            "passed_breaker": self.seen.requests() - self.seen.limited - self.refused_by_breaker(),
            "attempts": self.attempts,
            "backend_hits": self.backend_hits,
            "p50_ms": self.seen.percentile(0.5),
            "p99_ms": self.seen.percentile(0.99),
            "breaker": self.breaker,
        })
    }

    /// The expectations that were not met, as sentences.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        self.expectations.iter().filter(|e| !e.is_met()).map(|e| format!("{}: {}", self.name, e.text()))
    }
}
