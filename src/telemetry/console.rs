//! A call as a line of the console: when, who, what, and how long; on a terminal aligned and coloured. Pure code.

use std::io::Write;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::record::Record;
use super::view::View;
use crate::model::call::{Args, Ids, Queue, Sender};
use crate::model::text::{printable, utf8};

const RED: &str = "\x1b[31m";
const MAGENTA: &str = "\x1b[35m";
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// How lines look. What is neither coloured nor aligned is a contract: other people's scripts read it.
#[derive(Clone, Debug, Default)]
pub struct Style {
    color: bool,
    columns: Option<Columns>,
}

impl Style {
    /// Lines that are coloured, or aligned with those before.
    pub fn new(color: bool, is_aligned: bool) -> Self {
        Self { color, columns: is_aligned.then(Columns::default) }
    }

    fn paint(&self, color: &'static str) -> &'static str {
        if self.color { color } else { "" }
    }
}

/// As wide as the widest so far, but for what is so wide that all else would stand far to the right.
#[derive(Clone, Debug, Default)]
struct Columns {
    who: usize,
    call: usize,
}

const WIDEST_WHO: usize = 32;
const WIDEST_CALL: usize = 48;

/// How many spaces bring a text to the column's end.
fn padding(column: Option<&mut usize>, text: usize, widest: usize) -> usize {
    let Some(column) = column else { return 0 };
    *column = (*column).max(text.min(widest));
    column.saturating_sub(text)
}

/// `14.2us`: three digits or so, in the unit that suits.
pub fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match value < 99.95 {
        true => format!("{value:.1}{unit}"),
        false => format!("{value:.0}{unit}"),
    }
}

/// `12:01:02.123456`, of a time since 1970 in ns.
pub fn time_of_day(ns: u64, zone: &TimeZone) -> String {
    let at = Timestamp::try_from(SystemTime::UNIX_EPOCH + Duration::from_nanos(ns)).unwrap_or_default();
    zone.to_datetime(at).strftime("%H:%M:%S.%6f").to_string()
}

/// Appends the line; times are those of `zone`.
pub fn line(record: &Record<'_>, zone: &TimeZone, style: &mut Style, out: &mut Vec<u8>) {
    let view = record.view;
    let (comm, text) = (utf8(view.call.comm()), view.line());
    let (comm, ids) = (printable(&comm), format!("[{}/{}]", view.call.image.pid, view.call.tid));
    let (call, result) = text.rsplit_once(" = ").unwrap_or((&text, ""));
    let (operation, arguments) = call.split_at(call.find('(').map_or(call.len(), |at| at + 1));
    let width = |text: &str| text.chars().count();
    let after_who =
        padding(style.columns.as_mut().map(|columns| &mut columns.who), width(&comm) + width(&ids), WIDEST_WHO);
    let after_call = padding(style.columns.as_mut().map(|columns| &mut columns.call), width(call), WIDEST_CALL);
    let [dim, plain, mark] = [DIM, PLAIN, MAGENTA].map(|color| style.paint(color));
    // Never by colour alone: what failed says so.
    let (name, rest) = if view.error().is_some() { (style.paint(RED), "") } else { (style.paint(CYAN), plain) };
    // Writing to a Vec cannot fail.
    let _ = writeln!(
        out,
        "{dim}{time}{plain} {comm}{dim}{ids}{plain}{:after_who$} {name}{operation}{rest}{arguments}{:after_call$} = \
         {result}{plain} {dim}<{duration}>{plain}{mark}{passage}{plain}",
        "",
        "",
        time = time_of_day(record.start_ns(), zone),
        duration = duration(view.call.duration_ns()),
        passage = passage(view),
    );
}

/// How full a send left its queue, how long a message that was received lay there, and the mark that both share.
pub fn passage(view: &View<'_>) -> String {
    let Some(message) = view.message() else { return String::new() };
    let mut text = String::new();
    match (&view.call.args, &view.call.queue) {
        (Args::Send(_), Some(Queue { maxmsg, curmsgs: Some(curmsgs), .. })) => {
            text += &format!(" depth {curmsgs}/{maxmsg}")
        }
        (Args::Receive(_), _) => {
            if let Some(wait_ns) = message.wait_ns {
                text += &format!(" queued {}", duration(wait_ns));
            }
        }
        _ => {}
    }
    match message.sent_by {
        Some(Sender { ids, .. }) => text += &format!(" ←{}", mark(ids)),
        None if message.tracked && view.call.ret >= 0 => text += &format!(" →{}", mark(view.call.ids)),
        None => {}
    }
    text
}

