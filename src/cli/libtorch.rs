//! Where libtorch is. It is found when the program runs, so one program serves the wheels, archives and packages of a version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::Serialize;

use crate::io::libtorch::{fault, is_libtorch, series, version};

/// The version that this program was built with.
const BUILT_WITH: &str = env!("ATTRFLOW_LIBTORCH_VERSION");
/// Its folder.
const BUILT_IN: &str = env!("ATTRFLOW_LIBTORCH_FOLDER");
/// Names the folder of the libtorch to use; then no other is looked for.
const VARIABLE: &str = "ATTRFLOW_LIBTORCH";
/// The place that is searched last.
const PYTHON: &str = "python3";

/// What was found in a place.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub folder: PathBuf,
    pub version: Option<String>,
    /// Why it does not serve.
    pub fault: Option<String>,
}

/// A place that was searched.
#[derive(Debug, Serialize)]
pub(super) struct Place {
    pub place: &'static str,
    pub found: Vec<Found>,
}

/// The libtorch to compute with.
#[derive(Debug)]
pub(super) struct Libtorch {
    pub folder: PathBuf,
    pub version: String,
}

/// Where this program lies.
struct Program {
    folder: PathBuf,
    /// The environment that it is installed in: the folder above its `bin`.
    prefix: PathBuf,
    /// Whether a wheel brought it. What its build used is then of no meaning here.
    is_wheel: bool,
}

impl Program {
    fn this() -> Self {
        let program = std::env::current_exe().unwrap_or_default();
        let folder = program.parent().unwrap_or(Path::new("")).to_path_buf();
        let prefix = folder.parent().unwrap_or(Path::new("")).to_path_buf();
        let is_wheel = packages(&prefix).iter().any(|folder| folder.join("attrflow/__init__.py").exists());
        Self { folder, prefix, is_wheel }
    }
}

/// The folders that a place leads to.
type Folders = fn(&Program) -> Vec<PathBuf>;

/// The places after that of the variable, in the order of the search, with the folders that each leads to.
const PLACES: [(&str, Folders); 7] = [
    ("beside the program", |program| vec![program.folder.join("libtorch")]),
    ("its build", in_build),
    ("its environment", |program| in_prefix(&program.prefix)),
    ("VIRTUAL_ENV", |_| variable("VIRTUAL_ENV").map_or(Vec::new(), |prefix| in_prefix(&prefix))),
    ("CONDA_PREFIX", |_| variable("CONDA_PREFIX").map_or(Vec::new(), |prefix| in_prefix(&prefix))),
    ("user site", in_user_site),
    (PYTHON, |program| in_python(program).into_iter().collect()),
];

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// As the build linked the worker: relative first, so that a moved project folder still serves.
fn in_build(program: &Program) -> Vec<PathBuf> {
    let folders = ["../../.libtorch/torch", "../../../.libtorch/torch"].map(|path| program.folder.join(path));
    if program.is_wheel { Vec::new() } else { [&folders[..], &[BUILT_IN.into()]].concat() }
}

/// The folders of Python packages in an environment, those of the newest Python first; `pip install --target` makes one of
/// the environment itself.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let libraries = ["lib", "lib64"].map(|name| fs_err::read_dir(prefix.join(name)));
    for entry in libraries.into_iter().flatten().flatten().flatten() {
        let name = entry.file_name();
        let minor = name.to_str().and_then(|name| name.strip_prefix("python3.")?.parse::<u32>().ok());
        found.extend(minor.map(|minor| (minor, entry.path())));
    }
    found.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    let named = |folder: PathBuf| ["site-packages", "dist-packages"].map(|name| folder.join(name));
    found.into_iter().flat_map(|(_, folder)| named(folder)).chain([prefix.to_path_buf()]).collect()
}

/// Below an environment: the package `torch`, and conda's libtorch.
fn in_prefix(prefix: &Path) -> Vec<PathBuf> {
    let torch = packages(prefix).into_iter().map(|folder| folder.join("torch"));
    torch.chain([prefix.to_path_buf()]).collect()
}

fn in_user_site(_: &Program) -> Vec<PathBuf> {
    if variable("PYTHONNOUSERSITE").is_some() {
        return Vec::new();
    }
    let base = variable("PYTHONUSERBASE").or_else(|| Some(variable("HOME")?.join(".local")));
    base.map_or_else(Vec::new, |base| in_prefix(&base))
}

