//! A run as a Workflow Run RO-Crate: a folder with the manifest, the results and a description of their origin.
//!
//! Form: RO-Crate 1.1 with the profiles Process Run Crate 0.5, Workflow Run Crate 0.5 and Workflow RO-Crate 1.0. The
//! manifest itself is the workflow: `attrflow run --from` executes it.

use std::collections::BTreeSet;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value as Json, json};

use super::outputs::{Output, sources};
use super::statement::finished;
use crate::identity::shared_fs;
use crate::provenance::manifest::{Manifest, Outcome, StageRecord};

/// The file of the description.
const METADATA: &str = "ro-crate-metadata.json";
/// The file of the manifest, which is the workflow.
const WORKFLOW: &str = "manifest.json";
/// The folder of results.
const RESULTS: &str = "results";
/// Characters that must be escaped in an identifier.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'/').remove(b'~');

const PROFILES: [(&str, &str, &str); 3] = [
    ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
];

/// The content of a crate.
pub struct Crate<'a> {
    /// The record of the run.
    pub manifest: &'a Manifest,
    /// The manifest's bytes.
    pub bytes: &'a [u8],
    /// The outputs of the run.
    pub outputs: &'a [Output],
    /// The licence of the results: an address, or a text.
    pub license: &'a str,
}

/// Writes the crate as a new folder, completely or not at all.
///
/// # Errors
/// An existing folder, and read or write errors.
pub fn write_crate(content: &Crate<'_>, folder: &Path) -> std::io::Result<()> {
    use std::io::{Error, ErrorKind};
    if folder.symlink_metadata().is_ok() {
        let message = format!("{} already exists: a crate needs a new folder", folder.display());
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    let around = folder.parent().filter(|around| !around.as_os_str().is_empty()).unwrap_or(Path::new("."));
    shared_fs::create_dir_all(around)?;
    let temporary = tempfile::Builder::new().prefix(".crate-").tempdir_in(around)?;
    shared_fs::write(temporary.path().join(WORKFLOW), content.bytes)?;
    for output in content.outputs.iter().filter(|output| output.last) {
        let Some(bytes) = &output.bytes else { continue };
        let place = temporary.path().join(RESULTS).join(&output.name);
        shared_fs::create_dir_all(place.parent().unwrap_or(temporary.path()))?;
        // A copy-on-write clone if the file system supports it.
        reflink_copy::reflink_or_copy(&bytes.path, &place)?;
        let mut writable = shared_fs::metadata(&place)?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut writable, 0o644);
        fs_err::set_permissions(&place, writable)?;
    }
    shared_fs::write(temporary.path().join(README), content.readme())?;
    let mut text = serde_json::to_vec_pretty(&content.metadata())?;
    text.push(b'\n');
    shared_fs::write(temporary.path().join(METADATA), text)?;
    fs_err::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    // After the rename, nothing is left to clean up.
    shared_fs::rename(temporary.path(), folder)?;
    let _ = temporary.keep();
    Ok(())
}

/// The introduction for readers of the folder.
const README: &str = "README.md";

/// A single value alone, as RO-Crate requires, else an array.
fn many(values: impl IntoIterator<Item = Json>) -> Json {
    let mut values: Vec<Json> = values.into_iter().collect();
    if values.len() == 1 { values.remove(0) } else { Json::Array(values) }
}

/// The media type of a file, by its name.
fn media(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("csv") => "text/csv",
        Some("txt") => "text/plain",
        Some("md") => "text/markdown",
        Some("json") => "application/json",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("zip") => "application/zip",
        _ => "application/octet-stream",
    }
}

/// A time in whole seconds, as the profiles require.
fn whole(time: &str) -> String {
    let parsed = time.parse::<jiff::Timestamp>();
    parsed.map_or_else(|_| time.to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string())
}

/// A source by its path on the machine of the run.
fn source(path: &str) -> String {
    format!("file://{}", utf8_percent_encode(path, ESCAPED))
}

/// A reference to another entity.
fn to(id: impl Into<String>) -> Json {
    json!({ "@id": id.into() })
}

/// A stage kind; its identifier is the same in every crate.
fn tool(kind: &str) -> String {
    format!("urn:attrflow:kind:{}", utf8_percent_encode(kind, ESCAPED))
}

fn local(kind: &str, name: &str) -> String {
    format!("#{kind}/{}", utf8_percent_encode(name, ESCAPED))
}

