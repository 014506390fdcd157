//! A call as a line of the console: when, who, what, and how long. Pure code.

use std::io::Write;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::record::Record;
use super::view::View;
use crate::model::call::{Args, Ids, Queue, Sender};
use crate::model::text::{printable, utf8};

const RED: &str = "\x1b[31m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

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
pub fn line(record: &Record<'_>, zone: &TimeZone, color: bool, out: &mut Vec<u8>) {
    let call = record.view.call;
    let time = time_of_day(record.start_ns(), zone);
    let comm = utf8(call.comm());
    let (dim, plain) = if color { (DIM, PLAIN) } else { ("", "") };
    let (red, plain_line) = if color && record.view.error().is_some() { (RED, PLAIN) } else { ("", "") };
    // Writing to a Vec cannot fail.
    let _ = writeln!(
        out,
        "{dim}{time}{plain} {}[{}/{}] {red}{}{plain_line} {dim}<{}>{plain}{}",
        printable(&comm),
        call.image.pid,
        call.tid,
        record.view.line(),
        duration(call.duration_ns()),
        passage(record.view),
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
    use crate::model::call::{Call, Message, Method};
    use crate::model::examples::{example, message, queue};
    use crate::model::values::Op;

    fn shown(call: &Call) -> String {
        let view = View::new(call, 0);
        let mut out = Vec::new();
        line(&Record { view: &view, ids: None }, &TimeZone::UTC, false, &mut out);
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
