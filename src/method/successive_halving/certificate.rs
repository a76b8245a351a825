//! Bounds on all discarded images from a random sample of them.

use attrflow_statistics::special_functions::ln_choose;

/// The most of `population` that can belong, if `found` of a uniform sample of `drawn` without replacement do: an upper
/// bound that holds with at least the given confidence for every population.
///
/// Clopper and Pearson's construction (1934) with the hypergeometric distribution, since the sample is drawn without
/// replacement: never above their bound for the binomial distribution, and exactly `found` if all were drawn.
pub fn upper_bound(population: usize, drawn: usize, found: usize, confidence: f64) -> usize {
    let error = 1.0 - confidence;
    // At least the found ones belong; at least the rest of the sample does not.
    let (mut low, mut high) = (found, population - (drawn - found));
    // Binary search for the largest number that is not rejected: the more belong, the less likely so few are found.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if at_most(population, middle, drawn, found) > error {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// The probability that a sample of `drawn` holds at most `found` of the `belonging`.
fn at_most(population: usize, belonging: usize, drawn: usize, found: usize) -> f64 {
    let others = population - belonging;
    let all = ln_choose(population, drawn);
    let chance = |x: usize| (ln_choose(belonging, x) + ln_choose(others, drawn - x) - all).exp();
    (drawn.saturating_sub(others)..=found.min(belonging).min(drawn)).map(chance).sum()
}

/// The size of a sample of `population` without a find that bounds the number of finds in it by `belonging`.
pub fn sample_for(population: usize, belonging: usize, confidence: f64) -> usize {
    let (mut low, mut high) = (0, population);
    while low < high {
        let middle = low + (high - low) / 2;
        if upper_bound(population, middle, 0, confidence) <= belonging {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}
