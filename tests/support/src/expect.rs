//! What an attribute must be, as far as an oracle knows.

use std::collections::BTreeMap;

use crate::otlp::{Attributes, Value};

/// What an oracle knows of an attribute's value.
#[derive(Clone, Debug)]
pub enum Expect {
    /// The value.
    Is(Value),
    /// It must be there.
    Present,
    /// It may be there.
    Maybe,
    /// An integer in this range.
    Between(i64, i64),
    /// A number in this range, which must be there or may.
    Seconds {
        /// The least.
        least: f64,
        /// The most.
        most: f64,
        /// Whether it may be missing.
        optional: bool,
    },
}

/// What attributes must be; others must not be there.
pub type Expected = BTreeMap<&'static str, Expect>;

impl Expect {
    fn allows(&self, found: Option<&Value>) -> bool {
        match (self, found) {
            (Self::Maybe, _) => true,
            (Self::Seconds { optional, .. }, None) => *optional,
            (_, None) => false,
            (Self::Present, Some(_)) => true,
            (Self::Is(expected), Some(found)) => expected == found,
            (Self::Between(least, most), Some(Value::Int(found))) => (least..=most).contains(&found),
            (Self::Seconds { least, most, .. }, Some(Value::Double(found))) => (least..=most).contains(&found),
            _ => false,
        }
    }
}

impl<T: Into<Value>> From<T> for Expect {
    fn from(value: T) -> Self {
        Self::Is(value.into())
    }
}

/// What differs; `more` are keys that may be there besides.
pub fn differences(expected: &Expected, found: &Attributes, more: &[&str]) -> Vec<String> {
    let wrong = expected.iter().filter(|(key, expect)| !expect.allows(found.get(**key)));
    let mut all: Vec<_> =
        wrong.map(|(key, expect)| format!("{key} is {:?}, not {expect:?}", found.get(*key))).collect();
    let unknown = found.keys().filter(|key| !expected.contains_key(&***key) && !more.contains(&&***key));
    all.extend(unknown.map(|key| format!("{key} should not be there")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a comparison that passes whatever it is given.
    #[test]
    fn what_differs_is_told() {
        let expected = Expected::from([
            ("a", Expect::from("x")),
            ("b", Expect::Present),
            ("c", Expect::Maybe),
            ("d", Expect::Between(1, 3)),
            ("e", Expect::Seconds { least: 0., most: 1., optional: true }),
        ]);
        let attributes =
            |list: &[(&str, Value)]| list.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        let right = attributes(&[("a", "x".into()), ("b", 1_i64.into()), ("d", 3_i64.into()), ("f", 1_i64.into())]);
        assert!(differences(&expected, &right, &["f"]).is_empty());
        assert_eq!(differences(&expected, &right, &[]), ["f should not be there"]);
        let wrong = attributes(&[("a", "y".into()), ("d", 4_i64.into()), ("e", Value::Double(1.5))]);
        assert_eq!(differences(&expected, &wrong, &[]).len(), 4);
    }
}
