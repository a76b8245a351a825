//! libtorch on disk: a folder with `lib/libtorch_cpu.so`, and the version that it names.

use std::io::Read;
use std::path::Path;

/// The library that makes a folder one of libtorch.
const LIBRARY: &str = "lib/libtorch_cpu.so";

/// The version that a folder of libtorch names, with its local part, such as `2.11.0+cu130`.
pub fn version(folder: &Path) -> Option<String> {
    let read = |name| fs_err::read_to_string(folder.join(name)).ok();
    if let Some(text) = read("version.py") {
        // The wheel: `__version__ = '2.11.0+cu130'`.
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        return line.split(['\'', '"']).nth(1).map(str::to_owned);
    }
    // An archive of libtorch.
    let archive = read("build-version").map(|text| text.trim().to_owned());
    archive.or_else(|| conda_version(folder))
}

/// The version in the name of conda's record, `libtorch-VERSION-BUILD.json`. Builds of one version differ in their kernels.
fn conda_version(prefix: &Path) -> Option<String> {
    let records = fs_err::read_dir(prefix.join("conda-meta")).ok()?.flatten();
    records.into_iter().find_map(|record| {
        let name = record.file_name();
        let (version, build) =
            name.to_str()?.strip_prefix("libtorch-")?.strip_suffix(".json")?.split_once('-')?;
        Some(format!("{version}+{build}"))
    })
}

/// Major and minor: what one build of this program can be linked with.
pub fn series(version: &str) -> &str {
    let end = version.match_indices('.').nth(1).map_or(version.len(), |(end, _)| end);
    &version[..end]
}

/// Whether a folder is one of libtorch: it has the library, or it says what version it is.
pub fn is_libtorch(folder: &Path) -> bool {
    folder.join(LIBRARY).exists() || folder.join("version.py").exists()
}

/// Why a folder of libtorch cannot be loaded, as far as that can be seen without loading it.
pub fn fault(folder: &Path) -> Option<String> {
    let mut begin = Vec::new();
    match fs_err::File::open(folder.join(LIBRARY)).and_then(|file| file.take(4).read_to_end(&mut begin)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(format!("it has no {LIBRARY}")),
        Err(error) => Some(error.to_string()),
        Ok(_) if begin == b"\x7fELF" => None,
        Ok(0) => Some(format!("{LIBRARY} is empty")),
        Ok(_) => Some(format!("{LIBRARY} is no library")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_each_maker_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            fs_err::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
            fs_err::write(folder.path().join(file), text).unwrap();
            version(folder.path()).unwrap()
        };
        assert_eq!(version(folder.path()), None);
        assert_eq!(write("conda-meta/libtorch-2.11.0-cpu_generic_h1_2.json", ""), "2.11.0+cpu_generic_h1_2");
        assert_eq!(write("build-version", "2.11.0+cpu\n"), "2.11.0+cpu");
        let wheel = "__all__ = ['__version__']\n__version__ = '2.11.1+cu130'\ndebug = False\n";
        assert_eq!(write("version.py", wheel), "2.11.1+cu130");
        assert_eq!(["2.11.0+cu130", "2.11", "2", "unknown"].map(series), ["2.11", "2.11", "2", "unknown"]);
    }
}
