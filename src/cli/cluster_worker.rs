//! The worker of a run on a cluster, as a job starts it on a node.

use super::failure::{Failure, SUCCESS, exit_code};
use super::project::backend;
use crate::progress::print_error;
use attrflow_engine::cluster::node;
use attrflow_engine::worker::local::LocalBackend;

/// Serves until the run needs it no more; returns the exit code.
pub(super) fn serve(place: &str, pool: &str) -> i32 {
    let local = match backend(Vec::new()) {
        Ok(local) => local,
        Err(failure) => return exit_code(&failure),
    };
    let local = |config| LocalBackend { settings: vec![config], ..local };
    match node::serve(place, pool, local) {
        Ok(()) => SUCCESS,
        Err(error) => {
            print_error(&format!("error: {error}"));
            exit_code(&Failure::Refused(error))
        }
    }
}
