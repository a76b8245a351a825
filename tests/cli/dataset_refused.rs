//! Training sets that `dataset` refuses, and what it says.

use crate::dataset::picture;
use crate::project::Project;

/// A folder with files; two pictures among them where the names end so.
struct Wrong {
    project: Project,
}

impl Wrong {
    /// The error for a folder with these files, with parameters.
    fn error(&self, files: &[(&str, &[u8])], params: &str) -> String {
        let folder = self.project.path("wrong");
        let _ = fs_err::remove_dir_all(&folder);
        fs_err::create_dir_all(&folder).unwrap();
        for (name, bytes) in files {
            let file = folder.join(name);
            fs_err::create_dir_all(file.parent().unwrap()).unwrap();
            fs_err::write(file, bytes).unwrap();
        }
        let pipeline = format!(
            "[stages.set]\nkind = \"dataset\"\nparams = {{ {params} }}\n[stages.set.inputs]\nsource = \"../wrong\"\n"
        );
        self.project.write("pipelines/wrong.toml", pipeline);
        let ran = self.project.attrflow(["run", "pipelines/wrong.toml"]);
        assert!(ran.code != 0, "{params}: {ran:?}");
        ran.err
    }
}

const COCO: &[u8] =
    br#"{"images": [{"id": 7, "file_name": "a.png"}], "annotations": [{"image_id": 7, "caption": "x"}]}"#;

