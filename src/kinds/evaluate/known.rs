//! Rankings whose first images are known: a training image as query, an exemplar that the model was tuned on, planted copies,
//! the first of a reference ranking.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::ensure;
use serde_json::{Value as Json, json};

use super::names::{Name, Part, means};
use super::{Evaluate, Finding, KNOWN, OWN, pairs, percent};
use crate::kinds::shared::ids;
use attrflow_engine::kind::Inputs;
use attrflow_statistics::interval::bounded_interval;
use attrflow_statistics::mean;
use attrflow_statistics::paired::Verdict;
use attrflow_statistics::retrieval::{
    average_precision, expected_average_precision, expected_recall, expected_reciprocal_rank, recall_at,
    reciprocal_rank,
};

/// The places of the relevant images of one query, from 1, in order.
struct Found {
    item: String,
    ranks: Vec<usize>,
    images: usize,
}

/// The verdicts of the tests that are connected, by method.
pub(super) fn findings(params: &Evaluate, inputs: &Inputs) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    type Relevant = fn(&Evaluate, &Path, usize) -> anyhow::Result<Vec<i64>>;
    type Judge = fn(&Evaluate, [&str; 2], &[Found]) -> Finding;
    let listed: Relevant = |_, path, images| ids::indices(path, images);
    let tests: [(&str, Relevant, Judge); 4] = [
        ("self-influence", listed, self_influence),
        ("exemplars", listed, exemplars),
        ("planted copies", listed, planted),
        ("agreement", first_of_reference, agreement),
    ];
    for ((test, relevant, judge), ports) in tests.into_iter().zip(KNOWN) {
        let parts = params.names.of_ranks(ports[0]);
        let mut methods: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for (item, [rank, file]) in pairs(inputs, ports)? {
            let order = ids::ranking(&rank)?;
            let relevant = relevant(params, &file, order.len())?;
            let name = Name::read(ports[0], parts, &item)?;
            let query = if parts.is_empty() { item } else { name.without(Part::Method) };
            let method = Some(name.part(Part::Method)).filter(|method| !method.is_empty()).unwrap_or(OWN);
            methods.entry(method.to_owned()).or_default().push(Found::of(&query, &order, &relevant)?);
        }
        expect_same_queries(ports[0], &methods)?;
        findings.extend(methods.iter().map(|(method, found)| judge(params, [test, method], found)));
    }
    Ok(findings)
}

/// Refuses methods of other queries, which could not be compared.
fn expect_same_queries(port: &str, methods: &BTreeMap<String, Vec<Found>>) -> anyhow::Result<()> {
    let queries = |found: &[Found]| found.iter().map(|query| query.item.clone()).collect::<BTreeSet<_>>();
    let Some((first, expected)) = methods.first_key_value() else { return Ok(()) };
    let expected = queries(expected);
    for (method, found) in methods {
        let found = queries(found);
        ensure!(
            found == expected,
            "`{port}`: `{method}` ranks for the queries {found:?}, expected {expected:?}, as `{first}` does"
        );
    }
    Ok(())
}

/// The first images of a reference ranking.
fn first_of_reference(params: &Evaluate, path: &Path, images: usize) -> anyhow::Result<Vec<i64>> {
    let (mut order, first) = (ids::ranking(path)?, params.reference_first);
    ensure!(
        order.len() == images,
        "{}: {} images, expected {images}, as the ranking that is compared with it",
        path.display(),
        order.len()
    );
    ensure!(
        first < images,
        "`reference_first` is {first}, expected less than {images}, the number of images"
    );
    order.truncate(first);
    Ok(order)
}

impl Found {
    fn of(item: &str, order: &[i64], relevant: &[i64]) -> anyhow::Result<Self> {
        ensure!(!relevant.is_empty(), "`{item}`: no image should be found, expected at least one");
        let mut places = vec![0; order.len()];
        order.iter().zip(1..).for_each(|(&image, place)| places[image as usize] = place);
        let mut ranks: Vec<usize> = relevant.iter().map(|&image| places[image as usize]).collect();
        ranks.sort_unstable();
        Ok(Self { item: item.to_owned(), ranks, images: order.len() })
    }
}

