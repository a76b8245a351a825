//! The config's `[cluster]` table: where a run finds workers. It is not hashed.

use std::collections::BTreeMap;
use std::path::Path;

use super::{CLUSTER, files, only_keys};
use crate::config::param::{Param, Reader, Validate, plain_name};
use crate::config::text::{Problems, Sources};
use crate::config::tree::{self, Node, Value};
use crate::kind::KindInfo;
use crate::{choice, params};

/// The `[cluster]` table of a config, with what a profile adds: a file of the user with such a table.
///
/// # Errors
/// A profile that cannot be read, and faults of the two together; `Sources` gets the profile's text.
pub fn with_profile(config: &Node, profile: &Path, sources: &mut Sources) -> Result<ClusterTable, Problems> {
    let mut problems = Problems::default();
    let read = merged(config, profile, sources, &mut problems);
    problems.tidy();
    read.filter(|_| problems.is_empty()).ok_or(problems)
}

fn merged(
    config: &Node,
    profile: &Path,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<ClusterTable> {
    let text = files::read_text(profile, None, sources, problems)?;
    let profile = tree::parse(sources, text, problems);
    only_keys(profile.as_table()?, &[CLUSTER], problems);
    let of = |node: &Node| node.as_table().and_then(|table| table.get(CLUSTER)).cloned();
    let table = match (of(&profile), of(config)) {
        (Some(profile), Some(config)) => add(config, profile),
        (Some(table), None) | (None, Some(table)) => table,
        (None, None) => profile,
    };
    ClusterTable::read(&table, &mut Reader { sources, problems })
}

/// A value with the keys that another adds where both are tables.
fn add(mut node: Node, other: Node) -> Node {
    if let (Value::Table(table), Value::Table(other)) = (&mut node.value, other.value) {
        for (key, entry) in other.entries {
            match table.entries.get_mut(&key) {
                Some(own) => own.node = add(own.node.clone(), entry.node),
                None => _ = table.entries.insert(key, entry),
            }
        }
    }
    node
}

choice! {
    /// Where workers run.
    pub enum BackendName {
        /// As processes on this machine.
        Local = "local",
        /// As jobs of Slurm.
        Slurm = "slurm",
    }
}

params! {
    /// Workers on a cluster. A profile of the user adds what the config leaves open.
    pub struct ClusterTable {
        /// Where workers run: `local` or `slurm`.
        backend: BackendName = BackendName::Local,
        /// The profile of the site: `NAME` reads `~/.config/attrflow/profiles/NAME.toml`.
        profile: Option<String> = None,
        /// Groups of equal workers, by name. Without any, there is one named `workers`.
        pools: BTreeMap<String, Pool> = BTreeMap::new(),
        /// A bucket for nodes that share no file system with this host: `s3://BUCKET/PREFIX`.
        store: Option<String> = None,
        /// How long to wait for what.
        waits: Waits = Waits::default(),
    }
}

params! {
    /// Equal workers, each a task of a job array.
    pub struct Pool {
        /// The most workers at once.
        workers: u32 [1..=1000] = 4,
        /// GPUs of each worker: 1 computes its numbers on CUDA.
        gpus: u32 [0..=1] = 0,
        /// Cores of each worker, which are its threads too.
        cpus: u32 [1..=1024] = 1,
        /// Memory of each worker, as Slurm writes it: `32G`.
        memory: Option<String> = None,
        /// Time limit of each worker, as Slurm writes it: `02:00:00`; by default the partition's.
        time: Option<String> = None,
        /// The stage kinds that it computes; by default all that need libtorch.
        kinds: Vec<String> = Vec::new(),
        /// Options of Slurm.
        slurm: SlurmTable = SlurmTable::default(),
        /// Lines of shell before the worker starts, such as `module load cuda/12.8`.
        setup: Vec<String> = Vec::new(),
        /// A command that the worker is started with, such as `["apptainer", "exec", "attrflow.sif"]`.
        launch: Vec<String> = Vec::new(),
        /// The path of `attrflow` on the nodes; by default that of the running program.
        program: Option<String> = None,
    }
}

params! {
    /// Options of `sbatch`.
    pub struct SlurmTable {
        /// `--partition`
        partition: Option<String> = None,
        /// `--account`
        account: Option<String> = None,
        /// `--qos`
        qos: Option<String> = None,
        /// Further options, such as `--constraint=a100`.
        extra: Vec<String> = Vec::new(),
    }
}

params! {
    /// Times in seconds. The defaults suit a shared file system and a busy scheduler.
    pub struct Waits {
        /// Between two looks at a file that another host writes.
        poll: f64 [0.01..=60.0] = 1.0,
        /// Between two signs of life, of a worker and of the run.
        heartbeat: f64 [0.1..=600.0] = 15.0,
        /// Silence after which a worker that Slurm does not call running is lost.
        silent: f64 [0.1..=3600.0] = 90.0,
        /// Silence after which a worker is lost, whatever Slurm says.
        gone: f64 [0.1..=86400.0] = 600.0,
        /// Silence after which a run is dead.
        lease: f64 [0.1..=3600.0] = 120.0,
        /// How long a worker waits for another run when its own is dead.
        orphaned: f64 [0.0..=86400.0] = 300.0,
        /// How long a file may take to become visible on another host.
        visible: f64 [0.1..=3600.0] = 120.0,
        /// Between two questions to Slurm.
        squeue: f64 [0.1..=3600.0] = 30.0,
        /// Work that a worker is given at once.
        work: f64 [0.1..=3600.0] = 30.0,
        /// Before its time limit, a worker gets a signal and begins nothing more.
        leave: u32 [10..=3600] = 120,
    }
}

impl Pool {
    /// Whether its workers compute stages of a kind.
    pub fn serves(&self, kind: &KindInfo) -> bool {
        if self.kinds.is_empty() { kind.libtorch } else { self.kinds.iter().any(|name| name == kind.name) }
    }
}

impl Validate for ClusterTable {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let odd = self.pools.keys().find(|name| !plain_name(name));
        let odd = odd
            .map(|name| ("pools", format!("`{name}` cannot name a pool: use letters, digits, `-` and `_`")));
        let path = self.profile.iter().find(|name| !plain_name(name));
        let path = path.map(|name| ("profile", format!("`{name}` is not the name of a profile")));
        let address = |store: &&String| !store.starts_with("s3://") && !store.starts_with("file:///");
        let store = self.store.iter().find(address);
        let store = store.map(|store| {
            ("store", format!("`{store}` is not a bucket: expected an address such as s3://BUCKET/PREFIX"))
        });
        odd.into_iter().chain(path).chain(store).collect()
    }
}

