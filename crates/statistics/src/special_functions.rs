//! Special functions, to all digits that matter here.

/// The logarithm of the gamma function, by recurrence and Stirling's series (Abramowitz and Stegun 6.1.41).
pub fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut product) = (x, 1.0);
    while x < 10.0 {
        product *= x;
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y * (1.0 / 1680.0 - y / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + std::f64::consts::TAU.ln() / 2.0 + series - product.ln()
}

/// Its derivative, the digamma function (6.3.18).
pub fn digamma(x: f64) -> f64 {
    let (mut x, mut sum) = (x, 0.0);
    while x < 10.0 {
        sum -= 1.0 / x;
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    let series = y * (1.0 / 12.0 - y * (1.0 / 120.0 - y * (1.0 / 252.0 - y * (1.0 / 240.0 - y / 132.0))));
    sum + x.ln() - 0.5 / x - series
}

/// The derivative of the digamma function, by recurrence and its asymptotic series (Abramowitz and Stegun 6.4.12).
pub fn trigamma(x: f64) -> f64 {
    let (mut x, mut sum) = (x, 0.0);
    while x < 10.0 {
        sum += 1.0 / (x * x);
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    sum + 1.0 / x + y / 2.0 + y / x * (1.0 / 6.0 - y * (1.0 / 30.0 - y * (1.0 / 42.0 - y / 30.0)))
}

/// Where the trigamma function, which falls from infinity to zero, takes this value.
pub fn inverse_trigamma(value: f64) -> f64 {
    let (mut low, mut high) = (1e-8_f64, 1e8_f64);
    for _ in 0..100 {
        let middle = (low * high).sqrt();
        if trigamma(middle) > value {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low * high).sqrt()
}

/// The logarithm of how many ways there are to choose `k` of `n`.
pub fn ln_choose(n: usize, k: usize) -> f64 {
    let factorial = |n: usize| ln_gamma(n as f64 + 1.0);
    factorial(n) - factorial(k) - factorial(n - k)
}

/// Where Student's distribution with `df` degrees of freedom, or the normal one that it becomes, reaches `level`
/// (at least a half).
pub fn student(df: f64, level: f64) -> f64 {
    // Beyond this many the two agree to all digits that matter.
    let df = df.min(1e6);
    let (mut low, mut high) = (0.0, 1.0);
    while student_beyond(high, df) > 1.0 - level {
        (low, high) = (high, high * 2.0);
    }
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if student_beyond(middle, df) > 1.0 - level {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// The probability of more than `t`, which is not negative (26.7.1).
fn student_beyond(t: f64, df: f64) -> f64 {
    beta([df / 2.0, 0.5], [df / (df + t * t), t * t / (df + t * t)]) / 2.0
}

/// The regularised incomplete beta function I_x(a, b), given x and 1 - x.
fn beta([a, b]: [f64; 2], [x, rest]: [f64; 2]) -> f64 {
    if x <= 0.0 || rest <= 0.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    // The fraction converges fast on this side only.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta([b, a], [rest, x]);
    }
    let front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * rest.ln();
    front.exp() / a * beta_fraction(a, b, x)
}

/// The continued fraction of the incomplete beta function (26.5.8), by Lentz's method.
fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut result = d;
    for m in (1..10_000).map(f64::from) {
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = result;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            result *= c * d;
        }
        if (result - before).abs() <= 1e-16 * result.abs() {
            break;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_known_functions() {
        let near = |found: f64, expected: f64| {
            assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} for {expected}");
        };
        let euler = 0.577_215_664_901_532_9;
        near(ln_gamma(0.5), std::f64::consts::PI.ln() / 2.0);
        near(ln_gamma(1.0), 0.0);
        near(ln_gamma(21.0), 2_432_902_008_176_640_000_f64.ln());
        near(digamma(1.0), -euler);
        near(digamma(0.5), -euler - 2.0 * 2_f64.ln());
        near(ln_choose(10, 3), 120_f64.ln());
        near(trigamma(inverse_trigamma(0.3)), 0.3);
    }

    #[test]
    fn students_quantiles_are_those_of_the_tables() {
        let known = [
            (1.0, 0.975, 12.706_204_736),
            (2.0, 0.95, 2.919_985_580),
            (4.0, 0.975, 2.776_445_105),
            (30.0, 0.995, 2.749_995_654),
            (2.0, 0.5, 0.0),
        ];
        for (df, level, expected) in known {
            let found = student(df, level);
            assert!((found - expected).abs() < 1e-8, "{found} for {expected}");
        }
        for (level, expected) in [(0.975, 1.959_963_985), (0.999, 3.090_232_306)] {
            let found = student(f64::INFINITY, level);
            assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
        }
    }
}
