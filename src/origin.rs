//! Who a policy is. Its rejections, its events and its handle all speak in this name.

use std::{fmt, sync::Arc};

#[cfg(feature = "http")]
use crate::protocol::text::Texts;
use crate::rejection::Reason;

/// The identity of one layer, and the texts of its refusals, encoded once.
pub(crate) struct Origin {
    policy: &'static str,
    name: Arc<str>,
    #[cfg(feature = "http")]
    texts: Texts,
}

impl Origin {
    /// `reasons` are those the policy can give. With `expose_name` the name is part of the texts.
    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "texts are for HTTP and gRPC"))]
    pub(crate) fn new(policy: &'static str, name: Arc<str>, expose_name: bool, reasons: &[Reason]) -> Self {
        Self {
            policy,
            #[cfg(feature = "http")]
            texts: Texts::encode(policy, expose_name.then_some(&*name), reasons),
            name,
        }
    }

    pub(crate) fn policy(&self) -> &'static str {
        self.policy
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    #[cfg(feature = "http")]
    pub(crate) fn texts(&self) -> &Texts {
        &self.texts
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.policy, self.name)
    }
}
