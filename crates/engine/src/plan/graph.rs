//! The stages of a pipeline as a directed acyclic graph.

use std::collections::{BTreeSet, VecDeque};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{Dfs, Reversed};

use crate::config::text::{Problems, suggestion};
use crate::pipeline::{Pipeline, Source};

/// The stages to run, in topological order.
pub struct Graph {
    graph: DiGraph<usize, ()>,
    order: Vec<usize>,
    /// Whether a stage is selected, by its index.
    selected: Vec<bool>,
}

impl Graph {
    /// Builds the graph of a pipeline.
    ///
    /// # Errors
    /// Each cycle, with the stages on it.
    pub fn new(pipeline: &Pipeline) -> Result<Self, Problems> {
        let mut graph = DiGraph::new();
        let nodes: Vec<NodeIndex> = (0..pipeline.stages.len()).map(|index| graph.add_node(index)).collect();
        for (index, stage) in pipeline.stages.iter().enumerate() {
            let upstream = stage.inputs.values().filter_map(|source| match source {
                Source::Port { stage, .. } => Some(*stage),
                Source::File(_) => None,
            });
            for upstream in upstream.collect::<BTreeSet<_>>() {
                graph.add_edge(nodes[upstream], nodes[index], ());
            }
        }
        let order = topological(&graph);
        if order.len() < nodes.len() {
            let mut problems = Problems::default();
            // Iterative: a chain may be as long as the pipeline. A stage without a cycle is a component of its own.
            for component in kosaraju_scc(&graph) {
                if let Some(cycle) = cycle(&graph, &component) {
                    report(&cycle, pipeline, &mut problems);
                }
            }
            return Err(problems);
        }
        let selected = vec![true; pipeline.stages.len()];
        Ok(Self { graph, order, selected })
    }

    /// The stages, each after those it reads; ties are in file order.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// All stages, selected or not, each after those it reads.
    pub fn all(&self) -> Vec<usize> {
        topological(&self.graph)
    }

    /// The selected stages that read an output of `stage`.
    pub fn dependents(&self, stage: usize) -> impl Iterator<Item = usize> + '_ {
        let readers = self.graph.neighbors(NodeIndex::new(stage)).map(|node| self.graph[node]);
        readers.filter(|reader| self.selected[*reader])
    }

    /// Keeps the named stages and all that they need; all stages if no name is given.
    ///
    /// The name of a repeated stage selects all its items.
    ///
    /// # Errors
    /// An unknown stage, with the nearest name.
    pub fn select(&mut self, targets: &[String], pipeline: &Pipeline) -> Result<(), String> {
        if targets.is_empty() {
            return Ok(());
        }
        self.selected = vec![false; pipeline.stages.len()];
        let reversed = Reversed(&self.graph);
        let mut search = Dfs::empty(reversed);
        // One search over all of them visits each stage once.
        search.stack = named(targets, pipeline)?.into_iter().map(NodeIndex::new).collect();
        while let Some(node) = search.next(reversed) {
            self.selected[self.graph[node]] = true;
        }
        self.order.retain(|stage| self.selected[*stage]);
        Ok(())
    }
}

/// The stages of these names: a full name, or a repeated stage's name for all its items.
///
/// # Errors
/// An unknown stage, with the nearest name.
pub fn named(names: &[String], pipeline: &Pipeline) -> Result<Vec<usize>, String> {
    let mut found = Vec::new();
    for name in names {
        let before = found.len();
        let stages = pipeline.stages.iter().enumerate();
        found.extend(stages.filter(|(_, s)| s.id == *name || s.base == *name).map(|(index, _)| index));
        if found.len() == before {
            if let Some(off) = pipeline.off.iter().find(|off| off.id == *name || off.base == *name) {
                return Err(format!("the stage `{name}` is disabled at {}", off.place));
            }
            let known = pipeline.stages.iter().flat_map(|stage| [stage.id.as_str(), stage.base.as_str()]);
            let hint = suggestion(name, known).map(|hint| format!(": {hint}")).unwrap_or_default();
            return Err(format!("the pipeline `{}` has no stage `{name}`{hint}", pipeline.name));
        }
    }
    Ok(found)
}

/// A shortest cycle through the first stage of a component, each stage before one that it reads.
fn cycle(graph: &DiGraph<usize, ()>, component: &[NodeIndex]) -> Option<Vec<usize>> {
    let first = *component.iter().min()?;
    let upstream = |node| graph.neighbors_directed(node, petgraph::Direction::Incoming);
    let mut paths = VecDeque::from([vec![first]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop_front() {
        let last = path[path.len() - 1];
        for node in upstream(last).filter(|node| component.contains(node)) {
            if node == first {
                return Some(path.iter().map(|node| graph[*node]).collect());
            }
            if seen.insert(node) {
                paths.push_back([path.as_slice(), &[node]].concat());
            }
        }
    }
    None
}

/// Reports a cycle at the first stage's reference to the next one.
fn report(cycle: &[usize], pipeline: &Pipeline, problems: &mut Problems) {
    let first = &pipeline.stages[cycle[0]];
    let next = cycle.get(1).unwrap_or(&cycle[0]);
    let references = first.inputs.values().filter_map(|source| match source {
        Source::Port { stage, origin, .. } if stage == next => Some(origin),
        _ => None,
    });
    let origin = references.into_iter().next().unwrap_or(&first.origin);
    let names = cycle[1..].iter().chain([&cycle[0]]).map(|stage| format!("`{}`", pipeline.stages[*stage].id));
    let message = match cycle {
        [_] => format!("the stage `{}` reads its own output", first.id),
        _ => format!("a cycle: `{}` reads {}", first.id, names.collect::<Vec<_>>().join(", which reads ")),
    };
    problems.at(origin, message);
}

/// Kahn's algorithm, always with the first ready stage of the file, so that listings are stable; without the stages on
/// a cycle and those after them.
fn topological(graph: &DiGraph<usize, ()>) -> Vec<usize> {
    let mut waits: Vec<usize> = graph
        .node_indices()
        .map(|node| graph.neighbors_directed(node, petgraph::Direction::Incoming).count())
        .collect();
    let mut ready: BTreeSet<usize> = (0..waits.len()).filter(|index| waits[*index] == 0).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some(index) = ready.pop_first() {
        order.push(index);
        for reader in graph.neighbors(NodeIndex::new(index)) {
            waits[reader.index()] -= 1;
            if waits[reader.index()] == 0 {
                ready.insert(reader.index());
            }
        }
    }
    order
}
