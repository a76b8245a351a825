//! Finds the manifest that a user names, and its cache.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::project::default_cache;
use attrflow_engine::config::text::suggestion;
use attrflow_engine::identity::regular_file;
use attrflow_engine::provenance::manifest::{self, Manifest};
use attrflow_engine::store::Area;

/// A manifest and its file.
pub(super) struct Named {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// The bytes of the file, for signatures and digests.
    pub bytes: Vec<u8>,
}

/// Reads a manifest by its path, or as `[PIPELINE:]last[~N]` from the runs of a cache.
pub(super) fn open(name: &str, cache: Option<&Path>) -> Result<Named, Failure> {
    let path = match nth_last(name) {
        Some((pipeline, back)) if !Path::new(name).exists() => {
            nth(pipeline, back, &cache.map_or_else(default_cache, Path::to_path_buf))?
        }
        _ => PathBuf::from(name),
    };
    tracing::info!("manifest {}", path.display());
    Named::read(&path)
}

impl Named {
    /// Reads a manifest by its path.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let usage = |error: std::io::Error| Failure::Usage(error.to_string());
        let bytes = regular_file::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Usage(format!(
                "there is no manifest {}; expected a path, `last`, `last~N` or `PIPELINE:last`",
                path.display()
            )),
            _ => usage(error),
        })?;
        let manifest = manifest::parse(path, &bytes).map_err(usage)?;
        Ok(Self { path: path.to_path_buf(), manifest, bytes })
    }
}

/// The cache of a manifest: the one given, else the one that contains it, else `./cache`.
pub(super) fn cache(path: &Path, named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return match named.is_dir() {
            true => Ok(named.to_path_buf()),
            false => Err(Failure::Usage(format!("no cache folder {}", named.display()))),
        };
    }
    let path = std::path::absolute(path).map_err(|error| Failure::Usage(error.to_string()))?;
    // cache/runs/PIPELINE/TIME.json
    let around =
        path.ancestors().nth(2).filter(|folder| folder.ends_with(Area::Runs.name())).and_then(Path::parent);
    let here = default_cache();
    match around.map(Path::to_path_buf).or(Some(here).filter(|here| here.is_dir())) {
        Some(cache) => Ok(cache),
        None => Err(Failure::Usage(format!(
            "{} is not in a cache, and there is no cache around this folder: name it with --cache",
            path.display()
        ))),
    }
}

/// Parses `demo:last~2`: the pipeline, if given, and the number of runs to go back.
pub(super) fn nth_last(name: &str) -> Option<(Option<&str>, usize)> {
    let (pipeline, run) = name.rsplit_once(':').map_or((None, name), |(pipeline, run)| (Some(pipeline), run));
    let rest = run.strip_prefix("last")?;
    let back = if rest.is_empty() { 0 } else { rest.strip_prefix('~')?.parse().ok()? };
    Some((pipeline, back))
}

/// The manifest of the run that is so many runs back.
fn nth(pipeline: Option<&str>, back: usize, cache: &Path) -> Result<PathBuf, Failure> {
    let runs = cache.join(Area::Runs.name());
    let folders = fs_err::read_dir(&runs).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::Usage(format!(
            "nothing has run yet in {}: run `attrflow run PIPELINE` first, or name another cache with --cache",
            cache.display()
        )),
        _ => Failure::Usage(format!("no runs: {error}; name the cache with --cache")),
    })?;
    let mut names: Vec<String> =
        folders.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if let Some(name) = pipeline.filter(|name| !names.iter().any(|known| known == name)) {
        let hint = suggestion(name, names.iter().map(String::as_str));
        let hint = hint.unwrap_or_else(|| "the cache has no runs".into());
        return Err(Failure::Usage(format!("no pipeline `{name}` has runs in {}: {hint}", cache.display())));
    }
    let chosen: Vec<&str> =
        names.iter().map(String::as_str).filter(|&name| pipeline.is_none_or(|p| p == name)).collect();
    let mut list: Vec<PathBuf> = chosen.iter().flat_map(|name| manifest::list(&runs.join(name))).collect();
    // Newest first: the names are times.
    list.sort_by(|a, b| b.file_name().cmp(&a.file_name()));
    let count = list.len();
    let found = list.into_iter().nth(back).ok_or_else(|| {
        let of = chosen.join(", ");
        let runs = if count == 1 { "1 run".to_owned() } else { format!("{count} runs") };
        Failure::Usage(format!(
            "there is no run {back} before the last: {of} has {runs} in {}",
            cache.display()
        ))
    })?;
    if chosen.len() > 1 {
        let name = found.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        tracing::warn!("`last` is a run of {name}: several pipelines have runs here, {name}:last names one");
    }
    Ok(found)
}
