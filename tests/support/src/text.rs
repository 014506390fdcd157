//! Names as the contract writes them, made here a second time: an oracle that used mqspan's own code would agree with
//! its mistakes.

/// A name of at most 255 bytes behind its slash, as UTF-8: other bytes stand as `\xNN`, and a backslash that would read
/// as such an escape as `\x5c`.
pub fn destination(name: &[u8]) -> String {
    format!("/{}", utf8(&name[..name.len().min(255)]))
}

/// The line of a call that failed, without what stands in brackets behind its errno: why, which tests/causes.rs compares.
pub fn without_cause(line: &str) -> &str {
    let cause = line.rfind(") = -1 ").and_then(|result| Some(result + line[result..].find(" (")?));
    cause.map_or(line, |cause| &line[..cause])
}

/// Bytes as UTF-8, by the same rule.
pub fn utf8(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let character = (1..=4).find_map(|length| {
            let taken = std::str::from_utf8(rest.get(..length)?).ok()?;
            taken.chars().next()
        });
        let length = match character {
            Some('\\') if is_escape(&rest[1..]) => {
                text.push_str("\\x5c");
                1
            }
            Some(character) => {
                text.push(character);
                character.len_utf8()
            }
            None => {
                text.push_str(&format!("\\x{first:02x}"));
                1
            }
        };
        rest = &rest[length..];
    }
    text
}

/// A backslash at the end of valid text does not read as an escape with the bytes behind it, which stand escaped.
fn is_escape(rest: &[u8]) -> bool {
    matches!(rest, [b'x', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}

/// The text on a console: nothing in it steers a terminal.
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(|character| {
        character.is_control()
            || ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'].contains(&character)
            || ('\u{202a}'..='\u{202e}').contains(&character)
            || ('\u{2066}'..='\u{2069}').contains(&character)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents the oracle from being wrong itself: the contract's own examples.
    #[test]
    fn names() {
        for (name, expected) in [
            (&b"orders"[..], "/orders"),
            (b"", "/"),
            (b"/x", "//x"),
            (b"\xff\xfe", "/\\xff\\xfe"),
            (br"\x41", "/\\x5cx41"),
            (br"\xzz", "/\\xzz"),
            ("Größe 🦀".as_bytes(), "/Größe 🦀"),
            (b"cut \xe2\x82", "/cut \\xe2\\x82"),
        ] {
            assert_eq!(destination(name), expected);
        }
        assert_eq!(destination(&[b'a'; 300]).len(), 256);
        assert!(is_printable("a b") && !is_printable("a\x1b[2J") && !is_printable("\u{9b}"));
    }
}
