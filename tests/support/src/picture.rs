//! A terminal's screen as an SVG picture, for the documents.

use std::fmt::Write;

use vt100::{Cell, Color, Screen};

/// Of a character, in pixels.
const WIDTH: f32 = 8.0;
const HEIGHT: f32 = 17.0;
const MARGIN: f32 = 10.0;

/// The colours of a terminal.
struct Palette {
    background: &'static str,
    foreground: &'static str,
    /// The sixteen that have names.
    named: [&'static str; 16],
}

const DARK: Palette = Palette {
    background: "#15181e",
    foreground: "#d7dae0",
    named: [
        "#3b4048", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#abb2bf", "#5c6370", "#ef7a85",
        "#a9d389", "#f0cb86", "#74bcf7", "#d38ae8", "#67c7d3", "#ffffff",
    ],
};
/// xterm's own, as most terminals with a light background have them.
const LIGHT: Palette = Palette {
    background: "#ffffff",
    foreground: "#000000",
    named: [
        "#000000", "#cd0000", "#00cd00", "#cdcd00", "#0000ee", "#cd00cd", "#00cdcd", "#e5e5e5", "#7f7f7f", "#ff0000",
        "#00ff00", "#ffff00", "#5c5cff", "#ff00ff", "#00ffff", "#ffffff",
    ],
};

/// How neighbouring characters look alike.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    color: String,
    background: Option<String>,
    bold: bool,
    dim: bool,
}

fn color(color: Color, default: &str, palette: &Palette) -> String {
    match color {
        Color::Default => default.into(),
        Color::Idx(index) => {
            palette.named.get(usize::from(index)).map_or_else(|| by_number(index), |color| (*color).into())
        }
        Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
    }
}

/// A colour of the cube or of the greys behind the first sixteen (xterm's 256 colours).
fn by_number(index: u8) -> String {
    let step = |level: u8| if level == 0 { 0 } else { 55 + 40 * level };
    let [red, green, blue] = match index {
        232.. => [8 + 10 * (index - 232); 3],
        _ => [(index - 16) / 36, (index - 16) / 6 % 6, (index - 16) % 6].map(step),
    };
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn look(cell: &Cell, palette: &Palette) -> Look {
    let Palette { background, foreground, .. } = palette;
    let (mut front, mut back) =
        (color(cell.fgcolor(), foreground, palette), color(cell.bgcolor(), background, palette));
    if cell.inverse() {
        std::mem::swap(&mut front, &mut back);
    }
    let background = Some(back).filter(|back| back != palette.background);
    Look { color: front, background, bold: cell.bold(), dim: cell.dim() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The picture on a dark desk; empty lines at the end of the screen are left out.
pub fn svg(screen: &Screen) -> String {
    draw(screen, &DARK)
}

/// The same on a light one.
pub fn light_svg(screen: &Screen) -> String {
    draw(screen, &LIGHT)
}

fn draw(screen: &Screen, palette: &Palette) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let is_filled =
        |row: &u16| (0..columns).filter_map(|column| screen.cell(*row, column)).any(|cell| cell.has_contents());
    let rows = (0..rows).filter(is_filled).max().map_or(1, |last| last + 1);
    let (width, height) = (f32::from(columns) * WIDTH + 2.0 * MARGIN, f32::from(rows) * HEIGHT + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{}\"/>\n",
        palette.background
    );
    for row in 0..rows {
        let mut column = 0;
        while let Some(first) = screen.cell(row, column) {
            let (start, look_of_run, mut text) = (column, look(first, palette), String::new());
            while let Some(cell) = screen.cell(row, column).filter(|cell| look(cell, palette) == look_of_run) {
                if !cell.is_wide_continuation() {
                    text += if cell.has_contents() { cell.contents() } else { " " };
                }
                column += 1;
            }
            run(&mut svg, row, start..column, &look_of_run, &text);
        }
    }
    svg + "</svg>\n"
}

fn run(svg: &mut String, row: u16, columns: std::ops::Range<u16>, look: &Look, text: &str) {
    let (x, y) = (MARGIN + f32::from(columns.start) * WIDTH, MARGIN + f32::from(row) * HEIGHT);
    let width = f32::from(columns.end - columns.start) * WIDTH;
    let Look { color, background, bold, dim } = look;
    // Writing to a String cannot fail.
    if let Some(background) = background {
        let _ =
            writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{background}\"/>");
    }
    if text.trim().is_empty() {
        return;
    }
    let weight = if *bold { " font-weight=\"bold\"" } else { "" };
    let opacity = if *dim { " opacity=\"0.6\"" } else { "" };
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" textLength=\"{width}\" xml:space=\"preserve\" fill=\"{color}\"{weight}{opacity}>{}</text>",
        y + HEIGHT - 4.0,
        escaped(text)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents text from breaking the picture, from standing elsewhere than on the screen, and from losing its colours.
    #[test]
    fn a_screen() {
        let mut terminal = vt100::Parser::new(4.try_into().unwrap(), 10.try_into().unwrap(), 0);
        terminal.process(b"a\x1b[31m<b>\x1b[0m\r\n\x1b[7m &\x1b[0m");
        let svg = svg(terminal.screen());
        for part in [
            "height=\"54\"",
            "<text x=\"18\" y=\"23\" textLength=\"24\" xml:space=\"preserve\" fill=\"#e06c75\">&lt;b&gt;</text>",
            "<rect x=\"10\" y=\"27\" width=\"16\" height=\"17\" fill=\"#d7dae0\"/>",
            "fill=\"#15181e\"> &amp;</text>",
        ] {
            assert!(svg.contains(part), "{svg}");
        }
        assert_eq!([16, 21, 231, 232, 255].map(by_number), ["#000000", "#0000ff", "#ffffff", "#080808", "#eeeeee"]);
    }
}
