//! The page of processes. Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;
use ratatui::text::Line;

use super::app::App;
use super::paint::{Column, cell, fit, put, put_across, select};
use super::queues::NONE;
use crate::overview::numbers::{UNKNOWN, count, rate};
use crate::overview::snapshot::ProcessRow;

const fn column(head: &'static str, width: u16, rank: u8) -> Column {
    Column { head, width, is_left: false, rank }
}

const COLUMNS: [Column; 9] = [
    Column { head: "PROCESS", width: 15, is_left: true, rank: 0 },
    column("PID", 8, 0),
    Column { head: "SERVICE", width: 16, is_left: true, rank: 5 },
    Column { head: "CONTAINER", width: 12, is_left: true, rank: 6 },
    column("CALLS/S", 7, 0),
    column("SENT/S", 6, 1),
    column("RECEIVED/S", 10, 2),
    column("FAIL/S", 6, 3),
    column("CALLS", 6, 4),
];

fn cells(row: &ProcessRow) -> [String; COLUMNS.len()] {
    [
        row.name.clone().unwrap_or_else(|| UNKNOWN.into()),
        row.pid.to_string(),
        row.service.clone().unwrap_or_else(|| NONE.into()),
        row.container_id.as_deref().map_or(NONE.into(), |id| id.chars().take(12).collect()),
        rate(row.calls_per_second),
        rate(row.sent_per_second),
        rate(row.received_per_second),
        rate(row.failures_per_second),
        count(row.calls as f64),
    ]
}

/// Draws it.
pub fn draw(app: &mut App, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    let shown = app.processes().len();
    app.title(buffer, area, &format!("{shown} process{}", if shown == 1 { "" } else { "es" }));
    let places = fit(&COLUMNS, area.width, 32);
    let line = |cells: &[String]| {
        let in_place = |(at, width): &(usize, u16)| cell(theme, &theme.text(&cells[*at]), *width, COLUMNS[*at].is_left);
        places.iter().map(in_place).collect::<Vec<_>>().join(" ")
    };
    let heads = COLUMNS.map(|column| column.head.to_owned());
    put_across(buffer, area, 1, &line(&heads), theme.strong().add_modifier(Modifier::UNDERLINED));
    let room = usize::from(area.height.saturating_sub(2));
    app.scroll_to(app.cursor, room, shown);
    app.lines = (room, 2);
    for (at, row) in app.processes().iter().skip(app.offset).take(room).enumerate() {
        let y = at as u16 + 2;
        put(buffer, area, y, &Line::from(line(&cells(row))));
        if app.offset + at == app.cursor {
            select(theme, buffer, Rect { y: area.y + y, height: 1, ..area });
        }
    }
}
