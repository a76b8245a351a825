//! Nodes that share no file system with the run: everything goes through a bucket, of moto's server.

use crate::index_entries::index;
use crate::lab::{Lab, miniature, newest_run, wait};
use crate::project::Project;
use crate::s3::Moto;
use crate::trials::{
    COMMANDS, RUN, SHELL, commands, computed, no_task_is_left, processes, results_are_right, undisturbed,
};

const STORE: &str = "s3://results/team";

/// Sends the runs of a project through the bucket. The profile `lab` of the user gives keys and endpoint: to the run by
/// `environment`, to the nodes by `setup`.
fn through_bucket(project: &Project, config: &str, server: &Moto) {
    let [key, secret, region, endpoint] =
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"]
            .map(|name| server.environment().into_iter().find(|(found, _)| *found == name).unwrap().1);
    project.write(
        "aws/credentials",
        format!("[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"),
    );
    project.write(
        "aws/config",
        format!("[profile lab]\nregion = {region}\nservices = near\n[services near]\ns3 =\n  endpoint_url = {endpoint}\n"),
    );
    let exports = [
        format!("export AWS_ACCESS_KEY_ID={key} AWS_SECRET_ACCESS_KEY={secret}"),
        format!("export AWS_REGION={region} AWS_ENDPOINT_URL={endpoint}"),
    ];
    let text = fs_err::read_to_string(project.path(config)).unwrap();
    let text = text.replace("[cluster]\n", &format!("[cluster]\nstore = \"{STORE}\"\n"));
    project.write(config, format!("{text}setup = {exports:?}\n"));
}

/// The environment of the run.
fn environment(project: &Project) -> Vec<(&'static str, String)> {
    let file = |name: &str| project.path("aws").join(name).display().to_string();
    vec![
        ("AWS_PROFILE", "lab".to_owned()),
        ("AWS_CONFIG_FILE", file("config")),
        ("AWS_SHARED_CREDENTIALS_FILE", file("credentials")),
    ]
}

fn with<'e>(environment: &'e [(&'static str, String)]) -> Vec<(&'static str, &'e str)> {
    environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[test]
fn nodes_without_the_projects_file_system_go_through_a_bucket() {
    let Some(lab) = Lab::up(&[]) else { return };
    let Some(server) = Moto::start() else { return };
    // A worker sees an empty folder in place of the project.
    let project = miniature(6, "\n[cluster.pools.cpu]\nworkers = 3\n");
    let hide = format!("mount -t tmpfs none {} && exec \"$@\"", project.root.display());
    let config = fs_err::read_to_string(project.path("configs/demo.toml")).unwrap();
    let launch = ["unshare", "-m", "sh", "-c", &hide, "sh"];
    project.write("configs/demo.toml", format!("{config}launch = {launch:?}\n"));
    through_bucket(&project, "configs/demo.toml", &server);
    let local = undisturbed(6);
    let environment = environment(&project);
    lab.start_with(&project, &RUN, &with(&environment)).end().well();
    assert_eq!(project.results(), local.results());
    assert!(index(&project).keys().eq(index(&local).keys()));
    no_task_is_left(&lab);
    // Of the messages, a sign that the run is over stays; the logs of the workers have come here.
    let run = newest_run(&project);
    let name = run.file_name().unwrap().to_str().unwrap();
    let objects = server.objects();
    let of_run: Vec<&String> = objects.iter().filter(|object| object.contains("/cluster/")).collect();
    assert_eq!(of_run, [&format!("team/attrflow-v1/cluster/{name}/front")], "{objects:?}");
    assert!(fs_err::read_dir(run.join("log")).unwrap().count() > 0);
    let left = || {
        fs_err::read_dir("/tmp")
            .unwrap()
            .flatten()
            .any(|file| file.file_name().to_string_lossy().contains(name))
    };
    wait(30, "nothing is left on the nodes", || !left());
    // The second run needs neither bucket nor nodes.
    drop(server);
    let again = lab.attrflow(&project, &RUN).well();
    assert!(again.text.contains("0 ran"), "{}", again.text);
}

/// All messages of a run that goes on: no key is among them.
#[test]
fn no_key_is_in_the_bucket_and_a_killed_run_is_taken_over() {
    let Some(lab) = Lab::up(&[]) else { return };
    let Some(server) = Moto::start() else { return };
    let project = commands(16, 2.0, COMMANDS);
    through_bucket(&project, "configs/shell.toml", &server);
    let environment = environment(&project);
    let mut run = lab.start_with(&project, &SHELL, &with(&environment));
    wait(60, "some are done", || computed(&project).len() > 2);
    let objects = server.objects();
    let config = objects.iter().find(|object| object.ends_with("run.json")).unwrap();
    let config = server.object(config);
    assert!(config.contains("heartbeat") && !config.contains(crate::s3::SECRET), "{config}");
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    let said = lab.start_with(&project, &SHELL, &with(&environment)).end().well();
    results_are_right(&project, 16);
    assert!(computed(&project).iter().all(|count| *count == 1), "{:?}: {}", computed(&project), said.text);
    no_task_is_left(&lab);
    wait(30, "no worker is left", || processes(&["--cluster-worker", STORE]).is_empty());
}

#[test]
fn a_node_that_cannot_use_the_bucket_is_said() {
    let Some(lab) = Lab::up(&[]) else { return };
    let Some(server) = Moto::start() else { return };
    let project = commands(3, 0.1, COMMANDS);
    through_bucket(&project, "configs/shell.toml", &server);
    let environment = environment(&project);
    let config = fs_err::read_to_string(project.path("configs/shell.toml")).unwrap();
    project.write("configs/shell.toml", config.replace("export AWS_ACCESS", "export NO_ACCESS"));
    let said = lab.start_with(&project, &SHELL, &with(&environment)).end();
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(
        said.text.contains("ended before they could serve") && said.text.contains("/tmp/attrflow-"),
        "{}",
        said.text
    );
    // Without a server, nothing is asked of Slurm.
    drop(server);
    let said = lab.start_with(&project, &SHELL, &with(&environment)).end();
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(said.text.contains("s3://results/team cannot be reached at http://127.0.0.1:"), "{}", said.text);
    no_task_is_left(&lab);
}

#[test]
fn downloads_stay_on_this_host_with_a_bucket() {
    let project = crate::lab::shell(1, "true", "\n[cluster.pools.a]\nkinds = [\"download\"]\n");
    let config = fs_err::read_to_string(project.path("configs/shell.toml")).unwrap();
    let plan = |store: &str| {
        let line = format!("[cluster]\nstore = \"{store}\"\n");
        project.write("configs/shell.toml", config.replace("[cluster]\n", &line));
        project.attrflow(["plan", "pipelines/shell.toml"])
    };
    let ran = plan(STORE);
    assert!(ran.code == 2 && ran.err.contains("`download`, which keeps files beside the project"), "{ran:?}");
    let ran = plan("http://results");
    assert!(ran.code == 2 && ran.err.contains("`http://results` is not a bucket: expected"), "{ran:?}");
}
