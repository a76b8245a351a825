//! Effects of removing images, from retrained models that are compared in pairs.
//!
//! A model without some images is compared with the control of the same seed. An arm is a way to choose the images:
//! the removal of random ones is the floor that an arm must exceed.

use serde::{Serialize, Serializer};

use crate::interval::Interval;
use crate::special_functions::student;
use crate::{mean, sample_variance, squares};

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
/// E are effects of random sets, differences to the control of the same seed; a row of sets for each query. L are the losses of
/// controls, a row of seeds for each query. Both variances are around the mean of a row, pooled over the rows. A difference of two
/// models with independent seeds would have the variance 2 Var(L). Below 1, pairing helps.
///
/// `None` without two effects of a query or two seeds, and if the losses do not differ between seeds.
pub fn variance_left(random_effects: &[Vec<f64>], control_losses_by_seed: &[Vec<f64>]) -> Option<f64> {
    let (effects, losses) = (pooled_variance(random_effects)?, pooled_variance(control_losses_by_seed)?);
    (losses > 0.0).then(|| effects / (2.0 * losses))
}

/// The variance around the mean of a row, pooled over all rows of two and more.
fn pooled_variance(rows: &[Vec<f64>]) -> Option<f64> {
    let rows = || rows.iter().filter(|row| row.len() > 1);
    let df: usize = rows().map(|row| row.len() - 1).sum();
    (df > 0).then(|| rows().map(|row| squares(row)).sum::<f64>() / df as f64)
}

/// The interval of the mean effect of an arm, net of random removal, where all queries share the models without random images.
///
/// `net` are the effects less those of the random sets, by query; `sets` the mean effects of the random sets over these queries. The
/// mean errs by what differs between queries, and by which sets were drawn, which more queries do not take away: its variance is
/// s^2(net) / n + s^2(sets) / m, with the degrees of freedom of Welch (1947) and Satterthwaite (1946). What a set does to one query
/// alone is in both parts, so the interval is rather too wide.
///
/// `None` with fewer than two queries or sets.
pub fn net_interval(net: &[f64], sets: &[f64], level: f64) -> Option<Interval> {
    if net.len() < 2 || sets.len() < 2 {
        return None;
    }
    let part = |values: &[f64]| (sample_variance(values) / values.len() as f64, (values.len() - 1) as f64);
    let ((between, queries), (drawn, count)) = (part(net), part(sets));
    let variance = between + drawn;
    let df = match variance > 0.0 {
        true => variance.powi(2) / (between.powi(2) / queries + drawn.powi(2) / count),
        false => queries + count,
    };
    Some(Interval::around(mean(net), student(df, (1.0 + level) / 2.0) * variance.sqrt()))
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
    fn what_pairing_leaves_is_a_ratio_of_variances() {
        // Var(E) = 2, Var(L) = (2 + 2) / 2 whatever the queries' means.
        let losses = [vec![1.0, 3.0], vec![100.0, 102.0], vec![7.0]];
        let effects = [vec![0.0, 2.0], vec![70.0, 72.0]];
        assert_eq!(variance_left(&effects, &losses), Some(0.5));
        assert_eq!(variance_left(&effects, &[vec![1.0], vec![2.0]]), None);
        assert_eq!(variance_left(&[vec![0.0], vec![3.0]], &losses), None);
        assert_eq!(variance_left(&effects, &[vec![1.0, 1.0]]), None);
        // Equal effects of all sets: pairing leaves nothing, however much queries differ.
        assert_eq!(variance_left(&[vec![0.01, 0.01], vec![-0.01, -0.01]], &losses), Some(0.0));
    }

    #[test]
    fn without_a_common_part_pairing_leaves_everything() {
        let mut random = Random::new("pairing", 1);
        let losses: Vec<Vec<f64>> = (0..500).map(|_| (0..4).map(|_| random.normal()).collect()).collect();
        let effects: Vec<Vec<f64>> =
            (0..500).map(|_| (0..4).map(|_| random.normal() - random.normal()).collect()).collect();
        let left = variance_left(&effects, &losses).unwrap();
        assert!((left - 1.0).abs() < 0.15, "{left}");
    }

    #[test]
    fn models_that_all_queries_share_widen_the_interval() {
        // A hundred queries cannot tell the effect from the luck of two random models.
        let net: Vec<f64> = (0..100).map(|query| 0.01 + 0.001 * f64::from(query % 2)).collect();
        let shared = net_interval(&net, &[0.0, 0.02], 0.95).unwrap();
        assert!(shared.low < 0.0 && shared.high > 0.02, "{shared:?}");
        // Where the sets agree, what is left is Student's interval over queries.
        let alone = net_interval(&net, &[0.01, 0.01, 0.01], 0.95).unwrap();
        let expected = crate::interval::t_interval(&net, 0.95).unwrap();
        assert!((alone.low - expected.low).abs() < 1e-12 && (alone.high - expected.high).abs() < 1e-12);
        assert_eq!(net_interval(&net, &[0.01], 0.95), None);
        assert_eq!(net_interval(&[0.5], &[0.1, 0.2], 0.95), None);
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
