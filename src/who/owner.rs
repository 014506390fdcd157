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

/// passwd(5): `name:password:uid:…`; the first name of an id counts.
fn find(lines: impl BufRead, uid: u32) -> Option<String> {
    lines.split(b'\n').map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, its) = (fields.next()?, fields.nth(1)?);
        let is_its = std::str::from_utf8(its).ok()?.parse() == Ok(uid);
        is_its.then(|| String::from_utf8_lossy(name).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    /// Prevents an alias from replacing a user's name, and broken lines from being taken for users.
    #[test]
    fn passwd() {
        let text = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n\n+::::::\nbad:x:y\na:x:7";
        let found = |uid| find(text.as_bytes(), uid);
        assert_eq!((found(0).as_deref(), found(7).as_deref(), found(8)), (Some("root"), Some("a"), None));
    }
}
