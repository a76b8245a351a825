//! How many rows go through a network at once where nobody says: found once for a device and a network, and kept.
//!
//! The number changes results by rounding, so both passes of a difference and all workers must have the same one. It stands in a file
//! of the cache: what one worker has found, the others take, in later runs too.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::device;
use crate::method::autotune::micro_batch;
use crate::method::schedule::NoiseSchedule;
use crate::models::unet::{Precision, UNet};
use attrflow_engine::kind::Context;

/// What the number depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Setting {
    device: String,
    libtorch: String,
    /// The network's number of parameters.
    parameters: usize,
    precision: Precision,
    latent: Vec<i64>,
    text: Vec<i64>,
    /// How many rows share a text.
    rows_a_text: usize,
}

/// The file of a setting.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    setting: Setting,
    rows: usize,
}

/// The number of rows to send through the network at once: as given, else the fastest by a trial. `rows_a_text` rows share a text.
///
/// # Errors
/// The cache cannot be read or written.
pub(crate) fn effective(
    unet: &UNet,
    schedule: &NoiseSchedule,
    [latent, text]: [&[i64]; 2],
    rows_a_text: usize,
    cx: &Context<'_>,
) -> anyhow::Result<usize> {
    if cx.micro_batch > 0 {
        return Ok(cx.micro_batch);
    }
    let setting = Setting {
        device: device::describe(cx.device),
        libtorch: env!("ATTRFLOW_LIBTORCH_VERSION").to_owned(),
        parameters: unet.parameters().values().map(Tensor::numel).sum(),
        precision: unet.precision(),
        latent: latent.to_vec(),
        text: text.to_vec(),
        rows_a_text,
    };
    let trial = || micro_batch(unet, schedule, latent, text, rows_a_text);
    kept(cx.trials, setting, trial).with_context(|| format!("the trials in {}", cx.trials.display()))
}

/// The number in the file of a setting. Where there is none, that of a trial, unless another worker's is there by then.
fn kept(folder: &Path, setting: Setting, trial: impl FnOnce() -> usize) -> anyhow::Result<usize> {
    let key = blake3::hash(&serde_json::to_vec(&setting)?).to_hex();
    let file = folder.join(format!("{}.json", &key[..32]));
    let read = || -> Option<usize> {
        let found: Found = serde_json::from_slice(&fs_err::read(&file).ok()?).ok()?;
        (found.setting == setting && found.rows > 0).then_some(found.rows)
    };
    if let Some(rows) = read() {
        return Ok(rows);
    }
    let rows = trial();
    fs_err::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut new, &Found { setting: setting.clone(), rows })?;
    match new.persist_noclobber(&file) {
        Ok(_) => {
            tracing::info!(
                "{rows} rows at once are fastest on {}, by a trial; kept in {}",
                setting.device,
                file.display()
            );
            Ok(rows)
        }
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => match read() {
            Some(rows) => Ok(rows),
            // Damaged: written anew.
            None => {
                error.file.persist(&file)?;
                Ok(rows)
            }
        },
        Err(error) => Err(error.error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(parameters: usize) -> Setting {
        let (device, libtorch) = ("a GPU".to_owned(), "2.11.0".to_owned());
        let (precision, latent, text) = (Precision::Bf16, vec![4, 16, 16], vec![77, 1024]);
        Setting { device, libtorch, parameters, precision, latent, text, rows_a_text: 20 }
    }

    #[test]
    fn the_first_to_find_a_number_decides_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("new");
        // Of workers that try at once, each has another number, and all take one of these.
        let found: Vec<usize> = std::thread::scope(|scope| {
            let one = |rows: usize| {
                let place = &place;
                scope.spawn(move || {
                    let trial = || {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        rows
                    };
                    kept(place, setting(7), trial).unwrap()
                })
            };
            (1..=8).map(one).collect::<Vec<_>>().into_iter().map(|done| done.join().unwrap()).collect()
        });
        assert!(found.iter().all(|rows| *rows == found[0]), "{found:?}");
        assert_eq!(kept(&place, setting(7), || panic!("it is known")).unwrap(), found[0]);
        assert_eq!(kept(&place, setting(8), || 99).unwrap(), 99, "another network");
        assert_eq!(fs_err::read_dir(&place).unwrap().count(), 2, "nothing half-written stays");
    }

    #[test]
    fn a_damaged_file_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        kept(folder.path(), setting(7), || 5).unwrap();
        let file = fs_err::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        fs_err::write(&file, "{\"rows\": 5").unwrap();
        assert_eq!(kept(folder.path(), setting(7), || 6).unwrap(), 6);
        assert_eq!(kept(folder.path(), setting(7), || panic!("it is known")).unwrap(), 6);
    }
}
