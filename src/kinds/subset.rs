//! Sets of images: to leave out of a training, or to keep.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use serde_json::{Value as Json, json};

use super::shared::check_outputs::Outputs;
use super::shared::ids;
use crate::io::npy::writer;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task,
};
use attrflow_engine::{choice, params};

choice! {
    /// How images are chosen.
    pub enum Choose {
        /// At random.
        Random = "random",
        /// The most influential ones.
        Top = "top",
        /// Those with given ids.
        Ids = "ids",
        /// Those at given places.
        Indices = "indices",
    }
}

params! {
    /// Parameters of `subset`.
    pub struct Subset {
        /// How images are chosen: `random`, the `top` of a ranking, by their `ids`, or by places on the input `indices`.
        choose: Choose = Choose::Random,
        /// How many images.
        count: Option<usize> = None,
        /// How many images, as a share of all.
        share: Option<f64> = None,
        /// Of `random`: another seed is another set. Sets of one seed contain each other.
        seed: u32 = 0,
        /// Of `ids`: the images' ids in the captions file.
        ids: Vec<String> = Vec::new(),
    }
}

impl Validate for Subset {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let mut fault = |key, message: &str| faults.push((key, message.to_owned()));
        let sizes = usize::from(self.count.is_some()) + usize::from(self.share.is_some());
        match self.choose {
            Choose::Ids | Choose::Indices if sizes > 0 => {
                fault("choose", "`choose` says which images: `count` and `share` have no effect")
            }
            Choose::Ids if self.ids.is_empty() => fault("ids", "`ids` is empty, expected the ids of images"),
            Choose::Random | Choose::Top if sizes != 1 => {
                fault("choose", "expected either `count` or `share`, how many images to choose");
            }
            Choose::Random | Choose::Top | Choose::Indices if !self.ids.is_empty() => {
                fault("ids", "`ids` has an effect with `choose = \"ids\"` alone");
            }
            _ => {}
        }
        if self.count == Some(0) {
            fault("count", "`count` is 0, expected 1 or more");
        }
        if self.share.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
            fault("share", "`share` is not a number between 0 and 1");
        }
        faults
    }
}

const CHOSEN: &str = "ids.json";
const REST: &str = "rest.json";
const INDICES: &str = "indices.npy";

impl Kind for Subset {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new("captions", "the captions file in COCO's layout: the images' ids"),
            Input::new("rank", "int64 [N]: image indices by falling influence, for `choose = \"top\"`")
                .optional(),
            Input::new("indices", "int64: places of images from 0, for `choose = \"indices\"`, such as `universe.places/ID.npy`")
                .optional(),
        ],
        outputs: &[
            Output::new("ids", CHOSEN, "the ids of the chosen images, in the order of the captions file"),
            Output::new("rest", REST, "the ids of all others"),
            Output::new(
                "indices",
                INDICES,
                "int64: the places of the chosen images in the captions file, from 0",
            ),
        ],
        libtorch: false,
        ..KindInfo::new::<Self>("subset", 2, "a set of images, to be left out of a training or kept")
    };
}

impl Stage for Subset {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let needs = [("rank", Choose::Top), ("indices", Choose::Indices)];
        let fault = |(port, choice): (&str, Choose)| {
            let message = match (self.choose == choice, connected(port)) {
                (true, false) => format!("`choose = \"{}\"` needs the input `{port}`", choice.name()),
                (false, true) => {
                    format!("`{port}` has an effect with `choose = \"{}\"` alone", choice.name())
                }
                _ => return None,
            };
            Some((port.to_owned(), message))
        };
        needs.into_iter().filter_map(fault).collect()
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        self.chosen(inputs).map(drop)
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let all = ids::of_captions(inputs.path("captions")?)?;
        let chosen = self.number(all.len()).unwrap_or(self.ids.len());
        let share = chosen as f64 / all.len() as f64;
        let ids = all.iter().map(|id| id.len() as f64 + 1.0).sum::<f64>();
        let list = |share: f64| ArtifactShape::Bytes((ids * share) as u64);
        let indices = ArtifactShape::Array { shape: vec![chosen], bytes: 8 };
        let outputs = [("ids", list(share)), ("rest", list(1.0 - share)), ("indices", indices)];
        let outputs = outputs.map(|(port, shape)| (port.to_owned(), shape)).into();
        Ok(Estimate { outputs, ..Estimate::default() })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        let all = ids::of_captions(inputs.path("captions"))?;
        for file in [&outputs["ids"], &outputs["rest"]] {
            ids::check(&all, &ids::read(file)?, Some(file))?;
        }
        ids::indices(&outputs["indices"], all.len())?;
        Ok("that the ids and indices are those of images")
    }
}

