//! `attrflow audit`: checks a manifest against the cache and its sources.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::manifests;
use super::project::Settings;
use super::replay::{Replay, replay, selected};
use super::run_args::RunArgs;
use super::sign::{Signer, print_signature, verify};
use crate::progress::{duration, line, print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::provenance::audit::{Audit, AuditReport, Finding};
use attrflow_engine::store::{Store, format_bytes};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow audit last\n  \
    attrflow audit demo:last --replay all")]
pub(super) struct Args {
    /// The manifest: a file, or last, last~1, PIPELINE:last for a run of the cache
    manifest: String,
    /// Show all differences, not only the first
    #[arg(long)]
    all: bool,
    /// Compute stages again and compare the bytes: a stage, all, or N random stages
    ///
    /// Each is computed in an empty cache from its recorded inputs, by default with the recorded device class, threads and micro
    /// batch. For arrays that differ, shows the first value that differs and the largest difference.
    #[arg(long, value_name = "STAGE|all|N")]
    replay: Option<String>,
    /// First verify the manifest's minisign signature, MANIFEST.minisig, with this public key or key file
    #[arg(long, value_name = "KEY")]
    verify: Option<String>,
    /// Sign the manifest with this minisign secret key if the audit finds nothing
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    how: RunArgs,
    /// Where to replay: auto, cpu, cuda, or a list such as cuda:0,cuda:1 [default: as recorded]
    #[arg(long)]
    device: Option<String>,
    /// The cache folder [default: the cache that contains the manifest, else ./cache]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Write a line of JSON per finding, and one with the totals
    #[arg(long)]
    json: bool,
}

pub(super) fn audit(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    let named = manifests::open(&args.manifest, args.cache.as_deref())?;
    let replayed = args.replay.as_deref().map(|which| selected(&named.manifest, which)).transpose()?;
    let signer = args.sign.as_deref().map(Signer::open).transpose()?;
    if let Some(key) = &args.verify {
        let signed = verify(key, &named)?;
        match args.json {
            true => print(&format!("{}\n", json!({ "signed_by": signed.key, "comment": signed.comment }))),
            false => print(&format!("signed by {}: {}\n", signed.key, signed.comment)),
        }
    }
    let cache = manifests::cache(&named.path, args.cache.as_deref())?;
    let store = Store::open(&cache)?;
    let begun = Instant::now();
    let report = Audit { manifest: &named.manifest, store: &store, all: args.all }.execute()?;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        for finding in &report.findings {
            let differs = finding.fault.differs();
            let mut line = json!(finding);
            line["differs"] = differs.into();
            line["message"] = finding.fault.to_string().into();
            print(&format!("{line}\n"));
        }
        let mut line = json!(report);
        line["findings"] = report.findings.len().into();
        line["manifest"] = json!(named.path);
        print(&format!("{line}\n"));
    } else {
        print_report(&report, args.all, &named.path, seconds);
    }
    // After a difference there is no replay; missing files may not be needed for one.
    let found = outcome(&report);
    if let Err(Failure::Different(_)) = found {
        return found;
    }
    if let Some(names) = &replayed {
        let settings = Settings { device: args.device.clone(), ..Settings::default() };
        let (how, as_json) = (&args.how, args.json);
        replay(Replay { named: &named, store: &store, names, settings, how, as_json }, registry, log)?;
    }
    found?;
    match signer {
        None => Ok(()),
        Some(signer) => signer
            .sign(&named.path, &named.bytes, &named.manifest)
            .map(|path| print_signature(&path, args.json)),
    }
}

/// An audit passes if it found no difference and could check everything.
fn outcome(report: &AuditReport) -> Result<(), Failure> {
    match (report.difference(), report.findings.len()) {
        (Some(_), _) => Err(Failure::Different("the audit found a difference".into())),
        (None, 0) => Ok(()),
        (None, 1) => Err(Failure::Refused("no difference, but one item could not be checked".into())),
        (None, count) => {
            Err(Failure::Refused(format!("no difference, but {count} items could not be checked")))
        }
    }
}

fn print_report(report: &AuditReport, all: bool, path: &Path, seconds: f64) {
    let show = |finding: &Finding| print(&line(&format!("{}: {}", finding.stage, finding.fault)));
    match (all, report.difference()) {
        (false, Some(first)) => show(first),
        _ => report.findings.iter().for_each(show),
    }
    for path in &report.sources_gone {
        print(&format!("the source {} no longer exists and was not checked\n", short_path(path)));
    }
    let AuditReport { stages, recipes, inputs, sources, artifacts, files, bytes, .. } = report;
    let checked = format!(
        "checked {stages} stages, {recipes} recipes, {inputs} inputs, {sources} sources, \
         {artifacts} artifacts of {files} files ({}) in {}",
        format_bytes(*bytes),
        duration(seconds)
    );
    print(&line(&format!("{}: {checked}", short_path(path))));
    if report.findings.is_empty() {
        print("no difference\n");
    }
}
