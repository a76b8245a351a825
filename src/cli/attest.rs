//! `attrflow attest`: a manifest in standard formats.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use sha2::{Digest as _, Sha256};

use super::failure::Failure;
use super::files;
use super::manifests;
use super::replay::place;
use crate::progress::{print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::provenance::attest::{Crate, outputs, statement, write_crate};
use attrflow_engine::store::Store;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow attest last --in-toto statement.json\n  \
    attrflow attest demo:last --ro-crate crate --license https://spdx.org/licenses/CC-BY-4.0")]
pub(super) struct Args {
    /// The manifest: a file, or last, last~1, PIPELINE:last for a run of the cache
    manifest: String,
    /// Write an in-toto statement with an SLSA Provenance predicate to this file
    #[arg(long, value_name = "FILE")]
    in_toto: Option<PathBuf>,
    /// Write a Workflow Run RO-Crate with the final results to this new folder
    #[arg(long, value_name = "DIR")]
    ro_crate: Option<PathBuf>,
    /// The licence of the results, for the crate: a URL such as https://spdx.org/licenses/CC-BY-4.0, or a text
    #[arg(long, default_value = "not stated: ask the provider of this crate")]
    license: String,
    /// Replace an existing statement
    #[arg(long)]
    force: bool,
    /// The cache folder [default: the cache that contains the manifest, else ./cache]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
}

pub(super) fn attest(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.in_toto.is_none() && args.ro_crate.is_none() {
        return Err(Failure::Usage("give --in-toto FILE, --ro-crate DIR or both".into()));
    }
    let named = manifests::open(&args.manifest, args.cache.as_deref())?;
    let cache = manifests::cache(&named.path, args.cache.as_deref())?;
    let store = Store::open(&cache)?;
    let _use = store.shared_lock(|| {})?;
    let outputs = outputs(&named.manifest, &store, &|record, port| place(record, port, registry))?;
    if outputs.is_empty() {
        return Err(Failure::Refused(format!("{} records no results", named.path.display())));
    }
    let refused = |error: std::io::Error| Failure::Refused(error.to_string());
    if let Some(file) = &args.in_toto {
        let sha256: String = Sha256::digest(&named.bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut text = serde_json::to_vec_pretty(&statement(&named.manifest, &outputs, &sha256))
            .map_err(|error| Failure::Refused(error.to_string()))?;
        text.push(b'\n');
        files::write(file, &text, args.force).map_err(refused)?;
        print(&format!("wrote {}: {} files\n", short_path(file), outputs.len()));
    }
    if let Some(folder) = &args.ro_crate {
        let content = Crate {
            manifest: &named.manifest,
            bytes: &named.bytes,
            outputs: &outputs,
            license: &args.license,
        };
        write_crate(&content, folder).map_err(refused)?;
        let held = outputs.iter().filter(|output| output.last && output.bytes.is_some()).count();
        print(&format!("wrote {}: {held} files of results\n", short_path(folder)));
    }
    let gone = outputs.iter().filter(|output| output.bytes.is_none()).count();
    if gone > 0 {
        print(&format!("{gone} files are no longer in the cache and are listed without a SHA-256 digest\n"));
    }
    Ok(())
}
