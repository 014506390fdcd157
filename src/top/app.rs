//! The state of the live view, and what each key does to it; the pages draw it. Pure code.

use std::sync::Arc;

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEventKind};
use ratatui::layout::Rect;

use super::content::Content;
use super::paint::{Theme, cut, put_across};
use crate::model::reading::QueueName;
use crate::model::values::SortKey;
use crate::overview::log::LoggedCall;
use crate::overview::order;
use crate::overview::snapshot::{ProcessRow, QueueRow};
use crate::overview::text;

/// So much is typed into a filter at most.
const FILTER: usize = 100;
/// So many lines the wheel of a mouse goes.
const WHEEL: isize = 3;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// All queues.
    Queues,
    /// One queue.
    Queue(QueueName),
    /// Calls, as they end.
    Calls,
    /// Processes.
    Processes,
}

/// What lies over the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// What the keys do.
    Help,
    /// What the queues can be sorted by; the place in the list.
    Sort(usize),
    /// All that is known of a call.
    Call(Arc<LoggedCall>),
}

/// What an event asks of whoever owns the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Draw.
    Draw,
    /// Nothing has changed.
    Nothing,
    /// Draw all of it anew.
    Redraw,
    /// Give the terminal back for a while.
    Suspend,
    /// End.
    Quit,
}

/// The live view.
#[derive(Debug)]
pub struct App {
    /// How it is drawn.
    pub theme: Theme,
    /// What is looked at.
    pub page: Page,
    /// What lies over it.
    pub overlay: Option<Overlay>,
    /// What the queues are sorted by.
    pub sort: SortKey,
    /// Whether the other way round.
    pub inverted: bool,
    /// What the rows must hold.
    pub filter: String,
    /// Whether it is being typed.
    pub is_typing: bool,
    /// Whether calls stand still.
    pub is_paused: bool,
    /// What is shown.
    pub content: Content,
    /// The line that keys act on.
    pub cursor: usize,
    /// The first line that is shown.
    pub offset: usize,
    /// The queue that the cursor stays on.
    followed: Option<Option<QueueName>>,
    /// The call that the cursor stays on; None: the latest, as they come.
    pub followed_call: Option<u64>,
    /// How many lines had room when it was drawn last, and in which row the first was.
    pub lines: (usize, u16),
    /// Where headings were drawn: from, to, of what.
    pub heads: Vec<(u16, u16, SortKey)>,
}

impl App {
    /// Begins with the queues.
    pub fn new(theme: Theme, sort: SortKey, content: Content) -> Self {
        let mut app = Self {
            theme,
            page: Page::Queues,
            overlay: None,
            sort,
            inverted: false,
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            content,
            cursor: 0,
            offset: 0,
            followed: None,
            followed_call: None,
            lines: (1, 0),
            heads: Vec::new(),
        };
        app.arrange();
        app
    }

    /// The queue whose course is to come with the next content.
    pub fn open_queue(&self) -> Option<&QueueName> {
        match &self.page {
            Page::Queue(name) => Some(name),
            _ => None,
        }
    }

    /// Whether the page shows calls.
    pub fn shows_calls(&self) -> bool {
        matches!(self.page, Page::Calls | Page::Queue(_))
    }

    /// Takes what there is now, but for the calls.
    pub fn update(&mut self, content: Content) {
        self.content = Content { calls: std::mem::take(&mut self.content.calls), ..content };
        self.arrange();
    }

    /// Takes the latest calls, unless they are to stand still.
    pub fn update_calls(&mut self, calls: Vec<Arc<LoggedCall>>) {
        if !self.is_paused || self.content.calls.is_empty() {
            self.content.calls = calls;
        }
    }

    fn arrange(&mut self) {
        order::sort(&mut self.content.snapshot.queues, self.sort, self.inverted);
        let by_calls = |a: &ProcessRow, b: &ProcessRow| {
            b.calls_per_second.total_cmp(&a.calls_per_second).then(b.calls.cmp(&a.calls)).then(a.pid.cmp(&b.pid))
        };
        self.content.snapshot.processes.sort_by(by_calls);
        if let (Page::Queues, Some(followed)) = (&self.page, &self.followed)
            && let Some(at) = self.queues().iter().position(|row| row.key == *followed)
        {
            self.cursor = at;
        }
        self.cursor = self.cursor.min(self.rows().saturating_sub(1));
    }

    fn matches(&self, texts: &[&str]) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    /// The queues that the filter leaves.
    pub fn queues(&self) -> Vec<&QueueRow> {
        let keeps = |row: &&QueueRow| {
            let namespace = row.ipc_namespace.map(|number| number.to_string()).unwrap_or_default();
            let container = row.container_id.as_deref().unwrap_or_default();
            self.matches(&[&text::queue_name(row), container, &namespace, text::leading_errno(row)])
        };
        self.content.snapshot.queues.iter().filter(keeps).collect()
    }

