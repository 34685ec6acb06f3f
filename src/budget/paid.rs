//! One call, one payment: a hedge within a retry on the same budget finds that the retry has paid.

use std::{cell::Cell, sync::Arc};

use super::Budget;

thread_local! {
    /// The budget that was paid for the call that is being made right now.
    static PAID: Cell<usize> = const { Cell::new(0) };
}

impl Budget {
    /// Runs the call of an inner service for which this budget has been paid: a hedge in there that shares it pays nothing.
    #[inline(always)]
    pub(crate) fn paid<T>(&self, call: impl FnOnce() -> T) -> T {
        struct Restore(usize);
        impl Drop for Restore {
            fn drop(&mut self) {
                PAID.set(self.0);
            }
        }
        let _restore = Restore(PAID.replace(self.id()));
        call()
    }

    pub(crate) fn is_paid(&self) -> bool {
        PAID.get() == self.id()
    }

    /// Has somebody else a clone of it? If not, nobody ever will.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    #[inline(always)]
    fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}
