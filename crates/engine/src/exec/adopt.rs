//! Adopting files from elsewhere as a stage's outputs: nothing is copied or computed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::identity::recipe::Numerics;
use crate::kind::{self, Inputs};
use crate::pipeline::{Pipeline, Source};
use crate::plan::graph::Graph;
use crate::plan::{Action, InputError, Planner, ResolvedInputs};
use crate::store::{Adopted, Entry, Lookup, Store, StoreError, TreeStat};

/// Why files are not adopted. Nothing is recorded then.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An input of the stage, or of one that it needs, is invalid.
    #[error("`{stage}` cannot be adopted: {error}")]
    Input {
        /// The stage to adopt.
        stage: String,
        /// What is wrong.
        error: String,
    },
    /// The stage's inputs are not available yet, and its recipe contains their digests.
    #[error(
        "`{stage}` cannot be adopted yet: its inputs are not available; \
         run or adopt first: {}", upstream.join(", ")
    )]
    Pending {
        /// The stage to adopt.
        stage: String,
        /// The stages without a result, each after those that it reads.
        upstream: Vec<String>,
    },
    /// There is a result in the cache.
    #[error("`{stage}` is cached: it {how}; --force replaces that result")]
    Cached {
        /// The stage to adopt.
        stage: String,
        /// How it came to be.
        how: String,
    },
    /// A file that runs replace or remove.
    #[error(
        "{} is in {}, where runs replace what is there: move or copy it elsewhere first",
        path.display(), folder.display()
    )]
    Own {
        /// The file or folder.
        path: PathBuf,
        /// The folder that belongs to attrflow.
        folder: PathBuf,
    },
    /// A file that is missing or cannot be read.
    #[error("{error}")]
    Unreadable {
        /// What the file system says, with the path.
        error: String,
    },
    /// The files cannot be what the stage gives.
    #[error("`{stage}` does not take these files: {error}")]
    Refused {
        /// The stage to adopt.
        stage: String,
        /// The file, what was found and what was expected.
        error: String,
    },
    /// A file that is still written to.
    #[error("{} changed while it was checked", path.display())]
    Changed {
        /// The file or folder.
        path: PathBuf,
    },
}

/// Files to adopt, and the stage that they become outputs of.
pub struct Adoption<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The stage and all that it needs.
    pub graph: &'a Graph,
    /// The cache.
    pub store: &'a Store,
    /// How the files' numbers would have been computed here.
    pub numerics: &'a Numerics,
    /// The stage, by its index.
    pub stage: usize,
    /// Files and folders, one for each of its output ports.
    pub paths: BTreeMap<String, PathBuf>,
    /// Replace a result that is there already.
    pub force: bool,
    /// Folders whose files are not the user's: cache and results.
    pub own: Vec<PathBuf>,
}

