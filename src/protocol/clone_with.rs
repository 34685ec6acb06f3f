//! Requests that are not `Clone`: a function makes the copies.

use std::{fmt, task::Poll};

use crate::{
    protocol::{Again, Hold, Judged, Protocol, Watch, as_its_form, sealed::Sealed},
    rejection::Rejection,
};

/// A form without HTTP, in which a function copies the requests. Made by
/// [`RetryLayer::clone_with`](crate::RetryLayer::clone_with).
#[derive(Clone, Copy)]
pub struct CloneWith<P, F> {
    pub(crate) form: P,
    pub(crate) copy: F,
}

impl<P: fmt::Debug, F> fmt::Debug for CloneWith<P, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloneWith").field("form", &self.form).finish_non_exhaustive()
    }
}

impl<P, F> Sealed for CloneWith<P, F> {}

#[diagnostic::do_not_recommend]
impl<P, F, Req, Res, Err> Protocol<Req, Res, Err> for CloneWith<P, F>
where
    P: Protocol<Req, Res, Err>,
    F: Clone,
{
    as_its_form!(Req, Res, Err);
}

#[diagnostic::do_not_recommend]
impl<P, F, Req, Res, Err> Hold<Req, Res, Err> for CloneWith<P, F>
where
    P: Hold<Req, Res, Err>,
    F: Clone,
{
    type Held = P::Held;

    #[inline(always)]
    fn hold(&self, context: &P::Context, result: Result<Res, Err>) -> Judged<P::Held, P::Error> {
        self.form.hold(context, result)
    }

    fn pass<W: Watch>(&self, context: &P::Context, held: P::Held, watch: Option<W>) -> P::Response<W> {
        self.form.pass(context, held, watch)
    }

    #[inline(always)]
    fn pass_at_once<W: Watch>(
        &self,
        context: &P::Context,
        held: P::Held,
        watch: Option<W>,
    ) -> Poll<Result<P::Response<W>, P::Error>> {
        self.form.pass_at_once(context, held, watch)
    }

    fn rejection<'a>(result: Result<&'a P::Held, &'a P::Error>) -> Option<&'a Rejection> {
        P::rejection(result)
    }
}

#[diagnostic::do_not_recommend]
impl<P, F, Req, Res, Err> Again<Req, Res, Err> for CloneWith<P, F>
where
    P: Hold<Req, Res, Err>,
    F: Fn(&Req) -> Option<Req> + Clone,
{
    type Original = Req;

    fn split(&self, request: Req, _cap: usize, original: &mut Option<Req>) -> Req {
        match (self.copy)(&request) {
            // The copies are sent, and what they are made of last.
            Some(copy) => {
                *original = Some(request);
                copy
            }
            None => request,
        }
    }

    fn again(&self, original: Req, last: bool) -> (Option<Req>, Req) {
        match if last { None } else { (self.copy)(&original) } {
            Some(copy) => (Some(original), copy),
            None => (None, original),
        }
    }
}
