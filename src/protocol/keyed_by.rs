//! The forms without HTTP, with a key for each request.

use std::fmt;

use crate::{
    key::KeyBytes,
    protocol::{Protocol, as_its_form, sealed::Sealed},
};

/// A form without HTTP, in which a function knows the key of a request. Made by
/// [`RateLimitBuilder::build_plain_per_key`](crate::RateLimitBuilder::build_plain_per_key) and its like.
#[derive(Clone, Copy)]
pub struct KeyedBy<P, F> {
    pub(crate) form: P,
    pub(crate) key: F,
}

impl<P: fmt::Debug, F> fmt::Debug for KeyedBy<P, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBy").field("form", &self.form).finish_non_exhaustive()
    }
}

impl<P, F> Sealed for KeyedBy<P, F> {}

#[diagnostic::do_not_recommend]
impl<P, F, Req, Res, Err> Protocol<Req, Res, Err> for KeyedBy<P, F>
where
    P: Protocol<Req, Res, Err>,
    F: Fn(&Req) -> Option<KeyBytes<'_>> + Clone,
{
    const KNOWS_KEYS: bool = true;

    as_its_form!(Req, Res, Err);

    #[inline(always)]
    fn key<'a>(&self, request: &'a Req) -> Option<KeyBytes<'a>> {
        (self.key)(request)
    }
}
