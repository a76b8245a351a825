//! Makes runs without computing any.

use std::path::{Path, PathBuf};

use attrflow_engine::provenance::manifest::Manifest;
use attrflow_engine::provenance::task_times::TaskTime;
use attrflow_engine::store::Artifact;
use image::{Rgb, RgbImage};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::io::image::{save_jpeg, save_png};
use crate::io::npy::writer;
use crate::report::{Options, Page};
use crate::results::{Files, ManifestFile};

/// What a run is made of.
pub(super) struct Plan {
    pub queries: Vec<String>,
    pub images: usize,
    pub captions: Vec<String>,
    /// The side of a picture; with 0 there are none.
    pub pixels: u32,
    pub error_bars: bool,
    pub seed: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            queries: vec!["apple".into(), "joy".into()],
            images: 30,
            captions: vec!["a red apple".into(), "fruit".into()],
            pixels: 24,
            error_bars: true,
            seed: 0,
        }
    }
}

/// A run and its files.
pub(super) struct Made {
    pub folder: TempDir,
    pub manifest: Manifest,
    pub tasks: Vec<TaskTime>,
}

impl Files for Made {
    fn output(&self, stage: &str, port: &str, _: &Artifact) -> Option<PathBuf> {
        Some(self.folder.path().join(stage).join(port))
    }

    fn source(&self, path: &Path) -> Option<PathBuf> {
        path.exists().then(|| path.to_path_buf())
    }

    fn tasks(&self) -> Vec<TaskTime> {
        self.tasks.clone()
    }

    fn manifest(&self) -> Option<ManifestFile> {
        let mut bytes = serde_json::to_vec_pretty(&self.manifest).unwrap();
        bytes.push(b'\n');
        Some(ManifestFile {
            path: "/home/ann/cache/runs/made/20260101T000000Z.json".into(),
            bytes,
            signed: false,
        })
    }
}

impl Made {
    pub fn page(&self, options: &Options) -> String {
        Page::read(&self.manifest, self, options).unwrap().html().to_owned()
    }

    pub fn path(&self, stage: &str, port: &str) -> PathBuf {
        self.folder.path().join(stage).join(port)
    }
}

/// The score of an image on a query: different for all, some below zero.
pub(super) fn score(query: usize, image: usize, seed: u32) -> f32 {
    let place = (image * 7919 + query * 104_729 + seed as usize * 31) % 100_003;
    (place as f32 / 100_003.0 - 0.1).powi(3)
}

fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

pub(super) fn record(
    stage: &str,
    kind: &str,
    params: Json,
    reads: Json,
    outputs: &[(&str, bool)],
    seed: u32,
) -> Json {
    let artifact = |(port, folder): &(&str, bool)| {
        (
            (*port).to_owned(),
            json!({ "digest": digest(&format!("{stage} {port} {seed}")), "size": 1234, "folder": folder }),
        )
    };
    let reads: serde_json::Map<String, Json> = reads
        .as_object()
        .unwrap()
        .iter()
        .map(|(port, from)| {
            let [stage, output, below @ ..] = from.as_array().unwrap().as_slice() else {
                panic!("two names")
            };
            let mut reads = json!({ "stage": stage, "port": output });
            if let [below] = below {
                reads["below"] = below.clone();
            }
            (port.clone(), reads)
        })
        .collect();
    let inputs: serde_json::Map<String, Json> =
        reads.keys().map(|port| (port.clone(), digest(port).into())).collect();
    json!({
        "stage": stage, "outcome": "ran", "fingerprint": digest(stage),
        "recipe": { "kind": kind, "version": 1, "params": params, "inputs": inputs, "numerics": null, "unit": null },
        "params": params, "reads": reads, "sources": {},
        "outputs": outputs.iter().map(artifact).collect::<serde_json::Map<String, Json>>(),
        "units_run": 3, "units_cached": 1, "seconds": 12.5, "error": null,
    })
}

pub(super) fn manifest(stages: Vec<Json>) -> Manifest {
    let whole = json!({
        "format": 7, "attrflow": { "version": "0.1.0", "commit": "abc" }, "pipeline": "made",
        "file": "pipelines/made.toml", "root": "/home/ann/project", "within": "pipelines/made.toml",
        "sets": ["loss.time_samples=4"], "started": "2026-01-02T03:04:05.678901Z", "seconds": 61.0,
        "numerics": { "libtorch": "2.11.0", "device": "cpu", "deterministic": true },
        "conditions": { "jobs": 2, "threads": 1, "devices": ["cpu"], "micro_batch": 128 },
        "stages": stages,
    });
    serde_json::from_value(whole).unwrap()
}

fn picture(number: usize, pixels: u32) -> RgbImage {
    RgbImage::from_fn(pixels, pixels, |x, y| {
        let (x, y, number) = (f64::from(x) / 9.0, f64::from(y) / 7.0, number as f64);
        let wave =
            |phase: f64| (127.0 + 90.0 * (x + phase + number).sin() * (y - phase * number).cos()) as u8;
        Rgb([wave(0.3).wrapping_add((x * y * 37.0) as u8 % 23), wave(1.1), wave(2.7)])
    })
}

