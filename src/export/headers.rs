//! Headers that are sent with each request: from settings, and from a file whose tokens are rotated. Their values are
//! secrets: errors name the key only. Pure code.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers with these names and values; the values are marked as sensitive. What is no valid name is told by its number: it
/// may be a secret that lacks one.
pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (index, (key, value)) in pairs.into_iter().enumerate() {
        let name =
            HeaderName::from_bytes(key.as_bytes()).map_err(|_| format!("entry {} has no valid name", index + 1))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of {name} has characters that no header can hold"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The headers of a file: `NAME: value` a line; lines that are empty or begin with `#` are passed over.
pub fn from_file(text: &str) -> Result<HeaderMap, String> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.map(|(number, line)| match line.split_once(':') {
        Some((name, value)) => Ok((name.trim(), value.trim())),
        None => Err(format!("line {} is not NAME: value", number + 1)),
    });
    from_pairs(pairs.collect::<Result<Vec<_>, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a token from standing in an error or in a log, and lines from being taken for others.
    #[test]
    fn files_of_headers() {
        let headers = from_file("# rotated daily\n\nAuthorization: Bearer a:b \nx-tenant:7\n").unwrap();
        assert!(headers.len() == 2 && headers["authorization"] == "Bearer a:b" && headers["x-tenant"] == "7");
        assert!(headers.values().all(HeaderValue::is_sensitive) && !format!("{headers:?}").contains("Bearer"));
        for (text, expected) in [
            ("Bearer secret", "line 1 is not NAME: value"),
            ("a: 1\nsecret token: x", "entry 2 has no valid name"),
            ("a: \u{1}secret", "the value of a has characters that no header can hold"),
        ] {
            assert_eq!(from_file(text).unwrap_err(), expected);
        }
    }
}
