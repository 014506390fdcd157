//! What mqspan says, as lines on stderr: what there is to say, and below it the command that mends it.

use std::fmt::{self, Write};
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::model::text::printable;
use crate::progress;

/// A line for each event: `mqspan: `, the message, and what else it carries. What it has as `mend` is a line of its own, as
/// of any [`Error`](crate::model::error::Error).
#[derive(Debug)]
pub struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        progress::make_room();
        // Where stderr is gone there is nobody to tell.
        let _ = io::stderr().lock().write_all(line.text().as_bytes());
    }
}

#[derive(Default)]
struct Line {
    message: String,
    rest: String,
    mend: String,
}

impl Line {
    fn text(&self) -> String {
        let mend = if self.mend.is_empty() { String::new() } else { format!("  {}\n", printable(&self.mend)) };
        format!("mqspan: {}{}\n{mend}", printable(&self.message), printable(&self.rest))
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "mend" => self.mend = value.into(),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents what a backend says, or a process calls itself, from steering the terminal or posing as another line.
    #[test]
    fn lines() {
        let line = |message: &str, rest: &str, mend: &str| {
            Line { message: message.into(), rest: rest.into(), mend: mend.into() }.text()
        };
        assert_eq!(
            line("refused: a\nmqspan: b", " why=\x1b[2J", ""),
            "mqspan: refused: a\\x0amqspan: b why=\\x1b[2J\n"
        );
        assert_eq!(line("refused", "", "mqspan run\n"), "mqspan: refused\n  mqspan run\\x0a\n");
    }
}
