//! The forms for services that are not HTTP: a refusal is an error, and the response is over when it is there.

use std::{error::Error as StdError, fmt, task::Poll};

use crate::{
    outcome::{Classify, End, ErrFails},
    protocol::{BoxError, Protocol, Watch, end_of_error, sealed::Sealed},
    rejection::{Error, Rejection},
};

/// For services whose error is a `std::error::Error`; it becomes [`Error<E>`].
#[derive(Clone, Copy, Default)]
pub struct Plain<C = ErrFails>(pub(crate) C);

/// For services whose error is `From<Rejection>`; it stays what it was, so stacked policies do not nest.
#[derive(Clone, Copy, Default)]
pub struct Flat<C = ErrFails>(pub(crate) C);

/// For everything else; the error becomes a [`BoxError`].
#[derive(Clone, Copy, Default)]
pub struct Boxed<C = ErrFails>(pub(crate) C);

impl<C> Sealed for Plain<C> {}
impl<C> Sealed for Flat<C> {}
impl<C> Sealed for Boxed<C> {}

// Whatever judges in them: a closure has none.
macro_rules! debug {
    ($($form:ident),*) => {
        $(impl<C> fmt::Debug for $form<C> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($form))
            }
        })*
    };
}

debug!(Plain, Flat, Boxed);

// Without this the compiler names the bound that is missing, and not what to write.
#[diagnostic::do_not_recommend]
impl<C, Req, Res, E> Protocol<Req, Res, E> for Plain<C>
where
    C: Classify<Res, E>,
    E: StdError + 'static,
{
    type Context = ();
    type Response<W: Watch> = Res;
    type Error = Error<E>;

    #[inline]
    fn context(&self, _request: &Req) {}

    #[cold]
    fn reject<W: Watch>(&self, (): &(), rejection: Rejection) -> Result<Res, Error<E>> {
        Err(Error::Rejected(rejection))
    }

    #[inline(always)]
    fn finish<W: Watch>(&self, (): &(), result: Result<Res, E>, watch: &mut Option<W>) -> Poll<Result<Res, Error<E>>> {
        Poll::Ready(match result {
            Ok(response) => Ok(settle_good(&self.0, response, watch.take())),
            Err(error) => Err(Error::Inner(settle_error(&self.0, error, watch.take(), |e| end_of_error(e)))),
        })
    }

    fn error(error: E) -> Error<E> {
        Error::Inner(error)
    }
}

// Without this the compiler names the bound that is missing, and not what to write.
#[diagnostic::do_not_recommend]
impl<C, Req, Res, E> Protocol<Req, Res, E> for Flat<C>
where
    C: Classify<Res, E>,
    E: From<Rejection> + StdError + 'static,
{
    type Context = ();
    type Response<W: Watch> = Res;
    type Error = E;

    #[inline]
    fn context(&self, _request: &Req) {}

    #[cold]
    fn reject<W: Watch>(&self, (): &(), rejection: Rejection) -> Result<Res, E> {
        Err(rejection.into())
    }

    #[inline(always)]
    fn finish<W: Watch>(&self, (): &(), result: Result<Res, E>, watch: &mut Option<W>) -> Poll<Result<Res, E>> {
        Poll::Ready(match result {
            Ok(response) => Ok(settle_good(&self.0, response, watch.take())),
            Err(error) => Err(settle_error(&self.0, error, watch.take(), |e| end_of_error(e))),
        })
    }

    fn error(error: E) -> E {
        error
    }
}

// Without this the compiler names the bound that is missing, and not what to write.
#[diagnostic::do_not_recommend]
impl<C, Req, Res, E> Protocol<Req, Res, E> for Boxed<C>
where
    C: Classify<Res, E>,
    E: Into<BoxError>,
{
    type Context = ();
    type Response<W: Watch> = Res;
    type Error = BoxError;

    #[inline]
    fn context(&self, _request: &Req) {}

    #[cold]
    fn reject<W: Watch>(&self, (): &(), rejection: Rejection) -> Result<Res, BoxError> {
        Err(rejection.into())
    }

    #[inline(always)]
    fn finish<W: Watch>(&self, (): &(), result: Result<Res, E>, watch: &mut Option<W>) -> Poll<Result<Res, BoxError>> {
        // `E` need not be an error before it is boxed, so it is judged first and searched for a rejection then.
        let judged = watch.is_some().then(|| self.0.classify(result.as_ref()));
        let result = result.map_err(Into::into);
        if let (Some(watch), Some(judged)) = (watch.as_mut(), judged) {
            let rejected = result.as_ref().err().and_then(|e| end_of_error(&**e));
            watch.settle(rejected.unwrap_or(End::Outcome(judged)));
        }
        *watch = None;
        Poll::Ready(result)
    }

    fn error(error: E) -> BoxError {
        error.into()
    }
}

/// What a form over another form `P`, its field `form`, has of that.
macro_rules! as_its_form {
    ($req:ty, $res:ty, $err:ty) => {
        const IS_HTTP: bool = P::IS_HTTP;

        type Context = P::Context;
        type Response<W: crate::protocol::Watch> = P::Response<W>;
        type Error = P::Error;

        #[inline(always)]
        fn context(&self, request: &$req) -> P::Context {
            self.form.context(request)
        }

        fn reject<W: crate::protocol::Watch>(
            &self,
            context: &P::Context,
            rejection: crate::Rejection,
        ) -> Result<P::Response<W>, P::Error> {
            self.form.reject(context, rejection)
        }

        #[inline(always)]
        fn finish<W: crate::protocol::Watch>(
            &self,
            context: &P::Context,
            result: Result<$res, $err>,
            watch: &mut Option<W>,
        ) -> std::task::Poll<Result<P::Response<W>, P::Error>> {
            self.form.finish(context, result, watch)
        }

        fn error(error: $err) -> P::Error {
            P::error(error)
        }
    };
}

pub(crate) use as_its_form;

// Two, so that nothing looks again at what was known to be good; and both take the watch: what is passed by reference
// has to be in memory, here and wherever it comes from.
#[inline(always)]
fn settle_good<C, Res, E, W>(classify: &C, response: Res, watch: Option<W>) -> Res
where
    C: Classify<Res, E>,
    W: Watch,
{
    if let Some(watch) = watch {
        watch.finish(End::Outcome(classify.classify(Ok(&response))));
    }
    response
}

#[inline(never)]
fn settle_error<C, Res, E, W>(classify: &C, error: E, watch: Option<W>, ours: impl FnOnce(&E) -> Option<End>) -> E
where
    C: Classify<Res, E>,
    W: Watch,
{
    if let Some(watch) = watch {
        watch.finish(ours(&error).unwrap_or_else(|| End::Outcome(classify.classify(Err(&error)))));
    }
    error
}
