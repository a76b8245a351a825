//! Captions of images in COCO's annotation format.
//!
//! Index i of a data set is the i-th entry of the file's `images`; the captions of an image are in the
//! order of the file's `annotations`. Latents, embeddings and losses all rely on this order.
//! Source: the COCO data format, captions (`captions_train2017.json`).

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::{CocoError, LISTED};
use super::near_miss;
use crate::io::json::{self, JsonError, Object};
use crate::io::names;

/// The images of a data set with their captions, in the data set's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captions {
    /// One entry per image.
    pub items: Vec<Item>,
}

/// An image and its captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The image's id, as JSON writes it.
    pub id: String,
    /// The image's file, relative to the image folder.
    pub file_name: String,
    /// Exactly the requested number of captions.
    pub captions: Vec<String>,
}

impl Captions {
    /// Reads the file and keeps the first `per_image` captions of each image.
    ///
    /// # Errors
    /// If an image has fewer, if an id or a file name occurs twice, or if a caption has no image.
    pub fn read(path: impl AsRef<Path>, per_image: usize) -> Result<Self, CocoError> {
        Self::read_all(path.as_ref())?.cut(per_image, path.as_ref())
    }

    /// Reads the file with all captions of each image, however many.
    ///
    /// # Errors
    /// If an id or a file name occurs twice, or if a caption has no image.
    pub fn read_all(path: impl AsRef<Path>) -> Result<Self, CocoError> {
        let path = path.as_ref();
        let mut raw: Raw =
            json::read(path).map_err(|error| match (near_miss::instead_of_coco(path), error) {
                (_, error @ (JsonError::NotFinite { .. } | JsonError::Instead { .. })) => {
                    CocoError::Other(error)
                }
                (Some(found), _) => CocoError::Instead { path: path.into(), found },
                (None, JsonError::Io(error)) => CocoError::Io(error),
                (None, JsonError::Form { path, source }) => CocoError::Json { path, source },
            })?;
        if raw.images.is_empty() {
            return Err(CocoError::Empty { path: path.into() });
        }
        let duplicate = |what, value| CocoError::Duplicate { path: path.into(), what, value };
        let mut index_of_id = HashMap::with_capacity(raw.images.len());
        let mut index_of_name = HashMap::with_capacity(raw.images.len());
        for (index, Object(image)) in raw.images.iter_mut().enumerate() {
            image.file_name = names::inside(&image.file_name).map_err(|reason| CocoError::Unsafe {
                path: path.into(),
                index,
                name: image.file_name.clone(),
                reason,
            })?;
        }
        for (index, Object(image)) in raw.images.iter().enumerate() {
            if index_of_id.insert(&image.id, index).is_some() {
                return Err(duplicate("id", image.id.to_string()));
            }
            if let Some(first) = index_of_name.insert(names::folded(&image.file_name), &image.file_name) {
                let (first, second) = (first.clone(), image.file_name.clone());
                return Err(match first == second {
                    true => duplicate("file_name", second),
                    false => CocoError::Twins { path: path.into(), first, second },
                });
            }
        }
        let mut captions = vec![Vec::new(); raw.images.len()];
        for (index, Object(RawAnnotation { image_id, caption })) in raw.annotations.into_iter().enumerate() {
            let orphan = || CocoError::Orphan { path: path.into(), index, image_id: image_id.to_string() };
            captions[*index_of_id.get(&image_id).ok_or_else(orphan)?].push(caption);
        }
        let items = raw.images.into_iter().zip(captions).map(|(Object(image), captions)| {
            let RawImage { id, file_name } = image;
            Item { id: id.as_json(), file_name, captions }
        });
        let items = items.collect();
        Ok(Self { items })
    }

    /// The images' ids, in the data set's order.
    pub fn ids(&self) -> Vec<String> {
        self.items.iter().map(|item| item.id.clone()).collect()
    }

    fn cut(mut self, per_image: usize, path: &Path) -> Result<Self, CocoError> {
        let few: Vec<&Item> = self.items.iter().filter(|item| item.captions.len() < per_image).collect();
        if !few.is_empty() {
            let example = |item: &&Item| format!("{} ({})", item.file_name, item.captions.len());
            let examples = few.iter().take(LISTED).map(example).collect();
            return Err(CocoError::TooFew {
                path: path.into(),
                count: few.len(),
                expected: per_image,
                examples,
            });
        }
        for item in &mut self.items {
            item.captions.truncate(per_image);
        }
        Ok(self)
    }

