//! Names. Each is checked once, where it enters, and can then be used as a label, a key or a file
//! name without a second look.

use std::{borrow::Borrow, fmt, sync::Arc};

use crate::{limits, violation::InvalidValue};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and keeps the name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidValue> {
                let text = text.as_ref();
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                Self::new(text)
            }
        }
    };
}

id!(
    /// What clients put in `model`: an id or an alias.
    ModelId,
    check_model_id
);
id!(
    /// An endpoint within its model.
    EndpointId,
    check_endpoint_id
);
id!(
    /// A worker, stable over restarts.
    WorkerId,
    check_process_id
);
id!(
    /// One process of a worker, new with each start.
    InstanceId,
    check_process_id
);

fn check_model_id(text: &str) -> Result<(), InvalidValue> {
    check_length(text, limits::MODEL_ID_CHARS)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/@+-".contains(c);
    check_characters(text, allowed, "`A-Z a-z 0-9 . _ : / @ + -`")?;
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(InvalidValue::new(format!(
            "`{text}` must start with a letter or digit"
        )));
    }
    if text
        .split('/')
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return Err(InvalidValue::new(format!(
            "`{text}` has an empty, `.` or `..` path segment; write `vendor/model`"
        )));
    }
    Ok(())
}

fn check_endpoint_id(text: &str) -> Result<(), InvalidValue> {
    check_length(text, limits::SHORT_ID_CHARS)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    check_characters(text, allowed, "`a-z 0-9 -`")?;
    if text.starts_with('-') || text.ends_with('-') {
        return Err(InvalidValue::new(format!(
            "`{text}` must start and end with a letter or digit"
        )));
    }
    Ok(())
}

fn check_process_id(text: &str) -> Result<(), InvalidValue> {
    check_length(text, limits::SHORT_ID_CHARS)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    check_characters(text, allowed, "`A-Z a-z 0-9 . _ -`")
}

fn check_length(text: &str, most: usize) -> Result<(), InvalidValue> {
    match text.chars().count() {
        0 => Err(InvalidValue::new("required")),
        n if n > most => Err(InvalidValue::new(format!(
            "{n} characters long, at most {most} are allowed"
        ))),
        _ => Ok(()),
    }
}

fn check_characters(
    text: &str,
    allowed: impl Fn(char) -> bool,
    names: &str,
) -> Result<(), InvalidValue> {
    match text.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(InvalidValue::new(format!(
            "{c:?} in {text:?} is not one of {names}"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_ids_of_the_field_are_accepted() {
        for id in [
            "llama-3.1-8b",
            "meta-llama/Llama-3.1-8B-Instruct",
            "qwen2.5:7b",
            "a",
        ] {
            assert!(ModelId::new(id).is_ok(), "{id}");
        }
    }

    #[test]
    fn bad_model_ids_say_why() {
        for (id, why) in [
            ("", "required"),
            ("a//b", "empty"),
            ("../etc/passwd", "start with"),
            ("a/../b", "`..`"),
            ("a b", "' '"),
            ("a\n", "'\\n'"),
            ("é", "'é'"),
        ] {
            let error = ModelId::new(id).unwrap_err().to_string();
            assert!(error.contains(why), "{id:?} gave {error}");
        }
        let long = "a".repeat(limits::MODEL_ID_CHARS + 1);
        assert!(
            ModelId::new(long)
                .unwrap_err()
                .to_string()
                .contains("at most 128")
        );
    }

    #[test]
    fn endpoint_ids_are_labels() {
        assert!(EndpointId::new("gpu-0").is_ok());
        for id in ["-a", "a-", "A", "a.b", ""] {
            assert!(EndpointId::new(id).is_err(), "{id}");
        }
    }
}
