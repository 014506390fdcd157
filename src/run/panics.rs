//! A stage that panics ends mqspan: its work is not done any more, and calls would be lost without a word. Says so in one
//! line and wakes the thread that owns the end.

use std::any::Any;
use std::panic;
use std::sync::OnceLock;
use std::thread;

use super::signals::Bell;

static FIRST: OnceLock<()> = OnceLock::new();

/// From now on a panic of any thread is told in one line on stderr, and rings.
pub fn watch(bell: Bell) {
    watch_after(bell, || {});
}

/// The same; `before` is done first, as to give the terminal back.
pub fn watch_after(bell: Bell, before: impl Fn() + Send + Sync + 'static) {
    panic::set_hook(Box::new(move |info| {
        before();
        let thread = thread::current();
        eprintln!("mqspan: {}", line(thread.name().unwrap_or("a thread"), text(info.payload()), info.location()));
        let _ = FIRST.set(());
        bell.ring();
    }));
}

/// Whether any thread has panicked.
pub fn happened() -> bool {
    FIRST.get().is_some()
}

/// What `panic!` was given, where that is text.
fn text(payload: &dyn Any) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

fn line(thread: &str, what: Option<&str>, place: Option<&panic::Location<'_>>) -> String {
    let what: String = what.unwrap_or("no reason given").split_whitespace().collect::<Vec<_>>().join(" ");
    let place = place.map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
    format!("{thread} panicked{place}: {what}; tracing ends, please report this as a bug")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::signals::SignalQueue;

    /// Prevents a stage from dying in silence: the line names it, and the end is woken.
    #[test]
    fn a_stage_that_panics() {
        assert_eq!(line("a", Some("b\n c"), None), "a panicked: b c; tracing ends, please report this as a bug");
        // Of this test's thread only.
        let signals = thread::spawn(|| SignalQueue::take().unwrap()).join().unwrap();
        let before = panic::take_hook();
        watch(signals.bell());
        let stage = thread::Builder::new().name("mqspan-stage".into()).spawn(|| panic!("of a test")).unwrap();
        assert!(stage.join().is_err() && happened());
        panic::set_hook(before);
        assert_eq!(signals.wait(None), crate::run::signals::Wakeup::Rung);
    }
}
