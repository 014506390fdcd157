//! The names of users, from /etc/passwd alone: the C library's lookup may ask a directory server, and the event path
//! must not wait for one.

use std::collections::HashMap;
use std::fs;
use std::time::SystemTime;

const PASSWD: &str = "/etc/passwd";

/// The users of this host, read again when the file changes.
#[derive(Debug, Default)]
pub struct Owners {
    read_at: Option<SystemTime>,
    names: HashMap<u32, String>,
}

impl Owners {
    /// The name of a user id, None for one that the file does not have.
    pub fn name(&mut self, uid: u32) -> Option<&str> {
        let changed = fs::metadata(PASSWD).and_then(|file| file.modified()).ok();
        if changed != self.read_at {
            self.read_at = changed;
            self.names = fs::read(PASSWD).map(|text| parse(&String::from_utf8_lossy(&text))).unwrap_or_default();
        }
        self.names.get(&uid).map(String::as_str)
    }
}

/// passwd(5): `name:password:uid:…`; the first name of an id counts.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(|uid| uid.parse().ok())) {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// Prevents an alias from replacing a user's name, and broken lines from being taken for users.
    #[test]
    fn passwd() {
        let names = parse("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n\n+::::::\nbad:x:y\na:x:7");
        assert_eq!((names.get(&0).map(String::as_str), names.get(&7).map(String::as_str)), (Some("root"), Some("a")));
        assert_eq!(names.len(), 2);
    }
}
