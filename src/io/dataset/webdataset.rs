//! Tar files of samples: neighbouring members whose names are equal up to the first dot, as WebDataset reads them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value as Json;
use tar::EntryType;

use super::columns::{caption_column, captions, columns, value};
use super::folders::{has_extension, is_picture, walk};
use super::{Item, Options, Picture, Visit, of_split};
use crate::io::names;

/// What is known of a sample while its members are read.
struct Sample {
    key: String,
    picture: Option<(String, Vec<u8>)>,
    text: Option<String>,
    json: Option<Json>,
}

/// A picture, a text or a description may not be larger than this.
const LARGEST: u64 = 1 << 30;

pub(super) fn read(path: &Path, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    let files: Vec<PathBuf> = match path.is_dir() {
        true => walk(path)?
            .into_iter()
            .filter(|file| has_extension(file, &["tar"]))
            .map(|file| path.join(file))
            .collect(),
        false => vec![path.to_owned()],
    };
    let files = of_split(files, options.split.as_deref()).with_context(|| path.display().to_string())?;
    ensure!(!files.is_empty(), "{}: no .tar file", path.display());
    for file in files {
        shard(&file, options, visit).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn shard(file: &Path, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(std::io::BufReader::new(fs_err::File::open(file)?));
    let mut sample: Option<Sample> = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            _ => bail!("`{}` is a link or a device", String::from_utf8_lossy(&entry.path_bytes())),
        }
        let name =
            String::from_utf8(entry.path_bytes().into_owned()).context("a member's name is not UTF-8")?;
        let name = names::inside(&name).map_err(|why| anyhow::anyhow!("`{name}`: {why}"))?;
        let (folder, base) =
            name.rsplit_once('/').map_or(("", name.as_str()), |(folder, base)| (folder, base));
        // A member without a dot belongs to no sample.
        let Some((stem, field)) = base.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { continue };
        let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
        ensure!(entry.size() <= LARGEST, "`{name}` has {} bytes, expected at most {LARGEST}", entry.size());
        if sample.as_ref().is_none_or(|sample| sample.key != key)
            && let Some(done) = sample.replace(Sample { key, picture: None, text: None, json: None })
        {
            done.give(options, visit)?;
        }
        let Some(sample) = &mut sample else { continue };
        let mut bytes = Vec::new();
        let mut read = |entry: &mut tar::Entry<'_, _>| entry.read_to_end(&mut bytes).map(drop);
        if is_picture(Path::new(base)) && !field.contains('.') {
            read(&mut entry).with_context(|| name.clone())?;
            ensure!(sample.picture.is_none(), "`{name}`: the sample `{}` has two pictures", sample.key);
            sample.picture = Some((field.to_owned(), bytes));
        } else if field == "txt" || field == "caption" {
            read(&mut entry).with_context(|| name.clone())?;
            let text = String::from_utf8(bytes).with_context(|| format!("`{name}` is not UTF-8"))?;
            sample.text = Some(text.trim().to_owned());
        } else if field == "json" {
            read(&mut entry).with_context(|| name.clone())?;
            sample.json = Some(serde_json::from_slice(&bytes).with_context(|| name.clone())?);
        } else if is_picture(Path::new(base)) {
            bail!(
                "`{name}`: the key of a sample ends at the first dot, so this is the field `{field}` of `{}`",
                sample.key
            );
        }
    }
    sample.map_or(Ok(()), |sample| sample.give(options, visit))
}

impl Sample {
    fn give(self, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<()> {
        let Self { key, picture, text, json } = self;
        let Some((field, bytes)) = picture else { bail!("the sample `{key}` has no picture") };
        let captions = match (text, json, &options.caption_column) {
            (Some(text), _, None) => captions(&Json::from(text), "txt")?,
            (_, Some(json), wanted) => {
                let at = || format!("the sample `{key}`");
                let column = caption_column(&columns(&json), wanted.as_deref()).with_context(at)?;
                captions(value(&json, &column), &column).with_context(at)?
            }
            (Some(_), None, Some(wanted)) => {
                bail!(
                    "the sample `{key}` has no json with `{wanted}`; without `caption_column` its txt is read"
                )
            }
            (None, None, _) => Vec::new(),
        };
        let name = format!("{key}.{field}");
        visit(Item { name, picture: Picture::Bytes(&bytes), captions, id: None })
    }
}
