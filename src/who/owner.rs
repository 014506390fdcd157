//! The names of users, from /etc/passwd alone: the C library's lookup may ask a directory server.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;

use super::prober::files::open_regular;

const PASSWD: &str = "/etc/passwd";
/// As much of the file is read.
const MOST: u64 = 16 << 20;
/// As many users are remembered.
const REMEMBERED: usize = 1024;

/// The users of this host that were asked for, read again when the file changes.
#[derive(Debug, Default)]
pub struct Owners {
    read_at: (i64, i64),
    names: HashMap<u32, Option<String>>,
}

impl Owners {
    /// The name of a user id, None for one that the file does not have.
    pub fn name(&mut self, uid: u32) -> Option<String> {
        let file = open_regular(PASSWD).ok()?;
        let about = file.metadata().ok()?;
        let changed = (about.mtime(), about.mtime_nsec());
        if changed != self.read_at || self.names.len() >= REMEMBERED {
            self.read_at = changed;
            self.names.clear();
        }
        self.names.entry(uid).or_insert_with(|| find(BufReader::new(file.take(MOST)), uid)).clone()
    }
}

/// The names of the first users of the file, so many at most: for before there is any call that waits for one.
pub fn first_users(most: usize) -> HashMap<u32, String> {
    open_regular(PASSWD).map_or_else(|_| HashMap::new(), |file| users(BufReader::new(file.take(MOST)), most))
}

fn users(lines: impl BufRead, most: usize) -> HashMap<u32, String> {
    let mut users = HashMap::new();
    for (uid, name) in lines.split(b'\n').map_while(Result::ok).filter_map(|line| user(&line)) {
        if users.len() == most {
            break;
        }
        users.entry(uid).or_insert(name);
    }
    users
}

/// passwd(5): `name:password:uid:…`; the first name of an id counts.
fn find(lines: impl BufRead, uid: u32) -> Option<String> {
    let mut users = lines.split(b'\n').map_while(Result::ok).filter_map(|line| user(&line));
    users.find_map(|(its, name)| (its == uid).then_some(name))
}

fn user(line: &[u8]) -> Option<(u32, String)> {
    let mut fields = line.split(|byte| *byte == b':');
    let (name, uid) = (fields.next()?, fields.nth(1)?);
    Some((std::str::from_utf8(uid).ok()?.parse().ok()?, String::from_utf8_lossy(name).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::{find, users};

    /// Prevents an alias from replacing a user's name, and broken lines from being taken for users.
    #[test]
    fn passwd() {
        let text = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n\n+::::::\nbad:x:y\na:x:7";
        let found = |uid| find(text.as_bytes(), uid);
        assert_eq!((found(0).as_deref(), found(7).as_deref(), found(8)), (Some("root"), Some("a"), None));
        let first = |most| {
            let mut first: Vec<_> = users(text.as_bytes(), most).into_iter().collect();
            first.sort();
            first
        };
        assert_eq!((first(1), first(9)), (vec![(0, "root".into())], vec![(0, "root".into()), (7, "a".into())]));
    }
}
