//! `dataset`: every form of a training set gives the same images in the same order, and wrong ones are refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use attrflow::io::Captions;
use attrflow::io::captions::coco::Item;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value as Json, json};

use crate::project::{DEMO, Project};

/// The demo's images in a folder, and what is known of them.
struct Emoji {
    project: Project,
    items: Vec<Item>,
}

fn emoji() -> Emoji {
    let project = Project::new(6);
    let archive = fs_err::File::open(Path::new(DEMO).join("images.zip")).unwrap();
    zip::ZipArchive::new(archive).unwrap().extract(project.path("unpacked")).unwrap();
    let items = Captions::read_all(Path::new(DEMO).join("captions.json")).unwrap().items;
    let emoji = Emoji { project, items };
    assert!(emoji.image(&emoji.items[0].file_name).is_file());
    emoji
}

impl Emoji {
    fn image(&self, name: &str) -> PathBuf {
        self.project.path("unpacked/images").join(name)
    }

    fn bytes(&self, item: &Item) -> Vec<u8> {
        fs_err::read(self.image(&item.file_name)).unwrap()
    }

    /// A folder with all images, for files beside them.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.project.path(name);
        fs_err::create_dir_all(&folder).unwrap();
        for item in &self.items {
            fs_err::hard_link(self.image(&item.file_name), folder.join(&item.file_name)).unwrap();
        }
        folder
    }

    /// The captions file and the report that a form gives.
    fn read(&self, source: &str, params: &str) -> (String, Json) {
        let captions = match source {
            "unpacked/images" => format!("captions = \"{DEMO}/captions.json\""),
            _ => String::new(),
        };
        let pipeline = format!(
            "[stages.set]\nkind = \"dataset\"\nparams = {{ {params} }}\n[stages.set.inputs]\nsource = \"../{source}\"\n{captions}\n"
        );
        self.project.write("pipelines/set.toml", pipeline);
        let ran = self.project.attrflow(["run", "pipelines/set.toml"]);
        assert_eq!(ran.code, 0, "{source}: {ran:?}");
        let read =
            |name: &str| fs_err::read_to_string(self.project.path("results/set/set").join(name)).unwrap();
        let report: Json = serde_json::from_str(&read("report.json")).unwrap();
        for item in self.items.iter().step_by(97) {
            let written = self.project.path("results/set/set/images").join(&item.file_name);
            assert!(fs_err::read(written).unwrap() == self.bytes(item), "{source}: {}", item.file_name);
        }
        (read("captions.json"), report)
    }
}

impl Emoji {
    /// The order of six images by their influence on the first of them, and the summary's last line.
    fn ranks(&self, source: &str) -> (Vec<u8>, String) {
        let captions = match source {
            "unpacked/images" => format!("captions = \"{DEMO}/captions.json\""),
            _ => String::new(),
        };
        let network = format!("unet = \"{DEMO}/model/unet\"\nscheduler = \"{DEMO}/model/scheduler\"\n");
        let set = "latents = \"latents.latents\"\ntext_embeddings = \"latents.text_embeddings\"\n";
        let pipeline = format!(
            "[stages.set]\nkind = \"dataset\"\nparams = {{ limit = 6 }}\n[stages.set.inputs]\nsource = \"../{source}\"\n{captions}\n\
             [stages.latents]\nkind = \"latents\"\nparams = {{ pixels = 32, captions = 1 }}\n[stages.latents.inputs]\n\
             images = \"set.images\"\ncaptions = \"set.captions\"\nvae = \"{DEMO}/model/vae\"\n\
             text_encoder = \"{DEMO}/model/text_encoder\"\ntokenizer = \"{DEMO}/model/tokenizer\"\n\
             [stages.pretrain_loss]\nkind = \"pretrain-loss\"\n\
             params = {{ loss = {{ time_samples = 2, captions = 1, noise = \"per_image\" }} }}\n[stages.pretrain_loss.inputs]\n{network}{set}\
             [stages.fisher]\nkind = \"fisher\"\nparams = {{ epochs = 1, select = \"cross-attn-kv\" }}\n[stages.fisher.inputs]\n{network}{set}\
             [stages.unlearn]\nkind = \"unlearn\"\nparams = {{ rise = 0.1, relative_damping = 0.01, grad_accum_steps = 1, batch_size = 4 }}\n\
             [stages.unlearn.inputs]\n{network}{set}fisher = \"fisher.fisher\"\n\
             [stages.influence]\nkind = \"influence\"\n[stages.influence.inputs]\n{network}{set}weights = \"unlearn.weights\"\n\
             pretrain_loss = \"pretrain_loss.losses\"\n"
        );
        self.project.write("pipelines/rank.toml", pipeline);
        let ran = self.project.attrflow(["run", "pipelines/rank.toml"]);
        assert_eq!(ran.code, 0, "{source}: {ran:?}");
        let rank = fs_err::read(self.project.path("results/rank/influence/rank.npy")).unwrap();
        (rank, ran.out)
    }

