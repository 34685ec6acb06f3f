//! What a rejection says.

use std::time::Duration;

use crate::{rejection::Reason, time::Span};

/// The reason and a time. The time of a refusal is when it is worth coming back. That of a call that was cut short is
/// how long it had, for policies further out, which may not have looked at the clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    reason: Wide,
    time: Span,
}

impl Told {
    #[inline]
    pub(crate) fn new(reason: Reason, time: Span) -> Self {
        Told { reason: Wide::from(reason), time }
    }

    /// The same reason with this time.
    #[inline]
    pub(super) fn at(self, time: Span) -> Self {
        Told { time, ..self }
    }

    pub(crate) fn reason(self) -> Reason {
        Reason::from(self.reason)
    }

    pub(super) fn time(self) -> Option<Duration> {
        self.time.duration()
    }
}

/// Makes [`Wide`] out of the reasons.
macro_rules! wide {
    ($($reason:ident)*) => {
        /// A reason that takes a whole word. Every result of a plain service has room for a rejection, and says in this
        /// place that it is none: so it is told apart and moved by words, and not by the bytes of one.
        #[derive(Debug, Clone, Copy)]
        #[repr(u64)]
        enum Wide {
            $($reason,)*
        }

        impl From<Reason> for Wide {
            #[inline]
            fn from(reason: Reason) -> Self {
                match reason {
                    $(Reason::$reason => Wide::$reason,)*
                }
            }
        }

        impl From<Wide> for Reason {
            fn from(wide: Wide) -> Self {
                match wide {
                    $(Wide::$reason => Reason::$reason,)*
                }
            }
        }

        #[cfg(test)]
        const ALL: &[Reason] = &[$(Reason::$reason),*];
    };
}

wide! {
    CircuitOpen ForcedOpen BulkheadFull QueueTimeout ShedByPriority RateLimited CostAboveBurst KeyMissing Overloaded
    Throttled Timeout DeadlineExceeded Draining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_and_a_time_come_back_out_of_it() {
        for reason in ALL.iter().copied() {
            for time in [None, Some(Duration::ZERO), Some(Duration::from_nanos(1)), Some(crate::time::LONGEST)] {
                let told = Told::new(reason, time.into());
                assert_eq!((told.reason(), told.time()), (reason, time));
            }
        }
    }
}
