//! What the names of items say: of which query, seed or subset a model is.

use std::collections::BTreeMap;

use anyhow::ensure;

use attrflow_engine::choice;
use attrflow_statistics::mean;

choice! {
    /// A part of a name.
    pub enum Part {
        /// The query whose top images were left out, or whose scores these are.
        Query = "query",
        /// How many images were left out.
        K = "k",
        /// The method that ranked the images.
        Method = "method",
        /// The seed of the training.
        Seed = "seed",
        /// One of several random sets.
        Set = "set",
        /// The subset that a model was trained on.
        Subset = "subset",
    }
}

/// The parts of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(Vec<(Part, String)>);

impl Name {
    /// Reads the name of an item of a port.
    pub fn read(port: &str, parts: &[Part], name: &str) -> anyhow::Result<Self> {
        // A stage that is not repeated has no name, and one whose names say nothing needs none.
        let says = !name.is_empty() && !parts.is_empty();
        let found: Vec<&str> = name.split(',').filter(|_| says).collect();
        // Scores of the method itself, whose stages do not repeat over methods, may stand beside others.
        let known: Vec<Part> = parts.iter().copied().filter(|part| *part != Part::Method).collect();
        let parts = if found.len() == known.len() { &known } else { parts };
        ensure!(
            found.is_empty() || found.len() == parts.len(),
            "`{port}` has an item `{name}` of {} parts, expected {}: {}; `names.{port}` says which",
            found.len(),
            parts.len(),
            parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
        );
        Ok(Self(parts.iter().copied().zip(found.into_iter().map(str::to_owned)).collect()))
    }

    /// The name without one of its parts.
    pub fn without(&self, part: Part) -> String {
        let others = self.0.iter().filter(|(of, _)| *of != part).map(|(_, text)| text.as_str());
        others.collect::<Vec<_>>().join(",")
    }

    /// One part, or the empty text.
    pub fn part(&self, part: Part) -> &str {
        self.0.iter().find(|(of, _)| *of == part).map_or("", |(_, text)| text)
    }
}

/// The mean of values by key, in the order of the keys.
pub(super) fn means<K: Ord>(values: impl IntoIterator<Item = (K, f64)>) -> BTreeMap<K, f64> {
    let mut all: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    for (key, value) in values {
        all.entry(key).or_default().push(value);
    }
    all.into_iter().map(|(key, values)| (key, mean(&values))).collect()
}