    /// The processes that the filter leaves.
    pub fn processes(&self) -> Vec<&ProcessRow> {
        let keeps = |row: &&ProcessRow| {
            let texts = [&row.name, &row.service, &row.container_id].map(|text| text.as_deref().unwrap_or_default());
            self.matches(&texts) || self.matches(&[&row.pid.to_string()])
        };
        self.content.snapshot.processes.iter().filter(keeps).collect()
    }

    /// The calls that the filter leaves; on a queue's page those of that queue.
    pub fn calls(&self) -> Vec<&Arc<LoggedCall>> {
        let of = self.open_queue();
        let keeps = |call: &&Arc<LoggedCall>| {
            of.is_none_or(|queue| call.queue.as_ref() == Some(queue))
                && self.matches(&[&call.comm, &call.line, &call.passage, &call.tid.to_string()])
        };
        self.content.calls.iter().filter(keeps).collect()
    }

    fn rows(&self) -> usize {
        match self.page {
            Page::Queues => self.queues().len(),
            Page::Processes => self.processes().len(),
            Page::Calls | Page::Queue(_) => self.calls().len(),
        }
    }

    /// Where the cursor stands among the calls, and whether it follows the latest.
    pub fn call_cursor(&self, calls: &[&Arc<LoggedCall>]) -> Option<usize> {
        let number = self.followed_call?;
        // One that is gone was older than all that are left.
        Some(calls.partition_point(|call| call.number < number).min(calls.len().saturating_sub(1)))
    }

