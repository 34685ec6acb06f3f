//! Another service as a fallback.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    BoxError,
    deadline::{self, Deadline},
    fallback::substitute::{Bad, Given, Mark, Substitute},
    outcome::{End, Outcome},
    polled::POLLED,
    protocol::{
        HeldResponse, Hold, Http, HttpContext, Judged, Protocol, ResponseBody,
        replay::{Original, Replay},
    },
    time::Sleep,
};

/// How much of a request's body is kept for the backup, in bytes. Each chunk counts 64 more.
const REPLAY_CAP: usize = 64 * 1024;

/// A backup service. Made by [`FallbackLayer::to_service`](crate::FallbackLayer::to_service).
///
/// It is cloned for each call that needs it, and each clone is polled ready before it is called.
#[derive(Debug, Clone)]
pub struct Backup<B>(B);

impl<B> Backup<B> {
    pub(crate) fn new(service: B) -> Self {
        Backup(service)
    }
}

impl<S, B, RB, E> Substitute<Request<B>, Response<RB>, E, Http> for Backup<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    B: Replay,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
    E: 'static,
{
    type Kept = Option<Original<B>>;
    type Watch = ();
    type Later = BackupCall<S, B, RB, E>;

    fn keep<T>(
        &self,
        _: &HttpContext,
        request: Request<B>,
        call: impl FnOnce(Request<B>) -> T,
    ) -> (Option<Original<B>>, T) {
        let mut original = Original::new(request, REPLAY_CAP);
        let request = original.attempt();
        (original.can_replay(false).then_some(original), call(request))
    }

    #[cold]
    fn answer(
        &self,
        http: &Http,
        original: &mut Option<Original<B>>,
        context: &HttpContext,
        bad: Bad<HeldResponse<RB>, E>,
    ) -> Gives<S, B, RB, E> {
        // What went past the cap, or failed while it was read, can't be sent again.
        let Some(original) = original.take().filter(|original| original.can_replay(false)) else {
            return Given::Nothing(bad.result);
        };
        let request = original.last();
        let deadline = deadline::earliest(
            <Http as Protocol<Request<B>, Response<RB>, E>>::deadline(&request),
            Deadline::current(),
        );
        if deadline::has_passed(deadline) {
            return Given::Nothing(bad.result);
        }
        let stage = Stage::Readying { backup: self.0.clone(), request: Some(request), deadline, timer: None };
        let rejection = bad.result.as_ref().ok().and_then(HeldResponse::rejection);
        let first = Some((bad.mark(rejection), bad.result));
        Given::Later(BackupCall { stage, http: http.clone(), context: context.clone(), first })
    }

    fn poll_later(later: Pin<&mut BackupCall<S, B, RB, E>>, cx: &mut Context<'_>) -> Poll<Gives<S, B, RB, E>> {
        let later = later.project();
        let answer = ready!(later.stage.poll(later.http, later.context, cx));
        let (mark, first) = later.first.take().expect(POLLED);
        Poll::Ready(match answer {
            Some(held) => {
                let answer = Hold::<Request<B>, Response<RB>, E>::pass(later.http, later.context, held, None::<()>);
                let (answer, outcome) = mark.put(answer);
                Given::Now(answer, outcome)
            }
            None => Given::Nothing(first),
        })
    }
}

type Gives<S, B, RB, E> = Given<Response<ResponseBody<RB, ()>>, BackupCall<S, B, RB, E>, HeldResponse<RB>, E>;

pin_project! {
    /// A call of the backup.
    pub struct BackupCall<S, B, RB, E>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        stage: Stage<S, S::Future, Request<B>>,
        http: Http,
        context: HttpContext,
        // What the backend gave, should the backup fail too, and the mark of the answer should it not.
        first: Option<(Mark, Result<HeldResponse<RB>, E>)>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<S, F, Q> {
        // By the deadline: a backup that is not ready by then has failed, and after it none is called.
        Readying { backup: S, request: Option<Q>, deadline: Option<Deadline>, #[pin] timer: Option<Sleep> },
        Calling { #[pin] call: F },
    }
}

impl<S, B, RB> Stage<S, S::Future, Request<B>>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    /// The backup's answer; `None` if it has failed.
    fn poll(
        mut self: Pin<&mut Self>,
        http: &Http,
        context: &HttpContext,
        cx: &mut Context<'_>,
    ) -> Poll<Option<HeldResponse<RB>>> {
        loop {
            let next = match self.as_mut().project() {
                StageProj::Readying { backup, request, deadline, timer } => match backup.poll_ready(cx) {
                    Poll::Ready(Ok(())) if deadline::has_passed(*deadline) => return Poll::Ready(None),
                    Poll::Ready(Ok(())) => match request.take() {
                        Some(mut request) => {
                            // The backend has had its part of the time.
                            deadline::shorten::<_, _, Response<RB>, ()>(http, &mut request);
                            Stage::Calling { call: backup.call(request) }
                        }
                        None => return Poll::Ready(None),
                    },
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                    Poll::Pending => {
                        ready!(deadline::poll_passed(timer, *deadline, cx));
                        return Poll::Ready(None);
                    }
                },
                StageProj::Calling { call } => {
                    // What the backup's error is does not matter.
                    let result = ready!(call.poll(cx)).map_err(drop);
                    return Poll::Ready(match Hold::<Request<B>, Response<RB>, ()>::hold(http, context, result) {
                        Judged::Good(held) | Judged::Bad(End::Outcome(Outcome::Ignored), Ok(held)) => Some(held),
                        // A fallback of the backup's own has answered, and that is an answer.
                        Judged::Bad(_, Ok(held)) if held.is_degraded() => Some(held),
                        Judged::Bad(..) => None,
                        Judged::Unclear(held) => looked_into::<B, RB>(http, context, held, cx),
                    });
                }
            };
            self.set(next);
        }
    }
}

/// On gRPC a head that looks well is not all. Nothing is waited for: what is not there yet is not known.
fn looked_into<B, RB>(
    http: &Http,
    context: &HttpContext,
    mut held: HeldResponse<RB>,
    cx: &mut Context<'_>,
) -> Option<HeldResponse<RB>>
where
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    match Hold::<Request<B>, Response<RB>, ()>::poll_peek(http, context, &mut held, cx) {
        Poll::Ready(Some(End::Outcome(Outcome::Success | Outcome::Ignored)) | None) | Poll::Pending => Some(held),
        Poll::Ready(Some(_)) => None,
    }
}

impl<S: Service<Request<B>>, B, RB, E> fmt::Debug for BackupCall<S, B, RB, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupCall").finish_non_exhaustive()
    }
}