/// Where Python would import torch from: the one beside this program, else the one on the `PATH`. It imports nothing, which
/// would take seconds; what lies in the current folder is not meant.
fn in_python(program: &Program) -> Option<PathBuf> {
    const ASK: &str = "import sys; sys.path = [path for path in sys.path if path]\n\
        from importlib.util import find_spec; spec = find_spec('torch')\n\
        print(*(spec and spec.submodule_search_locations or [])[:1])";
    let beside = program.folder.join("python3");
    let python = if beside.exists() { beside.as_path() } else { Path::new("python3") };
    let mut command = Command::new(python);
    let output = command.args(["-c", ASK]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().last().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What a folder of libtorch holds.
fn look(folder: PathBuf) -> Found {
    let folder = fs_err::canonicalize(&folder).unwrap_or(folder);
    let version = version(&folder);
    let wanted = series(BUILT_WITH);
    let fault = fault(&folder).or_else(|| match version.as_deref().unwrap_or("unknown") {
        version if series(version) == wanted => None,
        "unknown" => Some(format!("it names no version, expected {wanted}")),
        version => Some(format!("version {version}, expected {wanted}")),
    });
    Found { folder, version, fault }
}

/// Searches all places, and asks Python where nothing else serves.
pub(super) fn places() -> Vec<Place> {
    search(true)
}

fn search(all: bool) -> Vec<Place> {
    if let Some(folder) = variable(VARIABLE) {
        return vec![Place { place: VARIABLE, found: vec![look(folder)] }];
    }
    let program = Program::this();
    let mut places = vec![Place { place: VARIABLE, found: Vec::new() }];
    for (place, folders) in PLACES {
        let is_found = places.iter().any(|place| serving(place).is_some());
        if is_found && (!all || place == PYTHON) {
            break;
        }
        let folders = folders(&program).into_iter().filter(|folder| is_libtorch(folder));
        let mut found: Vec<Found> = folders.map(look).collect();
        // `lib64` may be `lib`.
        found.dedup_by(|a, b| a.folder == b.folder);
        places.push(Place { place, found });
    }
    places
}

fn serving(place: &Place) -> Option<&Found> {
    place.found.iter().find(|found| found.fault.is_none())
}

/// The libtorch to compute with, or where it was looked for; searched once.
pub(super) fn libtorch() -> &'static Result<Libtorch, String> {
    static LIBTORCH: OnceLock<Result<Libtorch, String>> = OnceLock::new();
    LIBTORCH.get_or_init(|| {
        let places = search(false);
        let found = places.iter().find_map(serving);
        let found = found.ok_or_else(|| missing(&places))?;
        let version = found.version.clone().unwrap_or_else(|| "unknown".into());
        Ok(Libtorch { folder: found.folder.clone(), version })
    })
}

/// The version that names results: the given one, else that of the libtorch found here, else that of the build.
pub(super) fn assumed(given: Option<&str>) -> String {
    let found = || libtorch().as_ref().map_or(BUILT_WITH, |found| &found.version);
    given.unwrap_or_else(found).to_owned()
}

/// A version that this program can compute with.
pub(super) fn parse_version(text: &str) -> Result<String, String> {
    let wanted = series(BUILT_WITH);
    match series(text) == wanted {
        true => Ok(text.to_owned()),
        false => Err(format!("this program computes with libtorch {wanted}, such as {BUILT_WITH}")),
    }
}

/// What was searched, a line each.
pub(super) fn describe(places: &[Place]) -> Vec<String> {
    let line = |Place { place, found }: &Place| {
        let found = found.iter().map(|Found { folder, version, fault }| match (version, fault) {
            (_, Some(fault)) => format!("{}: {fault}", folder.display()),
            (version, None) => {
                format!("{}: {}", folder.display(), version.as_deref().unwrap_or("unknown version"))
            }
        });
        let found: Vec<String> = found.collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join("; ") };
        format!("{place:<19} {found}")
    };
    places.iter().map(line).collect()
}

/// No place serves: where it was looked for, and what mends it.
fn missing(places: &[Place]) -> String {
    let searched: Vec<String> = describe(places).into_iter().map(|line| format!("\n  {line}")).collect();
    let wanted = series(BUILT_WITH);
    format!("libtorch {wanted} is needed, and no place has it:{}\n{}", searched.concat(), remedy())
}

/// The command that installs a libtorch that serves.
pub(super) fn remedy() -> String {
    let wanted = series(BUILT_WITH);
    let folder = format!("a folder of libtorch {wanted}, which holds lib/libtorch_cpu.so");
    if variable(VARIABLE).is_some() {
        return format!("help: unset {VARIABLE}, or set it to {folder}");
    }
    let program = Program::this();
    let python = program.folder.join("python3");
    let install = if !program.is_wheel {
        "run `make setup` in the project's folder".to_owned()
    } else if packages(&program.prefix).iter().any(|folder| folder.join("pip").exists()) {
        format!("run `'{}' -m pip install 'torch=={wanted}.*'`", python.display())
    } else {
        format!("run `uv pip install --python '{}' 'torch=={wanted}.*'`", python.display())
    };
    format!("help: {install}\nhelp: or set {VARIABLE} to {folder}")
}