impl Subset {
    /// How many images are chosen, where a number or a share is given.
    fn number(&self, images: usize) -> Option<usize> {
        self.count.or(self.share.map(|share| (share * images as f64).round() as usize))
    }

    /// Whether each image is chosen, with its id.
    fn chosen(&self, inputs: &Inputs) -> anyhow::Result<Vec<(String, bool)>> {
        let all = ids::of_captions(inputs.path("captions"))?;
        let images = all.len();
        let count = self.number(images).unwrap_or(0);
        ensure!(
            count <= images,
            "`count` is {count}, expected at most {images}, the images of the captions file"
        );
        let chosen: BTreeSet<usize> = match self.choose {
            Choose::Top => {
                let ranks = ids::ranking(inputs.path("rank"))?;
                ensure!(
                    ranks.len() == images,
                    "{}: {} images, expected {images}, those of the captions file",
                    inputs.path("rank").display(),
                    ranks.len()
                );
                ranks.into_iter().take(count).map(|index| index as usize).collect()
            }
            Choose::Random => {
                let mut order: Vec<(blake3::Hash, usize)> =
                    all.iter().enumerate().map(|(place, id)| (key(self.seed, id), place)).collect();
                order.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
                order.into_iter().take(count).map(|(_, place)| place).collect()
            }
            Choose::Ids => self.places(&all)?,
            Choose::Indices => {
                let places = ids::indices(inputs.path("indices"), images)?;
                places.into_iter().map(|place| place as usize).collect()
            }
        };
        ensure!(
            !chosen.is_empty(),
            "no image is chosen of {images}, expected at least one: `share` may be too small"
        );
        Ok(all.iter().enumerate().map(|(place, id)| (id.clone(), chosen.contains(&place))).collect())
    }

    /// The places of the given ids.
    fn places(&self, all: &[String]) -> anyhow::Result<BTreeSet<usize>> {
        let places: BTreeMap<&str, usize> =
            all.iter().enumerate().map(|(place, id)| (id.as_str(), place)).collect();
        let place = |id: &String| {
            let text = Json::from(id.as_str()).to_string();
            let found = places.get(id.as_str()).or_else(|| places.get(text.as_str()));
            found.copied().ok_or_else(|| {
                anyhow::anyhow!(
                    "`ids` names `{id}`, which no image of the captions file has, for instance {}",
                    all[0]
                )
            })
        };
        self.ids.iter().map(place).collect()
    }
}

/// A number that decides the place of an image in a random order.
fn key(seed: u32, id: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("attrflow 2026-11-30 random subsets v1");
    hasher.update(&seed.to_le_bytes()).update(id.as_bytes());
    hasher.finalize()
}

impl Compute for Subset {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let chosen = self.chosen(&task.inputs)?;
        for (file, wanted) in [(CHOSEN, true), (REST, false)] {
            let ids = chosen.iter().filter(|(_, chosen)| *chosen == wanted);
            let ids = ids.map(|(id, _)| Ok(serde_json::from_str::<Json>(id)?));
            let ids = ids.collect::<anyhow::Result<Vec<Json>>>()?;
            let mut text = serde_json::to_vec(&json!({ "images": chosen.len(), "ids": ids }))?;
            text.push(b'\n');
            fs_err::write(task.out.join(file), text)?;
        }
        let places = chosen.iter().enumerate().filter(|(_, (_, chosen))| *chosen);
        let places: Vec<i64> = places.map(|(place, _)| place as i64).collect();
        Ok(writer::write_i64(task.out.join(INDICES), &[places.len()], &places)?)
    }
}
