//! Who made calls, as OpenTelemetry describes it: a Resource and its attributes. Pure code.

use super::call::Ids;

/// An attribute of a Resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
    /// True or false.
    Bool(bool),
}

impl Value {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Who made the calls of a batch: the attributes of one OpenTelemetry Resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    /// Each key once.
    pub attributes: Vec<(String, Value)>,
    /// Whether all of them follow the schema of the semantic conventions that mqspan follows.
    pub has_schema: bool,
    /// The span that the process was started in, by its environment: no attribute.
    pub started_in: Option<Ids>,
}
