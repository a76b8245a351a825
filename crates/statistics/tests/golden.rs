//! The statistics against numpy and scipy; `tests/golden/make_statistics.py` writes the values.

#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

use attrflow_statistics::correlation::{average_ranks, pearson, spearman};
use attrflow_statistics::error_bars::Differences;
use attrflow_statistics::interval::{Interval, percentile_interval, t_interval};
use attrflow_statistics::lds::{self, Resample, Resamples};
use attrflow_statistics::paired::net_interval;
use attrflow_statistics::random::Random;
use attrflow_statistics::retrieval::{average_precision, recall_at};
use attrflow_statistics::special_functions::student;
use serde_json::Value;

macro_rules! golden {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!(
            "../../../tests/golden/statistics/",
            $name,
            ".json"
        )))
        .unwrap()
    };
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    rows(value).iter().map(number).collect()
}

fn indices(value: &Value) -> Vec<usize> {
    rows(value).iter().map(|value| value.as_u64().unwrap() as usize).collect()
}

fn table(value: &Value) -> Vec<Vec<f64>> {
    rows(value).iter().map(numbers).collect()
}

/// Both are computed in f64 by formulas that round a few times.
#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} for {expected}");
}

#[track_caller]
fn near_bounds(found: Interval, expected: &Value) {
    near(found.low, number(&expected["low"]));
    near(found.high, number(&expected["high"]));
}

#[test]
fn correlations_are_those_of_scipy() {
    for row in rows(&golden!("correlations")) {
        let (a, b) = (numbers(&row["a"]), numbers(&row["b"]));
        assert_eq!(average_ranks(&a), numbers(&row["ranks"]));
        near(pearson(&a, &b).unwrap(), number(&row["pearson"]));
        near(spearman(&a, &b).unwrap(), number(&row["spearman"]));
    }
}

#[test]
fn students_quantiles_are_those_of_scipy() {
    for row in rows(&golden!("quantiles")) {
        let (found, expected) =
            (student(number(&row["df"]), number(&row["level"])), number(&row["quantile"]));
        // The upper tail is 1 - level, which has fewer digits.
        assert!((found - expected).abs() <= 1e-11 * expected, "{found} for {expected}");
    }
}

#[test]
fn intervals_are_those_of_scipy() {
    for row in rows(&golden!("t_intervals")) {
        let found = t_interval(&numbers(&row["values"]), number(&row["level"])).unwrap();
        near_bounds(found, row);
    }
}

#[test]
fn net_intervals_are_those_of_scipy() {
    for row in rows(&golden!("net_intervals")) {
        let (net, sets) = (numbers(&row["net"]), numbers(&row["sets"]));
        near_bounds(net_interval(&net, &sets, number(&row["level"])).unwrap(), row);
    }
}

#[test]
fn percentiles_are_those_of_numpy() {
    for row in rows(&golden!("percentile_intervals")) {
        near_bounds(percentile_interval(0.0, &numbers(&row["samples"]), number(&row["level"])), row);
    }
}

/// The draws of the golden bootstrap.
fn draws(golden: &Value) -> Resamples {
    let draw =
        |draw: &Value| Resample { subsets: indices(&draw["subsets"]), queries: indices(&draw["queries"]) };
    Resamples::given(rows(&golden["draws"]).iter().map(draw).collect())
}

#[test]
fn the_linear_datamodeling_score_and_its_intervals_are_those_of_scipy() {
    let golden = golden!("lds");
    let (losses, a, b) = (table(&golden["losses"]), table(&golden["a"]), table(&golden["b"]));
    let draws = draws(&golden);
    let level = number(&golden["level"]);
    let found = lds::interval(&losses, &a, &draws, level).unwrap();
    near(found.mean, number(&golden["interval"]["mean"]));
    near_bounds(found, &golden["interval"]);
    assert_eq!(lds::score(&losses, &a), Some(found.mean));
    assert_eq!(lds::by_query(&losses, &a)[4], None);
    let found = lds::difference_interval(&losses, &a, &b, &draws, level).unwrap();
    near(found.mean, number(&golden["difference"]["mean"]));
    near_bounds(found, &golden["difference"]);
}

#[test]
fn predictions_are_products_and_removals_are_slopes() {
    let golden = golden!("lds");
    let (losses, a, scores) = (table(&golden["losses"]), table(&golden["a"]), table(&golden["scores"]));
    for (m, kept) in rows(&golden["kept"]).iter().enumerate() {
        let kept: Vec<bool> = rows(kept).iter().map(|kept| kept.as_bool().unwrap()).collect();
        for q in [0, 1, 2, 3, 5] {
            near(lds::prediction(&scores[q], &kept), a[m][q]);
        }
    }
    let kept_of_top = numbers(&golden["kept_of_top"]);
    for (q, expected) in numbers(&golden["removal"]).into_iter().enumerate() {
        let column: Vec<f64> = losses.iter().map(|row| row[q]).collect();
        near(lds::removal_effect(&column, &kept_of_top, 5.0).unwrap(), expected);
    }
}

#[test]
fn removals_of_all_queries_have_the_bootstraps_interval() {
    let golden = golden!("lds");
    let losses = table(&golden["losses"]);
    let draws = draws(&golden);
    let kept = vec![numbers(&golden["kept_of_top"]); losses[0].len()];
    let found = lds::removal_interval(&losses, &kept, 5.0, &draws, number(&golden["level"])).unwrap();
    near(found.mean, number(&golden["removal_interval"]["mean"]));
    near_bounds(found, &golden["removal_interval"]);
}

#[test]
fn the_correlation_of_mirror_images_is_numpys() {
    for row in rows(&golden!("shared_noise")) {
        let values: Vec<f32> = numbers(&row["rows"]).into_iter().map(|value| value as f32).collect();
        let count = |key: &str| number(&row[key]) as usize;
        let (timesteps, draws) = (count("timesteps"), count("draws"));
        let found = Differences { rows: &values, timesteps, draws }.mirror_correlation(count("images"));
        near(found, number(&row["correlation"]));
    }
}

#[test]
fn retrieval_is_that_of_the_cumulated_precision() {
    for row in rows(&golden!("retrieval")) {
        let ranks = indices(&row["ranks"]);
        near(average_precision(&ranks).unwrap(), number(&row["average_precision"]));
        near(recall_at(&ranks, 10).unwrap(), number(&row["recall_at_10"]));
    }
}

#[test]
fn random_numbers_are_those_of_the_hash() {
    let golden = golden!("random");
    let stream = || Random::new(golden["purpose"].as_str().unwrap(), golden["seed"].as_u64().unwrap());
    let mut random = stream();
    for expected in indices(&golden["below_1000"]) {
        assert_eq!(random.below(1000), expected);
    }
    let mut random = stream();
    for expected in numbers(&golden["uniform"]) {
        assert_eq!(random.uniform(), expected);
    }
}