impl Validate for Pool {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let texts = [("memory", &self.memory), ("time", &self.time)];
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-:.".contains(&b))
        };
        let faults = texts.into_iter().filter_map(|(key, text)| {
            let text = text.as_deref().filter(|text| !plain(text))?;
            Some((key, format!("`{key}` is `{text}`, expected a value of Slurm such as `32G` or `02:00:00`")))
        });
        faults.collect()
    }
}

impl Validate for SlurmTable {
    fn validate(&self) -> Vec<(&'static str, String)> {
        // They are lines of a script.
        let all = [&self.partition, &self.account, &self.qos].into_iter().flatten().chain(&self.extra);
        let odd = all.into_iter().find(|text| text.contains(['\n', '\r', '\0']));
        let odd = odd.map(|text| ("extra", format!("{text:?} has a line break, expected one option")));
        let plain = self.extra.iter().find(|text| !text.starts_with('-'));
        let plain = plain.map(|text| {
            ("extra", format!("`{text}` is no option: expected one such as `--constraint=a100`"))
        });
        odd.into_iter().chain(plain).collect()
    }
}

impl Validate for Waits {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("silent", self.silent, "heartbeat", self.heartbeat),
            ("lease", self.lease, "heartbeat", self.heartbeat),
            ("gone", self.gone, "silent", self.silent),
        ];
        let faults = pairs.into_iter().filter(|(_, long, _, short)| long < short);
        faults
            .map(|(key, long, other, short)| {
                (key, format!("`{key}` is {long}, expected at least `{other}`, {short}"))
            })
            .collect()
    }
}
