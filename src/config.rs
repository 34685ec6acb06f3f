//! What is wrong with a configuration, all of it at once.

use std::{error::Error as StdError, fmt, time::Duration};

use crate::time::LONGEST;

/// A configuration that can't work. It lists every bad field, each once, in the order of the builder.
#[derive(Debug)]
pub struct ConfigError {
    fields: Vec<FieldError>,
}

/// One bad field of a configuration.
#[derive(Debug, Clone)]
pub struct FieldError {
    /// The setter, or the field of the configuration where the two have different names.
    pub field: &'static str,
    /// The value that was given, as `{:?}` writes it: a text in quotes and escaped, so that it can't write lines of its
    /// own into a log.
    pub value: String,
    /// What would have been accepted.
    pub expected: String,
}

impl ConfigError {
    /// Every bad field, each once.
    pub fn fields(&self) -> &[FieldError] {
        &self.fields
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad configuration: ")?;
        for (i, e) in self.fields.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "`{}` is {}, expected {}", e.field, e.value, e.expected)?;
        }
        Ok(())
    }
}

impl StdError for ConfigError {}

/// Collects what is wrong while a builder is checked.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    fields: Vec<FieldError>,
}

impl Checks {
    /// `ok`, or the field with its value is bad. The first complaint about a field is the one that stays.
    pub(crate) fn require(&mut self, ok: bool, field: &'static str, value: impl fmt::Debug, expected: &str) {
        if !ok && self.fields.iter().all(|e| e.field != field) {
            self.fields.push(FieldError { field, value: format!("{value:?}"), expected: expected.to_owned() });
        }
    }

    /// A duration from one nanosecond to one year.
    pub(crate) fn duration(&mut self, field: &'static str, d: Duration) {
        let ok = !d.is_zero() && d <= LONGEST;
        self.require(ok, field, d, "a duration from 1ns to 365 days");
    }

    /// A name that can stand in a header, a log line and a metric's label.
    pub(crate) fn name(&mut self, name: &str) {
        let ok = (1..=64).contains(&name.len()) && name.bytes().all(|b| (0x20..=0x7e).contains(&b));
        self.require(ok, "name", name, "1 to 64 printable ASCII characters");
    }

    /// What is wrong, where something is known to be.
    pub(crate) fn into_error(self) -> ConfigError {
        ConfigError { fields: self.fields }
    }

    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        if self.fields.is_empty() { Ok(()) } else { Err(ConfigError { fields: self.fields }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_once_and_escaped() {
        let mut checks = Checks::default();
        checks.duration("after", Duration::ZERO);
        checks.duration("after", Duration::MAX);
        checks.duration("idle", Duration::MAX);
        checks.name("a\nb");
        let error = checks.finish().unwrap_err();
        let fields: Vec<_> = error.fields().iter().map(|e| e.field).collect();
        assert_eq!(fields, ["after", "idle", "name"]);
        let text = error.to_string();
        assert!(
            text.starts_with("bad configuration: `after` is 0ns, expected a duration from 1ns to 365 days; `idle` is")
        );
        assert!(text.contains(r#"`name` is "a\nb", expected"#), "{text}");
    }

    #[test]
    fn names() {
        for (name, ok) in [
            ("a", true),
            (&"x".repeat(64), true),
            ("a b~", true),
            ("", false),
            (&"x".repeat(65), false),
            ("é", false),
            ("\x7f", false),
        ] {
            let mut checks = Checks::default();
            checks.name(name);
            assert_eq!(checks.finish().is_ok(), ok, "{name:?}");
        }
    }

    #[test]
    fn durations_have_both_ends() {
        for (d, ok) in [
            (Duration::from_nanos(1), true),
            (LONGEST, true),
            (LONGEST + Duration::from_nanos(1), false),
            (Duration::ZERO, false),
        ] {
            let mut checks = Checks::default();
            checks.duration("d", d);
            assert_eq!(checks.finish().is_ok(), ok, "{d:?}");
        }
    }
}
