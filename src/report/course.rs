//! How a queue went over time: as lines drawn in SVG, and as the numbers that the page's script draws. Pure code.

use std::fmt::Write;

use serde::Serialize;

use crate::overview::numbers::{age, rate};
use crate::overview::tables::{CoursePoint, QueueRecord};

/// A queue's lines, each in a box of 320 × 80.
pub(super) struct CourseChart {
    pub(super) queue: String,
    pub(super) depth: String,
    pub(super) sent: String,
    pub(super) received: String,
    pub(super) note: String,
}

impl CourseChart {
    pub(super) fn new(queue: String, record: &QueueRecord) -> Self {
        let course: Vec<&CoursePoint> = record.course.iter().collect();
        let fastest = course.iter().map(|point| point.sent.max(point.received)).fold(0.0, f64::max);
        let deepest = course.iter().filter_map(|point| point.peak).max().unwrap_or(0);
        let capacity = capacity(record) as f64;
        let seconds: f64 = course.iter().map(|point| point.seconds).sum();
        let of_fastest = |rate: f64| Some(if fastest > 0.0 { rate / fastest } else { 0.0 });
        Self {
            queue,
            depth: path(course.iter().map(|point| point.peak.map(|peak| peak as f64 / capacity))),
            sent: path(course.iter().map(|point| of_fastest(point.sent))),
            received: path(course.iter().map(|point| of_fastest(point.received))),
            note: format!("{}; at most {deepest} of {capacity}, {}/s", age((seconds * 1e9) as u64), rate(fastest)),
        }
    }
}

fn capacity(record: &QueueRecord) -> i64 {
    let deepest = record.course.iter().filter_map(|point| point.peak).max();
    record.capacity.or(deepest).unwrap_or(0).max(1)
}

/// A line through shares of the height; where there is none it is broken.
fn path(values: impl ExactSizeIterator<Item = Option<f64>>) -> String {
    let step = 320.0 / (values.len().max(2) - 1) as f64;
    let (mut path, mut is_broken) = (String::new(), true);
    for (at, value) in values.enumerate() {
        match value {
            Some(share) => {
                let (x, y) = (at as f64 * step, 80.0 - 75.0 * share.clamp(0.0, 1.0));
                // Writing to a String cannot fail.
                let _ = write!(path, "{}{x:.1} {y:.1}", if is_broken { 'M' } else { 'L' });
                // A single point is a short line.
                path.push_str(if is_broken { "h1" } else { "" });
                is_broken = false;
            }
            None => is_broken = true,
        }
    }
    path
}

/// The same as numbers: `time` in seconds after `start` (since 1970), rates a second, null where the depth is not known.
#[derive(Serialize)]
struct CourseData {
    queue: String,
    capacity: i64,
    start: f64,
    time: Vec<f64>,
    depth: Vec<Option<i64>>,
    sent: Vec<f64>,
    received: Vec<f64>,
}

impl CourseData {
    fn new(queue: String, record: &QueueRecord) -> Self {
        let course = &record.course;
        let start_ns = course.front().map_or(0, |point| point.time_ns);
        Self {
            queue,
            capacity: capacity(record),
            start: start_ns as f64 / 1e9,
            time: course.iter().map(|point| tenths((point.time_ns - start_ns) as f64 / 1e9)).collect(),
            depth: course.iter().map(|point| point.peak).collect(),
            sent: course.iter().map(|point| tenths(point.sent)).collect(),
            received: course.iter().map(|point| tenths(point.received)).collect(),
        }
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The numbers of these queues, for a script element: no `<` is in it, so nothing ends the element.
pub(super) fn json<'a>(courses: impl Iterator<Item = (String, &'a QueueRecord)>) -> Result<String, String> {
    let data: Vec<_> = courses.map(|(queue, record)| CourseData::new(queue, record)).collect();
    Ok(serde_json::to_string(&data).map_err(|error| error.to_string())?.replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents what is not known from being drawn as if it were zero.
    #[test]
    fn broken_lines() {
        assert_eq!(path([Some(0.0), None, Some(1.0), Some(2.0)].into_iter()), "M0.0 80.0h1M213.3 5.0h1L320.0 5.0");
        assert_eq!(path([].into_iter()), "");
    }
}
