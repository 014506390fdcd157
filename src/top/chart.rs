//! Numbers over time as columns of characters, the latest on the right. What is not known is left out: it is not zero.
//! Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::paint::Theme;

/// An eighth of a character's height and more.
const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// The same without characters of such heights.
const ASCII_LEVELS: [&str; 8] = [".", ".", ".", ":", ":", "|", "|", "|"];

/// Draws the last values that have room, each a column; `most` is as high as the area.
pub fn columns(buffer: &mut Buffer, area: Rect, values: &[Option<f64>], most: f64, theme: Theme, style: Style) {
    let levels = if theme.kind.ascii { ASCII_LEVELS } else { LEVELS };
    let shown = values.len().min(area.width.into());
    let left = area.width - shown as u16;
    for (at, value) in values[values.len() - shown..].iter().enumerate() {
        let x = area.x + left + at as u16;
        let Some(value) = value else { continue };
        let steps = f64::from(area.height) * 8.0;
        let least = if *value > 0.0 { 1 } else { 0 };
        let mut height = (if most > 0.0 { value / most * steps } else { 0.0 }).round().clamp(0.0, steps) as usize;
        height = height.max(least);
        for row in (0..area.height).rev() {
            let full = height.min(8);
            height -= full;
            let base = row + 1 == area.height;
            let symbol = match full {
                // A known zero has a base line.
                0 if base => theme.glyph("▁", "_"),
                0 => break,
                full => levels[full - 1],
            };
            let is_zero = full == 0;
            let style = if is_zero { theme.faint() } else { style };
            buffer.set_stringn(x, area.y + row, symbol, 1, style);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::top::TerminalKind;

    fn drawn(ascii: bool, values: &[Option<f64>], width: u16, height: u16) -> Vec<String> {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        let theme = Theme { kind: TerminalKind { color: false, ascii } };
        columns(&mut buffer, area, values, 16.0, theme, Style::new());
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect();
        (0..height).map(row).collect()
    }

    /// Prevents nothing known from looking like zero, little from looking like nothing, and the latest from being cut off.
    #[test]
    fn heights() {
        let values = [None, Some(0.0), Some(0.01), Some(8.0), Some(12.0), Some(16.0), Some(99.0)];
        assert_eq!(drawn(false, &values, 8, 2), ["     ▄██", "  ▁▁████"]);
        assert_eq!(drawn(false, &values, 3, 1), ["▆██"]);
        assert_eq!(drawn(true, &values, 7, 1), [" _.:|||"]);
        assert_eq!(drawn(true, &[], 3, 1), ["   "]);
    }
}
