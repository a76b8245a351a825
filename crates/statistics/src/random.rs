//! Random numbers that are the same everywhere.

use std::f64::consts::TAU;

/// The hash that turns a purpose and a seed into a stream; another version here would be other numbers everywhere.
const CONTEXT: &str = "attrflow 2026-11-30 statistics v1";

/// How many bytes of the stream are computed at once.
const BUFFER: usize = 1024;

/// A deterministic stream of random numbers.
///
/// Its bits are the output of BLAKE3 as an extendable-output function. Each number takes 8 bytes of them. The
/// numbers of [`Random::below`] and [`Random::uniform`] are exact. Those of [`Random::normal`] and
/// [`Random::student`] use the platform's logarithm and cosine, which may differ in the last digit.
pub struct Random {
    stream: blake3::OutputReader,
    buffer: [u8; BUFFER],
    used: usize,
}

impl Random {
    /// The stream of one purpose and seed, independent of the streams of all others.
    pub fn new(purpose: &str, seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher.update(&seed.to_le_bytes());
        Self { stream: hasher.finalize_xof(), buffer: [0; BUFFER], used: BUFFER }
    }

    /// A number from 0 to `n` - 1, all being equally likely.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        // The numbers above the last multiple of n would make some remainders likelier.
        let last = u64::MAX - u64::MAX % n;
        loop {
            let bits = self.bits();
            if bits < last {
                return (bits % n) as usize;
            }
        }
    }

    /// A uniform number between 0 and 1, both exclusive: the middle of one of 2^52 equal parts.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// A standard normal number (Box and Muller 1958, *A note on the generation of random normal deviates*).
    pub fn normal(&mut self) -> f64 {
        self.student(f64::INFINITY)
    }

    /// A number of Student's distribution with `df` degrees of freedom; with infinitely many it is the normal one.
    ///
    /// sqrt(df (u^(-2 / df) - 1)) cos(2 pi v) of uniform u and v (Bailey 1994, *Polar generation of random variates
    /// with the t-distribution*). It is exact, and one pair of uniform numbers gives one number.
    pub fn student(&mut self, df: f64) -> f64 {
        let radius = -2.0 * self.uniform().ln();
        let square = if df.is_infinite() { radius } else { df * (radius / df).exp_m1() };
        square.sqrt() * (TAU * self.uniform()).cos()
    }

    fn bits(&mut self) -> u64 {
        if self.used == BUFFER {
            self.stream.fill(&mut self.buffer);
            self.used = 0;
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.buffer[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special_functions::student;

    #[test]
    fn a_stream_belongs_to_its_purpose_and_seed() {
        let bits = |purpose, seed| Random::new(purpose, seed).bits();
        assert_eq!(bits("test", 7), bits("test", 7));
        assert_ne!(bits("test", 7), bits("test", 8));
        assert_ne!(bits("test", 7), bits("tes", 7));
    }

    #[test]
    fn numbers_below_are_uniform() {
        let (mut random, mut counts) = (Random::new("below", 1), [0_u32; 6]);
        (0..60_000).for_each(|_| counts[random.below(6)] += 1);
        // Four standard deviations.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 366), "{counts:?}");
        assert_eq!(random.below(1), 0);
    }

    #[test]
    fn uniform_numbers_have_the_moments_of_the_uniform_distribution() {
        let mut random = Random::new("uniform", 1);
        let values: Vec<f64> = (0..100_000).map(|_| random.uniform()).collect();
        assert!(values.iter().all(|value| 0.0 < *value && *value < 1.0));
        assert!((crate::mean(&values) - 0.5).abs() < 0.004);
        assert!((crate::sample_variance(&values) - 1.0 / 12.0).abs() < 0.001);
    }

    #[test]
    fn students_numbers_have_students_quantiles() {
        let count = 100_000;
        for df in [1.0, 2.25, 10.0, 1e9, f64::INFINITY] {
            let mut random = Random::new("student", 1);
            let values: Vec<f64> = (0..count).map(|_| random.student(df)).collect();
            for level in [0.5, 0.75, 0.9, 0.975, 0.999] {
                let quantile = student(df, level);
                let below = values.iter().filter(|value| **value < quantile).count() as f64 / count as f64;
                let above = values.iter().filter(|value| **value > -quantile).count() as f64 / count as f64;
                let chance = 4.0 * (level * (1.0 - level) / count as f64).sqrt();
                assert!((below - level).abs() < chance, "{df}: {below} for {level}");
                assert!((above - level).abs() < chance, "{df}: {above} for {level}");
            }
        }
    }
}
