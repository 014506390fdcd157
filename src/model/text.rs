//! Bytes that need not be UTF-8 as text, for OTLP and for the console. Pure code.

use std::borrow::Cow;
use std::fmt::Write;

/// The bytes as UTF-8. Any other byte stands as `\xNN`, and a backslash that would read as such an escape as `\x5c`,
/// so that different names stay different.
pub fn utf8(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains("\\x") => Cow::Borrowed(text),
        _ => Cow::Owned(escape(bytes)),
    }
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        for (at, character) in valid.char_indices() {
            match character == '\\' && reads_as_escape(&valid.as_bytes()[at + 1..]) {
                true => out.push_str("\\x5c"),
                false => out.push(character),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn reads_as_escape(rest: &[u8]) -> bool {
    matches!(rest, [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Text for a terminal: control characters, which may hold escape sequences, stand as `\xNN` or `\u{N}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        let _ = match u32::from(character) {
            _ if !unprintable(character) => write!(out, "{character}"),
            code @ ..0x80 => write!(out, "\\x{code:02x}"),
            code => write!(out, "\\u{{{code:x}}}"),
        };
    }
    Cow::Owned(out)
}

/// Controls (C0, DEL, C1), the marks that turn the direction of text, which can make a line read as another, and Unicode's
/// own ends of lines and paragraphs.
fn unprintable(character: char) -> bool {
    let is_mark = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    character.is_control() || is_mark
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents two different names from becoming the same text, and text that is not UTF-8.
    #[test]
    fn every_byte_string_has_a_text_of_its_own() {
        for (bytes, expected) in [
            (&b"orders"[..], "orders"),
            (b"\xff", "\\xff"),
            (b"\\xff", "\\x5cxff"),
            (b"\\xf", "\\xf"),
            (b"\\\\x00", "\\\\x5cx00"),
            (b"\\xzz", "\\xzz"),
            ("größe".as_bytes(), "größe"),
            (b"a\xc3", "a\\xc3"),
            (b"\x1b[0m", "\x1b[0m"),
            (b"\\\xff", "\\\\xff"),
        ] {
            assert_eq!(utf8(bytes), expected, "{bytes:?}");
        }
    }

    /// Prevents a queue's name from steering the terminal.
    #[test]
    fn nothing_printed_steers_a_terminal() {
        for (text, expected) in [
            ("a b", "a b"),
            ("\x1b[2J", "\\x1b[2J"),
            ("a\n", "a\\x0a"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("\u{202e}x", "\\u{202e}x"),
        ] {
            assert_eq!(printable(text), expected);
        }
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}'].into_iter().chain('\u{2028}'..='\u{202e}');
        for mark in marks.chain('\u{2066}'..='\u{2069}') {
            assert_eq!(printable(&format!("a{mark}b")), format!("a\\u{{{:x}}}b", u32::from(mark)));
        }
        for plain in ['\u{200d}', '\u{202f}', 'א', '\u{2065}'] {
            assert_eq!(printable(&plain.to_string()), plain.to_string());
        }
    }
}
