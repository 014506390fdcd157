//! Calls as they end, like a live strace, and all that is known of one. Pure code.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};

use super::app::App;
use super::paint::{Theme, cut, put, put_across, select};
use crate::overview::log::LoggedCall;
use crate::overview::numbers::{count, duration};

/// So wide a line has room for all that the console shows.
const WIDE: u16 = 120;

/// When, who, what, how long, and which message. Where there is little room the time has less digits, and the process
/// no number.
fn line(theme: Theme, call: &LoggedCall, zone: &TimeZone, width: u16) -> Line<'static> {
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(call.start_ns);
    let at = Timestamp::try_from(at).unwrap_or_default();
    let (format, pid) = match width {
        WIDE.. => ("%H:%M:%S.%6f", format!("[{}/{}] ", call.image.pid, call.tid)),
        _ => ("%H:%M:%S.%3f", format!("[{}] ", call.tid)),
    };
    let time = zone.to_datetime(at).strftime(format).to_string();
    let style = if call.is_error { theme.bad() } else { ratatui::style::Style::new() };
    Line::from(vec![
        Span::styled(format!("{time} "), theme.faint()),
        Span::styled(theme.text(&call.comm), theme.strong()),
        Span::raw(pid),
        Span::styled(theme.text(&call.line), style),
        Span::styled(format!(" <{}> ", duration(call.duration_ns)), theme.faint()),
        Span::raw(theme.text(&call.passage)),
    ])
}

/// Draws those that have room into an area, the latest at the bottom unless the cursor is on an earlier one.
pub fn list(app: &mut App, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    let room = usize::from(area.height);
    let (len, cursor) = {
        let calls = app.calls();
        (calls.len(), app.call_cursor(&calls))
    };
    match cursor {
        Some(cursor) => app.scroll_to(cursor, room, len),
        None => app.offset = len.saturating_sub(room),
    }
    app.lines = (room, area.y);
    let zone = app.content.zone.clone();
    for (at, call) in app.calls().iter().skip(app.offset).take(room).enumerate() {
        put(buffer, area, at as u16, &line(theme, call, &zone, area.width));
        if Some(app.offset + at) == cursor {
            select(theme, buffer, Rect { y: area.y + at as u16, height: 1, ..area });
        }
    }
}

/// Draws the page.
pub fn draw(app: &mut App, buffer: &mut Buffer, area: Rect) {
    let limited = app.content.snapshot.health.limited;
    let shown = app.calls().len();
    let left_out = if limited > 0 { format!(", {} more without a line", count(limited as f64)) } else { String::new() };
    app.title(buffer, area, &format!("{shown} call{}{left_out}", if shown == 1 { "" } else { "s" }));
    if shown == 0 {
        let why = if app.filter.is_empty() { "No call yet." } else { "No call matches the filter: Esc clears it." };
        put(buffer, area, 2, &Line::from(format!(" {why}")));
    }
    let rest = Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(1), ..area };
    list(app, buffer, rest);
}

/// Draws all that is known of a call over the page.
pub fn details(app: &App, call: &LoggedCall, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    let mut lines = vec![line(theme, call, &app.content.zone, area.width), Line::default()];
    if let Some(mark) = &call.mark {
        let other = app.content.calls.iter().find(|other| {
            other.mark.as_ref() == Some(mark) && other.number != call.number && other.queue == call.queue
        });
        if let Some(other) = other {
            lines.push(Line::from(Span::styled("the other side of its message:", theme.faint())));
            lines.extend([line(theme, other, &app.content.zone, area.width), Line::default()]);
        }
    }
    let wide = call.details.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in call.details.iter() {
        lines.push(Line::from(vec![
            Span::styled(format!("{key:<wide$}  "), theme.faint()),
            Span::raw(cut(&theme.text(value), usize::from(area.width).saturating_sub(wide + 2), theme)),
        ]));
    }
    over(buffer, area, theme, " Call: any key closes it", &lines);
}

/// Draws lines over all of an area.
pub fn over(buffer: &mut Buffer, area: Rect, theme: Theme, title: &str, lines: &[Line<'_>]) {
    Clear.render(area, buffer);
    put_across(buffer, area, 0, title, theme.head());
    for (at, line) in lines.iter().enumerate() {
        put(buffer, area, u16::try_from(at + 1).unwrap_or(u16::MAX), line);
    }
}
