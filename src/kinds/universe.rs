//! A data set with more images: copies of its own, whose influence must be theirs, or others that a model is tuned on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde_json::{Value as Json, json};

use super::shared::check_outputs::Outputs;
use crate::io::captions::coco::Captions;
use crate::io::npy::writer;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task,
};
use attrflow_engine::params;

params! {
    /// An image that is in the data set several times.
    pub struct Planted {
        /// Its id in the captions file.
        id: String,
        /// How often it is there, with itself.
        copies: usize [2..=10_000],
    }
}

impl Validate for Planted {}

params! {
    /// Parameters of `universe`.
    pub struct Universe {
        /// The images that are there several times. A copy is an image of its own: its id is new, and so is its noise.
        planted: Vec<Planted> = Vec::new(),
    }
}

impl Validate for Universe {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let ids: BTreeSet<&str> = self.planted.iter().map(|planted| planted.id.as_str()).collect();
        if ids.len() == self.planted.len() {
            return Vec::new();
        }
        vec![("planted", "an image is planted twice: say once how many copies there are".to_owned())]
    }
}

const CAPTIONS: &str = "captions.json";
const IMAGES: &str = "images";
const PLACES: &str = "places";
const MORE: [&str; 2] = ["more_captions", "more_images"];

impl Kind for Universe {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new("captions", "the captions file in COCO's layout"),
            Input::new("images", "the folder of its images"),
            Input::new(MORE[0], "a captions file of images to add after all others").optional(),
            Input::new(MORE[1], "the folder of these images").optional(),
        ],
        outputs: &[
            Output::new(
                "captions",
                CAPTIONS,
                "the images in their order, then copies, then added ones; new images have new ids",
            ),
            Output::new("images", IMAGES, "the folder of all images"),
            Output::new(
                "places",
                PLACES,
                "a folder with ID.npy for each planted image, int64 [copies], and NAME.npy for each added one, by its file's name: \
                 their places",
            ),
        ],
        libtorch: false,
        ..KindInfo::new::<Self>("universe", 1, "a data set with copies of its images, or with others added")
    };
}

impl Stage for Universe {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let [one, other] = MORE.map(connected);
        let fault = |port: &str, message: &str| vec![(port.to_owned(), message.to_owned())];
        match (one, other) {
            (true, false) | (false, true) => {
                fault(MORE[0], "connect both `more_captions` and `more_images`, or none")
            }
            (false, false) if self.planted.is_empty() => fault(
                "planted",
                "nothing to add: expected `planted`, or the inputs `more_captions` and `more_images`",
            ),
            _ => Vec::new(),
        }
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        self.images(inputs).map(drop)
    }

    fn estimate(&self, _: &ExpectedInputs) -> anyhow::Result<Estimate> {
        // The images are files that nothing has counted.
        let outputs = [("captions".to_owned(), ArtifactShape::Bytes(1_000_000))];
        Ok(Estimate { outputs: outputs.into(), ..Estimate::default() })
    }

    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        Captions::read_all(&outputs["captions"])?;
        Ok("that the captions file can be read")
    }
}

/// An image of the larger data set.
struct Image {
    id: Json,
    /// Its file below the new folder, and where it is now.
    file_name: String,
    source: PathBuf,
    captions: Vec<String>,
    /// The name of the group whose places are written.
    group: Option<String>,
}

/// The ids of new images: they go on where integers end, or are texts.
struct NewIds {
    next: Option<i64>,
    count: usize,
}

impl NewIds {
    fn after(ids: &[String]) -> Self {
        let numbers: Option<Vec<i64>> = ids.iter().map(|id| id.parse().ok()).collect();
        Self { next: numbers.and_then(|ids| ids.into_iter().max()).map(|last| last + 1), count: 0 }
    }

    fn next(&mut self) -> Json {
        self.count += 1;
        match self.next {
            Some(first) => json!(first + self.count as i64 - 1),
            None => json!(format!("new {}", self.count)),
        }
    }
}

