//! A queue's page: how it is, how it went, who sends to whom, who waits, and its latest calls. Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::app::App;
use super::paint::{Theme, bar, cell, cut, put, rule};
use super::queues::{NONE, blocked, namespace};
use super::{calls, chart};
use crate::model::reading::QueueName;
use crate::overview::numbers::{UNKNOWN, count, known, rate, time};
use crate::overview::snapshot::{FlowRow, QueueRow};

/// Draws it.
pub fn draw(app: &mut App, name: &QueueName, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    let shown = theme.text(&name.1);
    app.title(buffer, area, &format!("{shown}  ipc namespace {}", name.0));
    let row = app.content.snapshot.queues.iter().find(|row| row.key.as_ref() == Some(name)).cloned();
    let Some(row) = row else {
        put(buffer, area, 2, &Line::from(" Nothing is known of this queue any more: Esc goes back."));
        return;
    };
    let mut y = 1;
    for line in summary(theme, &row) {
        put(buffer, area, y, &line);
        y += 1;
    }
    let height = match area.height {
        0..18 => 2,
        18..40 => 4,
        _ => 8,
    };
    let below = |y: u16| Rect { y: area.y + y.min(area.height), height: area.height.saturating_sub(y), ..area };
    courses(app, &row, buffer, Rect { height: (height + 1).min(below(y).height), ..below(y) });
    y += height + 1;
    // The flows get a third of what is left, the threads that wait another, and the calls the rest.
    let left = usize::from(area.height.saturating_sub(y));
    for line in flows(app, name, &shown, area.width, (left / 3).max(2)) {
        put(buffer, area, y, &line);
        y += 1;
    }
    for line in threads(app, name, area.width, (left / 3).max(2)) {
        put(buffer, area, y, &line);
        y += 1;
    }
    put(buffer, area, y, &rule(theme, "latest calls", area.width));
    calls::list(app, buffer, below(y + 1));
}

/// Three lines of how it is.
fn summary(theme: Theme, row: &QueueRow) -> [Line<'static>; 3] {
    let faint = |text: &str| Span::styled(text.to_owned(), theme.faint());
    let strong = |text: String| Span::styled(text, theme.strong());
    let mut first = vec![Span::raw(" ")];
    match (row.depth, row.capacity) {
        (Some(depth), Some(capacity)) => {
            first.extend(bar(theme, depth, row.peak, capacity, 20));
            let is_full = depth >= capacity && capacity > 0;
            let text = format!(" {depth}/{capacity}{}", if is_full { " FULL" } else { "" });
            first.push(Span::styled(text, if is_full { theme.bad() } else { theme.strong() }));
        }
        _ => first.push(strong("no queue of this name".into())),
    }
    first.extend([faint("  peak "), strong(row.peak.map_or(NONE.into(), |peak| peak.to_string()))]);
    first.extend([
        faint("  in "),
        strong(rate(row.sent_per_second)),
        faint("/s  out "),
        strong(rate(row.received_per_second)),
        faint("/s"),
    ]);
    let second = vec![
        faint(" sent "),
        strong(count(row.sent as f64)),
        faint("  received "),
        strong(count(row.received as f64)),
        faint("  oldest "),
        strong(if row.exists { known(row.oldest_age_seconds, time) } else { NONE.into() }),
        faint("  wait "),
        strong(format!("{} / {}", row.wait(|waits| waits.p50), row.wait(|waits| waits.p99))),
        faint(" (p50 / p99)"),
    ];
    let errnos: Vec<String> = row
        .errnos
        .iter()
        .take(3)
        .map(|errno| {
            let cause = errno.cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
            format!("{} {}{cause} {}", count(errno.total as f64), errno.errno, errno.operation)
        })
        .collect();
    let third = vec![
        faint(" open "),
        strong(known(row.descriptors, |open| format!("{} to read, {} to write", open.read, open.write))),
        faint("  waiting "),
        strong(if row.exists { blocked(row) } else { NONE.into() }),
        faint("  failed "),
        Span::styled(
            if errnos.is_empty() { "0".into() } else { errnos.join(", ") },
            if row.errnos.iter().any(|errno| errno.is_error) { theme.bad() } else { theme.strong() },
        ),
        faint(&row.container_id.as_ref().map_or_else(String::new, |_| format!("  container {}", namespace(row)))),
    ];
    [Line::from(first), Line::from(second), Line::from(third)]
}

