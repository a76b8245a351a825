//! Where the results come from, and how to check it.

use super::options::ReportError;
use super::redact;
use super::words::seconds;
use crate::results::Run;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::format_bytes as bytes;

/// The record of a run as the page has it.
#[derive(Debug, Clone)]
pub(super) struct Provenance {
    /// Names and values.
    pub facts: Vec<(&'static str, String)>,
    /// What signs it.
    pub signature: String,
    /// Commands and what each does.
    pub commands: Vec<(String, &'static str)>,
    pub sets: Vec<String>,
    pub left_out: Vec<String>,
    pub outputs: Vec<Output>,
    /// The text of the manifest.
    pub json: String,
}

/// The outputs of a stage.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub stage: String,
    pub fingerprint: Option<String>,
    pub adopted: bool,
    /// Port, size and digest of each.
    pub ports: Vec<[String; 3]>,
}

impl Provenance {
    pub fn of(run: &Run<'_>, redacted: bool) -> Result<Self, ReportError> {
        let (manifest, file) = (run.manifest, run.files.manifest());
        let mut json = serde_json::to_string_pretty(manifest)? + "\n";
        // A short manifest, or one of an earlier version, is embedded as a whole one of this version.
        let text = file.as_ref().and_then(|file| std::str::from_utf8(&file.bytes).ok());
        if let Some(text) = text.filter(|text| is_whole(text)) {
            text.clone_into(&mut json);
        }
        if redacted {
            json = serde_json::to_string_pretty(&redact::manifest(serde_json::from_str(&json)?))? + "\n";
        }
        let hashed = file.as_ref().filter(|_| !redacted).map_or(json.as_bytes(), |file| &file.bytes);
        let name = file.as_ref().and_then(|file| file.path.file_name());
        let name = &*name.unwrap_or("manifest.json".as_ref()).to_string_lossy();
        let program = match manifest.attrflow.commit.as_str() {
            "" => manifest.attrflow.version.clone(),
            commit => format!("{}, commit {commit}", manifest.attrflow.version),
        };
        let conditions = &manifest.conditions;
        let facts = vec![
            ("Manifest", name.to_owned()),
            ("Its BLAKE3 digest", blake3::hash(hashed).to_hex().to_string()),
            (
                "Pipeline file",
                manifest
                    .within
                    .as_ref()
                    .unwrap_or(&manifest.file)
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            ),
            ("attrflow", program),
            ("libtorch", manifest.numerics.libtorch.clone()),
            ("Device", manifest.numerics.device.clone()),
            ("Only repeatable algorithms", if manifest.numerics.deterministic { "yes" } else { "no" }.into()),
            ("Workers and threads of each", format!("{} and {}", conditions.jobs, conditions.threads)),
            ("Duration", seconds(manifest.seconds)),
        ];
        let signed = file.as_ref().map(|file| file.signed);
        Ok(Self {
            facts,
            signature: match signed {
                Some(true) => format!(
                    "There is a signature: {name}.minisig lies beside the manifest. This page does not check it."
                ),
                Some(false) => "The manifest is not signed.".into(),
                None => "This page does not know whether the manifest is signed.".into(),
            },
            commands: commands(name, signed == Some(true), redacted),
            sets: manifest.sets.iter().map(|set| redact::text(set)).collect(),
            left_out: manifest.left_out.clone(),
            outputs: outputs(run),
            json,
        })
    }
}

fn is_whole(text: &str) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
    !text.contains("\\u003c") && value.is_some_and(|value| value.get("stages").is_some())
}

fn commands(name: &str, signed: bool, redacted: bool) -> Vec<(String, &'static str)> {
    let extract = "attrflow report --extract report.html > manifest.json".to_owned();
    let mut commands = vec![
        (extract, "writes the manifest that is in this page to a file"),
        (
            "attrflow audit manifest.json".to_owned(),
            "hashes all results and sources again and compares them with the manifest",
        ),
        (
            "attrflow audit manifest.json --replay all".to_owned(),
            "computes each stage again and compares the bytes",
        ),
        (
            "attrflow run --from manifest.json".to_owned(),
            "computes the whole run again, from the same sources; use only manifests that you trust",
        ),
    ];
    if signed && !redacted {
        commands.push((format!("attrflow audit {name} --verify KEY"), "checks the signature first"));
    }
    commands
}

fn outputs(run: &Run<'_>) -> Vec<Output> {
    let done =
        run.manifest.stages.iter().filter(|record| matches!(record.outcome, Outcome::Ran | Outcome::Cached));
    let of = done.map(|record| Output {
        stage: record.stage.clone(),
        fingerprint: record.fingerprint.map(|digest| digest.to_string()),
        adopted: record.adopted.is_some(),
        ports: record
            .outputs
            .iter()
            .map(|(port, output)| [port.clone(), bytes(output.size), output.digest.to_string()])
            .collect(),
    });
    of.collect()
}
