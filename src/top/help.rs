//! What the keys do, what the queues can be sorted by, and the last line: how well mqspan sees, or the filter that is being
//! typed. Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::app::{App, Page};
use super::calls::over;
use super::paint::{Theme, cut, put, put_across};
use crate::cli::choices::described;
use crate::model::values::SortKey;
use crate::overview::numbers::count;
use crate::overview::snapshot::Health;

const KEYS: [(&str, &str); 17] = [
    ("Up Down j k PgUp PgDn", "move; Home and End; the wheel of a mouse, too"),
    ("Enter, click", "a queue's page; on calls all that is known of one"),
    ("1, Esc", "back to the queues"),
    ("c", "calls as they end, like a live strace"),
    ("p", "processes"),
    ("/", "filter while typing; Enter keeps it, Esc clears it"),
    ("f", "calls stand still, or go on"),
    ("s", "choose what queues are sorted by; or click a heading"),
    ("< >", "sort by the column before, the next one"),
    ("I", "the other way round; the arrow shows which"),
    ("a", "ASCII characters only, or not"),
    ("^L ^Z", "draw anew; stop, and fg goes on"),
    ("q ^C", "end"),
    ("", ""),
    ("?  -  0", "not known; nothing there; zero"),
    ("!3/3", "full; in the bar | marks the peak since the start"),
    ("1s 2r", "threads that wait: one to send, two to receive"),
];

/// The help.
pub fn keys(theme: Theme, buffer: &mut Buffer, area: Rect) {
    let line = |(key, does): &(&'static str, &'static str)| {
        Line::from(vec![Span::styled(format!(" {key:<22} "), theme.strong()), Span::raw(*does)])
    };
    let mut lines = vec![Line::default()];
    lines.extend(KEYS.iter().map(line));
    lines.push(Line::default());
    lines.push(Line::from(" Waits are those of the last ten intervals; rates those of the last one."));
    over(buffer, area, theme, " Help: any key closes it", &lines);
}

/// What the queues can be sorted by.
pub fn sorts(theme: Theme, at: usize, buffer: &mut Buffer, area: Rect) {
    let line = |(number, key): (usize, &SortKey)| {
        let (name, help) = described(key);
        let mark = if number == at { ">" } else { " " };
        let line = Line::from(format!(" {mark} {name:<10} {help}"));
        if number == at { line.style(theme.selected()) } else { line }
    };
    let lines: Vec<Line<'_>> = SortKey::ALL.iter().enumerate().map(line).collect();
    over(buffer, area, theme, " Sort by: Up and Down, then Enter", &lines);
}

/// The last line.
pub fn foot(app: &App, buffer: &mut Buffer, area: Rect) {
    let theme = app.theme;
    if app.is_typing {
        let prompt = format!("/{}", theme.text(&app.filter));
        put_across(buffer, area, 0, &prompt, theme.strong());
        // The terminal's own cursor stays hidden.
        let x = area.x + Span::raw(&prompt).width().min(usize::from(area.width.saturating_sub(1))) as u16;
        buffer.set_style(Rect { x, width: 1.min(area.width), height: 1.min(area.height), ..area }, theme.head());
        return;
    }
    let keys = match app.page {
        Page::Queues => "?:help /:filter s:sort c:calls p:processes q:quit",
        _ => "?:help Esc:queues /:filter f:pause q:quit",
    };
    let width = usize::from(area.width);
    let (health, is_bad) = health(&app.content.snapshot.health);
    // Where there is no room for all the keys, there is for the one that shows them.
    let keys = if health.len() + keys.len() + 3 <= width { keys } else { "?:help" };
    let room = width.saturating_sub(keys.len() + 2);
    let health = cut(&theme.text(&health), room, theme);
    let gap = room.saturating_sub(Span::raw(&health).width());
    let line = Line::from(vec![
        Span::styled(health, if is_bad { theme.bad() } else { ratatui::style::Style::new() }),
        Span::raw(" ".repeat(gap + 2)),
        Span::styled(keys, theme.faint()),
    ]);
    put(buffer, area, 0, &line);
}

/// What was captured and lost, by what, and what is not known here; whether that is bad.
fn health(health: &Health) -> (String, bool) {
    let Health { hooks, captured, lost, unknown, notices, .. } = health;
    let sum: u64 = lost.values().sum();
    let lost_at = lost.keys().copied().collect::<Vec<_>>().join(", ");
    let lost = if sum == 0 { "0 lost".into() } else { format!("{} LOST at {lost_at}", count(sum as f64)) };
    let mut text = format!("{} captured, {lost}, by {hooks}", count(*captured as f64));
    if let Some(notice) = notices.last() {
        text = format!("{notice}; {text}");
    }
    for what in unknown {
        text += &format!("; not known: {what}");
    }
    (text, sum > 0 || !notices.is_empty())
}
