//! Probes for tests of layers, ours and yours (feature `testing`).
//!
//! - [`Probe`] is an inner service that a test steers: ready or not, answering, hanging, failing or panicking. It keeps
//!   account of how it is used, and panics when it is called without having been ready.
//! - [`laws`] are checks that hold for every well-behaved tower layer; `tests/contract.rs` runs them over all of ours.
//! - [`OutcomesLayer`] writes down what each call meant, and so shows what a classification makes of real traffic.
//!
//! ```
//! use buttress::{Outcome, testing::{OutcomesLayer, Probe}};
//! use tower::{Layer, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::BoxError> {
//! let probe = Probe::new();
//! let outcomes = OutcomesLayer::new();
//! let service = outcomes.clone().plain().layer(probe.clone());
//!
//! service.clone().oneshot(()).await?;
//! probe.fails();
//! let _ = service.clone().oneshot(()).await;
//! assert_eq!(outcomes.handle().take(), [Outcome::Success, Outcome::Failure]);
//! # Ok(()) }
//! ```

pub mod laws;
mod outcomes;
mod probe;

pub use self::{
    outcomes::{Outcomes, OutcomesFuture, OutcomesHandle, OutcomesLayer},
    probe::{Probe, ProbeBody, ProbeError, ProbeFuture},
};
