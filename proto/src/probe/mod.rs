//! What a probe asks of endpoints, what it makes of the answer, and which addresses it may dial. Pure: who
//! dials is each plane's own affair.

mod address;
mod answer;

use std::{fmt, sync::Arc};

use crate::{ids::ModelId, limits, violation::InvalidValue};

pub use self::{
    address::{AddressPolicy, Blocked, Cidr},
    answer::{Outcome, PATH, Verdict, judge},
};

/// Whether the endpoints of a model are asked what they serve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProbeSpec {
    /// What becomes of what is found.
    pub mode: ProbeMode,
    /// The name that must be listed, where it is not the model's id.
    pub served_name: Option<ServedName>,
}

impl ProbeSpec {
    /// True if endpoints are asked.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode != ProbeMode::Off
    }

    /// What an endpoint must list: the model's id, which is what it is asked for whatever name a client used.
    #[must_use]
    pub fn expected(&self, id: &ModelId) -> String {
        let name = self.served_name.as_ref().map(ToString::to_string);
        name.unwrap_or_else(|| id.to_string())
    }
}

/// What becomes of what a probe finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProbeMode {
    /// Nothing is probed.
    #[default]
    Off,
    /// It is told.
    Report,
    /// An endpoint that serves other models is not used.
    Enforce,
}

/// A name under which an endpoint lists a model. Unlike a model's it may begin with anything: some are paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServedName(Arc<str>);

impl ServedName {
    /// Checks and keeps the name.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        let (length, most) = (text.chars().count(), limits::SERVED_NAME_CHARS);
        if length == 0 || length > most {
            return Err(InvalidValue::new(format!(
                "{length} characters long, 1 to {most} are allowed"
            )));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/@+-".contains(c);
        if let Some(other) = text.chars().find(|c| !allowed(*c)) {
            return Err(InvalidValue::new(format!(
                "{other:?} is not allowed; use `A-Z a-z 0-9 . _ : / @ + -`"
            )));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ServedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