    /// Something has happened at the terminal.
    pub fn event(&mut self, event: &Event) -> Reaction {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            Event::Resize(..) => Reaction::Draw,
            Event::Mouse(mouse) => match mouse.kind {
                MouseEventKind::ScrollDown => self.go(WHEEL),
                MouseEventKind::ScrollUp => self.go(-WHEEL),
                MouseEventKind::Down(MouseButton::Left) => self.click(mouse.column, mouse.row),
                _ => Reaction::Nothing,
            },
            _ => Reaction::Nothing,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Reaction {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Reaction::Quit,
                KeyCode::Char('z') => Reaction::Suspend,
                KeyCode::Char('l') => Reaction::Redraw,
                _ => Reaction::Nothing,
            };
        }
        if self.is_typing {
            return self.type_filter(key.code);
        }
        match &self.overlay {
            Some(Overlay::Sort(at)) => {
                let at = *at;
                self.choose(key.code, at)
            }
            Some(_) => {
                if key.code == KeyCode::Char('q') {
                    return Reaction::Quit;
                }
                self.overlay = None;
                Reaction::Draw
            }
            None => self.command(key.code),
        }
    }

    fn type_filter(&mut self, code: KeyCode) -> Reaction {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => (self.is_typing, self.filter) = (false, String::new()),
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(character) if self.filter.len() < FILTER => self.filter.push(character),
            _ => return Reaction::Nothing,
        }
        (self.cursor, self.offset) = (0, 0);
        Reaction::Draw
    }

    fn choose(&mut self, code: KeyCode, at: usize) -> Reaction {
        let last = SortKey::ALL.len() - 1;
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.overlay = Some(Overlay::Sort(at.saturating_sub(1))),
            KeyCode::Down | KeyCode::Char('j') => self.overlay = Some(Overlay::Sort((at + 1).min(last))),
            KeyCode::Enter => {
                self.overlay = None;
                return self.sort_by(SortKey::ALL[at.min(last)]);
            }
            KeyCode::Char('q') => return Reaction::Quit,
            _ => self.overlay = None,
        }
        Reaction::Draw
    }

    fn sort_by(&mut self, key: SortKey) -> Reaction {
        // Once more on the same column turns it round.
        (self.inverted, self.sort) = (key == self.sort && !self.inverted, key);
        self.followed = None;
        self.arrange();
        Reaction::Draw
    }

    fn command(&mut self, code: KeyCode) -> Reaction {
        let page = isize::try_from(self.lines.0).unwrap_or(isize::MAX);
        match code {
            KeyCode::Char('q') => return Reaction::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.overlay = Some(Overlay::Help),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('c') => self.open(Page::Calls),
            KeyCode::Char('p') => self.open(Page::Processes),
            KeyCode::Char('1') => self.open(Page::Queues),
            KeyCode::Char('f') => self.is_paused = !self.is_paused,
            KeyCode::Char('a') => self.theme.kind.ascii = !self.theme.kind.ascii,
            KeyCode::Char('s') if self.page == Page::Queues => {
                let at = SortKey::ALL.iter().position(|key| *key == self.sort).unwrap_or(0);
                self.overlay = Some(Overlay::Sort(at));
            }
            KeyCode::Char('I') => {
                self.inverted = !self.inverted;
                self.arrange();
            }
            KeyCode::Char('<') => return self.sort_beside(SortKey::ALL.len() - 1),
            KeyCode::Char('>') => return self.sort_beside(1),
            KeyCode::Up | KeyCode::Char('k') => return self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => return self.go(1),
            KeyCode::PageUp => return self.go(-page),
            KeyCode::PageDown => return self.go(page),
            KeyCode::Home | KeyCode::Char('g') => return self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => return self.go(isize::MAX),
            KeyCode::Enter => self.enter(),
            // First what is over it, then the filter, then the way back.
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc | KeyCode::Backspace => self.open(Page::Queues),
            _ => return Reaction::Nothing,
        }
        Reaction::Draw
    }

    fn sort_beside(&mut self, by: usize) -> Reaction {
        let at = SortKey::ALL.iter().position(|key| *key == self.sort).unwrap_or(0);
        self.inverted = false;
        (self.sort, self.followed) = (SortKey::ALL[(at + by) % SortKey::ALL.len()], None);
        self.arrange();
        Reaction::Draw
    }

    fn open(&mut self, page: Page) {
        if self.page != page {
            (self.page, self.cursor, self.offset, self.followed_call) = (page, 0, 0, None);
            self.arrange();
        }
    }

    fn enter(&mut self) {
        match self.page {
            Page::Queues => {
                let key = self.queues().get(self.cursor).and_then(|row| row.key.clone());
                if let Some(key) = key {
                    self.filter.clear();
                    self.open(Page::Queue(key));
                }
            }
            Page::Calls | Page::Queue(_) => {
                let calls = self.calls();
                let at = self.call_cursor(&calls).or(calls.len().checked_sub(1));
                self.overlay = at.and_then(|at| calls.get(at)).map(|call| Overlay::Call((*call).clone()));
            }
            Page::Processes => {}
        }
    }

    /// Moves the cursor by so many lines.
    fn go(&mut self, by: isize) -> Reaction {
        if matches!(self.page, Page::Calls | Page::Queue(_)) {
            let calls = self.calls();
            let last = calls.len().saturating_sub(1);
            let at = self.call_cursor(&calls).unwrap_or(last).saturating_add_signed(by).min(last);
            // At the end it follows what comes.
            let followed = calls.get(at).filter(|_| at < last).map(|call| call.number);
            self.followed_call = followed;
            return Reaction::Draw;
        }
        let last = self.rows().saturating_sub(1);
        self.cursor = self.cursor.saturating_add_signed(by).min(last);
        self.followed = self.queues().get(self.cursor).map(|row| row.key.clone());
        Reaction::Draw
    }

    fn click(&mut self, column: u16, row: u16) -> Reaction {
        if self.overlay.is_some() {
            self.overlay = None;
            return Reaction::Draw;
        }
        if self.page == Page::Queues && row + 1 == self.lines.1 {
            let head = self.heads.iter().find(|(from, to, _)| (*from..*to).contains(&column)).map(|head| head.2);
            return head.map_or(Reaction::Nothing, |key| self.sort_by(key));
        }
        let Some(line) = row.checked_sub(self.lines.1) else { return Reaction::Nothing };
        if usize::from(line) >= self.lines.0 {
            return Reaction::Nothing;
        }
        let at = self.offset + usize::from(line);
        if matches!(self.page, Page::Calls | Page::Queue(_)) {
            let number = self.calls().get(at).map(|call| call.number);
            if number.is_none() || number == self.followed_call {
                self.enter();
            }
            self.followed_call = number.or(self.followed_call);
            return Reaction::Draw;
        }
        if at == self.cursor {
            self.enter();
        } else if at < self.rows() {
            self.cursor = at;
            self.followed = self.queues().get(at).map(|row| row.key.clone());
        }
        Reaction::Draw
    }

    /// The first line of a page: what it is, when, and what is the most important.
    pub fn title(&self, buffer: &mut Buffer, area: Rect, what: &str) {
        let time = &self.content.snapshot.time;
        let time = time
            .parse::<jiff::Timestamp>()
            .map(|at| self.content.zone.to_datetime(at).strftime("%H:%M:%S").to_string());
        let time = time.unwrap_or_default();
        let paused = if self.is_paused { "  PAUSED" } else { "" };
        let filter = match self.filter.is_empty() || self.is_typing {
            true => String::new(),
            false => format!("  filter: {}", self.theme.text(&self.filter)),
        };
        // The time goes first where there is little room.
        let time = if area.width < 70 { String::new() } else { format!("{time}  ") };
        let text = cut(&format!(" mqspan top  {time}{what}{filter}{paused}"), area.width.into(), self.theme);
        put_across(buffer, area, 0, &text, self.theme.head());
    }

    /// Keeps the cursor among the lines that are shown, of which so many have room.
    pub fn scroll_to(&mut self, cursor: usize, room: usize, rows: usize) {
        self.offset =
            self.offset.min(cursor).max((cursor + 1).saturating_sub(room)).min(rows.saturating_sub(room.min(rows)));
    }
}
