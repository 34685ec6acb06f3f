//! The last good answer as a fallback.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use crate::{
    BoxError,
    fallback::substitute::{Bad, Given, Substitute},
    outcome::End,
    protocol::{HeldResponse, Http, HttpContext, ResponseBody, Watch, sealed::Sealed},
    time,
};

mod ask;
mod draft;
mod packed;
mod store;

pub use self::ask::Ask;
use self::{draft::Draft, store::Store};

/// What a backend answered when it was well, kept to answer with when it is not.
///
/// - Kept are responses to GET and HEAD with a 2xx status, read to their end, by method, URI, host and the request
///   headers that the response's `Vary` names. Not kept: `Cache-Control: no-store`, `no-cache` or `private`, `Vary: *`,
///   `Set-Cookie`, parts (206), and what answers a request with `Cache-Control: no-store`. A request with `Range`, with
///   two `Host`s, or with one that is no text, is neither kept nor answered. Of two responses the younger one is kept,
///   whichever is read to its end first.
/// - Headers are kept but for those of one connection (`Connection` and what it names, `Transfer-Encoding` and so on)
///   and those of one moment: `Retry-After`, `RateLimit`, `RateLimit-Policy` and `X-RateLimit-*`. The answer to a HEAD
///   request says of its length what it said then.
/// - One user's answer is not given to another. Requests with `Authorization` are neither kept nor answered, unless
///   [`across_authorization`](LastGood::across_authorization) says that all users see the same. Responses to requests
///   with `Cookie` are kept only where they say `Cache-Control: public`.
/// - An answer is at most `max_age` old, counted from its response, and says how old it is (`Age`). Freshness is not
///   asked for: stale is the point. That is what can be seen from here: where users are known by another header
///   (`x-api-key`) or by their certificate, let the responses say `Vary` or `private`.
/// - Memory is bounded by `max_bytes`, by what is really taken: bodies, headers and keys, 24 bytes for each header and
///   320 for each entry (two where the answer says `Vary`). The table of the entries does not shrink: where many small
///   answers make way for large ones it is up to a third more. What has not been asked for for long leaves first; one
///   answer may take 97 % of it. Responses that are being read take as much again at most, together: what comes while
///   that is used up is not kept. (The eviction is that of the `quick_cache` crate, S3-FIFO.)
///
/// Clones, and all layers made with it, share what is kept. Give each backend one of its own if their URIs may be the
/// same, as those are that routers nested by axum see: without the prefix. gRPC calls are POSTs: nothing is kept of
/// them.
///
/// ```
/// use buttress::{FallbackLayer, LastGood};
/// use std::time::Duration;
///
/// // 32 MiB, no older than ten minutes.
/// let layer = FallbackLayer::last_good(LastGood::new(32 << 20, Duration::from_secs(600)));
/// # drop(layer);
/// ```
#[derive(Clone)]
pub struct LastGood {
    store: Arc<Store>,
    across_authorization: bool,
}

impl LastGood {
    /// Keeps up to `max_bytes` of answers up to `max_age` old. With zero of either nothing is kept.
    pub fn new(max_bytes: usize, max_age: Duration) -> Self {
        LastGood { store: Arc::new(Store::new(max_bytes, max_age)), across_authorization: false }
    }

    /// May requests with `Authorization` be kept and answered like others? Default: false.
    ///
    /// Only where every user sees the same: what one user's request brought is given to all.
    pub fn across_authorization(mut self, on: bool) -> Self {
        self.across_authorization = on;
        self
    }

    /// How many answers are kept, and how many bytes they take.
    pub fn kept(&self) -> (usize, u64) {
        self.store.kept()
    }
}

impl<B, RB, E> Substitute<Request<B>, Response<RB>, E, Http> for LastGood
where
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
    E: 'static,
{
    type Kept = Option<Box<Ask>>;
    type Watch = Recorder;
    type Later = Infallible;

    fn keep<T>(
        &self,
        context: &HttpContext,
        request: Request<B>,
        call: impl FnOnce(Request<B>) -> T,
    ) -> (Option<Box<Ask>>, T) {
        let ask = if context.is_grpc() { None } else { Ask::of(&request, self.across_authorization) };
        (ask.map(Box::new), call(request))
    }

    fn good(&self, ask: &mut Option<Box<Ask>>, held: &HeldResponse<RB>) -> Option<Recorder> {
        let draft = self.store.draft(&*ask.take()?, &held.parts, held.length(), time::now())?;
        Some(Recorder { store: Arc::clone(&self.store), draft: Some(Box::new(draft)) })
    }

    #[cold]
    fn answer(
        &self,
        _: &Http,
        ask: &mut Option<Box<Ask>>,
        _: &HttpContext,
        bad: Bad<HeldResponse<RB>, E>,
    ) -> Gives<RB, E> {
        let Some(kept) = ask.as_ref().and_then(|ask| self.store.find(ask, time::now())) else {
            return Given::Nothing(bad.result);
        };
        let rejection = bad.result.as_ref().ok().and_then(HeldResponse::rejection);
        let (response, outcome) =
            bad.mark(rejection).put(kept.map(|body| body.map_or_else(ResponseBody::untold, ResponseBody::text)));
        Given::Now(response, outcome)
    }

    fn poll_later(later: Pin<&mut Infallible>, _: &mut Context<'_>) -> Poll<Gives<RB, E>> {
        match *later {}
    }
}

type Gives<RB, E> = Given<Response<ResponseBody<RB, Recorder>>, Infallible, HeldResponse<RB>, E>;

impl fmt::Debug for LastGood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastGood")
            .field("store", &self.store)
            .field("across_authorization", &self.across_authorization)
            .finish()
    }
}

/// Takes a good response down while the caller reads it, and keeps it if it was read to its end.
pub struct Recorder {
    store: Arc<Store>,
    // In a box, because it rides in every response body of the layer.
    draft: Option<Box<Draft>>,
}

impl Sealed for Recorder {}

impl Watch for Recorder {
    type Timer = ();

    fn settle(&mut self, end: End) {
        // It may be judged by its head, long before its end.
        if end.outcome() != crate::Outcome::Success {
            self.draft = None;
        }
    }

    fn data(&mut self, data: &Bytes) {
        if self.draft.as_mut().is_some_and(|draft| !draft.add(data)) {
            self.draft = None;
        }
    }

    fn over(&mut self) {
        if let Some(draft) = self.draft.take() {
            self.store.keep(*draft);
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("records", &self.draft.is_some()).finish()
    }
}
