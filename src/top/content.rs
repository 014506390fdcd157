//! What is shown, as it comes in. Pure code.

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::overview::log::LoggedCall;
use crate::overview::snapshot::Snapshot;
use crate::overview::tables::CoursePoint;

/// What is shown.
#[derive(Clone, Debug)]
pub struct Content {
    /// The tables.
    pub snapshot: Snapshot,
    /// The latest calls, the oldest first.
    pub calls: Vec<Arc<LoggedCall>>,
    /// How the queue went whose page is open, the oldest point first.
    pub course: Vec<CoursePoint>,
    /// The zone of times of day.
    pub zone: TimeZone,
}
