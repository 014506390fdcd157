//! The page of all queues. Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::app::App;
use super::paint::{Column, Theme, bar, cell, cut_middle, fit, put, put_across, select};
use crate::model::values::SortKey;
use crate::overview::numbers::{UNKNOWN, known, rate, time};
use crate::overview::order;
use crate::overview::snapshot::{QueueRow, Snapshot};
use crate::overview::text::{leading_errno, queue_name};

/// Nothing to say: no queue, no message.
pub const NONE: &str = "-";
/// The name is given so much room at most.
const NAME: u16 = 48;

const fn column(head: &'static str, width: u16, rank: u8) -> Column {
    Column { head, width, is_left: false, rank }
}

/// The columns, with what each sorts by.
const COLUMNS: [(Column, SortKey); 13] = [
    (Column { head: "QUEUE", width: 14, is_left: true, rank: 0 }, SortKey::Name),
    (Column { head: "NAMESPACE", width: 12, is_left: true, rank: 9 }, SortKey::Namespace),
    (Column { head: "FILL", width: 6, is_left: true, rank: 4 }, SortKey::Depth),
    (column("DEPTH", 9, 0), SortKey::Depth),
    (column("PEAK", 5, 7), SortKey::Depth),
    (column("IN/S", 5, 0), SortKey::In),
    (column("OUT/S", 5, 0), SortKey::Out),
    (column("OLDEST", 6, 3), SortKey::Oldest),
    (column("WAIT50", 6, 6), SortKey::Wait50),
    (column("WAIT99", 6, 5), SortKey::Wait99),
    (Column { head: "FAIL/S", width: 13, is_left: true, rank: 2 }, SortKey::Failures),
    (column("RD/WR", 5, 8), SortKey::Open),
    (column("BLOCKED", 7, 1), SortKey::Blocked),
];

/// `3 queues  in 5.0/s  out 4.0/s  3.0 failures/s`.
fn sums(snapshot: &Snapshot, shown: usize) -> String {
    let rows = &snapshot.queues;
    let sum = |of: fn(&QueueRow) -> f64| rate(rows.iter().map(of).sum());
    let of_all = if shown == rows.len() { String::new() } else { format!(" of {}", rows.len()) };
    format!(
        "{shown}{of_all} queue{}  in {}/s  out {}/s  fail {}/s",
        if rows.len() == 1 { "" } else { "s" },
        sum(|row| row.sent_per_second),
        sum(|row| row.received_per_second),
        sum(|row| row.failures_per_second),
    )
}

/// Draws it.
pub fn draw(app: &mut App, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    let shown = app.queues().len();
    app.title(buffer, area, &sums(&app.content.snapshot, shown));
    let columns = COLUMNS.map(|(column, _)| column);
    let places = fit(&columns, area.width, NAME);
    heads(app, buffer, area, &places);
    let room = usize::from(area.height.saturating_sub(2));
    app.scroll_to(app.cursor, room, shown);
    app.lines = (room, 2);
    let rows = app.queues();
    for (line, row) in rows.iter().skip(app.offset).take(room).enumerate() {
        let y = line as u16 + 2;
        let spans = places.iter().flat_map(|(at, width)| cells(theme, row, *at, *width)).collect::<Vec<_>>();
        put(buffer, area, y, &Line::from(spans));
        if app.offset + line == app.cursor {
            select(theme, buffer, Rect { y: area.y + y, height: 1, ..area });
        }
    }
    if rows.is_empty() {
        let why = match app.filter.is_empty() {
            true => "No queue yet. Queues are shown from their first call on, and those that exist already.",
            false => "No queue matches the filter: Esc clears it.",
        };
        put(buffer, area, 3, &Line::from(format!(" {why}")));
    }
}

