//! Error bars of small rankings that can be checked by hand.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::io::npy::writer::write_f32;

/// A file of differences around these scores: one lower, one higher, at each of two timesteps.
fn file(scores: &[f32]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let rows: Vec<f32> = scores.iter().flat_map(|s| [s - 1.0, s + 1.0, s - 1.0, s + 1.0]).collect();
    write_f32(&path, &[scores.len(), 2, 2], &rows).unwrap();
    (folder, path)
}

#[test]
fn errors_ranks_and_ties_follow_from_the_draws() {
    let influence = [20.0, 40.0, 0.0, 19.5];
    let (_folder, path) = file(&influence);
    let scores = Scores { file: &path, influence: &influence, flips: Flips::Max };
    let Found { method, rows: bars, standard_errors } =
        scores.error_bars(&[1, 0, 3, 2], 3, 2).unwrap().unwrap();
    // The sample variance of two draws is 2 at both timesteps: SE^2 = (2 + 2) / (R T^2) = 4 / 8. All are equal, so the common
    // variance is known: the interval is the normal one.
    let error = 0.5_f64.sqrt();
    for (bar, score) in bars.iter().zip([40.0, 20.0, 19.5]) {
        assert!((f64::from(bar.standard_error) - error).abs() < 1e-6);
        let (low, high) = (f64::from(bar.low), f64::from(bar.high));
        assert!(
            (high - score - 1.959_964 * error).abs() < 1e-5 && (score - low - 1.959_964 * error).abs() < 1e-5
        );
    }
    let ranks: Vec<_> = bars.iter().map(|bar| (bar.rank_low, bar.rank_high, bar.tied)).collect();
    // The last one asked for is compared with the image behind it.
    assert_eq!(ranks, [(1, 1, false), (2, 3, true), (2, 3, false)]);
    // Their difference is 0.5 with a standard error of 1: P(Z > -0.5) = 0.69.
    assert_eq!(bars[0].p_top, 1.0);
    assert!((bars[1].p_top - 0.691).abs() < 0.1, "{}", bars[1].p_top);
    assert!((bars[1].p_top + bars[2].p_top - 1.0).abs() < 1e-9);
    assert_eq!((method.method, method.timesteps, method.draws, method.top), ("between draws", 2, 2, 2));
    assert!((method.median_standard_error - error).abs() < 1e-9);
    assert!(
        standard_errors.len() == 4
            && standard_errors.iter().all(|one| (f64::from(*one) - error).abs() < 1e-6)
    );
    // Not a number in JSON.
    assert_eq!(serde_json::to_value(&method).unwrap()["degrees_of_freedom"], serde_json::Value::Null);
    assert_eq!(bars[0].lines(), ["\u{b1} 0.71, rank 1"]);
    assert_eq!(bars[1].lines(), ["\u{b1} 0.71, ranks 2\u{2013}3", "tie with the next"]);
}

#[test]
fn a_mirror_image_counts_as_the_parameter_says() {
    // Two images, then their mirror images.
    let (_folder, path) = file(&[1.0, 8.0, 5.0, 2.0]);
    let error = |influence: &[f32], flips| {
        let scores = Scores { file: &path, influence, flips };
        let bars = scores.error_bars(&[1, 0], 2, 1).unwrap().unwrap().rows;
        bars[0].standard_error
    };
    let one = 0.5_f32.sqrt();
    assert!((error(&[5.0, 8.0], Flips::Max) - one).abs() < 1e-6);
    // Both have the same noise: their mean has no less of it.
    assert!((error(&[3.0, 5.0], Flips::Mean) - one).abs() < 1e-6);
    // The influences of the other parameter.
    let scores = Scores { file: &path, influence: &[5.0, 8.0], flips: Flips::Mean };
    let message = scores.error_bars(&[1, 0], 2, 1).err().unwrap().to_string();
    assert!(message.contains("the score of image 0 is 3.000e0, expected 5.000e0"), "{message}");
}

#[test]
fn one_draw_is_judged_by_successive_differences() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    // What both share at a timestep is no error; the rest is +-1, -+1, +-1.
    write_f32(&path, &[2, 3], &[11.0, 19.0, 31.0, 9.0, 21.0, 29.0]).unwrap();
    let influence = [61.0 / 3.0, 59.0 / 3.0];
    let scores = Scores { file: &path, influence: &influence, flips: Flips::Max };
    let Found { method, rows: bars, .. } = scores.error_bars(&[0, 1], 2, 1).unwrap().unwrap();
    assert_eq!((method.method, method.draws), ("successive differences", 1));
    // Two steps of 2 each; the mean of both takes half of the variance: 2 (4 + 4) / (2 T (T - 1)).
    let expected = (16.0_f32 / 12.0).sqrt();
    assert!((bars[0].standard_error - expected).abs() < 1e-5, "{bars:?}");
}

#[test]
fn files_that_say_nothing_or_are_of_others_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let found = |shape: &[usize], influence: &[f32]| {
        write_f32(&path, shape, &vec![1.0; shape.iter().product()]).unwrap();
        let scores = Scores { file: &path, influence, flips: Flips::Max };
        scores.error_bars(&[0, 1], 2, 1).map(|found| found.is_some()).map_err(|error| error.to_string())
    };
    assert_eq!(found(&[2, 1], &[1.0; 2]), Ok(false));
    assert_eq!(found(&[4, 3], &[1.0; 2]), Ok(true));
    assert!(
        found(&[3, 4], &[1.0; 2])
            .unwrap_err()
            .ends_with("a.npy: 3 rows, expected 2 or 4 (with mirror images), since there are 2 influences")
    );
    assert!(found(&[2], &[1.0; 2]).unwrap_err().contains("a.npy: shape [2], expected [_, _]"));
    assert!(found(&[2, 3], &[1.0, 2.0]).unwrap_err().contains("both must come from the same stage"));
}