    /// Holds that these forms of one set rank images alike: all after the first list is cached.
    fn expect_equal_ranks(&self, sources: &[&str]) {
        let (expected, said) = self.ranks(sources[0]);
        assert!(said.contains("6 ran"), "{said}");
        for source in &sources[1..] {
            let (found, said) = self.ranks(source);
            assert!(found == expected && said.contains("1 ran, 5 cached"), "{source}: {said}");
        }
    }
}

/// Parquet as `datasets` writes it: images as structs, captions as lists, in groups of a few rows.
fn parquet(file: &Path, emoji: &Emoji, items: &[Item]) {
    let schema = "message schema { optional group image { optional binary bytes; optional binary path (UTF8); } \
        optional group text (LIST) { repeated group list { optional binary element (UTF8); } } }";
    let features = json!({ "info": { "features": { "image": { "_type": "Image" } } } }).to_string();
    let marked = vec![KeyValue { key: "huggingface".to_owned(), value: Some(features) }];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(marked)).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    fs_err::create_dir_all(file.parent().unwrap()).unwrap();
    let out = fs_err::File::create(file).unwrap();
    let mut writer = SerializedFileWriter::new(out, schema, Arc::new(properties)).unwrap();
    for items in items.chunks(100) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = |values: &[ByteArray], defined: &[i16], repeated: Option<&[i16]>| {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(values, Some(defined), repeated).unwrap();
            column.close().unwrap();
        };
        let all: Vec<ByteArray> = items.iter().map(|item| emoji.bytes(item).into()).collect();
        let names: Vec<ByteArray> = items.iter().map(|item| item.file_name.as_str().into()).collect();
        let defined = vec![2; items.len()];
        column(&all, &defined, None);
        column(&names, &defined, None);
        let texts: Vec<ByteArray> =
            items.iter().flat_map(|item| item.captions.iter().map(|text| text.as_str().into())).collect();
        let repeated: Vec<i16> = items
            .iter()
            .flat_map(|item| (0..item.captions.len()).map(|place| i16::from(place > 0)))
            .collect();
        column(&texts, &vec![3; texts.len()], Some(&repeated));
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn lines(emoji: &Emoji, text: impl Fn(&Item) -> Json) -> String {
    let line = |item: &Item| format!("{}\n", json!({ "file_name": item.file_name, "text": text(item) }));
    emoji.items.iter().map(line).collect()
}

