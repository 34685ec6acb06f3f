//! The short way, for the calls of a layer that was told little.

/// What a call takes if nothing else has to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// One unit of the common quota.
    Common,
    /// One unit of its key's quota.
    #[cfg(feature = "http")]
    Key,
    /// One unit of the quota of the key that the form knows.
    #[cfg(feature = "http")]
    Form,
    /// There is none.
    #[cfg(feature = "http")]
    Rules,
}
