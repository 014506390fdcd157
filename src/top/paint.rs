//! How things are drawn: styles and characters that a terminal has, text cut to its place, bars, and tables whose least
//! important columns go where there is no room. Never by colour alone. Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::config::top::TerminalKind;
use crate::model::text::printable;

/// What the terminal has.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Its kind.
    pub kind: TerminalKind,
}

impl Theme {
    fn colored(self, color: Color) -> Style {
        if self.kind.color { Style::new().fg(color) } else { Style::new() }
    }

    /// A line that names what stands below it.
    pub fn head(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// The line that keys act on.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)
    }

    /// What is the most important of a line.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What matters less. Not all terminals have it, so that nothing depends on it.
    pub fn faint(self) -> Style {
        if self.kind.color { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
    }

    /// What failed, or is full. The four colours used are told from both black and white.
    pub fn bad(self) -> Style {
        self.colored(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// What is worth a look.
    pub fn notable(self) -> Style {
        self.colored(Color::Magenta)
    }

    /// What is as it should be.
    pub fn good(self) -> Style {
        self.colored(Color::Green)
    }

    /// One of two characters.
    pub fn glyph(self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.kind.ascii { ascii } else { unicode }
    }

    /// Text of others as the terminal can show it: no control characters, and ASCII alone where it has no more.
    pub fn text(self, text: &str) -> String {
        let text = printable(text);
        match self.kind.ascii && !text.is_ascii() {
            false => text.into_owned(),
            true => text.chars().map(|each| if each.is_ascii() { each.to_string() } else { ascii(each) }).collect(),
        }
    }
}

/// Marks of mqspan's own lines, and what else there is by its number.
fn ascii(character: char) -> String {
    match character {
        '→' => ">".into(),
        '←' => "<".into(),
        other => format!("\\u{{{:x}}}", u32::from(other)),
    }
}

/// Text that takes so many columns at most; what was cut shows.
pub fn cut(text: &str, width: usize, theme: Theme) -> String {
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut taken = 0;
    for character in text.chars() {
        let more = Span::raw(character.to_string()).width();
        if taken + more + 1 > width {
            break;
        }
        kept.push(character);
        taken += more;
    }
    if width > 0 {
        kept.push_str(theme.glyph("…", "~"));
    }
    kept
}

/// Text that takes so many columns at most, cut in its middle: names often differ at their ends.
pub fn cut_middle(text: &str, width: usize, theme: Theme) -> String {
    let len = text.len();
    // Wider characters can't be told from their bytes.
    if len <= width || !text.is_ascii() || width < 8 {
        return cut(text, width, theme);
    }
    let end = (width - 1) / 2;
    format!("{}{}{}", &text[..width - 1 - end], theme.glyph("…", "~"), &text[len - end..])
}

/// Draws a line into row `y` of an area, if there is such a row.
pub fn put(buffer: &mut Buffer, area: Rect, y: u16, line: &Line<'_>) {
    if y < area.height {
        buffer.set_line(area.x, area.y + y, line, area.width);
    }
}

/// A line across the whole area, also where it has no text.
pub fn put_across(buffer: &mut Buffer, area: Rect, y: u16, text: &str, style: Style) {
    if y < area.height {
        let row = Rect { y: area.y + y, height: 1, ..area };
        buffer.set_stringn(row.x, row.y, text, row.width.into(), style);
        buffer.set_style(row, style);
    }
}

/// A heading with a rule behind it.
pub fn rule(theme: Theme, text: &str, width: u16) -> Line<'static> {
    let rest = usize::from(width).saturating_sub(Span::raw(text).width() + 1);
    let rule = theme.glyph("─", "-").repeat(rest);
    Line::from(vec![Span::styled(format!("{text} "), theme.strong()), Span::styled(rule, theme.faint())])
}

/// Marks a line as the one that keys act on. Bars keep their colours, which reversed would be those of what surrounds them.
pub fn select(theme: Theme, buffer: &mut Buffer, line: Rect) {
    buffer.set_style(line, theme.selected());
    for x in line.left()..line.right() {
        if let Some(cell) = buffer.cell_mut((x, line.y)).filter(|cell| cell.symbol() == "█" && cell.fg != Color::Reset)
        {
            cell.modifier.remove(Modifier::REVERSED);
        }
    }
}

/// How full a queue is, as a bar of so many columns, with a mark where its peak was.
pub fn bar(theme: Theme, depth: i64, peak: Option<i64>, capacity: i64, width: usize) -> Vec<Span<'static>> {
    let share = |of: i64| if capacity > 0 { (of as f64 / capacity as f64).clamp(0.0, 1.0) } else { 0.0 };
    // What is not empty shows.
    let least = if depth > 0 { 1 } else { 0 };
    let filled = ((share(depth) * width as f64).round() as usize).clamp(least, width);
    let style = match share(depth) {
        share if share >= 1.0 => theme.bad(),
        share if share >= 0.8 => theme.notable(),
        _ => theme.good(),
    };
    let at = peak.filter(|peak| *peak > depth && capacity > 0).map(|peak| (share(peak) * width as f64).ceil() as usize);
    let at = at.map(|at| at.max(filled + 1)).filter(|at| *at <= width);
    let rest: String = (filled + 1..=width)
        .map(|column| if Some(column) == at { theme.glyph("│", "|") } else { theme.glyph("·", ".") })
        .collect();
    vec![Span::styled(theme.glyph("█", "#").repeat(filled), style), Span::styled(rest, theme.faint())]
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading.
    pub head: &'static str,
    /// How many columns of the terminal it takes.
    pub width: u16,
    /// Whether its cells stand on the left.
    pub is_left: bool,
    /// Where there is no room, those with the greatest go first; 0 never goes.
    pub rank: u8,
}

/// Which columns have room, and how wide each is: the first takes what is left, up to `most`.
pub fn fit(columns: &[Column], width: u16, most: u16) -> Vec<(usize, u16)> {
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    let taken = |kept: &[usize]| kept.iter().map(|at| columns[*at].width + 1).sum::<u16>();
    while taken(&kept) > width + 1 {
        let last = kept.iter().copied().filter(|at| columns[*at].rank > 0).max_by_key(|at| columns[*at].rank);
        let Some(last) = last else { break };
        kept.retain(|at| *at != last);
    }
    let spare = (width + 1).saturating_sub(taken(&kept));
    let wide = |at: usize| match at {
        0 => (columns[0].width + spare).min(most.max(columns[0].width)),
        at => columns[at].width,
    };
    kept.into_iter().map(|at| (at, wide(at))).collect()
}

/// A cell in its place.
pub fn cell(theme: Theme, text: &str, width: u16, is_left: bool) -> String {
    let text = cut(text, width.into(), theme);
    let room = usize::from(width).saturating_sub(Span::raw(&text).width());
    if is_left { text + &" ".repeat(room) } else { " ".repeat(room) + &text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theme(ascii: bool) -> Theme {
        Theme { kind: TerminalKind { color: false, ascii } }
    }

    fn drawn(ascii: bool, depth: i64, peak: Option<i64>, capacity: i64) -> String {
        bar(theme(ascii), depth, peak, capacity, 10).iter().map(|span| span.content.to_string()).collect()
    }

    /// Prevents a queue with messages from looking empty, one that is not full from looking full, and the peak from hiding.
    #[test]
    fn bars() {
        assert_eq!(drawn(false, 0, Some(0), 10), "··········");
        assert_eq!(drawn(false, 1, None, 1000), "█·········");
        assert_eq!(drawn(true, 5, Some(8), 10), "#####..|..");
        assert_eq!(drawn(true, 10, Some(10), 10), "##########");
        assert_eq!(drawn(true, 5, Some(5), 10), "#####.....");
        assert_eq!(drawn(true, 0, Some(1), 1000), "|.........");
        assert_eq!(drawn(true, 3, Some(9), 0), "#.........", "a capacity of 0 is none");
    }

    /// Prevents a full bar from looking empty on the line that the cursor is on.
    #[test]
    fn a_bar_that_is_selected() {
        let area = Rect::new(0, 0, 4, 1);
        let mut buffer = Buffer::empty(area);
        let bar = Span::styled("█", Style::new().fg(Color::Red));
        put(&mut buffer, area, 0, &Line::from(vec![Span::raw("a"), bar, Span::raw("█·")]));
        select(theme(false), &mut buffer, area);
        let is_reversed = |x: u16| buffer[(x, 0)].modifier.contains(Modifier::REVERSED);
        assert_eq!([0, 1, 2, 3].map(is_reversed), [true, false, true, true]);
    }

    /// Prevents text of others from steering the terminal, or from running into the next column.
    #[test]
    fn texts() {
        assert_eq!(theme(true).text("a\u{1b}[2Jé→"), "a\\x1b[2J\\u{e9}>");
        assert_eq!(theme(false).text("é\u{202e}"), "é\\u{202e}");
        assert_eq!([cut("abcdef", 6, theme(true)), cut("abcdef", 4, theme(true))], ["abcdef", "abc~"]);
        assert_eq!(cut_middle("/orders-first", 10, theme(true)), "/orde~irst");
        assert_eq!(cut("日本語", 5, theme(false)), "日本…");
        assert_eq!([cell(theme(true), "日本", 6, false), cut("ab", 0, theme(true))], ["  日本", ""]);
    }

    /// Prevents columns from being wider together than the terminal, and the name from being the one that goes.
    #[test]
    fn columns_that_have_room() {
        let column = |width, rank| Column { head: "", width, is_left: false, rank };
        let columns = [column(10, 0), column(5, 2), column(5, 1)];
        assert_eq!(fit(&columns, 30, 40), [(0, 18), (1, 5), (2, 5)]);
        assert_eq!(fit(&columns, 20, 40), [(0, 14), (2, 5)]);
        assert_eq!(fit(&columns, 5, 40), [(0, 10)]);
        assert_eq!(fit(&columns, 200, 40)[0], (0, 40));
    }
}
