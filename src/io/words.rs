//! Counts, numbers and texts in sentences.

/// A count and its noun: `1 image`, `2 images`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The first `most` characters, with `…` in place of the rest.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A score with its sign and four digits.
pub fn score(value: f64) -> String {
    format!("{}{}", if value < 0.0 { "-" } else { "+" }, digits(value.abs(), 4))
}

/// A number of so many significant digits; very small and very large ones as powers of ten.
pub fn digits(value: f64, significant: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Rounding may reach the next power of ten.
    let scientific = format!("{value:.*e}", significant - 1);
    let exponent: i32 = scientific.rsplit('e').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    match exponent {
        -4..=5 => format!("{value:.*}", usize::try_from(significant as i32 - 1 - exponent).unwrap_or(0)),
        _ => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([score(0.104_112), score(-0.000_25), score(0.0)], ["+0.1041", "-0.0002500", "+0"]);
        assert_eq!(
            [digits(9.9999e-6, 2), digits(123_456.0, 3), digits(0.999_96, 4)],
            ["1.0e-5", "123456", "1.000"]
        );
    }
}
