//! A call as a line of the console: when, who, what, and how long. Pure code.

use std::io::Write;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::record::Record;
use super::text::{printable, utf8};
use crate::event::{Args, Call, Queue};

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

/// Appends the line; times are those of `zone`.
pub fn line(record: &Record<'_>, zone: &TimeZone, color: bool, out: &mut Vec<u8>) {
    let call = record.view.call;
    let at = Timestamp::try_from(SystemTime::UNIX_EPOCH + Duration::from_nanos(record.start_ns())).unwrap_or_default();
    let time = zone.to_datetime(at).strftime("%H:%M:%S.%6f").to_string();
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
        depth(call),
    );
}

/// How full a send left its queue.
fn depth(call: &Call) -> String {
    match (&call.args, &call.queue) {
        (Args::Send(_), Some(Queue { maxmsg, curmsgs: Some(curmsgs), .. })) => format!(" depth {curmsgs}/{maxmsg}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

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
