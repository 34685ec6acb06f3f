//! Functions of the error, for services that are not HTTP.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    fallback::substitute::{Bad, Given, Substitute},
    outcome::Classify,
    protocol::{BoxError, Boxed, Flat, Plain},
    rejection::{Error, Rejection},
};

/// In each form the function is given the error that the caller would get.
macro_rules! answers_errors {
    ($form:ident, $error:ty, [$($bound:tt)*]) => {
        impl<F, C, Req, Res, E> Substitute<Req, Res, E, $form<C>> for F
        where
            F: Fn(&$error) -> Option<Res> + Clone,
            C: Classify<Res, E>,
            E: $($bound)*,
        {
            type Kept = ();
            type Watch = ();
            type Later = Infallible;

            #[inline(always)]
            fn keep<T>(&self, (): &(), request: Req, call: impl FnOnce(Req) -> T) -> ((), T) {
                ((), call(request))
            }

            fn answer(
                &self,
                _: &$form<C>,
                (): &mut (),
                (): &(),
                bad: Bad<Res, $error>,
            ) -> Given<Res, Infallible, Res, $error> {
                // What was judged a failure and is no error has no error to be asked about.
                match bad.result.as_ref().err().and_then(self) {
                    Some(answer) => Given::Now(answer, bad.end.outcome()),
                    None => Given::Nothing(bad.result),
                }
            }

            fn poll_later(
                later: Pin<&mut Infallible>,
                _: &mut Context<'_>,
            ) -> Poll<Given<Res, Infallible, Res, $error>> {
                match *later {}
            }
        }
    };
}

answers_errors!(Plain, Error<E>, [std::error::Error + 'static]);
answers_errors!(Flat, E, [From<Rejection> + std::error::Error + 'static]);
answers_errors!(Boxed, BoxError, [Into<BoxError>]);