impl Adoption<'_> {
    /// Checks the files against the stage's parameters and inputs, and records them as its outputs.
    ///
    /// # Errors
    /// See [`AdoptError`].
    pub fn execute(&self) -> Result<Entry, AdoptError> {
        let _use = self.store.shared_lock(|| tracing::warn!("waiting for `attrflow cache gc` to end"))?;
        let node = &self.pipeline.stages[self.stage];
        let planner = Planner::new(self.pipeline, self.store, self.numerics, &[]);
        let inputs = self.inputs(&planner)?;
        let recipe = planner.recipe(node, &inputs);
        let fingerprint = recipe.fingerprint();
        let _lock = self.store.lock(&fingerprint, || {
            tracing::warn!("waiting for another run that computes {}", fingerprint.short());
        })?;
        if let (Lookup::Hit(entry), false) = (self.store.find(&fingerprint)?, self.force) {
            let how = match &entry.adopted {
                Some(adopted) => format!("was adopted at {}", adopted.at),
                None => format!("was computed in {:.1} s", entry.seconds),
            };
            return Err(AdoptError::Cached { stage: node.id.clone(), how });
        }
        let paths = self.paths.iter().map(|(port, path)| Ok((port.clone(), self.real(path)?)));
        let paths: BTreeMap<String, PathBuf> = paths.collect::<Result<_, AdoptError>>()?;
        // What is checked must be what is recorded, and hashing takes its time.
        let stamps = || paths.values().map(|path| TreeStat::at(path)).collect::<Result<Vec<_>, _>>();
        let before = stamps().map_err(StoreError::from)?;
        let refused = |error| AdoptError::Refused { stage: node.id.clone(), error: kind::describe(&error) };
        let checked = node.stage.accept(&Inputs(inputs.paths), &paths).map_err(refused)?.to_owned();
        self.read_below(&paths)?;
        let read: BTreeMap<&String, _> = paths.keys().map(|port| (port, self.read_of(port))).collect();
        let link = |port, path| self.store.link_source(path, read[port].as_ref());
        let outputs = paths.iter().map(|(port, path)| Ok((port.clone(), link(port, path)?)));
        let outputs = outputs.collect::<Result<_, StoreError>>()?;
        let after = stamps().map_err(StoreError::from)?;
        let changed = before.iter().zip(&after).position(|(before, after)| before != after);
        if let Some(path) = changed.and_then(|at| paths.values().nth(at)) {
            return Err(AdoptError::Changed { path: path.clone() });
        }
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let entry = self.store.adopt(&recipe, outputs, Adopted { at, paths, checked })?;
        self.store.try_flush()?;
        Ok(entry)
    }

    /// The stage's inputs, all of which must be available.
    fn inputs(&self, planner: &Planner<'_>) -> Result<ResolvedInputs, AdoptError> {
        let id = &self.pipeline.stages[self.stage].id;
        let fault = |error| match error {
            InputError::Store(error) => AdoptError::Store(error),
            error => AdoptError::Input { stage: id.clone(), error: error.to_string() },
        };
        let mut done = BTreeMap::new();
        let mut upstream = Vec::new();
        for &index in self.graph.order().iter().filter(|index| **index != self.stage) {
            match planner.decide(index, &done).map_err(fault)? {
                Action::Cached(entry) => _ = done.insert(index, *entry),
                Action::Run(..) | Action::Pending { .. } | Action::InvalidInput(_) => {
                    upstream.push(self.pipeline.stages[index].id.clone());
                }
            }
        }
        match planner.inputs(&self.pipeline.stages[self.stage], &done).map_err(fault)? {
            Ok(inputs) => Ok(inputs),
            Err(_) => Err(AdoptError::Pending { stage: id.clone(), upstream }),
        }
    }

    /// The paths below a folder that other stages read; `None` if one reads the folder itself, or none reads it.
    fn read_of(&self, output: &str) -> Option<BTreeSet<&str>> {
        let inputs = self.pipeline.stages.iter().flat_map(|reader| reader.inputs.values());
        let of_output = inputs.filter_map(|source| match source {
            Source::Port { stage, port, sub, .. } if *stage == self.stage && port == output => {
                Some(sub.as_deref())
            }
            _ => None,
        });
        let read: Option<BTreeSet<&str>> = of_output.collect();
        read.filter(|read| !read.is_empty())
    }

    /// Refuses folders without what other stages read in them.
    fn read_below(&self, paths: &BTreeMap<String, PathBuf>) -> Result<(), AdoptError> {
        for reader in &self.pipeline.stages {
            for (input, source) in &reader.inputs {
                let Source::Port { stage, port, sub: Some(sub), .. } = source else { continue };
                let Some(path) = paths.get(port).filter(|_| *stage == self.stage) else { continue };
                let path = path.join(sub);
                if !path.exists() {
                    let error = format!(
                        "{}: no such file or folder, and the input `{input}` of `{}` reads it",
                        path.display(),
                        reader.id
                    );
                    return Err(AdoptError::Refused {
                        stage: self.pipeline.stages[self.stage].id.clone(),
                        error,
                    });
                }
            }
        }
        Ok(())
    }

    /// The file or folder that a path leads to in the end: a link that leads there may be changed at any time.
    fn real(&self, path: &Path) -> Result<PathBuf, AdoptError> {
        let path = fs_err::canonicalize(path)
            .map_err(|error| AdoptError::Unreadable { error: error.to_string() })?;
        for folder in &self.own {
            let own = fs_err::canonicalize(folder).unwrap_or_else(|_| folder.clone());
            // A folder that holds them would be adopted with all that runs write into them.
            if path.starts_with(&own) || own.starts_with(&path) {
                return Err(AdoptError::Own { path, folder: own });
            }
        }
        Ok(path)
    }
}
