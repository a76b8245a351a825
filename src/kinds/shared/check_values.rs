//! Checks of arrays by value, before the first unit is computed: a NaN deep in a file would be found hours later.
//! Weights are checked when they are loaded, arrays that a stage computes when they are written.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::io::npy::Npy;
use attrflow_engine::kind::Inputs;

/// Files without such a value: stages that share a data set read it once. A file that changes fails the run.
static FINITE: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);

/// Refuses arrays with a value that is NaN or infinite, on those of the ports that are connected.
///
/// # Errors
/// The file and the index of the value.
pub(crate) fn finite(inputs: &Inputs, ports: &[&str]) -> anyhow::Result<()> {
    let known = || FINITE.lock().unwrap_or_else(PoisonError::into_inner);
    for path in ports.iter().filter_map(|port| inputs.get(port)) {
        if !known().contains(path) {
            Npy::open(path)?.expect_finite()?;
            known().insert(path.to_owned());
        }
    }
    Ok(())
}
