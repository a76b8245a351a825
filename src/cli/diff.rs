//! `attrflow diff`: two manifests, key by key.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::manifests;
use crate::progress::{print, short_path};
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::provenance::audit::{Diff, Difference};

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
    if args.json {
        let same = diff.same_results();
        let mut line = json!(diff);
        line["same_results"] = same.into();
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
