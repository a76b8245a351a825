//! Lists of images in files: by their ids, or by their places in the data set.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use anyhow::ensure;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::io::captions::coco::Captions;
use crate::io::json;
use crate::io::npy::Npy;

#[derive(Deserialize)]
struct List {
    ids: Vec<Json>,
}

/// The ids in a JSON file: a list of them, or an object with a list `ids`, as `subset` writes it. An id is an integer or a text,
/// as in the captions file, and is kept as JSON writes it.
///
/// # Errors
/// The file, what was found and what was expected.
pub(crate) fn read(path: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut bytes = fs_err::read(path)?;
    if bytes.trim_ascii_start().starts_with(b"[") {
        bytes = [b"{\"ids\":".as_slice(), &bytes, b"}"].concat();
    }
    let List { ids: list } = json::parse(&bytes, path)?;
    let mut ids = BTreeSet::new();
    for (place, id) in list.iter().enumerate() {
        let is_id = id.is_string() || id.is_i64() || id.is_u64();
        ensure!(
            is_id,
            "{}: entry {place} is {id}, expected an image id: an integer or a text",
            path.display()
        );
        ensure!(ids.insert(id.to_string()), "{}: the id {id} occurs twice", path.display());
    }
    Ok(ids)
}

/// A captions file by path, length and time of change, and its ids.
type Known = ((PathBuf, u64, SystemTime), Rc<Vec<String>>);

thread_local! {
    /// The last captions file.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// The ids of a captions file, in its order. The last file is read once: COCO's has 90 MB, and hundreds of stages read it.
///
/// # Errors
/// A file that is none.
pub(crate) fn of_captions(path: &Path) -> anyhow::Result<Rc<Vec<String>>> {
    let found = fs_err::metadata(path)?;
    let key = (path.to_owned(), found.len(), found.modified()?);
    let known = LAST
        .with_borrow(|last| last.as_ref().filter(|(known, _)| *known == key).map(|(_, ids)| Rc::clone(ids)));
    if let Some(ids) = known {
        return Ok(ids);
    }
    let ids = Rc::new(Captions::read_all(path)?.ids());
    LAST.set(Some((key, Rc::clone(&ids))));
    Ok(ids)
}

/// Refuses ids that the data set does not have.
///
/// # Errors
/// How many, and one of them.
pub(crate) fn check(all: &[String], wanted: &BTreeSet<String>, path: Option<&Path>) -> anyhow::Result<()> {
    let known: BTreeSet<&String> = all.iter().collect();
    let unknown: Vec<&String> = wanted.iter().filter(|id| !known.contains(id)).collect();
    ensure!(
        unknown.is_empty(),
        "{}: {} of its ids are not in the captions file of {} images, for instance {}",
        path.unwrap_or(Path::new("ids")).display(),
        unknown.len(),
        all.len(),
        unknown.first().map_or("", |id| id.as_str())
    );
    Ok(())
}

/// The places of images in an array int64 [K], each of which must be below `images`.
///
/// # Errors
/// The file, what was found and what was expected.
pub(crate) fn indices(path: &Path, images: usize) -> anyhow::Result<Vec<i64>> {
    let npy = Npy::open(path)?;
    npy.expect_shape(&[None])?;
    let mut places = Vec::new();
    npy.read_i64(0..npy.rows(), &mut places)?;
    let is_image = |place: i64| usize::try_from(place).is_ok_and(|place| place < images);
    match places.iter().position(|place| !is_image(*place)) {
        Some(at) => {
            let (file, found) = (path.display(), places[at]);
            anyhow::bail!("{file}: value {at} is {found}, expected an image from 0 to {images}")
        }
        None => Ok(places),
    }
}

/// A ranking of all images: their places in an order in which each occurs once.
///
/// # Errors
/// The file, what was found and what was expected.
pub(crate) fn ranking(path: &Path) -> anyhow::Result<Vec<i64>> {
    let images = Npy::open(path)?.rows();
    let order = indices(path, images)?;
    let mut seen = vec![false; images];
    order.iter().for_each(|&image| seen[image as usize] = true);
    ensure!(!seen.contains(&false), "{}: an image occurs twice, and another not at all", path.display());
    Ok(order)
}