fn tar(file: &Path, emoji: &Emoji, items: &[Item]) {
    fs_err::create_dir_all(file.parent().unwrap()).unwrap();
    let mut archive = tar::Builder::new(fs_err::File::create(file).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    for item in items {
        let stem = item.file_name.trim_end_matches(".png");
        add(&format!("{stem}.png"), &emoji.bytes(item));
        add(&format!("{stem}.txt"), item.captions[0].as_bytes());
    }
    archive.finish().unwrap();
}

#[test]
fn forms_with_several_captions_give_the_captions_file_of_coco() {
    let emoji = emoji();
    let (coco, of_coco) = emoji.read("unpacked/images", "");
    assert_eq!((&of_coco["form"], &of_coco["images"]), (&"coco".into(), &emoji.items.len().into()));
    fs_err::write(emoji.folder("list").join("metadata.jsonl"), lines(&emoji, |item| json!(item.captions)))
        .unwrap();
    let (first, second) = emoji.items.split_at(300);
    parquet(&emoji.project.path("hub/data/train-00000-of-00002.parquet"), &emoji, first);
    parquet(&emoji.project.path("hub/data/train-00001-of-00002.parquet"), &emoji, second);
    for (source, form) in [("list", "imagefolder"), ("hub", "parquet")] {
        let (captions, report) = emoji.read(source, "");
        assert_eq!((&report["form"], &report["digest"]), (&form.into(), &of_coco["digest"]), "{source}");
        assert!(captions == coco, "{source}");
    }
    // The bytes of the file that the demo has.
    assert!(coco == fs_err::read_to_string(Path::new(DEMO).join("captions.json")).unwrap());
    emoji.expect_equal_ranks(&["unpacked/images", "list", "hub"]);
}

#[test]
fn forms_with_one_caption_give_that_of_the_first_captions() {
    let emoji = emoji();
    let sidecar = emoji.folder("sidecar");
    for (place, item) in emoji.items.iter().enumerate() {
        // Either ending; further lines do not count.
        let ending = if place % 2 == 0 { "txt" } else { "caption" };
        let text = format!("{}\r\nanother line\n", item.captions[0]);
        fs_err::write(sidecar.join(&item.file_name).with_extension(ending), text).unwrap();
    }
    let (expected, of_sidecar) = emoji.read("sidecar", "");
    assert_eq!(
        (&of_sidecar["form"], &of_sidecar["captions"]),
        (&"sidecar".into(), &emoji.items.len().into())
    );
    let items: Vec<Item> = emoji
        .items
        .iter()
        .map(|item| Item { captions: item.captions[..1].to_vec(), ..item.clone() })
        .collect();
    let read = Captions::read_all(emoji.project.path("results/set/set/captions.json")).unwrap();
    assert_eq!(read.items, items);

    fs_err::write(
        emoji.folder("jsonl").join("metadata.jsonl"),
        lines(&emoji, |item| json!(item.captions[0])),
    )
    .unwrap();
    let mut table = csv::Writer::from_path(emoji.folder("csv").join("metadata.csv")).unwrap();
    table.write_record(["file_name", "text"]).unwrap();
    items.iter().for_each(|item| table.write_record([&item.file_name, &item.captions[0]]).unwrap());
    table.flush().unwrap();
    let (first, second) = items.split_at(200);
    tar(&emoji.project.path("shards/b.tar"), &emoji, second);
    tar(&emoji.project.path("shards/a.tar"), &emoji, first);
    for (source, form) in [("jsonl", "imagefolder"), ("csv", "imagefolder"), ("shards", "webdataset")] {
        let (captions, report) = emoji.read(source, "");
        assert_eq!((&report["form"], &report["digest"]), (&form.into(), &of_sidecar["digest"]), "{source}");
        assert!(captions == expected, "{source}");
    }
    emoji.expect_equal_ranks(&["sidecar", "jsonl", "csv", "shards"]);
}

/// What `datasets` itself wrote (`tests/golden/make_dataset.py`).
#[test]
fn sets_that_the_library_wrote_are_read_as_it_reads_them() {
    let project = Project::new(6);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dataset");
    let read = |form: &str| {
        let source = golden.join(form).display().to_string();
        let pipeline = format!("[stages.set]\nkind = \"dataset\"\ninputs = {{ source = \"{source}\" }}\n");
        project.write("pipelines/set.toml", pipeline);
        let ran = project.attrflow(["run", "pipelines/set.toml"]);
        assert_eq!(ran.code, 0, "{form}: {ran:?}");
        let folder = project.path("results/set/set");
        let pictures = fs_err::read_dir(folder.join("images")).unwrap().count();
        (fs_err::read_to_string(folder.join("captions.json")).unwrap(), pictures)
    };
    let (captions, pictures) = read("imagefolder");
    assert_eq!((read("hub"), pictures), ((captions.clone(), 6), 6));
    let items = Captions::read_all(project.path("results/set/set/captions.json")).unwrap().items;
    let demo = Captions::read_all(Path::new(DEMO).join("captions.json")).unwrap().items;
    assert_eq!(items, demo[..6]);
}

/// A picture of one colour.
pub fn picture(shade: u8, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(8, 8, image::Rgb([shade, 9, 9])).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn what_is_left_out_and_filled_in_is_counted() {
    let project = Project::new(6);
    let folder = project.path("mine");
    fs_err::create_dir_all(folder.join("more")).unwrap();
    let formats = [
        ("a.PNG", image::ImageFormat::Png),
        ("b.webp", image::ImageFormat::WebP),
        ("c.bmp", image::ImageFormat::Bmp),
        ("d.tiff", image::ImageFormat::Tiff),
        ("e.gif", image::ImageFormat::Gif),
        ("more/f.jpeg", image::ImageFormat::Jpeg),
    ];
    for (shade, (name, format)) in formats.into_iter().enumerate() {
        fs_err::write(folder.join(name), picture(shade as u8 * 20, format)).unwrap();
        fs_err::write(folder.join(name).with_extension("txt"), format!("picture {shade}\nmore\n")).unwrap();
    }
    fs_err::copy(folder.join("b.webp"), folder.join("z.webp")).unwrap();
    fs_err::write(folder.join(".hidden.png"), "").unwrap();
    fs_err::write(folder.join("g.svg"), "").unwrap();
    fs_err::write(folder.join("lost.txt"), "a caption").unwrap();
    fs_err::write(folder.join("set.toml"), "[general]\nshuffle_caption = true\n[[datasets]]\n").unwrap();
    let read = |params: &str| {
        let pipeline = format!(
            "[stages.set]\nkind = \"dataset\"\nparams = {{ {params} }}\ninputs = {{ source = \"../mine\" }}\n"
        );
        project.write("pipelines/set.toml", pipeline);
        let ran = project.attrflow(["run", "pipelines/set.toml"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let folder = project.path("results/set/set");
        let report: Json =
            serde_json::from_slice(&fs_err::read(folder.join("report.json")).unwrap()).unwrap();
        let items = Captions::read_all(folder.join("captions.json")).unwrap().items;
        // Nothing of an earlier list is left beside the pictures.
        let shown: Vec<_> =
            fs_err::read_dir(folder.join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let in_folder = items.iter().filter(|item| !item.file_name.contains('/')).count();
        assert_eq!(shown.iter().filter(|path| path.is_file()).count(), in_folder, "{params}: {shown:?}");
        (items, report, ran.err)
    };
    let names = |items: &[Item]| items.iter().map(|item| item.file_name.clone()).collect::<Vec<_>>();
    let (items, report, said) = read("missing = \"skip\", lines = \"all\"");
    assert_eq!(names(&items), ["a.PNG", "b.webp", "c.bmp", "d.tiff", "e.gif", "more/f.jpeg"]);
    assert_eq!(items[1].captions, ["picture 1", "more"]);
    assert_eq!(
        (&report["found"], &report["images"], &report["captions"]),
        (&7.into(), &6.into(), &12.into())
    );
    for expected in [
        "images without a caption: 1, the first \"z.webp\"; they are left out",
        "pictures of formats that are not read: 1, the first \"g.svg\"; they are not in the list",
        "captions without an image: 1, the first \"lost.txt\"; they are not in the list",
        "configurations of kohya's scripts that shuffle or change captions: 1, the first \"set.toml\"; captions are taken as they are written",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let (items, report, said) = read("missing = \"fill\", caption = \"a picture\", limit = 7");
    assert_eq!((items.len(), items[6].captions.as_slice()), (7, ["a picture".to_owned()].as_slice()));
    assert_eq!((&report["without_caption"], &report["duplicates"]), (&1.into(), &1.into()));
    assert!(
        said.contains("images with the bytes of an earlier one: 1, the first \"z.webp, as b.webp\""),
        "{said}"
    );
    let (items, ..) = read("missing = \"fill\", caption = \"a picture\", duplicates = \"skip\"");
    assert_eq!(items.len(), 6);
    assert_eq!(read("missing = \"skip\", limit = 2").0.len(), 2);
}
