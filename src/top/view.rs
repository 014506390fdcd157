//! The whole screen: a page, the last line, and what lies over both. Pure code.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::app::{App, Overlay, Page};
use super::{calls, help, processes, queue, queues};

/// Draws all of it.
pub fn draw(app: &mut App, buffer: &mut Buffer) {
    let area = buffer.area;
    let (page, foot) = (Rect { height: area.height.saturating_sub(1), ..area }, area.height.saturating_sub(1));
    match app.page.clone() {
        Page::Queues => queues::draw(app, buffer, page),
        Page::Queue(name) => queue::draw(app, &name, buffer, page),
        Page::Calls => calls::draw(app, buffer, page),
        Page::Processes => processes::draw(app, buffer, page),
    }
    help::foot(app, buffer, Rect { y: area.y + foot, height: area.height - foot, ..area });
    match &app.overlay {
        Some(Overlay::Help) => help::keys(app.theme, buffer, page),
        Some(Overlay::Sort(at)) => help::sorts(app.theme, *at, buffer, page),
        Some(Overlay::Call(call)) => calls::details(app, call, buffer, page),
        None => {}
    }
}
