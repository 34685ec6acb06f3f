//! The layer that takes deadlines in and passes them on.

use std::{sync::Arc, time::Duration};

use http::HeaderName;
use tower_layer::Layer;

use crate::{
    bounded::Ledger,
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
    deadline::{DeadlineHandle, service::Deadlines},
    protocol::Http,
    rejection::Reason,
    stripe::Striped,
};

/// Takes the caller's deadline in and bounds everything below it, or passes it on to the next hop. For HTTP and gRPC.
///
/// Plain services need no layer for it: they honour the ambient deadline under every policy that waits.
///
/// See the [module](crate::deadline).
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    pub(crate) ledger: Arc<Striped<Ledger>>,
    pub(crate) mode: Mode,
    pub(crate) protocol: Http,
}

/// What makes this layer the one or the other.
#[derive(Debug, Clone)]
pub(crate) struct Mode {
    pub(crate) side: Side,
    /// The header in milliseconds.
    pub(crate) header: Option<HeaderName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server { max: Duration },
    Client,
}

impl DeadlineLayer {
    /// For a server: the deadline is what the caller said in `grpc-timeout`, but at most `max` from now.
    ///
    /// It becomes an extension of the request and the ambient deadline of the handler and of its response body; when
    /// it passes, whatever is running below is dropped, and the answer is 504 or DEADLINE_EXCEEDED (in a body that had
    /// begun: an error on HTTP, trailers on gRPC). A request that comes too late is refused, the handler untouched.
    /// A body ends when somebody asks it for more: a transport that is stuck, because the client at its other end does
    /// not read, asks for nothing, and only its own timeout ends that.
    ///
    /// Without a header (or with a malformed one, which is counted) the deadline is `max`. This can't fail: a `max`
    /// beyond the clock's range is no bound, and zero refuses every request.
    pub fn server(max: Duration) -> Self {
        Self::of(Identity::default(), Side::Server { max }, None)
    }

    /// For a client: the deadline that is on the request, ambient, or already in `grpc-timeout`, whichever is the
    /// earliest, bounds the call and is written to the `grpc-timeout` of gRPC requests. With no deadline it does
    /// nothing.
    pub fn client() -> Self {
        Self::of(Identity::default(), Side::Client, None)
    }

    /// Reads (on a server) or writes (on a client) this header too, in whole milliseconds. Default: none. On a client
    /// one that is there already bounds the call too, and is only ever lowered.
    ///
    /// For HTTP services among themselves. It has no margin: no transport has a timer on it. Around a retry or a hedge
    /// it tells each attempt what was left when the call began; put another `DeadlineLayer::client()` with this header
    /// inside of them, and each attempt tells what is left (`grpc-timeout` is lowered for each in any case).
    pub fn header(mut self, name: HeaderName) -> Self {
        self.mode.header = Some(name);
        self
    }

    /// A layer with a name, observers or shadow. Set [`server`](DeadlineBuilder::server) or
    /// [`client`](DeadlineBuilder::client).
    pub fn builder() -> DeadlineBuilder {
        DeadlineBuilder::default()
    }

    /// The name it was given, else `deadline`.
    pub fn name(&self) -> &str {
        self.ledger.name()
    }

    /// A handle to read this layer and everything it wraps.
    pub fn handle(&self) -> DeadlineHandle {
        DeadlineHandle::new(Arc::clone(&self.ledger))
    }

    fn of(identity: Identity, side: Side, header: Option<HeaderName>) -> Self {
        let shadow = identity.shadow;
        let reporter = identity.reporter("deadline", &[Reason::DeadlineExceeded]);
        DeadlineLayer {
            ledger: Arc::new(Ledger::of_layer(reporter, shadow)),
            mode: Mode { side, header },
            protocol: Http::default(),
        }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadlines<S>;

    fn layer(&self, inner: S) -> Deadlines<S> {
        Deadlines::new(inner, self.clone())
    }
}

/// Builds a [`DeadlineLayer`] with a name, observers or shadow.
#[must_use = "a builder does nothing until `build()`"]
#[derive(Debug, Default)]
pub struct DeadlineBuilder {
    identity: Identity,
    side: Option<Side>,
    header: Option<HeaderName>,
}

impl DeadlineBuilder {
    shared_setters!();

    /// As [`DeadlineLayer::server`], but checked: 1 ns to 365 days.
    pub fn server(mut self, max: Duration) -> Self {
        self.side = Some(Side::Server { max });
        self
    }

    /// As [`DeadlineLayer::client`].
    pub fn client(mut self) -> Self {
        self.side = Some(Side::Client);
        self
    }

    /// As [`DeadlineLayer::header`].
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = Some(name);
        self
    }

    /// The layer.
    ///
    /// # Errors
    ///
    /// Lists every bad field: a bad name, a `server` bound out of range, or neither `server` nor `client` (on
    /// `server`).
    pub fn build(self) -> Result<DeadlineLayer, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("deadline", &mut checks);
        checks.require(self.side.is_some(), "server", None::<Duration>, "`server(max)` or `client()`");
        if let Some(Side::Server { max }) = self.side {
            checks.duration("server", max);
        }
        checks.finish()?;
        let side = self.side.unwrap_or(Side::Client);
        Ok(DeadlineLayer::of(self.identity, side, self.header))
    }
}
