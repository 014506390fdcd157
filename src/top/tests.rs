//! Each page as it is drawn, at the sizes that people have.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::app::{App, Page, Reaction};
use super::content::Content;
use super::paint::Theme;
use super::view;
use crate::config::top::TerminalKind;
use crate::model::buckets::BUCKETS;
use crate::model::call::{Args, Call, Ids, ImageKey};
use crate::model::examples::{example, message, queue};
use crate::model::reading::{Measure, Points, QueueName, Reading};
use crate::model::resource::{Resource, Value};
use crate::model::values::{Op, SortKey};
use crate::overview::log::CallLog;
use crate::overview::snapshot::Health;
use crate::overview::snapshot::Snapshot;
use crate::overview::tables::{BlockedThread, Bounds, QueueLook, Tables};
use crate::telemetry::record::Record;
use crate::telemetry::view::View;

const SECOND: u64 = 1_000_000_000;
/// 2026-11-28 22:31:53 UTC
const START: u64 = 1_795_905_113 * SECOND;

fn reading(pid: u32, op: Op, errno: i32, measure: Measure, bucket: usize, count: u32) -> Reading {
    let mut buckets = Box::new([0; BUCKETS]);
    buckets[bucket] = count;
    let image = Some(ImageKey { pid, started_ns: 1, exec_id: 0 });
    let points = Points { sum: 0, zeros: 0, buckets };
    Reading { image, name: 1, ipc_ns: 4_026_531_839, errno, cause: None, measure, op, comm: Vec::new(), points }
}

fn who(image: ImageKey) -> Option<Arc<Resource>> {
    let name = match image.pid {
        1234 => "orders",
        1301 => "biller",
        _ => "ev\u{1b}il",
    };
    let attributes = vec![("process.executable.name".to_owned(), Value::Text(name.into()))];
    Some(Arc::new(Resource { attributes, ..Resource::default() }))
}

fn named(name: &str) -> QueueName {
    (4_026_531_839, name.into())
}

/// A shop whose biller is slow, a queue that is full and a hostile name.
fn content(open: Option<&QueueName>) -> Content {
    let mut tables = Tables::new(Bounds::LIVE, 0);
    for round in 1..=90_u32 {
        tables.begin(u64::from(round) * SECOND, START + u64::from(round) * SECOND);
        let orders = named("/orders");
        let rate = 20 + round % 7 * 3;
        tables.add(&reading(1234, Op::MqTimedsend, 0, Measure::Duration, 40, rate), Some(&orders), who);
        tables.add(&reading(1301, Op::MqTimedreceive, 0, Measure::Duration, 60, rate - 1), Some(&orders), who);
        tables.add(&reading(1301, Op::MqTimedreceive, 0, Measure::Wait, 76, rate - 1), Some(&orders), who);
        tables.add(&reading(1301, Op::MqOpen, 2, Measure::Duration, 30, 3), Some(&named("/audit")), who);
        tables.add(&reading(1302, Op::MqTimedsend, 11, Measure::Duration, 30, 1200), Some(&named("/full")), who);
        let depth = i64::from(round % 10);
        let look = QueueLook { depth, peak: depth + 1, capacity: 10, ..QueueLook::default() };
        tables.look_at(orders, QueueLook { blocked: [Some(0), Some(1)], oldest_ns: Some(2_500_000), ..look.clone() });
        let full = QueueLook { depth: 8, peak: 8, capacity: 8, blocked: [Some(2), Some(0)], ..look.clone() };
        tables.look_at(named("/full"), QueueLook { descriptors: Some([0, 3]), oldest_ns: Some(750 * SECOND), ..full });
        let empty = QueueLook { depth: 0, peak: 0, capacity: 100, ..QueueLook::default() };
        let container = Some("3f2a9c81d04e7b6655aa".to_owned());
        tables.look_at(named("/a\u{1b}[31m-rather-long-name-of-a-queue"), QueueLook { container, ..empty });
        tables.set_blocked(vec![BlockedThread {
            key: Some(named("/orders")),
            queue: Some("/orders".into()),
            ipc_namespace: Some(4_026_531_839),
            pid: 1301,
            tid: 1310,
            name: "biller-2".into(),
            operation: "mq_timedreceive",
            waiting_seconds: None,
        }]);
        tables.end();
    }
    let mut log = CallLog::new(100, 0);
    for number in 0..40_u64 {
        let mut comm = [0; 16];
        comm[..6].copy_from_slice(b"orders");
        let image = ImageKey { pid: 1234, started_ns: 1, exec_id: 0 };
        let ids = Ids { trace: [1; 16], span: [0, 0, 0, 0, 0, 0, 0xa3, number as u8] };
        let sent = crate::model::call::Message { tracked: true, ..message() };
        let send =
            Call { op: Op::MqTimedsend, args: Args::Send(sent), ret: 0, queue: Some(queue(b"orders")), ..example() };
        let call = if number % 5 == 4 { example() } else { send };
        let call = Call { comm, image, ids, tid: 1235, left_ns: 3100 + number, ipc_ns: 4_026_531_839, ..call };
        let view = View::new(&call, START + number * 1_000_000);
        log.add(&Record { view: &view, ids: Some(ids) });
    }
    let lost = BTreeMap::new();
    let unknown = vec!["32-bit callers".into()];
    let health = Health { hooks: "tracepoint", captured: 123_456, limited: 99, lost, unknown, notices: Vec::new() };
    Content {
        snapshot: Snapshot::of(&tables, health),
        calls: log.latest().cloned().collect(),
        course: open
            .and_then(|name| tables.record_of(name))
            .map(|record| record.course.iter().copied().collect())
            .unwrap_or_default(),
        zone: TimeZone::UTC,
    }
}

