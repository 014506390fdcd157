//! Globs over whole names: `*`, `?`, `[a-z]`, `[!a-z]`. Unlike in a shell, `*` and `?` match every
//! character, `/` and `.` too, and a backslash is a character like any other, because names that
//! are not UTF-8 are shown with one (`\xff`). Pure code.

use std::fmt;
use std::str::FromStr;

/// A compiled pattern; `Display` gives its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`
    Run,
    /// Exactly one character: any of these ranges, or none of them. `?` is none of nothing.
    One { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// Whether the pattern matches the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // The last `*` and where its run ends so far: only the last one ever needs to grow.
        let mut run: Option<(usize, usize)> = None;
        loop {
            match self.tokens.get(token) {
                Some(Token::Run) => {
                    run = Some((token, at));
                    token += 1;
                    continue;
                }
                Some(Token::One { negated, ranges }) if at < name.len() => {
                    let inside = ranges.iter().any(|(a, z)| (*a..=*z).contains(&name[at]));
                    if inside != *negated {
                        token += 1;
                        at += 1;
                        continue;
                    }
                }
                None if at == name.len() => return true,
                _ => {}
            }
            match run {
                Some((star, end)) if end < name.len() => {
                    run = Some((star, end + 1));
                    token = star + 1;
                    at = end + 1;
                }
                _ => return false,
            }
        }
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern matches nothing".into());
        }
        let mut tokens = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            tokens.push(match c {
                '*' => Token::Run,
                '?' => Token::One { negated: true, ranges: Vec::new() },
                '[' => class(&mut rest)?,
                c => Token::One { negated: false, ranges: vec![(c, c)] },
            });
        }
        Ok(Self { text: text.into(), tokens })
    }
}

/// What follows a `[`, up to its `]`. As in POSIX, a `]` that comes first and a `-` at either end
/// stand for themselves.
fn class(rest: &mut std::str::Chars<'_>) -> Result<Token, String> {
    let unclosed = || String::from("a [ without its ]");
    let mut next = rest.next().ok_or_else(unclosed)?;
    let negated = next == '!';
    if negated {
        next = rest.next().ok_or_else(unclosed)?;
    }
    let mut ranges = Vec::new();
    loop {
        let low = next;
        let mut ahead = rest.clone();
        let high = match (ahead.next(), ahead.next()) {
            (Some('-'), Some(high)) if high != ']' => {
                *rest = ahead;
                high
            }
            _ => low,
        };
        if low > high {
            return Err(format!("the range {low}-{high} is empty"));
        }
        ranges.push((low, high));
        next = rest.next().ok_or_else(unclosed)?;
        if next == ']' {
            return Ok(Token::One { negated, ranges });
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Patterns that queues go by (`--template`), as they are written.
#[derive(Clone, Debug, Default)]
pub struct Templates(Vec<(Glob, String)>);

impl Templates {
    /// The first that matches counts.
    pub fn new(globs: Vec<Glob>) -> Self {
        Self(globs.into_iter().map(|glob| (glob.clone(), glob.to_string())).collect())
    }

    /// The pattern that a queue's name matches.
    pub fn of(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(glob, _)| glob.matches(name)).map(|(_, text)| &**text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a pattern that matches a part of a name, stops at `/` or `.` as in a shell, or
    /// gives up at the first way to place a `*`.
    #[test]
    fn whole_names_match() {
        for (pattern, name, expected) in [
            ("/orders", "/orders", true),
            ("/orders", "/orders2", false),
            ("/orders", "orders", false),
            ("/order?", "/orders", true),
            ("/order?", "/order", false),
            ("*", "", true),
            ("*", "/a/.b", true),
            ("/*.q", "/a/b.q", true),
            ("?x", "/x", true),
            ("*ab*ab", "/abxabyab", true),
            ("*ab*ab", "/abx", false),
            ("/[a-c]1", "/b1", true),
            ("/[a-c]1", "/d1", false),
            ("/[!a-c]1", "/d1", true),
            ("/[!a-c]1", "/b1", false),
            ("/[!a]", "/", false),
            ("/[]-]", "/]", true),
            ("/[]-]", "/-", true),
            ("/[a-]", "/-", true),
            ("/[*]", "/*", true),
            ("/[*]", "/x", false),
            ("/[a^]", "/^", true),
            (r"/\xff", r"/\xff", true),
            ("/ü?", "/üö", true),
            ("**a**", "/a", true),
        ] {
            let glob: Glob = pattern.parse().unwrap();
            assert_eq!(glob.matches(name), expected, "{pattern} on {name:?}");
        }
    }

    /// Prevents a mistyped class from becoming a filter that silently matches nothing.
    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in ["", "[", "[a", "[!", "[!]", "[]", "[z-a]"] {
            assert!(pattern.parse::<Glob>().is_err(), "{pattern:?}");
        }
    }
}
