//! Errors that name the field: what is wrong, where, and the way out. All of a message's at once.

use std::fmt;

/// One bad field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the message's own spelling, such as `model.endpoints[0].url`.
    pub field: String,
    /// What is wrong with the value, what the limit is, and the way out.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// A value that its type refuses. The caller, who knows the field, makes a [`Violation`] of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    /// With a message that names the value, the limit and the way out.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Every bad field of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a bad field.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            message: message.into(),
        });
    }

    /// Keeps a good value, notes a bad one.
    pub fn check<T>(&mut self, field: &str, value: Result<T, InvalidValue>) -> Option<T> {
        value
            .map_err(|error| self.add(field, error.to_string()))
            .ok()
    }

    /// Keeps a good part, notes all that is wrong with a bad one under the part's own path.
    pub fn part<T>(&mut self, prefix: &str, part: Result<T, Violations>) -> Option<T> {
        part.map_err(|violations| self.0.extend(violations.under(prefix).0))
            .ok()
    }

    /// Keeps a good part that shares our path, notes all that is wrong with a bad one.
    pub fn here<T>(&mut self, part: Result<T, Violations>) -> Option<T> {
        part.map_err(|violations| self.0.extend(violations.0)).ok()
    }

    /// The same violations, one level down.
    #[must_use]
    pub fn under(mut self, prefix: &str) -> Self {
        for violation in &mut self.0 {
            violation.field = match violation.field.as_str() {
                "" => prefix.to_owned(),
                field => format!("{prefix}.{field}"),
            };
        }
        self
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order found.
    #[must_use]
    pub fn as_slice(&self) -> &[Violation] {
        &self.0
    }

    /// The value if nothing was noted. `value` is `None` only if something was.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            Some(_) => Err(self),
            None => {
                if self.is_empty() {
                    self.add("", "incomplete");
                }
                Err(self)
            }
        }
    }
}

impl From<Violation> for Violations {
    fn from(violation: Violation) -> Self {
        Self(vec![violation])
    }
}

impl fmt::Display for Violations {
    /// All of them in one line, because some clients show nothing but this text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, violation) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_path() {
        let mut inner = Violations::new();
        inner.add("url", "bad");
        inner.add("", "odd");
        let mut outer = Violations::new();
        assert_eq!(outer.part::<()>("endpoints[1]", Err(inner)), None);
        assert_eq!(
            outer.to_string(),
            "endpoints[1].url: bad; endpoints[1]: odd"
        );
    }

    #[test]
    fn finish_never_passes_a_noted_value() {
        let mut violations = Violations::new();
        violations.add("a", "bad");
        assert!(violations.finish(Some(1)).is_err());
        assert_eq!(Violations::new().finish(Some(1)), Ok(1));
        assert!(Violations::new().finish::<()>(None).is_err());
    }
}
