//! The worker of a run on a cluster, as a job starts it on a node.

use std::path::Path;

use super::failure::{Failure, SUCCESS, exit_code};
use super::project::backend;
use crate::progress::print_error;
use attrflow_engine::cluster::node;
use attrflow_engine::worker::local::LocalBackend;

/// Serves until the run needs it no more; returns the exit code.
pub(super) fn serve(folder: &Path, pool: &str) -> i32 {
    let local = match backend(Vec::new()) {
        Ok(local) => local,
        Err(failure) => return exit_code(&failure),
    };
    let local = |config| LocalBackend { settings: vec![config], ..local };
    match node::serve(folder, pool, local) {
        Ok(()) => SUCCESS,
        Err(error) => {
            print_error(&format!("error: {error}"));
            exit_code(&Failure::Refused(error))
        }
    }
}
