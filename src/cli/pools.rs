//! Where a run finds its workers: `--backend`, `--profile`, and the config's `[cluster]` table.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::kinds;
use attrflow_engine::config::text::Sources;
use attrflow_engine::estimate::PoolProfile;
use attrflow_engine::pipeline::Pipeline;
use attrflow_engine::pipeline::cluster_table::{BackendName, ClusterTable, Pool, with_profile};
use attrflow_engine::worker::protocol::DeviceClass;

/// The options that choose where workers run.
#[derive(Debug, Default, Clone, Args)]
pub(super) struct ClusterArgs {
    /// Where workers run: local or slurm [default: cluster.backend of the config, else local]
    #[arg(long, value_name = "NAME", value_parser = backend_name)]
    pub backend: Option<BackendName>,
    /// The profile of a cluster's site: NAME for ~/.config/attrflow/profiles/NAME.toml, or a path with a `/`
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

fn backend_name(text: &str) -> Result<BackendName, String> {
    match text {
        "local" => Ok(BackendName::Local),
        "slurm" => Ok(BackendName::Slurm),
        _ => Err("expected local or slurm".into()),
    }
}

/// The name of the pool that there is without a configuration.
const ONLY_POOL: &str = "workers";

/// Where a run finds its workers, if not on this machine: the config's table with what the profile adds.
pub(super) fn table(
    args: &ClusterArgs,
    device: Option<&str>,
    pipeline: &Pipeline,
    sources: &mut Sources,
) -> Result<Option<ClusterTable>, Failure> {
    let chosen = args.backend.unwrap_or(pipeline.cluster.backend);
    if chosen == BackendName::Local {
        return match &args.profile {
            Some(profile) => {
                let hint = "it takes effect with --backend slurm";
                Err(Failure::Usage(format!("--profile {profile} is for a cluster: {hint}")))
            }
            None => Ok(None),
        };
    }
    let mut table = match args.profile.as_ref().or(pipeline.cluster.profile.as_ref()) {
        None => pipeline.cluster.clone(),
        Some(name) => {
            let path = profile_path(name)?;
            with_profile(&pipeline.config, &path, sources)
                .map_err(|problems| Failure::Pipeline(problems, std::mem::take(sources)))?
        }
    };
    if table.pools.is_empty() {
        let device = device.unwrap_or(&pipeline.run.device);
        let gpus = u32::from(device.starts_with("cuda"));
        table.pools.insert(ONLY_POOL.to_owned(), Pool { gpus, ..Pool::default() });
    }
    check(&table, pipeline)?;
    Ok(Some(table))
}

/// The file of a profile: a path, or a name below the user's folder of configurations.
pub(super) fn profile_path(name: &str) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let home =
        home.ok_or_else(|| Failure::Usage("HOME is not set: give --profile a path with a `/`".into()))?;
    Ok(home.join("attrflow/profiles").join(format!("{name}.toml")))
}

/// Whether the pools can serve the pipeline together.
fn check(table: &ClusterTable, pipeline: &Pipeline) -> Result<(), Failure> {
    let registry = kinds::kinds();
    let refuse = |message: String| Err(Failure::Usage(format!("[cluster]: {message}")));
    for (name, pool) in &table.pools {
        let found = |kind: &String| registry.iter().find(|known| known.name == kind);
        if let Some(unknown) = pool.kinds.iter().find(|kind| found(kind).is_none()) {
            let names: Vec<&str> = registry.iter().map(|kind| kind.name).collect();
            return refuse(format!(
                "pool `{name}` names the kind `{unknown}`, expected one of {}",
                names.join(", ")
            ));
        }
        let torch = pool.kinds.iter().filter_map(found).filter(|kind| kind.libtorch).count();
        if torch > 0 && torch < pool.kinds.len() {
            return refuse(format!(
                "pool `{name}` mixes kinds with and without libtorch: give those without, such as `command`, a pool of their own"
            ));
        }
    }
    let downloads = |pool: &Pool| pool.kinds.iter().any(|kind| kind == "download");
    if let Some((name, _)) = table.pools.iter().find(|(_, pool)| table.store.is_some() && downloads(pool)) {
        return refuse(format!(
            "pool `{name}` names the kind `download`, which keeps files beside the project: with `store`, it runs on this host, so leave it out"
        ));
    }
    let serving: Vec<(&String, &Pool)> = table.pools.iter().filter(|(_, pool)| has_libtorch(pool)).collect();
    if let (Some((gpu, _)), Some((cpu, _))) =
        (serving.iter().find(|(_, pool)| pool.gpus > 0), serving.iter().find(|(_, pool)| pool.gpus == 0))
    {
        return refuse(format!(
            "pool `{gpu}` has GPUs and pool `{cpu}` has none: one run computes on one class of device"
        ));
    }
    for stage in &pipeline.stages {
        let kind = stage.kind();
        if kind.libtorch && !table.pools.values().any(|pool| pool.serves(kind)) {
            return refuse(format!("no pool serves the kind `{}` of the stage `{}`", kind.name, stage.id));
        }
    }
    Ok(())
}

/// Whether the workers of a pool load libtorch.
pub(super) fn has_libtorch(pool: &Pool) -> bool {
    let registry = kinds::kinds();
    let torch = |name: &String| registry.iter().any(|kind| kind.name == name && kind.libtorch);
    pool.kinds.is_empty() || pool.kinds.iter().any(torch)
}

/// What the pools compute on where the user leaves it open.
pub(super) fn device_class(table: &ClusterTable) -> DeviceClass {
    match table.pools.values().any(|pool| pool.gpus > 0 && has_libtorch(pool)) {
        true => DeviceClass::Cuda,
        false => DeviceClass::Cpu,
    }
}

/// How many workers a run has at most, and the threads of each.
pub(super) fn size(table: &ClusterTable, threads: Option<usize>) -> (usize, usize) {
    let workers = table.pools.values().map(|pool| pool.workers as usize).sum();
    let most = table.pools.values().map(|pool| pool.cpus as usize).max().unwrap_or(1);
    (workers, threads.unwrap_or(most))
}

/// What the pools of a cluster are, by the kinds that they compute.
pub(super) fn profiles(table: &ClusterTable, threads: Option<usize>) -> BTreeMap<String, PoolProfile> {
    let mut profiles = BTreeMap::new();
    for (name, pool) in &table.pools {
        let Pool { workers, gpus, cpus, memory, slurm, .. } = pool;
        let parts = [
            slurm.partition.as_ref().map(|partition| format!("partition {partition}")),
            (*gpus > 0).then(|| "1 GPU".to_owned()),
            Some(if *cpus == 1 { "1 core".to_owned() } else { format!("{cpus} cores") }),
            memory.clone(),
            Some(slurm.extra.join(" ")).filter(|extra| !extra.is_empty()),
        ];
        let request = format!("slurm: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
        let threads = threads.unwrap_or(*cpus as usize);
        let profile = PoolProfile { name: name.clone(), jobs: *workers as usize, threads, request };
        for kind in kinds::kinds().iter().filter(|kind| pool.serves(kind)) {
            profiles.entry(kind.name.to_owned()).or_insert_with(|| profile.clone());
        }
    }
    profiles
}
