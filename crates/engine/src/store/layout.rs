//! The areas of a cache. Each has a name, which carries the version of its format, and a purpose; no other file names one.

use std::path::{Path, PathBuf};

use super::Store;
use crate::identity::digest::Digest;
use crate::identity::shared_fs;

macro_rules! areas {
    ($($area:ident, $name:literal, $purpose:literal;)*) => {
        /// A file or folder at the top level of a cache.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Area {
            $(#[doc = $purpose] $area,)*
        }

        impl Area {
            /// All areas, in the order in which they are listed.
            pub const ALL: &[Self] = &[$(Self::$area),*];

            /// The name of the file or folder. A new format gets a new version.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$area => $name,)*
                }
            }

            /// What it holds, in a few words.
            pub const fn purpose(self) -> &'static str {
                match self {
                    $(Self::$area => $purpose,)*
                }
            }
        }
    };
}

areas! {
    Objects, "objects", "bytes of results, by digest";
    Recipes, "recipes-v2", "index from fingerprints to results";
    Units, "units-v1", "units of each stage";
    Runs, "runs", "manifests of runs";
    Pins, "pins-v1", "pins that protect results from gc";
    Costs, "costs-v1", "measured costs of stages";
    Trials, "trials-v1", "what trials found to be fastest on a device";
    FileState, "file-state-v1", "what is known of unchanged files";
    Noop, "noop-v1", "last run of each pipeline that had nothing to do";
    Cluster, "cluster", "runs on a cluster: their workers, events and logs";
    Downloads, "downloads", "downloads in progress or not yet used";
    Quarantine, "quarantine", "damaged results, set aside";
    Tmp, "tmp", "working folders of runs";
    StoreLock, "store.lock", "lock: shared by runs, exclusive to gc";
    Leases, "leases-v1", "locks where those of the file system hold on one host alone";
    LockTest, "lock-test-v1", "whether other hosts respect a lock";
    UnitsLock, "units.lock", "locks of fingerprints that are being computed";
    CacheTag, "CACHEDIR.TAG", "marks the folder as a cache for backup programs";
    GitIgnore, ".gitignore", "keeps the cache out of Git";
}

/// The lock of earlier versions, whose runs may be going on.
pub(super) const OLD_STORE_LOCK: &str = "use.lock";
/// Areas of earlier versions under other names.
const OBSOLETE: [(&str, &str); 7] = [
    ("stat-v1.json", "digests of sources"),
    ("vouched-v1", "verified objects"),
    ("slices-v1", "digests of parts of files"),
    ("packed-v1", "copies of index entries"),
    ("recall-v1", "no-op runs"),
    ("measured-v1", "measured costs"),
    (OLD_STORE_LOCK, "lock of the cache"),
];

/// What a name at the top level of a cache belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The cache folder itself.
    Root,
    /// An area.
    Area(Area),
    /// An area of an earlier version, which nothing reads any more.
    Obsolete(String),
    /// An area of a later version.
    Newer(String),
    /// Anything else: somebody else's.
    Unknown(String),
}

impl Part {
    /// The part of this name.
    pub fn of(name: &str) -> Self {
        if let Some(area) = Area::ALL.iter().copied().find(|area| area.name() == name) {
            return Self::Area(area);
        }
        if OBSOLETE.iter().any(|(obsolete, _)| *obsolete == name) {
            return Self::Obsolete(name.to_owned());
        }
        match same_stem(name) {
            Some((area, version)) if Some(version) < versioned(area.name()).map(|(_, current)| current) => {
                Self::Obsolete(name.to_owned())
            }
            Some(_) => Self::Newer(name.to_owned()),
            None => Self::Unknown(name.to_owned()),
        }
    }

    /// The name of the file or folder.
    pub fn name(&self) -> &str {
        match self {
            Self::Root => ".",
            Self::Area(area) => area.name(),
            Self::Obsolete(name) | Self::Newer(name) | Self::Unknown(name) => name,
        }
    }