fn heads(app: &mut App, buffer: &mut Buffer, area: Rect, places: &[(usize, u16)]) {
    let theme = app.theme;
    let (mut text, mut marked) = (String::new(), false);
    app.heads.clear();
    for (at, width) in places {
        let (column, key) = COLUMNS[*at];
        let from = area.x + Span::raw(&text).width() as u16;
        // The first of those that sort by the same.
        let is_sorted = key == app.sort && !marked;
        marked |= is_sorted;
        let down = order::begins_with_greatest(key) != app.inverted;
        let arrow = match (is_sorted, down) {
            (false, _) => "",
            (true, true) => theme.glyph("▼", "v"),
            (true, false) => theme.glyph("▲", "^"),
        };
        let head = match column.is_left {
            true => format!("{}{arrow}", column.head),
            false => format!("{arrow}{}", column.head),
        };
        text += &cell(theme, &head, *width, column.is_left);
        text.push(' ');
        app.heads.push((from, from + width, key));
    }
    put_across(
        buffer,
        area,
        1,
        &text,
        theme.strong().patch(Style::new().add_modifier(ratatui::style::Modifier::UNDERLINED)),
    );
}

fn cells(theme: Theme, row: &QueueRow, at: usize, width: u16) -> Vec<Span<'static>> {
    let (column, key) = COLUMNS[at];
    let in_place =
        |text: &str, style: Style| vec![Span::styled(cell(theme, text, width, column.is_left), style), Span::raw(" ")];
    let plain = Style::new();
    let is_full =
        matches!((row.depth, row.capacity), (Some(depth), Some(capacity)) if depth >= capacity && capacity > 0);
    match (column.head, key) {
        ("QUEUE", _) => in_place(&cut_middle(&theme.text(&queue_name(row)), width.into(), theme), theme.strong()),
        ("NAMESPACE", _) => in_place(&namespace(row), plain),
        ("FILL", _) => match (row.depth, row.capacity) {
            (Some(depth), Some(capacity)) => {
                let mut spans = bar(theme, depth, row.peak, capacity, width.into());
                spans.push(Span::raw(" "));
                spans
            }
            _ => in_place("", plain),
        },
        ("DEPTH", _) => match row.exists {
            false => in_place("no queue", theme.faint()),
            true => {
                let depth = known(row.depth, |depth| depth.to_string());
                let capacity = known(row.capacity, |capacity| capacity.to_string());
                let mark = if is_full { "!" } else { "" };
                in_place(&format!("{mark}{depth}/{capacity}"), if is_full { theme.bad() } else { plain })
            }
        },
        ("PEAK", _) => in_place(&row.peak.map_or(NONE.into(), |peak| peak.to_string()), plain),
        ("IN/S", _) => in_place(&rate(row.sent_per_second), plain),
        ("OUT/S", _) => in_place(&rate(row.received_per_second), plain),
        ("OLDEST", _) if !row.exists => in_place(NONE, plain),
        ("OLDEST", _) => in_place(&known(row.oldest_age_seconds, time), plain),
        ("WAIT50", _) => in_place(&row.wait(|waits| waits.p50), plain),
        ("WAIT99", _) => in_place(&row.wait(|waits| waits.p99), plain),
        ("FAIL/S", _) => {
            let (failures, errno) = (rate(row.failures_per_second), leading_errno(row));
            let is_error = row.errnos.first().is_some_and(|errno| errno.is_error && errno.per_second > 0.0);
            in_place(format!("{failures} {errno}").trim_end(), if is_error { theme.bad() } else { plain })
        }
        ("RD/WR", _) => in_place(&known(row.descriptors, |open| format!("{}/{}", open.read, open.write)), plain),
        ("BLOCKED", _) if !row.exists => in_place(NONE, plain),
        _ => in_place(&blocked(row), plain),
    }
}

/// The container, else the ipc namespace.
pub fn namespace(row: &QueueRow) -> String {
    match (&row.container_id, row.ipc_namespace) {
        (Some(id), _) => id.chars().take(12).collect(),
        (None, Some(number)) => number.to_string(),
        (None, None) => NONE.into(),
    }
}

/// Who waits: to send, and to receive.
pub fn blocked(row: &QueueRow) -> String {
    match (row.blocked.send, row.blocked.receive) {
        (None, None) => UNKNOWN.into(),
        (send, receive) => format!("{}s {}r", known(send, |n| n.to_string()), known(receive, |n| n.to_string())),
    }
}
