//! Lists of pairs, as the variables of OpenTelemetry have them for headers and attributes. Pure code.

use percent_encoding::percent_decode_str;

/// A list `key=value,key2=value2`, percent-decoded; of a key that stands there twice the last
/// value counts. The error tells an entry by its number: it may hold a secret.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (index, entry) in text.split(',').enumerate() {
        if entry.trim().is_empty() {
            continue;
        }
        let (key, value) = entry
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| format!("entry {} is not key=value", index + 1))?;
        let decode = |text: &str| match percent_decode_str(text.trim()).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err(format!("entry {} is not UTF-8", index + 1)),
        };
        let (key, value) = (decode(key)?, decode(value)?);
        pairs.retain(|(other, _)| *other != key);
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a value with `=` from being cut, missing decoding, and an entry without a key from
    /// being shown: it may be a token.
    #[test]
    fn lists_of_pairs() {
        for (text, expected) in [
            ("", Some(vec![])),
            ("a=1", Some(vec![("a", "1")])),
            (" a = 1 ,, b=x%2Cy%3D%20 ", Some(vec![("a", "1"), ("b", "x,y= ")])),
            ("auth=Basic dXNlcg==", Some(vec![("auth", "Basic dXNlcg==")])),
            ("a=1,b=2,a=3", Some(vec![("b", "2"), ("a", "3")])),
            ("a=", Some(vec![("a", "")])),
            ("secret", None),
            ("a=1,=secret", None),
            ("a=secret%ff", None),
        ] {
            match (pairs(text), expected) {
                (Ok(pairs), Some(expected)) => {
                    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (&**k, &**v)).collect();
                    assert_eq!(pairs, expected, "{text:?}");
                }
                (Err(why), None) => assert!(!why.contains("secret"), "{why}"),
                (result, _) => panic!("{text:?}: {result:?}"),
            }
        }
    }
}
