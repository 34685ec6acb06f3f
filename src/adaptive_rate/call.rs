//! One call, and what its end says to the rule.

use std::time::Duration;

use crate::{
    adaptive_rate::controller::Controller,
    outcome::{End, Outcome},
    permit::Keeper,
    stripe::Shared,
};

/// One call that was made.
#[derive(Debug)]
pub struct Call {
    controller: Shared<Controller>,
    hint: Option<Duration>,
    /// How often the rate had been lowered when it was made.
    cuts: u32,
}

impl Call {
    pub(crate) fn new(controller: Shared<Controller>) -> Self {
        let cuts = controller.sends();
        Call { controller, hint: None, cuts }
    }

    #[cfg(feature = "http")]
    pub(crate) fn controller(&self) -> &Shared<Controller> {
        &self.controller
    }
}

impl Keeper for Call {
    #[inline]
    fn settle(&mut self, end: End) {
        match end {
            End::Outcome(Outcome::Success) => self.controller.answered(),
            End::Outcome(Outcome::Throttled) => {
                self.controller.throttled(self.cuts);
                if let Some(hint) = self.hint {
                    self.controller.hold(hint);
                }
            }
            End::Refused | End::DeadlinePassed { had: Some(Duration::ZERO) } => self.controller.was_held_back(),
            // Nothing was learnt of how much the backend takes. A failure that says when to come back speaks for what
            // has failed, and that may be one instance of many that drains, or one route.
            _ => {}
        }
    }

    fn wants_hint(&self) -> bool {
        true
    }

    /// The backend has taken it on. Its body may have no end, or no reader.
    fn good_head(&mut self) -> bool {
        self.controller.answered();
        false
    }

    fn hint(&mut self, after: Duration) {
        self.hint = Some(after);
    }
}
