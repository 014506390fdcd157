//! One call as a span and as a log record, before it is written as protobuf or JSON: what both say. Pure code.

use super::view::{Attributes, View};
use crate::model::call::Ids;
use crate::model::call::{Context, Method, Sender, Source};
use crate::model::resource::{Resource, Value};
use crate::model::values::Op;

/// The semantic conventions that the attributes follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";
/// The name of the instrumentation scope.
pub const SCOPE: &str = "mqspan";
/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Span flags (opentelemetry/proto/trace/v1): sampled, and that it is known that no parent is remote.
pub const SPAN_FLAGS: u32 = 0x101;
/// The same for a span whose parent, or a link whose span, is known to be remote: in another process, by a message.
pub const REMOTE_FLAGS: u32 = 0x301;
/// The flag of a sampled span, of log records too.
pub const SAMPLED: u32 = 0x001;
/// `StatusCode`.
pub const STATUS_ERROR: u8 = 2;

/// A call with the ids of its span.
#[derive(Debug)]
pub struct Record<'a> {
    /// What is said of the call.
    pub view: &'a View<'a>,
    /// The span of this call, where one is made.
    pub ids: Option<Ids>,
}

/// What links to a span say besides which it is.
pub const LINK_METHOD: &str = "posix_mq.link.method";

/// A link to another span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The span.
    pub ids: Ids,
    /// How it was found.
    pub method: &'static str,
    /// What is known of the span.
    pub flags: u32,
}

/// What a log record is made of.
pub trait LogEntry {
    /// When it began, ns since 1970: the record's time.
    fn start_ns(&self) -> u64;
    /// When it was seen, ns since 1970.
    fn end_ns(&self) -> u64;
    /// Number and text of its severity.
    fn severity(&self) -> (u8, &'static str);
    /// Its name.
    fn event_name(&self) -> &'static str;
    /// The span that it names, and that span's flags.
    fn logged_span(&self) -> Option<(Ids, u32)>;
    /// What it says to people.
    fn body(&self) -> String;
    /// Gives every attribute.
    fn attributes(&self, to: &mut impl Attributes);
}

impl LogEntry for Record<'_> {
    fn start_ns(&self) -> u64 {
        self.start_ns()
    }

    fn end_ns(&self) -> u64 {
        self.end_ns()
    }

    fn severity(&self) -> (u8, &'static str) {
        self.severity()
    }

    fn event_name(&self) -> &'static str {
        self.event_name()
    }

    fn logged_span(&self) -> Option<(Ids, u32)> {
        self.logged_span()
    }

    fn body(&self) -> String {
        self.view.line()
    }

    fn attributes(&self, to: &mut impl Attributes) {
        self.log_attributes(to);
    }
}

impl Record<'_> {
    /// Its exit, ns since 1970.
    pub fn end_ns(&self) -> u64 {
        self.view.start_ns.saturating_add(self.view.call.duration_ns())
    }

    /// The span of this call, where one is made, in the trace that it belongs to.
    pub fn span(&self) -> Option<Ids> {
        let trace = self.parent().map(|parent| parent.trace);
        self.ids.map(|ids| Ids { trace: trace.unwrap_or(ids.trace), ..ids })
    }

    /// The span's parent: the application's own where that is sampled, else the sender's where it is to be.
    pub fn parent(&self) -> Option<Ids> {
        match self.view.context {
            Some(Context { ids, source: Source::Thread { sampled: true } }) => Some(ids),
            _ => self.view.sender().filter(|_| self.view.is_child).map(|sender| sender.ids),
        }
    }

    /// The spans that it links to, and how each was found.
    pub fn links(&self) -> impl Iterator<Item = Link> {
        let sender = self.view.sender().map(|Sender { ids, method, .. }| match method {
            Method::Message => Link { ids, method: "message", flags: REMOTE_FLAGS },
            Method::Sequence => Link { ids, method: "sequence", flags: REMOTE_FLAGS },
        });
        // Nothing says that these spans are sampled.
        let flags = REMOTE_FLAGS & !SAMPLED;
        let context = self.view.context.and_then(|Context { ids, source }| match source {
            Source::Thread { sampled: true } => None,
            Source::Thread { sampled: false } => Some(Link { ids, method: "thread_context", flags }),
            Source::Obi => Some(Link { ids, method: "obi", flags }),
            Source::Environment => Some(Link { ids, method: "environment", flags }),
        });
        sender.into_iter().chain(context)
    }

    /// The span's flags.
    pub fn flags(&self) -> u32 {
        if self.parent().is_some() { REMOTE_FLAGS } else { SPAN_FLAGS }
    }

    /// The span that a log record names, and its flags: this call's own, else the application's that it was made in.
    pub fn logged_span(&self) -> Option<(Ids, u32)> {
        let context = || match self.view.context? {
            Context { ids, source: Source::Thread { sampled } } => Some((ids, u32::from(sampled))),
            Context { ids, source: Source::Obi } => Some((ids, 0)),
            Context { source: Source::Environment, .. } => None,
        };
        self.span().map(|ids| (ids, SAMPLED)).or_else(context)
    }

    /// Its entry, ns since 1970.
    pub fn start_ns(&self) -> u64 {
        self.view.start_ns
    }

    /// A log record's severity: WARN where the status would be Error, else INFO.
    pub fn severity(&self) -> (u8, &'static str) {
        match self.view.error() {
            Some(_) => (13, "WARN"),
            None => (9, "INFO"),
        }
    }

    /// A log record's name.
    pub fn event_name(&self) -> &'static str {
        match self.view.call.op {
            Op::MqOpen => "posix_mq.open",
            Op::MqUnlink => "posix_mq.unlink",
            Op::MqTimedsend => "posix_mq.send",
            Op::MqTimedreceive => "posix_mq.receive",
            Op::MqNotify => "posix_mq.notify",
            Op::MqGetsetattr => "posix_mq.getsetattr",
        }
    }

    /// What a log record says besides what the span says.
    pub fn log_attributes(&self, to: &mut impl Attributes) {
        self.view.attributes(to);
        to.double("posix_mq.duration", self.view.call.duration_ns() as f64 / 1e9);
    }
}

impl Resource {
    /// Gives every attribute.
    pub fn attributes(&self, to: &mut impl Attributes) {
        for (key, value) in &self.attributes {
            match value {
                Value::Text(text) => to.text(key, text),
                Value::Int(int) => to.int(key, *int),
                Value::Double(double) => to.double(key, *double),
                Value::Bool(bool) => to.boolean(key, *bool),
            }
        }
    }
}
