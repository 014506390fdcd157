//! How much of what a process says of itself is believed. Pure code.

use super::environment;
use crate::model::resource::Value;

/// Which service.
pub const SERVICE_NAME: &str = "service.name";
/// Which instance of it.
pub const INSTANCE_ID: &str = "service.instance.id";

/// Of what a process says of itself as much as is believed: each key once, the first of them, as many and as long as the
/// bounds allow, and its name and instance, which must be texts, before the rest: no list hides them.
pub fn bounded<K: AsRef<str>>(attributes: impl IntoIterator<Item = (K, Value)>) -> Vec<(K, Value)> {
    let is_name = |key: &K| [SERVICE_NAME, INSTANCE_ID].contains(&key.as_ref());
    let (names, rest): (Vec<_>, Vec<_>) = attributes.into_iter().partition(|(key, _)| is_name(key));
    let names = names.into_iter().filter(|(_, value)| value.as_text().is_some_and(|text| !text.is_empty()));
    let mut own: Vec<(K, Value)> = Vec::new();
    let mut bytes = 0;
    for (key, value) in names.chain(rest) {
        let len = key.as_ref().len() + value.as_text().map_or(8, str::len);
        let has_room = own.len() < environment::MOST && bytes + len <= environment::MOST_BYTES;
        if has_room && !key.as_ref().is_empty() && own.iter().all(|(known, _)| known.as_ref() != key.as_ref()) {
            bytes += len;
            own.push((key, value));
        }
    }
    own
}
