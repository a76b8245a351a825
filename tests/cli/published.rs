//! The published files of the MSCOCO experiment in miniature: the demo's model and six of its images.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;

use attrflow::io::npy::writer;
use attrflow::io::torch::{self, Dtype, Entry};
use safetensors::SafeTensors;
use sevenz_rust2::{ArchiveEntry, ArchiveWriter, EncoderMethod};
use zip::write::SimpleFileOptions;

use crate::project::{DEMO, Project, files};

/// Bytes by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The files by the archive that they are published in.
pub struct Published {
    /// `train2017/*.png`.
    pub images: Files,
    /// `annotations/captions_train2017.json`.
    pub annotations: Files,
    /// `model.bin`, `fisher_info.pt`.
    pub model: Files,
    /// `sample_caption.txt`, `sample/Q.png`.
    pub samples: Files,
    /// `coco17_{train,sample}_{latents,text_embeddings}.npy`.
    pub latents: Files,
}

impl Published {
    /// Made of the results of a project whose queries are `grin` and `pizza`.
    pub fn of(project: &Project) -> Self {
        let data = project.result("data/files");
        let read = |path: &Path| fs_err::read(path).unwrap();
        let images = files(&data.join("images")).into_iter();
        let images = images.map(|(name, path)| (format!("train2017/{name}"), read(&path))).collect();
        let annotations = read(&data.join("captions.json"));
        let result = |name: &str| project.result(name);
        let unet = Path::new(DEMO).join("model/unet/diffusion_pytorch_model.safetensors");
        let joined = |name: &str| {
            let parts = ["grin", "pizza"].map(|query| result(&format!("generate/{query}/{name}")));
            let file = tempfile::NamedTempFile::new().unwrap();
            writer::concat(&parts, file.path()).unwrap();
            read(file.path())
        };
        let named = |files: Vec<(&str, Vec<u8>)>| {
            files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect::<Files>()
        };
        Self {
            images,
            annotations: named(vec![("annotations/captions_train2017.json", annotations)]),
            model: named(vec![
                ("model.bin", saved_by_torch(&unet)),
                ("fisher_info.pt", saved_by_torch(&result("fisher/fisher.safetensors"))),
            ]),
            samples: named(vec![
                (
                    "sample_caption.txt",
                    b"an emoji of grinning face\na food emoji, pizza with fruit\n".to_vec(),
                ),
                ("sample/0.png", read(&result("generate/grin/images/0.png"))),
                ("sample/1.png", read(&result("generate/pizza/images/0.png"))),
            ]),
            latents: named(vec![
                ("coco17_train_latents.npy", read(&result("latents/latents.npy"))),
                ("coco17_train_text_embeddings.npy", read(&result("latents/text_embeddings.npy"))),
                ("coco17_sample_latents.npy", joined("latents.npy")),
                ("coco17_sample_text_embeddings.npy", joined("text_embeddings.npy")),
            ]),
        }
    }

    /// What lies below the address of COCO.
    pub fn coco(&self) -> Files {
        BTreeMap::from([
            ("zips/train2017.zip".to_owned(), zip(&self.images)),
            ("annotations/annotations_trainval2017.zip".to_owned(), zip(&self.annotations)),
        ])
    }

    /// What lies in the published folder: the archive of latents in three volumes.
    pub fn repository(&self) -> Files {
        let mut files = BTreeMap::from([
            // To pack 20 MB of weights takes ten seconds in an unoptimised build, and saves nothing.
            ("model_fisher.7z".to_owned(), seven_zip(&self.model, EncoderMethod::COPY)),
            ("sample.7z".to_owned(), seven_zip(&self.samples, EncoderMethod::LZMA2)),
        ]);
        let archive = seven_zip(&self.latents, EncoderMethod::LZMA2);
        for (index, volume) in archive.chunks(archive.len().div_ceil(3)).enumerate() {
            let name = format!("latents_text_embeddings/latents_text_embeddings.7z.{:03}", index + 1);
            files.insert(name, volume.to_vec());
        }
        files
    }
}

/// The same tensors as `torch.save` writes them.
fn saved_by_torch(safetensors: &Path) -> Vec<u8> {
    let bytes = fs_err::read(safetensors).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let dtype = |dtype| match dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F64 => Dtype::F64,
        other => panic!("{other:?}"),
    };
    let views = tensors.tensors();
    let entry = |(name, view): &'_ (String, safetensors::tensor::TensorView<'_>)| {
        (name.clone(), dtype(view.dtype()), view.shape().to_vec(), view.data().to_vec())
    };
    let parts: Vec<_> = views.iter().map(entry).collect();
    let entries = parts.iter().map(|(name, dtype, shape, bytes)| Entry { name, dtype: *dtype, shape, bytes });
    let file = tempfile::NamedTempFile::new().unwrap();
    torch::write(file.path(), &entries.collect::<Vec<_>>()).unwrap();
    fs_err::read(file.path()).unwrap()
}

/// A zip archive of the files.
pub fn zip(files: &Files) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        archive.start_file(name, SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// A 7z archive of the files, packed by the method.
pub fn seven_zip(files: &Files, method: EncoderMethod) -> Vec<u8> {
    let mut archive = ArchiveWriter::new(Cursor::new(Vec::new())).unwrap();
    archive.set_content_methods(vec![method.into()]);
    for (name, bytes) in files {
        archive.push_archive_entry(ArchiveEntry::new_file(name), Some(bytes.as_slice())).unwrap();
    }
    archive.finish().unwrap().into_inner()
}
