//! Effects of removing images, from retrained models that are compared in pairs.
//!
//! A model without some images is compared with the control of the same seed. An arm is a way to choose the images:
//! the removal of random ones is the floor that an arm must exceed.

use serde::{Serialize, Serializer};

use crate::interval::Interval;
use crate::{sample_variance, squares};

/// What an interval says about a claim that a mean exceeds what chance gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval is above chance.
    Holds,
    /// The whole interval is below chance.
    DoesNotHold,
    /// The interval includes chance.
    Undecided,
}

impl Verdict {
    /// The verdict in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::Undecided => "undecided",
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.words())
    }
}

/// How much of the variance of a difference is left by pairing: Var(E) / (2 Var(L)).
///
/// E are effects of random sets, differences to the control of the same seed. Var(E) is their variance around their
/// common mean, so what differs between queries adds to it. L are the losses of controls, a row of seeds for each
/// query. Var(L) is their variance between seeds, pooled over queries. A difference of two models with independent
/// seeds would have the variance 2 Var(L). Below 1, pairing helps.
///
/// `None` with fewer than two effects or seeds, and if the losses do not differ between seeds.
pub fn pairing_gain(random_effects: &[f64], control_losses_by_seed: &[Vec<f64>]) -> Option<f64> {
    let rows = || control_losses_by_seed.iter().filter(|row| row.len() > 1);
    let df: usize = rows().map(|row| row.len() - 1).sum();
    let spread: f64 = rows().map(|row| squares(row)).sum();
    let defined = random_effects.len() > 1 && df > 0 && spread > 0.0;
    defined.then(|| sample_variance(random_effects) / (2.0 * spread / df as f64))
}

/// The verdict on the claim that a mean exceeds `chance`.
pub fn verdict(interval: Interval, chance: f64) -> Verdict {
    if interval.low > chance {
        Verdict::Holds
    } else if interval.high < chance {
        Verdict::DoesNotHold
    } else {
        Verdict::Undecided
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn the_gain_is_a_ratio_of_variances() {
        // Var(E) = 2, Var(L) = (2 + 2) / 2 whatever the queries' means.
        let losses = [vec![1.0, 3.0], vec![100.0, 102.0], vec![7.0]];
        assert_eq!(pairing_gain(&[0.0, 2.0], &losses), Some(0.5));
        assert_eq!(pairing_gain(&[0.0, 2.0], &[vec![1.0], vec![2.0]]), None);
        assert_eq!(pairing_gain(&[0.0], &losses), None);
        assert_eq!(pairing_gain(&[0.0, 2.0], &[vec![1.0, 1.0]]), None);
    }

    #[test]
    fn without_a_common_part_pairing_gains_nothing() {
        let mut random = Random::new("pairing", 1);
        let losses: Vec<Vec<f64>> = (0..500).map(|_| (0..4).map(|_| random.normal()).collect()).collect();
        let effects: Vec<f64> = (0..2000).map(|_| random.normal() - random.normal()).collect();
        let gain = pairing_gain(&effects, &losses).unwrap();
        assert!((gain - 1.0).abs() < 0.15, "{gain}");
    }

    #[test]
    fn an_interval_decides_if_chance_is_outside() {
        let interval = Interval { mean: 1.0, low: 0.5, high: 1.5 };
        let verdicts = [0.4, 0.5, 1.0, 1.5, 1.6].map(|chance| verdict(interval, chance));
        use Verdict::{DoesNotHold, Holds, Undecided};
        assert_eq!(verdicts, [Holds, Undecided, Undecided, Undecided, DoesNotHold]);
        let written = verdicts.map(|verdict| serde_json::to_string(&verdict).unwrap());
        assert_eq!(written[0..2].join(" ") + &written[4], "\"holds\" \"undecided\"\"does not hold\"");
    }
}
