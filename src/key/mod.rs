//! Whom a request comes from, for every policy that keeps a state for each key.
//!
//! [`Key`](client::Key) says what tells one client from another, [`Keys`](keys::Keys) is what a builder was told of it.
//! What is kept for a key stands in [`keyed`](crate::keyed).

#[cfg(feature = "http")]
mod bytes;
#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod forwarded;
#[cfg(feature = "http")]
mod keys;

#[cfg(feature = "http")]
pub(crate) use self::keys::{Keys, Way, key_setters};
#[cfg(feature = "http")]
pub use self::{
    bytes::KeyBytes,
    client::{Key, MissingKey},
};

/// Whose state a call uses.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "keys are for HTTP"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose<'a> {
    /// The one that is not of a key.
    Keyless,
    Key(&'a [u8]),
    /// It has no key, and the layer was told what to do then.
    Nobodys {
        refuse: bool,
    },
}
