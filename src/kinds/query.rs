//! A picture that exists already, as a query: with a caption that the pipeline states.

use std::path::Path;

use anyhow::bail;
use serde_json::json;

use super::shared::check_outputs::Outputs;
use crate::io::captions::coco::Captions;
use crate::io::dataset::is_picture;
use crate::io::image::dimensions;
use crate::io::json;
use crate::io::prompt::{self, Found, PromptError};
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task,
};
use attrflow_engine::{choice, params};

choice! {
    /// How the caption is written.
    pub enum PromptSyntax {
        /// As the text encoder reads it.
        Plain = "plain",
        /// With the tags, weights and brackets of AUTOMATIC1111's program, which are taken out.
        A1111 = "a1111",
    }
}

params! {
    /// Parameters of `query`.
    pub struct Query {
        /// The text that the picture was made for. What the picture's metadata say is shown, and never taken by itself.
        caption: Option<String> = None,
        /// `plain`: the caption is read as it stands; `a1111`: LoRA tags, weights such as `(word:1.2)` and brackets are taken out
        /// first, which is not what its program computes, but the nearest plain text.
        prompt_syntax: PromptSyntax = PromptSyntax::Plain,
    }
}

impl Validate for Query {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let empty = self.caption.as_ref().is_some_and(|caption| caption.trim().is_empty());
        let fault =
            ("caption", "`caption` is empty, expected the text that the picture was made for".to_owned());
        empty.then_some(fault).into_iter().collect()
    }
}

const IMAGE: &str = "image";
const IMAGES: &str = "images";
const CAPTIONS: &str = "captions.json";
const REPORT: &str = "report.json";

impl Kind for Query {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new(IMAGE, "a picture: PNG, JPEG, WebP, BMP, TIFF or GIF")],
        outputs: &[
            Output::new("images", IMAGES, "a folder with the picture, its bytes as they were: for `latents`"),
            Output::new("captions", CAPTIONS, "the picture and its caption, in COCO's layout: for `latents`"),
            Output::new("report", REPORT, "the caption, and what the picture's metadata say"),
        ],
        libtorch: false,
        ..KindInfo::new::<Self>("query", 1, "a picture that exists already, with its caption")
    };
}

impl Stage for Query {
    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        self.text(inputs.path(IMAGE)).map(drop)
    }

    fn estimate(&self, _: &ExpectedInputs) -> anyhow::Result<Estimate> {
        Ok(Estimate {
            outputs: [("report".to_owned(), ArtifactShape::Bytes(500))].into(),
            ..Estimate::default()
        })
    }

    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        Captions::read_all(&outputs["captions"])?.check_files(&outputs["images"])?;
        Ok("that the captions file can be read, and that its image is there")
    }
}

impl Query {
    /// The caption as the text encoder reads it.
    fn text(&self, picture: &Path) -> anyhow::Result<String> {
        match (&self.caption, self.prompt_syntax) {
            (Some(caption), PromptSyntax::Plain) => Ok(caption.clone()),
            (Some(caption), PromptSyntax::A1111) => Ok(prompt::strip_a1111(caption)),
            (None, _) => match prompt::read(picture)? {
                Some(found) => bail!(
                    "{}: `caption` is missing; its metadata say {}: if that is right, set it as the `caption`",
                    picture.display(),
                    json!(found.prompt)
                ),
                None => bail!(
                    "{}: `caption` is missing, and the picture's metadata say nothing of a text: set the text that it was made for",
                    picture.display()
                ),
            },
        }
    }

    /// What a reader of the report should know.
    fn notes(&self, text: &str, found: Option<&Result<Found, PromptError>>, is_lossy: bool) -> Vec<String> {
        let mut notes = Vec::new();
        match found {
            Some(Ok(found)) => {
                let same = self.caption.as_ref() == Some(&found.prompt);
                let other = format!("the picture's metadata have another text: {}", json!(found.prompt));
                notes.extend((!same).then_some(other));
                // What the syntax takes out needs no warning.
                let known =
                    if same && self.prompt_syntax == PromptSyntax::Plain { &*found.warnings } else { &[] };
                notes.extend_from_slice(known);
            }
            Some(Err(error)) => notes.push(format!("the picture's metadata: {error}")),
            None => {}
        }
        if is_lossy {
            notes.push(
                "the picture is a JPEG: what its compression changed is a part of the query".to_owned(),
            );
        }
        if text.trim().is_empty() {
            notes.push("nothing is left of the caption".to_owned());
        }
        notes
    }
}

impl Compute for Query {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let picture = inputs.path(IMAGE);
        let text = self.text(picture)?;
        let bytes = fs_err::read(picture)?;
        let [width, height] =
            dimensions(&bytes).map_err(|why| anyhow::anyhow!("{}: {why}", picture.display()))?;
        let found = prompt::read(picture).transpose();
        let notes = self.notes(&text, found.as_ref(), bytes.starts_with(&[0xff, 0xd8]));
        notes.iter().for_each(|note| tracing::warn!("{}: {note}", picture.display()));
        let ending = picture.extension().filter(|_| is_picture(picture));
        let ending =
            ending.map_or_else(|| "png".to_owned(), |ending| ending.to_string_lossy().to_lowercase());
        let name = format!("query.{ending}");
        fs_err::create_dir(out.join(IMAGES))?;
        fs_err::write(out.join(IMAGES).join(&name), bytes)?;
        let metadata = found.and_then(Result::ok).map(
            |found| json!({ "prompt": found.prompt, "negative": found.negative, "settings": found.settings }),
        );
        json::write_pretty(
            &out.join(CAPTIONS),
            &json!({
                "images": [{ "id": 1, "file_name": name }],
                "annotations": [{ "id": 1, "image_id": 1, "caption": text }],
            }),
        )?;
        json::write_pretty(
            &out.join(REPORT),
            &json!({
                "caption": text, "width": width, "height": height, "metadata": metadata, "notes": notes,
            }),
        )?;
        Ok(())
    }
}
