//! What mqspan says, as lines on stderr.

use std::fmt::{self, Write};
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::model::text::printable;

/// A line for each event: `mqspan: `, the message, and what else it carries.
#[derive(Debug)]
pub struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        // Where stderr is gone there is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "mqspan: {}{}", printable(&line.message), printable(&line.rest));
    }
}

#[derive(Default)]
struct Line {
    message: String,
    rest: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}
