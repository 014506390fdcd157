//! What a process publishes of itself (OTEP 4719, process context): a mapping that is named `OTEL_CTX`, with a header
//! that points to a Resource as protobuf. Pure code that takes any bytes: all of it is the process's word, and bounded.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

use super::bounds::bounded;
use crate::model::resource::Value;

/// As long as the header is.
pub const HEADER: usize = 32;
/// The longest payload that is read.
const MOST: u32 = 64 << 10;
const SIGNATURE: &[u8] = b"OTEL_CTX";
const VERSION: u32 = 2;
/// How the mapping's name begins in /proc/PID/maps.
const NAMES: [&str; 3] = ["[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX"];

/// What a process has published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// Its attributes, in their order.
    pub attributes: Vec<(String, Value)>,
}

/// Why a context can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unreadable {
    /// There is another signature.
    #[error("it has no signature")]
    Signature,
    /// This version is not known.
    #[error("its version is not known")]
    Version,
    /// It is being changed all the time.
    #[error("it is being changed")]
    Changing,
    /// The payload is too long.
    #[error("it is longer than 64 KiB")]
    TooLong,
    /// The payload is no Resource.
    #[error("it does not hold a Resource")]
    Payload,
    /// The memory can't be read, or is another's.
    #[error("its memory can't be read")]
    Memory,
    /// It points into a mapping of a file, whose pages whoever serves that file may hold back for ever.
    #[error("it lies in the mapping of a file")]
    Mapped,
    /// /proc does not show the process.
    #[error("its process is not visible in mqspan's pid namespace")]
    Invisible,
    /// So much was asked of its process, or of its user's processes, that it could not be looked at in time.
    #[error("too much was asked of its process or user at a time")]
    Dropped,
}

impl Unreadable {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Signature,
        Self::Version,
        Self::Changing,
        Self::TooLong,
        Self::Payload,
        Self::Memory,
        Self::Mapped,
        Self::Invisible,
        Self::Dropped,
    ];
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextHeader {
    /// Changes with each publication.
    pub published_ns: u64,
    /// Where the payload is.
    pub payload: u64,
    /// How long it is.
    pub len: usize,
}

/// Reads the header.
pub fn header(bytes: &[u8; HEADER]) -> Result<ContextHeader, Unreadable> {
    let number = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
    let long = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    let (version, len, published_ns) = (number(8), number(12), long(16));
    match () {
        () if !bytes.starts_with(SIGNATURE) => Err(Unreadable::Signature),
        () if version != VERSION => Err(Unreadable::Version),
        () if published_ns == 0 => Err(Unreadable::Changing),
        () if len > MOST => Err(Unreadable::TooLong),
        () => Ok(ContextHeader { published_ns, payload: long(24), len: len as usize }),
    }
}

/// `opentelemetry.proto.processcontext.v1development.ProcessContext`, without what concerns threads.
#[derive(Clone, PartialEq, Message)]
struct ProcessContext {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
}

/// Reads the payload, cut to the bounds of what a process may say of itself. Attributes that are neither text, numbers nor
/// truth values are left out, and so are numbers that are none: not every receiver of JSON reads those.
pub fn payload(bytes: &[u8]) -> Result<Published, Unreadable> {
    let context = ProcessContext::decode(bytes).map_err(|_| Unreadable::Payload)?;
    let attributes = context.resource.unwrap_or_default().attributes.into_iter();
    let mut attributes = bounded(attributes.filter_map(attribute));
    attributes.shrink_to_fit();
    Ok(Published { attributes })
}

fn attribute(KeyValue { key, value, .. }: KeyValue) -> Option<(String, Value)> {
    let value = match value? {
        AnyValue { value: Some(Any::StringValue(text)) } => Value::Text(text),
        AnyValue { value: Some(Any::IntValue(int)) } => Value::Int(int),
        AnyValue { value: Some(Any::DoubleValue(double)) } if double.is_finite() => Value::Double(double),
        AnyValue { value: Some(Any::BoolValue(bool)) } => Value::Bool(bool),
        _ => return None,
    };
    (!key.is_empty()).then_some((key, value))
}

/// Whether a mapping is named as a process context's (proc_pid_maps(5)).
pub fn is_name(name: &[u8]) -> bool {
    NAMES.iter().filter_map(|known| name.strip_prefix(known.as_bytes())).any(|rest| {
        // A file is shown so once it has no name any more, which is how a memfd begins.
        rest.is_empty() || rest == b" (deleted)"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(version: u32, len: u32, published_ns: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(SIGNATURE);
        bytes[8..12].copy_from_slice(&version.to_ne_bytes());
        bytes[12..16].copy_from_slice(&len.to_ne_bytes());
        bytes[16..24].copy_from_slice(&published_ns.to_ne_bytes());
        bytes[24..].copy_from_slice(&0x7f00_0000_1000u64.to_ne_bytes());
        bytes
    }

    /// Prevents memory that is no context, an old layout, or one that is being written from being believed.
    #[test]
    fn headers() {
        let good = ContextHeader { published_ns: 7, payload: 0x7f00_0000_1000, len: 100 };
        assert_eq!(header(&raw(2, 100, 7)), Ok(good));
        assert_eq!(header(&raw(2, MOST, 7)).map(|header| header.len), Ok(MOST as usize));
        for (bytes, why) in [
            ([0; HEADER], Unreadable::Signature),
            (raw(1, 100, 7), Unreadable::Version),
            (raw(2, 100, 0), Unreadable::Changing),
            (raw(2, MOST + 1, 7), Unreadable::TooLong),
        ] {
            assert_eq!(header(&bytes), Err(why));
        }
    }

    /// Prevents values from changing their kind, and what has none from making an attribute.
    #[test]
    fn payloads() {
        let value = |key: &str, value: Option<Any>| KeyValue {
            key: key.into(),
            value: Some(AnyValue { value }),
            ..Default::default()
        };
        let attributes = vec![
            value("service.name", Some(Any::StringValue("shop".into()))),
            value("a", Some(Any::IntValue(-1))),
            value("b", Some(Any::BoolValue(true))),
            value("c", Some(Any::DoubleValue(0.5))),
            value("d", None),
            value("", Some(Any::IntValue(1))),
        ];
        let context = ProcessContext { resource: Some(Resource { attributes, ..Default::default() }) };
        let bytes = context.encode_to_vec();
        let expected: Vec<(String, Value)> = vec![
            ("service.name".into(), Value::Text("shop".into())),
            ("a".into(), Value::Int(-1)),
            ("b".into(), Value::Bool(true)),
            ("c".into(), Value::Double(0.5)),
        ];
        assert_eq!(payload(&bytes), Ok(Published { attributes: expected }));
        assert_eq!(payload(&[]), Ok(Published::default()));
        assert_eq!(payload(&bytes[..bytes.len() - 1]), Err(Unreadable::Payload));
        // The attributes of threads are another field, which is passed over.
        assert_eq!(payload(&[0x12, 0x02, 0x0a, 0x00]), Ok(Published::default()));
    }

    /// Prevents another mapping from being read, and one of the three kinds from being missed.
    #[test]
    fn mappings() {
        for name in ["[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX", "/memfd:OTEL_CTX (deleted)"] {
            assert!(is_name(name.as_bytes()), "{name}");
        }
        for name in ["", "[anon:OTEL_CTX2]", "/memfd:OTEL_CTXX (deleted)", "/tmp/memfd:OTEL_CTX", "[heap]"] {
            assert!(!is_name(name.as_bytes()), "{name}");
        }
    }
}