fn packed(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn wrong_sets_are_refused_with_what_was_found() {
    let wrong = Wrong { project: Project::new(6) };
    let png = picture(1, image::ImageFormat::Png);
    let (a, b) = (("a.png", png.as_slice()), ("b.png", png.as_slice()));
    let text = |name| (name, b"a caption".as_slice());
    let csv = |table: &'static str| ("metadata.csv", table.as_bytes());
    let jsonl = |table: &'static str| ("metadata.jsonl", table.as_bytes());
    for (files, params, expected) in [
        (
            vec![a, b, text("a.txt")],
            "",
            "1 of 2 images have no caption, for instance b.png; give them one by `missing = \"fill\"`",
        ),
        (vec![a, text("a.txt"), text("a.caption")], "", "a.caption and a.txt are captions of one image"),
        (vec![a, ("a.jpg", &png), text("a.txt")], "", "a.jpg and a.png have one name"),
        (vec![a, ("a.txt", b"one\n\xff")], "", "a.txt:2: the byte 0xff is not UTF-8"),
        (
            vec![("notes.md", b"x")],
            "",
            "no training set: expected images, .parquet or .tar files, found 1 files of other kinds, such as notes.md",
        ),
        (
            vec![a, text("a.txt"), csv("file_name,text\na.png,x\n")],
            "",
            "more than one form fits: `imagefolder` (metadata.csv), `sidecar` (a.txt); choose one by `form`",
        ),
        (
            vec![a, csv("file_name,text\na.png,x\n"), jsonl("{}")],
            "",
            "metadata.csv and metadata.jsonl are of two kinds",
        ),
        (vec![a, csv("name,text\na.png,x\n")], "", "metadata.csv: row 1: no column `file_name`"),
        (
            vec![a, csv("file_name,words\na.png,red\n")],
            "",
            "no column of captions is known: those of texts are `file_name` (\"a.png\"), `words` (\"red\"); choose one by `caption_column`",
        ),
        (
            vec![a, csv("file_name,text,prompt\na.png,x,y\n")],
            "",
            "several columns may be the captions: text, prompt",
        ),
        (
            vec![a, csv("file_name,text\na.png,x\n")],
            "caption_column = \"words\"",
            "there is no column `words`",
        ),
        (vec![a, csv("file_name,text\na.png,x\nc.png,x\n")], "", "metadata.csv: row 2: `file_name` names"),
        (
            vec![a, csv("file_name,text\n../a.png,x\n")],
            "",
            "`file_name` is \"../a.png\": its path contains `..`",
        ),
        (vec![a, csv("file_name,text\nhttp://x/a.png,x\n")], "", "expected a file of the folder"),
        (
            vec![a, csv("file_name,text\na.png,x\na.png,y\n")],
            "",
            "the image `a.png`: an earlier entry has the same name",
        ),
        (
            vec![a, jsonl("{\"file_name\": \"a.png\", \"text\": {\"en\": \"x\", \"de\": \"y\"}}")],
            "",
            "`text` is an object: choose one of `text.de`, `text.en`",
        ),
        (
            vec![a, jsonl("{\"file_name\": \"a.png\", \"text\": 3}")],
            "",
            "`text` is 3, expected a text or a list of texts",
        ),
        (vec![a, jsonl("{\"file_name\"")], "", "metadata.jsonl: row 1"),
        (
            vec![("a.parquet", b"version https://git-lfs.github.com/spec/v1\n")],
            "",
            "a.parquet: it is a Git LFS pointer",
        ),
        (vec![("a.parquet", b"PAR1 and no more")], "", "a.parquet: not a parquet file"),
        (vec![("a.png", b"no picture"), text("a.txt")], "", "the image `a.png` cannot be read"),
        (vec![a, text("a.txt")], "missing = \"fill\"", "`missing = \"fill\"` needs `caption`"),
        (
            vec![a, text("a.txt")],
            "caption = \"x\"",
            "`caption` has an effect with `missing = \"fill\"` alone",
        ),
        (vec![a, text("a.txt")], "form = \"folder\"", "expected one of"),
    ] {
        let error = wrong.error(&files, params);
        assert!(error.contains(expected), "expected {expected}\nfound {error}");
    }
    for (files, params, expected) in [
        (
            vec![a, csv("file_name;text\na.png;x\n")],
            "",
            "there are `file_name;text`: separate columns by commas",
        ),
        (
            vec![("images.zip", b"PK".as_slice())],
            "",
            "such as images.zip; a `download` stage unpacks archives",
        ),
        (
            vec![("a.png", &png[..png.len() - 9]), text("a.txt")],
            "",
            "the image `a.png` cannot be read: the file is cut off",
        ),
        (
            vec![a, text("a.txt")],
            "split = \"train\"",
            "`split` is `train`, and the form `sidecar` has no splits",
        ),
        (
            vec![
                ("train/a.png", png.as_slice()),
                ("train/metadata.csv", b"file_name,text\na.png,x\n"),
                ("test/b.png", &png),
                ("test/metadata.csv", b"file_name,text\nb.png,x\n"),
            ],
            "",
            "the folders are of several splits: `test`, `train`; choose one by `split`",
        ),
        (
            vec![("x/a.png", png.as_slice()), ("y/a.png", &png), ("captions.json", COCO)],
            "",
            "a.png lies in 2 folders: give the one that is meant as `source`",
        ),
        (vec![b, ("captions.json", COCO)], "", "no image a.png, which "),
    ] {
        let error = wrong.error(&files, params);
        assert!(error.contains(expected), "expected {expected}\nfound {error}");
    }
    type Members<'a> = &'a [(&'a str, &'a [u8])];
    let tars: [(Members<'_>, &str); 5] = [
        (&[("a.txt", b"x")], "the sample `a` has no picture"),
        (&[("a.png", &png), ("a.jpg", &png)], "`a.jpg`: the sample `a` has two pictures"),
        (
            &[("a.1.png", &png), ("a.txt", b"x")],
            "the key of a sample ends at the first dot, so this is the field `1.png` of `a`",
        ),
        (&[("a.png", &png), ("a.txt", b"x"), ("b.png", &png), ("a.png", &png)], "has the same name"),
        (
            &[("a.png", &png), ("a.json", b"{\"words\": \"x\"}")],
            "no column of captions is known: those of texts are `words` (\"x\")",
        ),
    ];
    for (members, expected) in tars {
        let error = wrong.error(&[("set.tar", &packed(members))], "");
        assert!(error.contains("set.tar") && error.contains(expected), "expected {expected}\nfound {error}");
    }
    let shards = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"];
    let error = wrong.error(&shards.map(|name| (name, b"x".as_slice())), "");
    assert!(error.contains("several splits: `test`, `train`; choose one by `split`"), "{error}");
    let error = wrong.error(&shards.map(|name| (name, b"x".as_slice())), "split = \"val\"");
    assert!(error.contains("`split` is `val`, found `test`, `train`"), "{error}");
}