fn app(color: bool, ascii: bool) -> App {
    App::new(Theme { kind: TerminalKind { color, ascii } }, SortKey::Depth, content(None))
}

fn press(app: &mut App, keys: &str) -> Reaction {
    let key = |character| match character {
        '\n' => KeyCode::Enter,
        '\u{1b}' => KeyCode::Esc,
        'D' => KeyCode::Down,
        'U' => KeyCode::Up,
        character => KeyCode::Char(character),
    };
    let press = |code| Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
    keys.chars().map(|character| app.event(&press(key(character)))).last().unwrap_or(Reaction::Nothing)
}

fn drawn(app: &mut App, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(app, frame.buffer_mut())).unwrap();
    terminal
}

/// The screen, a line each, without the spaces at its ends.
fn screen(app: &mut App, width: u16, height: u16) -> String {
    let text = drawn(app, width, height).backend().to_string();
    let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

/// Prevents a page from looking other than it was looked at: each at each size, in ASCII too.
#[test]
fn pages() {
    for (name, keys) in
        [("queues", ""), ("queue", "DD\n"), ("calls", "c"), ("processes", "p"), ("help", "?"), ("sort", "s")]
    {
        for (width, height) in [(80, 24), (200, 60), (60, 15)] {
            for ascii in [false, true] {
                let mut app = app(true, ascii);
                press(&mut app, keys);
                if let Some(open) = app.open_queue().cloned() {
                    app.update(content(Some(&open)));
                }
                let kind = if ascii { "-ascii" } else { "" };
                let shown = screen(&mut app, width, height);
                assert!(!ascii || shown.is_ascii(), "{shown}");
                insta::assert_snapshot!(format!("{name}-{width}x{height}{kind}"), shown);
            }
        }
    }
}

/// Prevents colours where none are wanted, and backgrounds anywhere: what is behind is the terminal's own.
#[test]
fn colors() {
    for keys in ["", "D\n", "c", "p", "?", "s", "/x"] {
        for color in [false, true] {
            let mut app = app(color, false);
            press(&mut app, keys);
            let terminal = drawn(&mut app, 80, 24);
            for cell in terminal.backend().buffer().content() {
                assert_eq!(cell.bg, Color::Reset, "{keys}");
                let is_allowed = matches!(cell.fg, Color::Reset | Color::Red | Color::Magenta | Color::Green);
                assert!(is_allowed && (color || cell.fg == Color::Reset), "{keys}: {:?}", cell.fg);
            }
        }
    }
}

/// Prevents a terminal of a few characters from ending the program.
#[test]
fn any_size() {
    for keys in ["", "D\n", "c", "cU\n", "p", "?", "s", "/x"] {
        for (width, height) in (0..12).flat_map(|width| (0..6).map(move |height| (width * 3, height))) {
            let mut app = app(true, false);
            press(&mut app, keys);
            drawn(&mut app, width, height);
        }
    }
}

/// Prevents control bytes of names from reaching the terminal.
#[test]
fn no_control_bytes() {
    for keys in ["", "D\n", "c", "cU\n", "p", "/ev\u{7}il"] {
        let mut app = app(true, false);
        press(&mut app, keys);
        let shown = screen(&mut app, 200, 60);
        assert!(!shown.chars().any(|character| character.is_control() && character != '\n'), "{keys}");
    }
    assert!(screen(&mut app(true, false), 200, 60).contains("/a\\x1b[31m-rather"));
}

/// Prevents keys from doing other than the help says.
#[test]
fn keys() {
    let mut app = app(false, true);
    let names = |app: &App| app.queues().iter().map(|row| row.name.clone().unwrap_or_default()).collect::<Vec<_>>();
    assert_eq!(names(&app)[..2], ["/full", "/a\u{1b}[31m-rather-long-name-of-a-queue"]);
    // A filter applies while it is typed; q is text in it; Enter keeps it, Esc clears it.
    press(&mut app, "/q");
    assert_eq!((app.filter.as_str(), names(&app).len()), ("q", 1));
    press(&mut app, "\u{1b}/orD");
    assert_eq!(names(&app), ["/orders"]);
    press(&mut app, "\n");
    assert!(!app.is_typing && app.filter == "or");
    press(&mut app, "\u{1b}");
    assert_eq!((names(&app).len(), &app.page), (4, &Page::Queues));
    // Sorting: the list, the neighbours, the other way round.
    press(&mut app, "sD\n");
    assert_eq!((app.sort, names(&app)[0].as_str()), (SortKey::In, "/orders"));
    press(&mut app, "<");
    assert_eq!(app.sort, SortKey::Depth);
    press(&mut app, "I");
    assert_ne!(names(&app)[0], "/full");
    press(&mut app, "I>");
    assert_eq!((app.sort, app.inverted), (SortKey::In, false));
    // The cursor stays on its queue when the order changes.
    press(&mut app, "D");
    let selected = names(&app)[app.cursor].clone();
    app.inverted = true;
    app.update(content(None));
    assert_eq!(names(&app)[app.cursor], selected);
    // A queue's page and back.
    press(&mut app, "\n");
    assert_eq!(app.open_queue().map(|(_, name)| name.to_string()), Some(selected));
    press(&mut app, "\u{1b}");
    assert_eq!(app.page, Page::Queues);
    // Calls stand still while paused, and the cursor stays on its call.
    press(&mut app, "cf");
    let before = app.content.calls.len();
    app.update_calls(Vec::new());
    assert_eq!(app.content.calls.len(), before);
    press(&mut app, "U");
    let number = app.followed_call;
    assert_eq!(number, Some(39));
    press(&mut app, "D");
    assert_eq!(app.followed_call, None, "at the end it follows what comes");
    assert_eq!(press(&mut app, "?q"), Reaction::Quit);
    let control = |character| Event::Key(KeyEvent::new(KeyCode::Char(character), KeyModifiers::CONTROL));
    press(&mut app, "1/");
    assert_eq!(
        ['c', 'z', 'l'].map(|key| app.event(&control(key))),
        [Reaction::Quit, Reaction::Suspend, Reaction::Redraw]
    );
}
