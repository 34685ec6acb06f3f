//! The words of a refusal, encoded once per layer. What varies, the delay, is added per refusal.

use bytes::Bytes;
use http::HeaderValue;

use crate::rejection::Reason;

/// The encoded texts of one layer, one for each reason it can give.
pub(crate) struct Texts(Box<[(Reason, Text)]>);

pub(crate) struct Text {
    /// The problem document without a delay, whole.
    pub(crate) problem: Bytes,
    /// The sentence as `grpc-message`.
    pub(crate) message: HeaderValue,
    /// `google.rpc.Status` up to its details: code and message.
    pub(crate) status: Bytes,
}

impl Texts {
    pub(crate) fn encode(policy: &str, exposed_name: Option<&str>, reasons: &[Reason]) -> Self {
        Texts(reasons.iter().map(|r| (*r, Text::encode(policy, exposed_name, *r))).collect())
    }

    pub(crate) fn of(&self, reason: Reason) -> Option<&Text> {
        self.0.iter().find(|(r, _)| *r == reason).map(|(_, t)| t)
    }
}

impl Text {
    pub(crate) fn encode(policy: &str, exposed_name: Option<&str>, reason: Reason) -> Self {
        let sentence = match exposed_name {
            Some(name) => format!("{} ({name})", reason.detail()),
            None => reason.detail().to_owned(),
        };
        let status = reason.http_status();
        // Names are printable ASCII, so these two are all that JSON wants escaped.
        let problem = format!(
            r#"{{"type":"about:blank","title":"{}","status":{},"detail":"{}","policy":"{policy}","reason":"{reason}"}}"#,
            status.canonical_reason().unwrap_or_default(),
            status.as_u16(),
            sentence.replace('\\', r"\\").replace('"', "\\\""),
        );
        // `grpc-message` is percent-encoded, and of printable ASCII only the sign itself needs it.
        let message = shared(sentence.replace('%', "%25"));
        Text {
            problem: shared(problem),
            message: HeaderValue::from_maybe_shared(message).unwrap_or(HeaderValue::from_static("refused")),
            status: shared(super::refusal::status_head(reason.grpc_code(), &sentence)),
        }
    }
}

/// Bytes whose clones allocate nothing. The first clone of a fresh buffer makes its counter: take that one here.
fn shared(text: impl Into<Vec<u8>>) -> Bytes {
    let bytes = Bytes::from(text.into());
    drop(bytes.clone());
    bytes
}