/// Depth on the left, messages that come on the right.
fn courses(app: &App, row: &QueueRow, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    let course = &app.content.course;
    let half = area.width / 2;
    let seconds: f64 = course.iter().rev().take(half.into()).map(|point| point.seconds).sum();
    let depths: Vec<Option<f64>> = course.iter().map(|point| point.peak.map(|peak| peak as f64)).collect();
    let rates: Vec<Option<f64>> = course.iter().map(|point| Some(point.sent)).collect();
    let most = |values: &[Option<f64>]| values.iter().rev().take(half.into()).flatten().copied().fold(0.0, f64::max);
    let (deepest, fastest) = (most(&depths), most(&rates));
    let capacity = row.capacity.map_or(deepest, |capacity| capacity as f64);
    let left = Rect { width: half.saturating_sub(1), ..area };
    let right = Rect { x: area.x + half, width: area.width - half, ..area };
    put(buffer, left, 0, &rule(theme, &format!("depth, {}, most {}", time(seconds), count(deepest)), left.width));
    put(buffer, right, 0, &rule(theme, &format!("in/s, most {}", rate(fastest)), right.width));
    let body = |area: Rect| Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(1), ..area };
    chart::columns(buffer, body(left), &depths, capacity, theme, theme.good());
    chart::columns(buffer, body(right), &rates, fastest, theme, Style::new());
}

/// Who sends to whom: senders on the left, receivers on the right, the busiest first.
fn flows(app: &App, name: &QueueName, shown: &str, width: u16, room: usize) -> Vec<Line<'static>> {
    let theme = app.theme;
    let of_queue = || app.content.snapshot.flows.iter().filter(|flow| flow.key == *name);
    let mut senders: Vec<&FlowRow> = of_queue().filter(|flow| flow.sent > 0).collect();
    let mut receivers: Vec<&FlowRow> = of_queue().filter(|flow| flow.received > 0).collect();
    senders.sort_by(|a, b| b.sent_per_second.total_cmp(&a.sent_per_second).then(b.sent.cmp(&a.sent)));
    receivers.sort_by(|a, b| b.received_per_second.total_cmp(&a.received_per_second).then(b.received.cmp(&a.received)));
    let mut lines = vec![rule(theme, "who sends to whom", width)];
    let middle = shown.chars().count().clamp(4, usize::from(width / 5).clamp(4, 40));
    let side = usize::from(width).saturating_sub(middle + 12) / 2;
    let text = |flow: &FlowRow, rate_of: f64, total: u64| {
        let name = flow.name.as_deref().map_or(UNKNOWN.into(), |name| theme.text(name));
        let in_all = if width < 100 { String::new() } else { format!(", {} in all", count(total as f64)) };
        format!("{name}[{}] {}/s{in_all}", flow.pid, rate(rate_of))
    };
    let rows = senders.len().max(receivers.len()).min(room.saturating_sub(1)).max(1);
    for at in 0..rows {
        let is_last = at + 1 == rows;
        let hidden = |all: &[&FlowRow]| (is_last && all.len() > rows).then(|| format!("{} more", all.len() - at));
        let arrow = |is_there: bool| if is_there { theme.glyph(" ──→ ", " --> ") } else { "     " };
        let left = hidden(&senders).or_else(|| senders.get(at).map(|flow| text(flow, flow.sent_per_second, flow.sent)));
        let right = hidden(&receivers)
            .or_else(|| receivers.get(at).map(|flow| text(flow, flow.received_per_second, flow.received)));
        let (left, right) = match at {
            0 => (left.unwrap_or_else(|| "nobody seen".into()), right.unwrap_or_else(|| "nobody seen".into())),
            _ => (left.unwrap_or_default(), right.unwrap_or_default()),
        };
        let name = if at == 0 { cut(shown, middle, theme) } else { String::new() };
        lines.push(Line::from(vec![
            Span::raw(" "),
            Span::raw(cell(theme, &left, side as u16, false)),
            Span::raw(arrow(at < senders.len())),
            Span::styled(cell(theme, &name, middle as u16, true), theme.strong()),
            Span::raw(arrow(at < receivers.len())),
            Span::raw(cut(&right, side, theme)),
        ]));
    }
    lines
}

/// Who waits, and for how long.
fn threads(app: &App, name: &QueueName, width: u16, room: usize) -> Vec<Line<'static>> {
    let theme = app.theme;
    let waiting: Vec<_> =
        app.content.snapshot.blocked_threads.iter().filter(|thread| thread.key.as_ref() == Some(name)).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![rule(theme, &format!("{} waiting", waiting.len()), width)];
    for (at, thread) in waiting.iter().enumerate().take(room.saturating_sub(1)) {
        let rest = waiting.len() - at;
        if at + 2 == room && rest > 1 {
            lines.push(Line::from(format!(" {rest} more")));
            break;
        }
        lines.push(Line::from(vec![
            Span::styled(format!(" {}", theme.text(&thread.name)), theme.strong()),
            Span::raw(format!("[{}/{}] in {} for ", thread.pid, thread.tid, thread.operation)),
            Span::raw(known(thread.waiting_seconds, time)),
        ]));
    }
    lines
}
