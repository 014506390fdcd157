//! The rules of `--container` in the kernel side's table, which looks up the longest prefix of an id that has one.

use libbpf_rs::{MapCore, MapFlags, MapMut};

use super::skel::types::rule;
use crate::model::filter::Pick;

/// bpf/container.h, ID_SIZE.
const ID_SIZE: usize = 64;

/// How a rule's table is asked for an id that begins so.
fn key(prefix: &str) -> Vec<u8> {
    let mut key = (prefix.len() as u32 * 8).to_ne_bytes().to_vec();
    key.extend_from_slice(prefix.as_bytes());
    key.resize(4 + ID_SIZE, 0);
    key
}

/// Whether ids that begin so are excluded: by this value, or by a shorter one, which the table would not come to.
fn is_excluded(prefix: &str, picks: &[Pick<String>]) -> bool {
    picks.iter().any(|pick| pick.exclude && prefix.starts_with(&pick.value))
}

/// Fills the table.
pub fn put(map: &MapMut<'_>, picks: &[Pick<String>]) -> libbpf_rs::Result<()> {
    picks.iter().try_for_each(|Pick { value, .. }| {
        let rule = rule { exclude: is_excluded(value, picks).into(), hit: 0 };
        let bytes = [rule.exclude, rule.hit].map(u32::to_ne_bytes).concat();
        map.update(&key(value), &bytes, MapFlags::ANY)
    })
}

/// Which values that include no call has matched: neither by their own rule nor by one that goes on from it.
pub fn unmatched(map: &MapMut<'_>, picks: &[Pick<String>]) -> Vec<String> {
    let was_hit = |prefix: &str| {
        let rule = map.lookup(&key(prefix), MapFlags::ANY).ok().flatten();
        rule.is_some_and(|rule| rule[4] != 0)
    };
    let matched = |value: &str| picks.iter().any(|pick| pick.value.starts_with(value) && was_hit(&pick.value));
    let missed = picks.iter().filter(|pick| !pick.exclude && !matched(&pick.value));
    missed.map(|pick| format!("--container {pick}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a container from passing by a longer id than the one that is excluded.
    #[test]
    fn exclusions_win() {
        let picks: Vec<Pick<String>> = ["ab", "abcd", "!abc"].map(|text| text.parse().unwrap()).into();
        for (prefix, excluded) in [("ab", false), ("abc", true), ("abcd", true)] {
            assert_eq!(is_excluded(prefix, &picks), excluded, "{prefix}");
        }
    }

    /// Prevents a table of another layout than the kernel side's.
    #[test]
    fn keys() {
        let key = key("ab");
        assert_eq!((key.len(), &key[..4], &key[4..7]), (68, &16u32.to_ne_bytes()[..], &b"ab\0"[..]));
    }
}
