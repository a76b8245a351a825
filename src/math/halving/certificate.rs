//! What a random sample of the discarded says of all of them.

use statrs::distribution::{DiscreteCDF, Hypergeometric};

/// The most of `population` that can belong, if `found` of a uniform sample of `drawn` without replacement do: an upper
/// bound that holds with at least the given confidence, whatever the population is.
///
/// Clopper and Pearson's construction (1934) on the hypergeometric distribution, for a sample is drawn without
/// replacement: never above their bound for the binomial one, and exactly `found` where all were drawn.
pub fn most(population: usize, drawn: usize, found: usize, confidence: f64) -> usize {
    let error = 1.0 - confidence;
    // As many as were found belong, and as many as were drawn besides do not.
    let (mut low, mut high) = (found, population - (drawn - found));
    // The more belong, the less likely so few are found: the last number that is not too unlikely.
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
    match Hypergeometric::new(population as u64, belonging as u64, drawn as u64) {
        Ok(distribution) => distribution.cdf(found as u64),
        // No parameters but more belonging or drawn than there are fail, which `most` never asks for.
        Err(_) => 0.0,
    }
}

/// How many of `population` must be drawn, none of which belongs, to bound those that do by `belonging`.
pub fn sample_for(population: usize, belonging: usize, confidence: f64) -> usize {
    let (mut low, mut high) = (0, population);
    while low < high {
        let middle = low + (high - low) / 2;
        if most(population, middle, 0, confidence) <= belonging {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}