impl Crate<'_> {
    fn metadata(&self) -> Json {
        let mut graph = vec![self.descriptor(), self.root(), self.workflow(), self.engine(), self.licence()];
        graph.push(json!({
            "@id": README, "@type": "File", "name": README, "about": to("./"), "encodingFormat": media(README),
        }));
        let (started, ended) = (whole(&self.manifest.started), whole(&finished(self.manifest)));
        graph.push(self.run(&started, &ended));
        graph.extend(PROFILES.map(|(id, name, version)| {
            json!({ "@id": id, "@type": "CreativeWork", "name": name, "version": version })
        }));
        graph.extend(self.formal());
        graph.extend(sources(self.manifest).into_iter().map(|(path, digest)| {
            json!({
                "@id": source(&path), "@type": if Path::new(&path).is_dir() { "Dataset" } else { "File" },
                "name": path, "encodingFormat": media(&path),
                "identifier": format!("blake3:{digest}"),
                "exampleOfWork": to(local("input", &path)),
            })
        }));
        graph.extend(self.outputs.iter().map(|output| self.output(output)));
        let kinds: BTreeSet<(&str, u32)> = self.kinds();
        graph.extend(kinds.into_iter().map(|(kind, version)| {
            json!({
                "@id": tool(kind), "@type": "SoftwareApplication", "name": kind,
                "softwareVersion": version.to_string(),
            })
        }));
        for record in self.manifest.stages.iter().filter(|record| record.recipe.is_some()) {
            graph.extend(self.stage(record, &started, &ended));
        }
        json!({
            "@context": [
                "https://w3id.org/ro/crate/1.1/context",
                "https://w3id.org/ro/terms/workflow-run/context",
            ],
            "@graph": graph,
        })
    }

    fn readme(&self) -> String {
        let Manifest { pipeline, started, .. } = self.manifest;
        format!(
            "# {pipeline}, run of {started}\n\n\
             `{RESULTS}/` contains the outputs of the run, `{WORKFLOW}` its record: the parameters and the digests of all inputs and outputs.\n\
             `{METADATA}` is the same record as an RO-Crate.\n\n\
             `attrflow run --from {WORKFLOW}` repeats the run and reports whether the bytes are the same.\n"
        )
    }

    fn descriptor(&self) -> Json {
        json!({
            "@id": METADATA, "@type": "CreativeWork", "about": to("./"),
            "conformsTo": [to("https://w3id.org/ro/crate/1.1"), to(PROFILES[2].0)],
        })
    }

    fn root(&self) -> Json {
        let Manifest { pipeline, started, .. } = self.manifest;
        let files = self.outputs.iter().filter(|output| output.last && output.bytes.is_some());
        let parts = [WORKFLOW, README].into_iter().map(to).chain(files.map(|output| to(self.id(output))));
        let stages = self.manifest.stages.iter().filter(|record| record.recipe.is_some());
        let mentions =
            std::iter::once(to("#run")).chain(stages.map(|record| to(local("stage", &record.stage))));
        json!({
            "@id": "./", "@type": "Dataset",
            "name": format!("{pipeline}, run of {started}"),
            "description": format!("The outputs of the pipeline {pipeline} in the run that began at {started}, and their record."),
            "datePublished": started,
            "license": to(self.license_id()),
            "conformsTo": PROFILES.map(|(id, ..)| to(id)),
            "mainEntity": to(WORKFLOW),
            "hasPart": many(parts.chain(sources(self.manifest).keys().map(|path| to(source(path))))),
            "mentions": many(mentions),
        })
    }

    fn workflow(&self) -> Json {
        let kinds = self.kinds();
        json!({
            "@id": WORKFLOW, "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
            "name": format!("manifest of {}", self.manifest.pipeline),
            "description": "The record of a run, which `attrflow run --from` executes again.",
            "encodingFormat": media(WORKFLOW),
            "version": self.manifest.format.to_string(),
            "conformsTo": to("https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"),
            "programmingLanguage": to("#attrflow"),
            "input": many(sources(self.manifest).keys().map(|path| to(local("input", path)))),
            "output": many(self.ends().into_iter().map(|name| to(local("output", &name)))),
            "hasPart": many(kinds.iter().map(|(kind, _)| to(tool(kind)))),
        })
    }

    fn engine(&self) -> Json {
        let program = &self.manifest.attrflow;
        json!({
            "@id": "#attrflow", "@type": ["ComputerLanguage", "SoftwareApplication"], "name": "attrflow",
            "alternateName": "attrflow manifest",
            "softwareVersion": format!("{} {}", program.version, program.commit).trim(),
        })
    }

    fn license_id(&self) -> &str {
        if self.license.contains("://") { self.license } else { "#license" }
    }

    fn licence(&self) -> Json {
        json!({ "@id": self.license_id(), "@type": "CreativeWork", "name": self.license, "description": self.license })
    }

    /// The run as a whole.
    fn run(&self, started: &str, ended: &str) -> Json {
        let done = self
            .manifest
            .stages
            .iter()
            .all(|record| matches!(record.outcome, Outcome::Ran | Outcome::Cached));
        let status = if done { "CompletedActionStatus" } else { "FailedActionStatus" };
        let results = self.outputs.iter().filter(|output| output.last);
        json!({
            "@id": "#run", "@type": "CreateAction",
            "name": format!("run of {}", self.manifest.pipeline),
            "description": "The whole run, from the sources to the final results.",
            "instrument": to(WORKFLOW),
            "startTime": started, "endTime": ended,
            "actionStatus": format!("http://schema.org/{status}"),
            "object": many(sources(self.manifest).keys().map(|path| to(source(path)))),
            "result": many(results.map(|output| to(self.id(output)))),
        })
    }

    /// One stage and its parameters. Its times within the run are not recorded.
    fn stage(&self, record: &StageRecord, started: &str, ended: &str) -> Vec<Json> {
        let mut entities = Vec::new();
        let mut objects: Vec<Json> =
            record.sources.values().map(|path| to(source(&path.display().to_string()))).collect();
        for reads in record.reads.values() {
            let given =
                self.outputs.iter().filter(|output| output.stage == reads.stage && output.port == reads.port);
            objects.extend(given.map(|output| to(self.id(output))));
        }
        if let Json::Object(params) = &record.params {
            for (name, value) in params {
                let id = local("param", &format!("{}.{name}", record.stage));
                entities.push(json!({
                    "@id": id, "@type": "PropertyValue", "name": name, "value": value.to_string(),
                }));
                objects.push(to(id));
            }
        }
        let (status, error) = match record.outcome {
            Outcome::Ran | Outcome::Cached => ("CompletedActionStatus", None),
            _ => ("FailedActionStatus", record.error.clone()),
        };
        let results = self.outputs.iter().filter(|output| output.stage == record.stage);
        let kind = record.recipe.as_ref().map(|recipe| recipe.kind.as_str()).unwrap_or_default();
        let mut action = json!({
            "@id": local("stage", &record.stage), "@type": "CreateAction", "name": record.stage,
            "description": format!("The stage {} of the kind {kind}; its times are those of the run.", record.stage),
            "instrument": to(tool(kind)),
            "startTime": started, "endTime": ended,
            "actionStatus": format!("http://schema.org/{status}"),
            "object": many(objects),
            "result": many(results.map(|output| to(self.id(output)))),
        });
        if let Some(error) = error {
            action["error"] = error.into();
        }
        entities.push(action);
        entities
    }

    /// A file of the crate, or the metadata of one that is not included.
    fn output(&self, output: &Output) -> Json {
        let mut entity = json!({
            "@id": self.id(output),
            "@type": if self.holds(output) { "File" } else { "CreativeWork" },
            "name": output.name, "encodingFormat": media(&output.name),
            "identifier": format!("blake3:{}", output.digest),
        });
        if let Some(bytes) = &output.bytes {
            entity["sha256"] = bytes.sha256.clone().into();
            entity["contentSize"] = bytes.size.to_string().into();
        }
        if output.last {
            entity["exampleOfWork"] = to(local("output", &port(output)));
        }
        entity
    }

    /// The inputs and outputs of the run, as parameters of the workflow.
    fn formal(&self) -> Vec<Json> {
        let parameter = |id: String, name: &str, examples: Vec<Json>| {
            json!({
                "@id": id, "@type": "FormalParameter", "additionalType": "File", "name": name,
                "workExample": many(examples),
                "conformsTo": to("https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"),
            })
        };
        let sources = sources(self.manifest);
        let inputs = sources.keys().map(|path| parameter(local("input", path), path, vec![to(source(path))]));
        let mut parameters: Vec<Json> = inputs.collect();
        parameters.extend(self.ends().iter().map(|name| {
            let given = self.outputs.iter().filter(|output| output.last && port(output) == *name);
            parameter(local("output", name), name, given.map(|output| to(self.id(output))).collect())
        }));
        parameters
    }

    /// `stage.port` of the final results.
    fn ends(&self) -> BTreeSet<String> {
        self.outputs.iter().filter(|output| output.last).map(port).collect()
    }

    fn holds(&self, output: &Output) -> bool {
        output.last && output.bytes.is_some()
    }

    fn id(&self, output: &Output) -> String {
        match self.holds(output) {
            true => format!("{RESULTS}/{}", utf8_percent_encode(&output.name, ESCAPED)),
            false => local("result", &output.name),
        }
    }

    fn kinds(&self) -> BTreeSet<(&str, u32)> {
        let recipes = self.manifest.stages.iter().filter_map(|record| record.recipe.as_ref());
        recipes.map(|recipe| (recipe.kind.as_str(), recipe.version)).collect()
    }
}

fn port(output: &Output) -> String {
    format!("{}.{}", output.stage, output.port)
}
