//! What a process says of itself in its environment: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, bounded; and
//! TRACEPARENT, the span that it was started in. Pure code.

use percent_encoding::percent_decode_str;

use crate::model::call::Ids;

/// At most so many attributes of a process's own.
pub const MOST: usize = 64;
/// At most so many bytes of their keys and values.
pub const MOST_BYTES: usize = 4096;

/// What a process says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Its service's name.
    pub service_name: Option<String>,
    /// Its other attributes, in their order, each key once.
    pub attributes: Vec<(String, String)>,
    /// The span that it was started in.
    pub started_in: Option<Ids>,
}

impl Said {
    /// The instance that it says it is.
    pub fn instance_id(&self) -> Option<&str> {
        let found = self.attributes.iter().find(|(key, _)| key == "service.instance.id");
        found.map(|(_, id)| id.as_str()).filter(|id| !id.is_empty())
    }
}

/// Reads an environment: `NAME=value`, each with its NUL. What is not UTF-8 or not of the specified form is left out
/// as a whole, as the specification asks for (OpenTelemetry, resource SDK, "Specifying resource information via an
/// environment variable").
pub fn read(environ: &[u8]) -> Said {
    let variable = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            std::str::from_utf8(value).ok().filter(|value| !value.is_empty())
        })
    };
    let mut said = Said {
        service_name: None,
        attributes: variable("OTEL_RESOURCE_ATTRIBUTES").and_then(pairs).unwrap_or_default(),
        started_in: variable("TRACEPARENT").and_then(traceparent),
    };
    let from_attributes = said.attributes.iter().position(|(key, _)| key == "service.name");
    let from_attributes = from_attributes.map(|at| said.attributes.remove(at).1);
    let named = variable("OTEL_SERVICE_NAME").filter(|name| name.len() <= MOST_BYTES).map(Into::into);
    said.service_name = named.or(from_attributes).filter(|name: &String| !name.is_empty());
    said
}

/// `key=value,…`, percent-encoded; the last of a key counts.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut bytes = 0;
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let decoded = |text: &str| percent_decode_str(text.trim()).decode_utf8().ok().map(String::from);
        let (key, value) = (decoded(key)?, decoded(value)?);
        if key.is_empty() {
            return None;
        }
        bytes += key.len() + value.len();
        if bytes > MOST_BYTES {
            break;
        }
        match pairs.iter().position(|(known, _)| *known == key) {
            Some(at) => pairs[at].1 = value,
            None if pairs.len() == MOST => break,
            None => pairs.push((key, value)),
        }
    }
    Some(pairs)
}

/// W3C Trace Context, `version-trace-parent-flags`: of a later version what this one knows of it, and no ids of zeros.
fn traceparent(text: &str) -> Option<Ids> {
    let (known, rest) = text.split_at_checked(55)?;
    let fields: Vec<&str> = known.split('-').collect();
    let [version, trace, span, flags] = fields[..] else { return None };
    let (version, flags) = (hex::<1>(version)?, hex::<1>(flags));
    let ids = Ids { trace: hex(trace)?, span: hex(span)? };
    let is_whole = rest.is_empty() || version != [0] && rest.starts_with('-');
    let is_any = ids.trace != [0; 16] && ids.span != [0; 8];
    (version != [0xff] && flags.is_some() && is_whole && is_any).then_some(ids)
}

/// Lower-case digits, as many as it takes.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(is_digit) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(text: &str) -> Vec<(String, String)> {
        read(format!("A=b\0OTEL_RESOURCE_ATTRIBUTES={text}\0").as_bytes()).attributes
    }

    /// Prevents a name from being taken from another variable, or the weaker of two from winning.
    #[test]
    fn service_names() {
        for (environ, expected) in [
            (&b""[..], None),
            (b"OTEL_SERVICE_NAME=a\0", Some("a")),
            (b"XOTEL_SERVICE_NAME=a\0OTEL_SERVICE_NAMES=b\0", None),
            (b"OTEL_RESOURCE_ATTRIBUTES=service.name=b\0OTEL_SERVICE_NAME=a\0", Some("a")),
            (b"OTEL_RESOURCE_ATTRIBUTES=service.name=b\0OTEL_SERVICE_NAME=\0", Some("b")),
            (b"OTEL_SERVICE_NAME=\xff\0", None),
            (b"OTEL_SERVICE_NAME", None),
        ] {
            assert_eq!(read(environ).service_name.as_deref(), expected, "{environ:?}");
        }
    }

    /// Prevents a span from hanging under one that nobody named, by what is not of the specified form.
    #[test]
    fn the_span_that_it_was_started_in() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let of = |text: &str| read(format!("TRACEPARENT={text}\0").as_bytes()).started_in;
        let ids = of(good).unwrap();
        assert_eq!((ids.trace[0], ids.trace[15], ids.span[0], ids.span[7]), (0x0a, 0x9c, 0xb7, 0x31));
        for (text, is_taken) in [
            (good.replace("-01", "-00"), true),
            (good.replacen("00-", "cc-", 1), true),
            (good.replacen("00-", "cc-", 1) + "-what-comes", true),
            (good.replacen("00-", "cc-", 1) + ".x", false),
            (format!("{good}-x"), false),
            (good.replacen("00-", "ff-", 1), false),
            (good.to_uppercase(), false),
            (good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), false),
            (good.replace("b7ad6b7169203331", &"0".repeat(16)), false),
            (good.replace("-01", "-0"), false),
            (good.replace("-01", "-0x"), false),
            (good.replacen('-', "+", 1), false),
            (format!("{}é", &good[..54]), false),
            (String::new(), false),
        ] {
            assert_eq!(of(&text).is_some(), is_taken, "{text}");
        }
    }

    /// Prevents escapes from being shown as such, a malformed list from being half taken, and a hostile one from
    /// growing a Resource without end.
    #[test]
    fn attribute_lists() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(attributes("a=1, b=x%20y ,a=2"), [pair("a", "2"), pair("b", "x y")]);
        assert_eq!(attributes("a=1,b"), []);
        assert_eq!(attributes("a=1,=2"), []);
        assert_eq!(attributes("a=%ff"), []);
        let many: Vec<String> = (0..100).map(|n| format!("k{n}=v")).collect();
        assert_eq!(attributes(&many.join(",")).len(), MOST);
        assert_eq!(attributes(&format!("a=1,b={}", "x".repeat(5000))), [pair("a", "1")]);
    }
}
