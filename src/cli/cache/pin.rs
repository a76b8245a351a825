//! `attrflow cache pin` and `unpin`.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Args as ClapArgs;
use jiff::Timestamp;

use super::in_use;
use crate::cli::failure::Failure;
use crate::cli::manifests;
use crate::io::words::count;
use crate::progress::print;
use attrflow_engine::config::text::suggestion;
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Pin, Pins};
use attrflow_engine::store::{Area, Store};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache pin demo/fisher --note paper\n  \
    attrflow cache pin demo:last")]
pub(super) struct Args {
    /// A manifest (a file, or last, last~1, PIPELINE:last), a stage of the last run (STAGE or PIPELINE/STAGE), or the
    /// first digits of a result or an object
    what: String,
    /// A note, shown by `cache ls`
    #[arg(long, default_value = "")]
    note: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache unpin demo/fisher\n  \
    attrflow cache unpin demo:last")]
pub(super) struct UnpinArgs {
    /// The name that was pinned, or the id shown by `cache ls`
    what: String,
}

pub(super) fn pin(args: &Args, store: &Store) -> Result<(), Failure> {
    let _use = in_use(store)?;
    let inventory = Inventory::of(store)?;
    let Args { what, note } = args;
    let blank = Pin {
        what: String::new(),
        asked: what.clone(),
        at: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        note: note.clone(),
        results: BTreeSet::new(),
        objects: BTreeSet::new(),
        manifest: None,
    };
    let pin = match by_digest(what, &inventory, &blank)? {
        Some(pin) => pin,
        None => match by_stage(what, &inventory, &blank)? {
            Some(pin) => pin,
            None => by_manifest(what, store, &blank).map_err(|error| unknown(what, &inventory, error))?,
        },
    };
    if pin.results.is_empty() && pin.objects.is_empty() {
        return Err(Failure::Usage(format!("`{what}` has no results to pin")));
    }
    Pins::of(store).set(&pin)?;
    let missing = pin.results.iter().filter(|found| !inventory.exists(found)).count();
    if missing > 0 {
        let results = count(missing, "result is", "results are");
        tracing::warn!("{results} no longer in the cache: the pin keeps the others");
    }
    let number = count(pin.results.len() + pin.objects.len(), "item", "items");
    print(&format!("pinned {} as {}: {number}\n", pin.what, pin.id()));
    Ok(())
}

pub(super) fn unpin(args: &UnpinArgs, store: &Store) -> Result<(), Failure> {
    let removed = Pins::of(store).remove(&args.what)?;
    if removed.is_empty() {
        let known: Vec<String> =
            Pins::of(store).list()?.iter().map(|pin| format!("{} ({})", pin.id(), pin.asked)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(Failure::Usage(format!("`{}` is not pinned; pins: {known}", args.what)));
    }
    for pin in removed {
        print(&format!("unpinned {} ({})\n", pin.what, pin.id()));
    }
    Ok(())
}

/// A result or object by the first digits of its digest.
fn by_digest(text: &str, inventory: &Inventory, blank: &Pin) -> Result<Option<Pin>, Failure> {
    const SHORTEST: usize = 8;
    if text.len() < SHORTEST || !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let begins = |digest: &&Digest| digest.to_string().starts_with(&text.to_ascii_lowercase());
    let results: Vec<&Digest> = inventory.items.keys().filter(begins).collect();
    let objects: Vec<&Digest> = inventory.disk.objects.keys().filter(begins).collect();
    let pin = |digest: &Digest, results: &[&Digest], objects: &[&Digest]| Pin {
        what: digest.to_string(),
        results: results.iter().map(|digest| **digest).collect(),
        objects: objects.iter().map(|digest| **digest).collect(),
        ..blank.clone()
    };
    match (results.as_slice(), objects.as_slice()) {
        ([], []) => Err(Failure::Usage(format!("no digest of a result or object starts with {text}"))),
        ([one], []) | ([], [one]) => Ok(Some(pin(one, &results, &objects))),
        _ => Err(Failure::Usage(format!("several digests start with {text}: give more digits"))),
    }
}

/// A stage, in the newest run that has a result of it.
fn by_stage(text: &str, inventory: &Inventory, blank: &Pin) -> Result<Option<Pin>, Failure> {
    let (pipeline, stage) = match text.split_once('/') {
        Some((pipeline, stage)) if inventory.runs.contains_key(pipeline) => (Some(pipeline), stage),
        _ => (None, text),
    };
    let mut found = Vec::new();
    for (name, past) in inventory.runs.iter().filter(|(name, _)| pipeline.is_none_or(|p| p == *name)) {
        let records = past.iter().flat_map(|run| &run.manifest.stages);
        let mut records = records.filter(|record| record.stage == stage && !record.outputs.is_empty());
        if let Some(fingerprint) = records.find_map(|record| record.fingerprint) {
            found.push((format!("{name}/{stage}"), fingerprint));
        }
    }
    match found.as_slice() {
        [] => Ok(None),
        [(what, fingerprint)] => {
            Ok(Some(Pin { what: what.clone(), results: BTreeSet::from([*fingerprint]), ..blank.clone() }))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(what, _)| what.as_str()).collect();
            Err(Failure::Usage(format!("several pipelines have a stage `{text}`: {}", names.join(", "))))
        }
    }
}

/// All results of a run, and its manifest.
fn by_manifest(text: &str, store: &Store, blank: &Pin) -> Result<Pin, Failure> {
    let named = manifests::open(text, Some(store.root()))?;
    let records = named.manifest.stages.iter().filter(|record| !record.outputs.is_empty());
    let results = records.filter_map(|record| record.fingerprint).collect();
    let file = named.path.file_name().unwrap_or_default();
    let below = Path::new(&named.manifest.pipeline).join(file);
    let own = store.area(Area::Runs).join(&below).exists().then(|| below.clone());
    Ok(Pin { what: below.display().to_string(), results, manifest: own, ..blank.clone() })
}

/// The error for a name that is none of the three.
fn unknown(text: &str, inventory: &Inventory, error: Failure) -> Failure {
    let runs = inventory.runs.values().filter_map(|past| past.first());
    let names: Vec<&str> =
        runs.flat_map(|run| &run.manifest.stages).map(|record| record.stage.as_str()).collect();
    let help = suggestion(text, names).map(|help| format!(" ({help})")).unwrap_or_default();
    Failure::Usage(format!(
        "`{text}` is neither a stage of the last runs{help}, nor a digest, nor a manifest: {error}"
    ))
}