/// The end of the span id: short, and enough to tell lines near each other apart.
pub fn mark(Ids { span, .. }: Ids) -> String {
    format!("{:02x}{:02x}", span[6], span[7])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::call::{Call, ImageKey, Message, Method};
    use crate::model::examples::{example, message, queue};
    use crate::model::values::Op;

    fn shown(call: &Call) -> String {
        let view = View::new(call, 0);
        let mut out = Vec::new();
        line(&Record { view: &view, ids: None }, &TimeZone::UTC, &mut Style::default(), &mut out);
        let line = String::from_utf8(out).unwrap();
        line.split_once("<0ns>").unwrap().1.trim_end().to_owned()
    }

    /// Prevents a mark without a link, and a send and its receive with different ones.
    #[test]
    fn what_became_of_a_message() {
        let ids = Ids { trace: [1; 16], span: [1, 2, 3, 4, 5, 6, 0xa3, 0xf9] };
        let send = |message, ret| Call {
            op: Op::MqTimedsend,
            args: Args::Send(message),
            queue: Some(queue(b"orders")),
            ret,
            ids,
            ..example()
        };
        let receive = |message| Call { op: Op::MqTimedreceive, args: Args::Receive(message), ret: 64, ..example() };
        let sent_by = Some(Sender { ids, comm: *b"orders\0\0\0\0\0\0\0\0\0\0", method: Method::Message });
        for (call, expected) in [
            (send(Message { tracked: true, ..message() }, 0), "depth 3/10 →a3f9"),
            (send(Message { tracked: true, ..message() }, -11), "depth 3/10"),
            (send(message(), 0), "depth 3/10"),
            (receive(Message { sent_by, wait_ns: Some(446_000), ..message() }), "queued 446us ←a3f9"),
            (receive(Message { wait_ns: Some(0), ..message() }), "queued 0ns"),
            (receive(message()), ""),
        ] {
            assert_eq!(shown(&call).trim_start(), expected);
        }
    }

    fn lines(calls: &[Call], style: &mut Style) -> Vec<String> {
        let mut out = Vec::new();
        for call in calls {
            let view = View::new(call, 1_002_123_456);
            line(&Record { view: &view, ids: None }, &TimeZone::UTC, style, &mut out);
        }
        String::from_utf8(out).unwrap().lines().map(Into::into).collect()
    }

    /// Prevents what scripts read from changing by a byte, a terminal's lines from being askew, and colour from being the only
    /// thing that tells a failure.
    #[test]
    fn piped_aligned_and_coloured() {
        let image = |pid| ImageKey { pid, ..example().image };
        let failed =
            Call { comm: *b"biller\0\0\0\0\0\0\0\0\0\0", image: image(1301), tid: 1301, left_ns: 1_900, ..example() };
        let sent = Call {
            op: Op::MqTimedsend,
            args: Args::Send(Message { tracked: true, ..message() }),
            queue: Some(queue(b"orders")),
            comm: *b"ordering\0\0\0\0\0\0\0\0",
            image: image(1234),
            tid: 1235,
            left_ns: 3_100,
            ret: 0,
            ids: Ids { trace: [1; 16], span: [1, 2, 3, 4, 5, 6, 0xa3, 0xf9] },
            ..example()
        };
        let calls = [failed.clone(), sent, failed];
        let piped = [
            r#"00:00:01.002123 biller[1301/1301] mq_open("/orders", O_RDONLY) = -1 ENOENT <1.9us>"#,
            r#"00:00:01.002123 ordering[1234/1235] mq_timedsend("/orders", 64 bytes, prio 5) = 0 <3.1us> depth 3/10 →a3f9"#,
        ];
        assert_eq!(lines(&calls, &mut Style::default()), [piped[0], piped[1], piped[0]]);
        let aligned = lines(&calls, &mut Style::new(false, true));
        assert_eq!(aligned[..2], piped);
        assert_eq!(["mq_", " = "].map(|part| aligned[2].find(part)), ["mq_", " = "].map(|part| piped[1].find(part)));
        let coloured = lines(&calls, &mut Style::new(true, false));
        assert!(coloured[0].contains(RED) && !coloured[1].contains(RED));
        let plain = |line: &String| {
            let mut parts = line.split('\x1b');
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |line, part| line + part.split_once('m').unwrap().1)
        };
        assert_eq!(coloured.iter().map(plain).collect::<Vec<_>>(), [piped[0], piped[1], piped[0]]);
    }

    /// Prevents a duration from being shown in a unit or with digits that nobody reads.
    #[test]
    fn durations() {
        for (ns, expected) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_900, "1.9us"),
            (14_210, "14.2us"),
            (99_960, "100us"),
            (446_000, "446us"),
            (1_500_000, "1.5ms"),
            (61_000_000_000, "61.0s"),
        ] {
            assert_eq!(duration(ns), expected);
        }
    }
}
