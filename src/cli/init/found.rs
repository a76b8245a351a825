//! What `init` found, for people and for programs.

use std::path::PathBuf;

use serde_json::json;

use super::places::Origin;
use super::text::Project;
use crate::kinds::look::{ImagesLook, LoraLook, ModelLook, PictureLook};

/// What was found.
pub(super) struct Found {
    /// Where the images and the model are.
    pub places: [Origin; 2],
    /// None where they are on the Hub.
    pub images: Option<ImagesLook>,
    /// None where it is on the Hub.
    pub model: Option<ModelLook>,
    pub lora: Option<LoraLook>,
    pub pictures: Vec<(PathBuf, PictureLook)>,
    pub notes: Vec<String>,
}

/// What was found, a line each; `given` is the model as it was written.
pub(super) fn lines(given: &str, project: &Project, found: &Found) -> String {
    let Found { places: _, images, model, lora, pictures, notes } = found;
    let mut lines = vec![match images {
        Some(images) => {
            let with = images.images - images.without;
            let each = if images.captions > 1 {
                format!(", at least {} each", images.captions)
            } else {
                String::new()
            };
            let form = images.form;
            format!(
                "images   {}   {} images, {with} with captions ({form}{each})",
                project.images.written(),
                images.images
            )
        }
        None => format!("images   {}   from the Hub, when it runs", project.images.written()),
    }];
    let at = project.model.written();
    lines.push(match model {
        Some(look) => format!("model    {at}   {}, {} px", look.what, project.pixels),
        None => {
            let is_name = !given.starts_with("hf://");
            let why = if is_name { format!("; there is no folder {given} here") } else { String::new() };
            format!("model    {at}   from the Hub, when it runs{why}")
        }
    });
    if let (Some(path), Some(look)) = (&project.lora, lora) {
        lines.push(format!("lora     {}   {}", path.display(), look.what));
    }
    for (query, picture) in
        project.queries.iter().zip(pictures.iter().map(Some).chain(std::iter::repeat(None)))
    {
        lines.push(match picture {
            Some((file, look)) => {
                let from = look.caption.as_ref().map_or("from --caption", |(_, from)| from);
                let [width, height] = look.size;
                format!("query    {}   {:?} ({from}), {width} x {height}", file.display(), query.caption)
            }
            None => format!("query    to be drawn from {:?}", query.caption),
        });
    }
    lines.extend(notes.iter().map(|note| format!("note     {note}")));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The same as JSON.
pub(super) fn as_json(project: &Project, found: &Found) -> serde_json::Value {
    let queries = project
        .queries
        .iter()
        .map(|query| json!({ "name": query.name, "caption": query.caption, "picture": query.picture }));
    json!({
        "name": project.name,
        "images": {
            "source": project.images.written(),
            "form": found.images.as_ref().map(|images| images.form),
            "images": found.images.as_ref().map(|images| images.images),
            "without_caption": found.images.as_ref().map(|images| images.without),
            "captions": project.captions,
        },
        "model": { "source": project.model.written(), "what": found.model.as_ref().map(|model| &model.what) },
        "lora": found.lora.as_ref().map(|lora| json!({ "path": project.lora, "what": lora.what })),
        "queries": queries.collect::<Vec<_>>(),
        "pixels": project.pixels,
        "notes": found.notes,
    })
}
