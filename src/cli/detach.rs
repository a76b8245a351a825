//! `attrflow run --detach`: the run goes on in a session of its own.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::cluster;
use super::failure::Failure;
use super::project::Project;
use super::run_args::RunArgs;
use crate::progress::print;
use attrflow_engine::cluster::RunFolder;

/// Starts the run, and prints its name once it gives signs of life.
pub(super) fn detach(project: &Project, how: &RunArgs, log: &str, as_json: bool) -> Result<(), Failure> {
    let Some(table) = &project.cluster else {
        return Err(Failure::Usage("--detach is for a cluster: add --backend slurm".into()));
    };
    let failed = |error: std::io::Error| Failure::Refused(error.to_string());
    let name = cluster::choose_name(project, table, &how.template(project, log)).map_err(failed)?;
    let folder = RunFolder::at(cluster::runs_folder(&project.store).join(&name));
    fs_err::create_dir_all(folder.log()).map_err(failed)?;
    let said =
        fs_err::OpenOptions::new().create(true).append(true).open(folder.front_log()).map_err(failed)?;
    let before = folder.lease().ok();
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = Command::new(program)
        .args(arguments)
        .args(["--run-name", &name])
        .stdin(Stdio::null())
        .stdout(said.file().try_clone().map_err(failed)?)
        .stderr(said.into_file())
        .spawn()
        .map_err(failed)?;
    let begun = Instant::now();
    while folder.lease().ok() == before {
        if let Some(status) = child.try_wait().map_err(failed)?
            && folder.lease().ok() == before
        {
            let text = fs_err::read_to_string(folder.front_log()).unwrap_or_default();
            let text = text.trim().to_owned();
            // Nothing began: nothing is left of it.
            if before.is_none() {
                let _ = fs_err::remove_dir_all(folder.path());
            }
            return match status.success() {
                true => {
                    print(&format!("{text}\n"));
                    Ok(())
                }
                false => Err(Failure::Refused(format!("the run did not begin: {text}"))),
            };
        }
        if begun.elapsed() > Duration::from_secs(600) {
            return Err(Failure::Refused(format!("run {name} has not begun: see `attrflow logs {name}`")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match as_json {
        true => print(&format!("{}\n", json!({ "run": name }))),
        false => print(&format!(
            "run {name} goes on by itself: `attrflow attach {name}` shows how far it is, `attrflow cancel {name}` ends it\n"
        )),
    }
    Ok(())
}
