//! `attrflow diff`: two manifests, key by key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::manifests::{self, Named};
use crate::io::rankings::{self, Compared};
use crate::progress::{print, short_path};
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::provenance::audit::{Diff, Difference};
use attrflow_engine::store::Store;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow diff last~1 last\n  \
    attrflow diff demo:last other/cache/runs/demo/20261126T112103.676570Z.json --json")]
pub(super) struct Args {
    /// The first manifest: a file, or last, last~1, PIPELINE:last for a run of the cache
    a: String,
    /// The second manifest
    b: String,
    /// The cache folder of last [default: ./cache]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Write one line of JSON, with full digests
    #[arg(long)]
    json: bool,
}

pub(super) fn diff(args: &Args) -> Result<(), Failure> {
    let open = |name: &str| manifests::open(name, args.cache.as_deref());
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let diff = Diff::of(&a.manifest, &b.manifest);
    let rankings = rankings(&a, &b, args.cache.as_deref());
    if args.json {
        let same = diff.same_results();
        let mut line = json!(diff);
        line["same_results"] = same.into();
        line["rankings"] = json!(rankings.iter().cloned().collect::<BTreeMap<_, _>>());
        line["a"] = json!(a.path);
        line["b"] = json!(b.path);
        print(&format!("{line}\n"));
    } else {
        print(&format!("a: {}\nb: {}\n", short_path(&a.path), short_path(&b.path)));
        let Diff { run, recipes, results } = &diff;
        section("run", run);
        for (stage, differences) in recipes {
            section(&format!("recipe of {stage}"), differences);
        }
        for (stage, differences) in results {
            section(&format!("results of {stage}"), differences);
        }
        if !rankings.is_empty() {
            print("\nrankings\n");
        }
        for (stage, compared) in &rankings {
            let Some(Compared { top, correlation }) = compared else {
                print(&format!(
                    "  {stage}: cannot be compared: its arrays are no longer in the cache, or rank other images\n"
                ));
                continue;
            };
            let tops: Vec<String> =
                top.iter().map(|(size, common)| format!("{common} of the top {size}")).collect();
            let tops =
                if tops.is_empty() { String::new() } else { format!("in both: {}; ", tops.join(", ")) };
            print(&format!("  {stage}: {tops}rank correlation {correlation:.4}\n"));
        }
        print(match (diff.same_results(), run.is_empty() && recipes.is_empty()) {
            (true, true) => "\nno difference\n",
            (true, false) => "\nthe same results\n",
            (false, _) => "\nthe results differ\n",
        });
    }
    match diff.same_results() {
        true => Ok(()),
        false => Err(Failure::Different("the results differ".into())),
    }
}

/// How alike the rankings are that differ, by stage; `None` where one of them is no longer in a cache.
fn rankings(a: &Named, b: &Named, cache: Option<&Path>) -> Vec<(String, Option<Compared>)> {
    let rank = |named: &Named, stage: &str| {
        let record = named.manifest.stages.iter().find(|record| record.stage == stage)?;
        let digest = record.outputs.get("rank")?.digest;
        let store = Store::open(&manifests::cache(&named.path, cache).ok()?).ok()?;
        Some((digest, store.path(&digest)))
    };
    let stages = a.manifest.stages.iter().map(|record| record.stage.as_str());
    let compared = stages.filter_map(|stage| {
        let ((of_a, a), (of_b, b)) = (rank(a, stage)?, rank(b, stage)?);
        if of_a == of_b {
            return None;
        }
        Some((stage.to_owned(), rankings::compare(&a, &b).ok().flatten()))
    });
    compared.collect()
}

fn section(title: &str, differences: &[Difference]) {
    if differences.is_empty() {
        return;
    }
    print(&format!("\n{title}\n"));
    for Difference { key, a, b } in differences {
        print(&format!("  {key}: {} -> {}\n", value(a.as_deref()), value(b.as_deref())));
    }
}

/// A value; digests in their short form.
fn value(value: Option<&str>) -> String {
    let value = value.unwrap_or("absent");
    value.parse::<Digest>().map_or_else(|_| value.to_owned(), |digest| digest.short())
}