impl Universe {
    /// All images, in order.
    fn images(&self, inputs: &Inputs) -> anyhow::Result<Vec<Image>> {
        let captions = Captions::read_all(inputs.path("captions"))?;
        let folder = inputs.path("images");
        let mut ids = NewIds::after(&captions.ids());
        let mut images = Vec::new();
        for item in &captions.items {
            // A text id is written with quotation marks in the file, and without them as a parameter.
            let id: Json = serde_json::from_str(&item.id)?;
            let plain = id.as_str().map_or_else(|| item.id.clone(), str::to_owned);
            images.push(Image {
                group: self.planted.iter().any(|planted| planted.id == plain).then_some(plain),
                id,
                source: folder.join(&item.file_name),
                file_name: item.file_name.clone(),
                captions: item.captions.clone(),
            });
        }
        for Planted { id, copies } in &self.planted {
            ensure!(
                !id.contains('/') && !id.starts_with('.'),
                "`planted` names `{id}`, expected an id that can name a file"
            );
            let original = images.iter().position(|image| image.group.as_ref() == Some(id));
            let Some(original) = original else {
                let first = &captions.items[0].id;
                anyhow::bail!(
                    "`planted` names `{id}`, which no image of the captions file has, for instance {first}"
                );
            };
            for copy in 2..=*copies {
                let Image { file_name, source, captions, .. } = &images[original];
                images.push(Image {
                    id: ids.next(),
                    file_name: format!("copies/{copy}/{file_name}"),
                    source: source.clone(),
                    captions: captions.clone(),
                    group: Some(id.clone()),
                });
            }
        }
        if let (Some(captions), Some(folder)) = (inputs.get(MORE[0]), inputs.get(MORE[1])) {
            for item in Captions::read_all(captions)?.items {
                let stem =
                    Path::new(&item.file_name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
                ensure!(
                    images.iter().all(|image| image.group.as_ref() != Some(&stem)),
                    "{}: the name `{stem}` occurs twice among added and planted images",
                    captions.display()
                );
                images.push(Image {
                    id: ids.next(),
                    source: folder.join(&item.file_name),
                    file_name: format!("added/{}", item.file_name),
                    captions: item.captions,
                    group: Some(stem),
                });
            }
        }
        if let Some(missing) = images.iter().find(|image| !image.source.is_file()) {
            anyhow::bail!("{}: no such image", missing.source.display());
        }
        Ok(images)
    }
}

impl Compute for Universe {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let images = self.images(inputs)?;
        let (folder, places) = (out.join(IMAGES), out.join(PLACES));
        fs_err::create_dir_all(&places)?;
        for (done, image) in images.iter().enumerate() {
            let to = folder.join(&image.file_name);
            if let Some(parent) = to.parent() {
                fs_err::create_dir_all(parent)?;
            }
            reflink_copy::reflink_or_copy(&image.source, &to)?;
            cx.progress(done as u64 + 1, images.len() as u64);
        }
        let annotations: Vec<Json> = images
            .iter()
            .flat_map(|image| image.captions.iter().map(|caption| (&image.id, caption)))
            .enumerate()
            .map(|(id, (image, caption))| json!({ "id": id, "image_id": image, "caption": caption }))
            .collect();
        let listed: Vec<Json> =
            images.iter().map(|image| json!({ "id": image.id, "file_name": image.file_name })).collect();
        let mut text = serde_json::to_vec(&json!({ "images": listed, "annotations": annotations }))?;
        text.push(b'\n');
        fs_err::write(out.join(CAPTIONS), text)?;
        let groups: BTreeSet<&String> = images.iter().filter_map(|image| image.group.as_ref()).collect();
        for group in groups {
            let of = images.iter().enumerate().filter(|(_, image)| image.group.as_ref() == Some(group));
            let of: Vec<i64> = of.map(|(place, _)| place as i64).collect();
            writer::write_i64(places.join(format!("{group}.npy")), &[of.len()], &of)?;
        }
        Ok(())
    }
}
