//! Numbers as people read them in a column: three digits and a unit, and nothing where a number is not known. Pure code.

use std::time::Duration;

use crate::telemetry::console;

/// Not known. A zero is `0`.
pub const UNKNOWN: &str = "?";

/// A count: `950`, `1.2k`, `34k`, `5.6M`.
pub fn count(value: f64) -> String {
    let (value, unit) = match value {
        value if value < 999.5 => return format!("{value:.0}"),
        value if value < 999_500.0 => (value / 1e3, "k"),
        value if value < 999_500_000.0 => (value / 1e6, "M"),
        value => (value / 1e9, "G"),
    };
    if value < 9.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

/// So many a second: as [`count`], a tenth below ten, and what is less than that but not nothing is not shown as nothing.
pub fn rate(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if value < 0.05 => "<.1".into(),
        value if value < 9.95 => format!("{value:.1}"),
        value => count(value),
    }
}

/// A duration in ns: `446us`.
pub fn duration(ns: u64) -> String {
    console::duration(ns)
}

/// How long ago something began: `4.5s`, `12m30s`, `5h12m`, `3d4h`.
pub fn age(ns: u64) -> String {
    let seconds = Duration::from_nanos(ns).as_secs();
    match seconds {
        0..100 => duration(ns),
        100..6_000 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        6_000..360_000 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Seconds as a column shows them, see [`age`].
pub fn time(seconds: f64) -> String {
    age((seconds * 1e9).round() as u64)
}

/// The text of what is known.
pub fn known<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.into(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents numbers from growing out of their column, and something from being shown as nothing.
    #[test]
    fn columns() {
        for (value, expected) in [
            (0.0, "0"),
            (0.01, "<.1"),
            (0.5, "0.5"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (12_345.0, "12k"),
            (999_600.0, "1.0M"),
            (5_600_000_000.0, "5.6G"),
        ] {
            assert_eq!(rate(value), expected, "{value}");
        }
        assert_eq!([count(0.0), count(3.0), count(1234.0)], ["0", "3", "1.2k"]);
        for (seconds, expected) in [(4, "4.0s"), (99, "99.0s"), (750, "12m30s"), (18_720, "5h12m"), (360_000, "4d4h")] {
            assert_eq!(age(seconds * 1_000_000_000), expected);
        }
        assert_eq!((known(None, age), known(Some(0), |depth| count(depth as f64))), ("?".into(), "0".into()));
    }
}