/// Makes the run.
pub(super) fn made(plan: &Plan) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let path = |stage: &str, port: &str| {
        fs_err::create_dir_all(folder.path().join(stage)).unwrap();
        folder.path().join(stage).join(port)
    };
    let data = path("data", "files");
    fs_err::create_dir_all(data.join("images")).unwrap();
    for number in (0..plan.images).filter(|_| plan.pixels > 0) {
        save_jpeg(&picture(number, plan.pixels), data.join(format!("images/{number}.png"))).unwrap();
    }
    let seed = plan.seed;
    let mut stages = vec![
        record("data", "download", json!({}), json!({}), &[("files", true)], 0),
        record(
            "latents",
            "latents",
            json!({}),
            json!({ "images": ["data", "files", "images"], "captions": ["data", "files", "captions.json"] }),
            &[("latents", false)],
            0,
        ),
        record(
            "pretrain_loss",
            "pretrain-loss",
            json!({}),
            json!({ "latents": ["latents", "latents"] }),
            &[("losses", false)],
            0,
        ),
    ];
    writer::write_f32(path("pretrain_loss", "losses"), &[2 * plan.images], &vec![0.5_f32; 2 * plan.images])
        .unwrap();
    for (number, name) in plan.queries.iter().enumerate() {
        let of = |kind: &str| format!("{kind}[{name}]");
        let scores: Vec<f32> = (0..plan.images).map(|image| score(number, image, seed)).collect();
        let mut ranks: Vec<i64> = (0..plan.images as i64).collect();
        ranks.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
        let per_timestep: Vec<f32> = (0..2 * plan.images)
            .flat_map(|row| [0.5, 1.0, 1.5].map(|part| part * scores[row % plan.images]))
            .collect();
        writer::write_f32(path(&of("influence"), "influence"), &[plan.images], &scores).unwrap();
        writer::write_i64(path(&of("influence"), "rank"), &[plan.images], &ranks).unwrap();
        writer::write_f32(path(&of("influence"), "per_timestep"), &[2 * plan.images, 3], &per_timestep)
            .unwrap();
        let images = path(&of("generate"), "images");
        fs_err::create_dir_all(&images).unwrap();
        if plan.pixels > 0 {
            save_png(&picture(1000 + number, plan.pixels), images.join("0.png")).unwrap();
        }
        let row = |(place, image): (usize, &i64)| {
            let value = scores[*image as usize];
            let mut row = json!({
                "rank": place + 1, "index": image, "file_name": format!("{image}.png"), "influence": value, "captions": plan.captions,
            });
            if plan.error_bars {
                let bar = json!({
                    "standard_error": 0.01, "low": value - 0.02, "high": value + 0.02, "p_top": 0.5,
                    "rank_low": place.max(1), "rank_high": place + 3, "tied": place % 3 == 0,
                });
                row.as_object_mut().unwrap().extend(bar.as_object().unwrap().clone());
            }
            row
        };
        let mut summary = json!({ "images": plan.images, "query_rise": 0.15, "query_rise_predicted": 0.11, "median": 0.0, "standard_deviation": 0.1, "warnings": [] });
        match plan.error_bars {
            true => {
                summary["error_bars"] = json!({ "method": "successive differences", "timesteps": 3, "draws": 1, "level": 0.95, "top": 10, "half_width": 2.0 })
            }
            false => summary["no_error_bars"] = json!("no error bars: one point"),
        }
        let rows: Vec<Json> = ranks.iter().enumerate().take(100).map(row).collect();
        let top = json!({ "summary": summary, "rows": rows });
        fs_err::write(path(&of("ranking"), "json"), serde_json::to_vec(&top).unwrap()).unwrap();
        stages.extend([
            record(&of("generate"), "generate", json!({ "caption": plan.captions.first(), "seed": number }), json!({}), &[("images", true)], seed),
            record(&of("unlearn"), "unlearn", json!({ "index": 0 }), json!({ "latents": [of("generate"), "latents"] }), &[("weights", false)], seed),
            record(
                &of("influence"),
                "influence",
                json!({ "other_images": false }),
                json!({ "latents": ["latents", "latents"], "weights": [of("unlearn"), "weights"], "pretrain_loss": ["pretrain_loss", "losses"] }),
                &[("influence", false), ("rank", false), ("per_timestep", false)],
                seed,
            ),
            record(
                &of("ranking"),
                "ranking",
                json!({ "images_shown": 10, "title": "" }),
                json!({
                    "influence": [of("influence"), "influence"], "rank": [of("influence"), "rank"],
                    "images": ["data", "files", "images"], "query": [of("generate"), "images", "0.png"],
                }),
                &[("json", false), ("table", false)],
                seed,
            ),
        ]);
    }
    Made { folder, manifest: manifest(stages), tasks: Vec::new() }
}
