//! One call, one payment: a hedge within a retry on the same budget finds that the retry has paid.

use std::{cell::Cell, sync::Arc};

use super::Budget;

thread_local! {
    /// What was paid for the call that runs right now.
    static PAID: Cell<Option<Payment>> = const { Cell::new(None) };
}

/// That a call was paid for: into which budget, by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payment(usize);

impl Payment {
    /// Makes or polls the call: a hedge that begins in there and shares the budget pays nothing.
    pub(crate) fn during<T>(self, run: impl FnOnce() -> T) -> T {
        struct Restore(Option<Payment>);
        impl Drop for Restore {
            fn drop(&mut self) {
                PAID.set(self.0);
            }
        }
        let _restore = Restore(PAID.replace(Some(self)));
        run()
    }
}

impl Budget {
    pub(crate) fn payment(&self) -> Payment {
        Payment(Arc::as_ptr(&self.0).addr())
    }

    pub(crate) fn is_paid(&self) -> bool {
        PAID.get() == Some(self.payment())
    }

    /// Has somebody else a clone of it? If not, nobody ever will.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}