/// The ranks by query, for people.
fn listed(found: &[Found]) -> Json {
    found
        .iter()
        .map(|query| (query.item.clone(), json!(query.ranks)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn mean_of(found: &[Found], value: impl Fn(&Found) -> f64) -> f64 {
    found.iter().map(value).sum::<f64>() / found.len() as f64
}

fn self_influence(params: &Evaluate, name: [&str; 2], found: &[Found]) -> Finding {
    let reciprocal: Vec<f64> = found.iter().map(|query| reciprocal_rank(query.ranks[0])).collect();
    let chance = mean_of(found, |query| expected_reciprocal_rank(query.images));
    let first = mean_of(found, |query| f64::from(query.ranks[0] == 1));
    let details = json!({
        "measure": "mean reciprocal rank of a training image as its own query",
        "queries": found.len(),
        "first": first,
        "ranks": listed(found),
    });
    let rule = format!(
        "the {} interval (Hoeffding) of the mean reciprocal rank lies above that of a random order",
        percent(params.level)
    );
    Finding::of(name, bounded_interval(&reciprocal, params.level), chance, rule, details)
}

/// Drawings of one tuned model are not independent: an exemplar counts once, by their mean.
fn exemplars(params: &Evaluate, name: [&str; 2], found: &[Found]) -> Finding {
    let k = params.recall_at;
    let exemplar = |query: &Found| query.item.split(',').next().unwrap_or_default().to_owned();
    let recall = |k: usize| {
        means(found.iter().map(|query| (exemplar(query), recall_at(&query.ranks, k).unwrap_or_default())))
    };
    let chance = mean_of(found, |query| expected_recall(k, query.images));
    let values: Vec<f64> = recall(k).into_values().collect();
    let firsts: Vec<f64> = recall(1).into_values().collect();
    let details = json!({
        "measure": format!("recall@{k} of the image that a model was tuned on"),
        "exemplars": values.len(),
        "drawings": found.len(),
        "recall@1": mean(&firsts),
        "mean_average_precision": mean_of(found, |query| average_precision(&query.ranks).unwrap_or_default()),
        "mean_average_precision_by_chance": mean_of(found, |query| expected_average_precision(query.ranks.len(), query.images)),
        "ranks": listed(found),
    });
    let rule = format!(
        "the {} interval (Hoeffding, over exemplars) of recall@{k} lies above chance",
        percent(params.level)
    );
    Finding::of(name, bounded_interval(&values, params.level), chance, rule, details)
}

/// mAP(L) of FastGDA (arXiv 2511.10721, section 4.1).
fn agreement(params: &Evaluate, name: [&str; 2], found: &[Found]) -> Finding {
    let precision = |query: &Found| average_precision(&query.ranks).unwrap_or_default();
    let values: Vec<f64> = found.iter().map(precision).collect();
    let chance = mean_of(found, |query| expected_average_precision(query.ranks.len(), query.images));
    let by_query: serde_json::Map<_, _> =
        found.iter().map(|query| (query.item.clone(), json!(precision(query)))).collect();
    let first = params.reference_first;
    let details = json!({
        "measure": format!("mAP({first}): mean average precision, with the first {first} of the reference as relevant"),
        "queries": found.len(),
        "average_precision": by_query,
    });
    let rule = format!(
        "the {} interval (Hoeffding, over queries) of mAP({first}) lies above that of a random order",
        percent(params.level)
    );
    Finding::of(name, bounded_interval(&values, params.level), chance, rule, details)
}

fn planted(_: &Evaluate, [test, method]: [&str; 2], found: &[Found]) -> Finding {
    let all_first = |query: &Found| query.ranks.iter().all(|rank| *rank <= query.ranks.len() + 1);
    let share = mean_of(found, |query| f64::from(all_first(query)));
    let verdict = match share {
        1.0 => Verdict::Holds,
        0.0 => Verdict::DoesNotHold,
        _ => Verdict::Undecided,
    };
    let rule =
        "all c copies of every query are within the first c + 1; it does not hold if those of no query are"
            .to_owned();
    let details = json!({
        "measure": "share of queries with all copies within the first c + 1",
        "found": share,
        "queries": found.len(),
        "ranks": listed(found),
    });
    let (test, method) = (test.to_owned(), method.to_owned());
    Finding { test, method, verdict, rule, estimate: None, chance: None, details }
}