    /// What it holds, in a few words.
    pub fn purpose(&self) -> String {
        match self {
            Self::Root => "the cache folder itself".to_owned(),
            Self::Area(area) => area.purpose().to_owned(),
            Self::Obsolete(name) => {
                let known =
                    OBSOLETE.iter().find(|(obsolete, _)| obsolete == name).map(|(_, purpose)| *purpose);
                let purpose = known.or_else(|| Some(same_stem(name)?.0.purpose())).unwrap_or_default();
                format!("obsolete: {purpose}, of an earlier version")
            }
            Self::Newer(_) => "written by a newer version of attrflow".to_owned(),
            Self::Unknown(_) => "unknown: not written by attrflow".to_owned(),
        }
    }
}

/// `recipes-v2` as its stem and version.
fn versioned(name: &str) -> Option<(&str, u32)> {
    let (stem, version) = name.rsplit_once("-v")?;
    Some((stem, version.parse().ok()?))
}

/// The area of which this is the name in some version, and the version.
fn same_stem(name: &str) -> Option<(Area, u32)> {
    let (stem, version) = versioned(name)?;
    let same = |area: &Area| versioned(area.name()).is_some_and(|(known, _)| known == stem);
    Some((Area::ALL.iter().copied().find(same)?, version))
}

impl Store {
    /// Where an area is.
    pub fn area(&self, area: Area) -> PathBuf {
        self.root.join(area.name())
    }

    /// `ab/ab12…ENDING` below an area.
    pub(super) fn sharded(&self, area: Area, digest: &Digest, ending: &str) -> PathBuf {
        let name = digest.to_string();
        self.area(area).join(&name[..2]).join(format!("{name}{ending}"))
    }

    /// What is at the top level of the cache, sorted; nothing where there is no cache.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn parts(&self) -> super::Result<Vec<Part>> {
        let mut parts = Vec::new();
        if shared_fs::is_dir(&self.root) {
            for entry in shared_fs::read_dir(&self.root)? {
                parts.push(Part::of(&entry?.file_name().to_string_lossy()));
            }
        }
        parts.sort();
        Ok(parts)
    }

    /// A warning if the cache has the results index of an earlier version and none of this version.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn old_index(&self) -> super::Result<Option<String>> {
        if shared_fs::exists(self.area(Area::Recipes)) {
            return Ok(None);
        }
        let old = |part: &Part| match part {
            Part::Obsolete(name) => same_stem(name).is_some_and(|(area, _)| area == Area::Recipes),
            _ => false,
        };
        Ok(self.parts()?.iter().find(|part| old(part)).map(|part| {
            format!(
                "{} is the results index of an earlier version of attrflow, whose fingerprints differ: results are \
                 computed again; `attrflow cache gc --yes` removes it",
                self.root.join(part.name()).display()
            )
        }))
    }
}

/// The path without links, as far as it exists: one that is gone has none.
pub fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let real = path.ancestors().find_map(|folder| Some((folder, fs_err::canonicalize(folder).ok()?)));
    // By its parts: joining an empty path would leave a `/` at the end.
    let joined = real.and_then(|(folder, real)| Some(real.join(path.strip_prefix(folder).ok()?)));
    joined.map_or(path, |joined| joined.components().collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::identity::recipe;

    #[test]
    fn each_name_is_known_for_what_it_is() {
        for area in Area::ALL {
            assert_eq!(Part::of(area.name()), Part::Area(*area));
            assert!(!area.purpose().is_empty());
        }
        let names: BTreeSet<&str> = Area::ALL.iter().map(|area| area.name()).collect();
        assert_eq!(names.len(), Area::ALL.len());
        // A fingerprint of another format is another name: so is the folder that it leads to.
        assert_eq!(Area::Recipes.name(), format!("recipes-v{}", recipe::FORMAT));
        for old in ["recipes-v1", "units-v0", "stat-v1.json", "vouched-v1", "use.lock", "measured-v1"] {
            assert_eq!(Part::of(old), Part::Obsolete(old.to_owned()));
            assert!(Part::of(old).purpose().starts_with("obsolete: "), "{old}");
        }
        assert_eq!(Part::of("recipes-v99"), Part::Newer("recipes-v99".to_owned()));
        for other in ["recipes", "recipes-vx", "notes.txt", "runs-v1"] {
            assert_eq!(Part::of(other), Part::Unknown(other.to_owned()));
        }
    }
}