    /// Checks that the folder has a file for each image, and another one for each. No content is read.
    ///
    /// Hard links count as copies, which is what they mostly were: the names lead to one file if there is one name
    /// and links to it.
    pub fn check_files(&self, folder: impl AsRef<Path>) -> Result<(), CocoError> {
        let folder = folder.as_ref();
        if folder.is_file() {
            return Err(CocoError::NoFolder { path: folder.into() });
        }
        let (mut missing, mut names) = (Vec::new(), HashMap::with_capacity(self.items.len()));
        for item in &self.items {
            let found = fs_err::metadata(folder.join(&item.file_name)).ok().filter(Metadata::is_file);
            let Some(found) = found else {
                missing.push(item);
                continue;
            };
            let first = names.insert((found.dev(), found.ino()), &item.file_name);
            if let Some(first) = first.filter(|_| found.nlink() == 1) {
                let (first, second) = (first.clone(), item.file_name.clone());
                return Err(CocoError::OneFile { folder: folder.into(), first, second });
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(CocoError::MissingFiles {
            folder: folder.into(),
            count: missing.len(),
            total: self.items.len(),
            examples: missing.iter().take(LISTED).map(|item| item.file_name.clone()).collect(),
            near: near_miss::near_file(folder, &missing[0].file_name),
        })
    }
}

#[derive(Deserialize)]
struct Raw {
    images: Vec<Object<RawImage>>,
    annotations: Vec<Object<RawAnnotation>>,
}

#[derive(Deserialize)]
struct RawImage {
    id: Id,
    file_name: String,
}

#[derive(Deserialize)]
struct RawAnnotation {
    image_id: Id,
    caption: String,
}

/// An image's id: COCO has integers, other data sets have texts. As in Python, `1` and `"1"` are two ids.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Id {
    Number(i128),
    Text(String),
}

impl Id {
    fn as_json(&self) -> String {
        match self {
            Id::Number(number) => number.to_string(),
            Id::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        }
    }
}

impl Display for Id {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Id::Number(number) => number.fmt(f),
            Id::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Id;
            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or a text")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id::Number(number.into()))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
                Ok(Id::Number(number.into()))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                Ok(Id::Text(text.into()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(images: &str, annotations: &str, per_image: usize) -> Result<Captions, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = format!(r#"{{"info": {{}}, "images": [{images}], "annotations": [{annotations}]}}"#);
        fs_err::write(file.path(), json).unwrap();
        let prefix = format!("{}: ", file.path().display());
        Captions::read(file.path(), per_image).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    const IMAGES: &str = r#"{"id": 9, "file_name": "b.png", "width": 3}, {"id": 4, "file_name": "a.png"}"#;
    const ANNOTATIONS: &str = r#"{"id": 1, "image_id": 4, "caption": "one"}, {"image_id": 9, "caption": "two"},
        {"image_id": 4, "caption": "three"}, {"image_id": 9, "caption": "four"}, {"image_id": 4, "caption": "five"}"#;

    #[test]
    fn the_order_is_that_of_the_file() {
        let captions = read(IMAGES, ANNOTATIONS, 2).unwrap();
        let expected = [("b.png", ["two", "four"]), ("a.png", ["one", "three"])];
        for (item, (file_name, captions)) in captions.items.iter().zip(expected) {
            assert_eq!(
                (item.file_name.as_str(), &item.captions[..]),
                (file_name, &captions.map(String::from)[..])
            );
        }
        assert_eq!(captions.items.len(), 2);
    }

    #[test]
    fn mismatches_are_named() {
        assert_eq!(
            read(IMAGES, ANNOTATIONS, 3).unwrap_err(),
            "1 images have fewer than 3 captions, for instance b.png (2)"
        );
        let orphan = r#"{"image_id": 5, "caption": "x"}"#;
        assert_eq!(
            read(IMAGES, orphan, 1).unwrap_err(),
            "annotation 0 has image_id 5, which no entry of `images` has"
        );
        let twice = r#"{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}"#;
        assert_eq!(read(twice, "", 0).unwrap_err(), "id 1 occurs twice in `images`");
        let twice = r#"{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}"#;
        assert_eq!(read(twice, "", 0).unwrap_err(), "file_name a occurs twice in `images`");
        assert_eq!(read("", "", 0).unwrap_err(), "`images` is empty");
        assert!(read(r#"{"id": 1}"#, "", 0).unwrap_err().contains("missing field `file_name` at line 1"));
        assert!(read(r#"[1, "a"]"#, "", 0).unwrap_err().contains("expected an object"));
        assert!(
            read(r#"{"id": 1.5, "file_name": "a"}"#, "", 0).unwrap_err().contains("an integer or a text")
        );
        let nan = "found NaN at line 1, expected a finite value";
        assert_eq!(read(r#"{"id": NaN, "file_name": "a"}"#, "", 0).unwrap_err(), nan);
    }

    #[test]
    fn ids_are_numbers_or_texts() {
        let images =
            r#"{"id": "1", "file_name": "a"}, {"id": 1, "file_name": "b"}, {"id": -1, "file_name": "c"}"#;
        let of = |id: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let annotation = format!(r#"{{"image_id": {id}, "caption": "x"}}"#);
            fs_err::write(file.path(), format!(r#"{{"images": [{images}], "annotations": [{annotation}]}}"#))
                .unwrap();
            let all = Captions::read_all(file.path()).map_err(|error| error.to_string())?;
            Ok::<_, String>(all.items.into_iter().find(|item| !item.captions.is_empty()).unwrap().file_name)
        };
        assert_eq!((of("\"1\""), of("1"), of("-1")), (Ok("a".into()), Ok("b".into()), Ok("c".into())));
        let orphan = "annotation 0 has image_id \"2\", which no entry of `images` has";
        assert!(of("\"2\"").unwrap_err().ends_with(orphan));
    }

    #[test]
    fn names_stay_inside_the_folder_and_are_unique() {
        let of = |first: &str, second: &str| {
            let images =
                format!(r#"{{"id": 1, "file_name": "{first}"}}, {{"id": 2, "file_name": "{second}"}}"#);
            read(&images, "", 0)
        };
        for (name, reason) in [
            ("../b", "its path contains `..`"),
            ("a/../b", "its path contains `..`"),
            ("/b", "its path is absolute"),
            ("", "it is empty"),
            ("./", "it is empty"),
            (r"b\u0000", "it contains a zero byte"),
        ] {
            let error = of("a", name).unwrap_err();
            assert!(error.starts_with("entry 1 of `images` has the file_name "), "{error}");
            assert!(error.ends_with(&format!("which is refused: {reason}")), "{error}");
        }
        for name in ["./x/a", "x//a", "x/./a", "x/a/"] {
            assert_eq!(of("x/a", name).unwrap_err(), "file_name x/a occurs twice in `images`", "{name}");
        }
        assert!(of("x/a", "x/a..b").is_ok());
        for (first, second) in [("X/a", "x/a"), ("\u{e9}", "e\u{301}"), ("\u{c9}", "./e\u{301}")] {
            let error = of(first, second).unwrap_err();
            assert!(error.starts_with(&format!("the file_names {first:?} and ")), "{error}");
        }
    }

    #[test]
    fn missing_files_are_listed_and_counted() {
        let captions = read(IMAGES, ANNOTATIONS, 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("a.png"), "").unwrap();
        let error = captions.check_files(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("1 of 2 images are missing, for instance b.png"), "{error}");
        fs_err::write(folder.path().join("b.png"), "").unwrap();
        captions.check_files(folder.path()).unwrap();
    }

    #[test]
    fn each_image_has_a_file_of_its_own() {
        let captions = read(IMAGES, ANNOTATIONS, 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.png", "b.png"].map(|name| folder.path().join(name));
        fs_err::write(&a, "").unwrap();
        fs_err::os::unix::fs::symlink("a.png", &b).unwrap();
        let error = captions.check_files(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(r#""b.png" and "a.png" are one file, expected a file for each image"#),
            "{error}"
        );
        fs_err::remove_file(&b).unwrap();
        fs_err::hard_link(&a, &b).unwrap();
        captions.check_files(folder.path()).unwrap();
    }

    #[test]
    fn the_demo_data_can_be_read() {
        let captions = Captions::read("data/demo/captions.json", 5).unwrap();
        assert_eq!(captions.items.len(), 459);
        assert_eq!(captions.items[0].file_name, "000001.png");
    }
}
