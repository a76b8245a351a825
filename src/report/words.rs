//! Numbers as people read them.

use crate::io::words::digits;

/// A duration.
pub(super) fn seconds(value: f64) -> String {
    let whole = value.round() as u64;
    match whole {
        _ if value < 0.9995 => format!("{:.0} ms", value * 1000.0),
        0..60 => format!("{value:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Letters of a text in an alternative text.
pub(super) const ALT: usize = 120;

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value == 0.0 || value >= 9.95 { format!("{value:.0} %") } else { format!("{} %", digits(value, 2)) }
}

/// A time of a manifest for people: `2026-11-30 17:47 UTC`.
pub(super) fn time(rfc3339: &str) -> String {
    match (rfc3339.get(..10), rfc3339.get(11..16), rfc3339.ends_with('Z')) {
        (Some(day), Some(time), true) => format!("{day} {time} UTC"),
        _ => rfc3339.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [seconds(0.0594), seconds(59.44), seconds(231.2), seconds(7265.0)],
            ["59 ms", "59.4 s", "3 min 51 s", "2 h 1 min"]
        );
        assert_eq!([percent(0.0), percent(0.0312), percent(0.5)], ["0 %", "3.1 %", "50 %"]);
        assert_eq!(time("2026-11-30T17:47:06.912286Z"), "2026-11-30 17:47 UTC");
    }
}
