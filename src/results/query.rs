//! The stages behind a query, and where they left its results.

use std::path::PathBuf;

use super::records::{Run, item, text};
use super::rows::{Arrays, Top};
use attrflow_engine::provenance::manifest::{Outcome, StageRecord};

/// The stages behind a query.
#[derive(Debug, Clone)]
pub struct QueryStages<'a> {
    /// The query: the item of its stages, or the full name of one where several have the same item.
    pub name: String,
    /// The stage that made its table, if there is one.
    pub ranking: Option<&'a StageRecord>,
    /// The stage that computed its scores, if it is of this run.
    pub influence: Option<&'a StageRecord>,
}

impl<'a> QueryStages<'a> {
    /// Those of all queries, in the order of the manifest: a ranking each, and an influence that no ranking reads.
    pub fn all(run: &Run<'a>) -> Vec<Self> {
        let of = |ranking: Option<&'a StageRecord>, influence: Option<&'a StageRecord>| Self {
            name: String::new(),
            ranking,
            influence,
        };
        let mut found: Vec<Self> = run
            .of_kind("ranking")
            .map(|ranking| of(Some(ranking), run.upstream(ranking, "influence")))
            .collect();
        let alone = run.of_kind("influence").filter(|influence| {
            !found.iter().any(|query| query.influence.is_some_and(|known| known.stage == influence.stage))
        });
        let alone: Vec<Self> = alone.map(|influence| of(None, Some(influence))).collect();
        found.extend(alone);
        let mut items: Vec<&str> = found.iter().map(|query| item(query.stage())).collect();
        items.sort_unstable();
        let repeated = items.windows(2).any(|pair| pair[0] == pair[1]);
        for query in &mut found {
            let stage = query.stage();
            query.name = if repeated { stage } else { item(stage) }.to_owned();
        }
        found
    }

    /// The full name of its first known stage.
    pub fn stage(&self) -> &'a str {
        self.ranking.or(self.influence).map_or("", |record| &record.stage)
    }

    /// What a port of its ranking reads.
    pub fn input(&self, run: &Run<'_>, port: &str) -> Option<PathBuf> {
        self.ranking.and_then(|ranking| run.input(ranking, port))
    }

    /// An output of its influence, as the ranking reads it, or as it was written.
    pub fn result(&self, run: &Run<'_>, port: &str) -> Option<PathBuf> {
        let read = || self.influence.and_then(|influence| run.output(influence, port));
        self.input(run, port).or_else(read)
    }

    /// Its scores and ranks.
    pub fn arrays(&self, run: &Run<'_>) -> Option<Arrays> {
        Arrays::read(&self.result(run, "influence")?, self.result(run, "rank").as_deref())
    }

    /// What its ranking wrote of the first images and of all.
    pub fn top(&self, run: &Run<'_>) -> Option<Top> {
        Top::read(&run.output(self.ranking?, "json")?)
    }

    /// The folder of training images, or their captions file: that of the ranking, or of the latents.
    pub fn data(&self, run: &Run<'_>, port: &str) -> Option<PathBuf> {
        let latents = || run.upstream(self.influence?, "latents");
        self.input(run, port).or_else(|| run.input(latents()?, port))
    }

    /// The stage that drew or took the query's picture, the picture, and its name.
    pub fn drawing(&self, run: &Run<'a>) -> (Option<&'a StageRecord>, Option<PathBuf>, String) {
        if let Some(ranking) = self.ranking
            && let Some(path) = run.input(ranking, "query")
        {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return (run.upstream(ranking, "query"), Some(path), name);
        }
        let unlearn = self.influence.and_then(|influence| run.upstream(influence, "weights"));
        let drawing = self
            .ranking
            .and_then(|ranking| run.upstream(ranking, "query"))
            .or_else(|| run.upstream(unlearn?, "latents"));
        let name = format!(
            "{}.png",
            unlearn.and_then(|unlearn| text(&unlearn.params, "index")).unwrap_or("0".into())
        );
        let folder = drawing.and_then(|drawing| run.output(drawing, "images"));
        let path = folder.map(|folder| folder.join(&name)).filter(|path| path.is_file());
        (drawing, path, name)
    }

    /// Its caption, by the stage that drew it or the title of its ranking.
    pub fn caption(&self, drawing: Option<&StageRecord>) -> Option<String> {
        let title = || self.ranking.and_then(|ranking| text(&ranking.params, "title"));
        drawing.and_then(|drawing| text(&drawing.params, "caption")).or_else(title)
    }

    /// Why there are no scores.
    pub fn problem(&self) -> String {
        let failed = self.influence.into_iter().chain(self.ranking).find(|record| record.outputs.is_empty());
        let Some(record) = failed else {
            return "Its scores are no longer in the cache, or cannot be read.".into();
        };
        let why = match record.outcome {
            Outcome::Failed => "failed",
            Outcome::Interrupted => "was interrupted",
            Outcome::Blocked => "did not start: a stage before it has no result",
            Outcome::Cached | Outcome::Ran => "has no outputs",
        };
        format!("No ranking: the stage {} {why}.", record.stage)
    }
}
