//! Identity: what the fingerprint hashes, and how changes are reported.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow_engine::identity::digest::{Digest, Listed, Listing};
use attrflow_engine::identity::recipe::{Numerics, Recipe, changes};
use attrflow_engine::store::Store;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn digest(text: &str) -> Digest {
    blake3::hash(text.as_bytes()).into()
}

fn recipe() -> Recipe {
    Recipe {
        kind: "loss".into(),
        version: 3,
        params: json!({ "draws": { "seed": 7, "rate": 0.5 }, "names": ["a", "b"], "none": null, "flip": true }),
        inputs: BTreeMap::from([("latents".into(), digest("l")), ("unet".into(), digest("u"))]),
        numerics: Some(Numerics { libtorch: "2.11.0+cpu".into(), device: "cpu".into(), deterministic: true }),
        unit: Some(json!({ "rows": [0, 32] })),
    }
}

fn with(params: Json) -> Recipe {
    Recipe { params, ..recipe() }
}

/// A new value here invalidates every cache: it needs a new `FORMAT`.
#[test]
fn the_fingerprint_is_pinned() {
    assert_eq!(
        recipe().fingerprint().to_string(),
        "9d23ea0fbab2f9bc99f230b88111825383fa650075b82cd515fe900216354047"
    );
}

#[test]
fn the_fields_in_the_order_of_the_walk() {
    let lines: Vec<String> =
        recipe().fields().iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let expected = r#"
format = 2
kind = "loss"
version = 3
params.draws.rate = 0.5
params.draws.seed = 7
params.flip = true
params.names.0 = "a"
params.names.1 = "b"
params.none = none
inputs.latents = LLLLLLLL
inputs.unet = UUUUUUUU
numerics.libtorch = "2.11.0+cpu"
numerics.device = "cpu"
numerics.deterministic = true
unit.rows.0 = 0
unit.rows.1 = 32"#;
    let expected =
        expected.replace("LLLLLLLL", &digest("l").short()).replace("UUUUUUUU", &digest("u").short());
    assert_eq!(lines, expected.trim_start().lines().collect::<Vec<_>>());
}

/// One edit of every field; each must change the fingerprint, and be the only reported change.
#[test]
fn every_field_is_hashed() {
    type Edit = (&'static str, fn(&mut Recipe));
    fn numerics(recipe: &mut Recipe) -> &mut Numerics {
        recipe.numerics.as_mut().unwrap()
    }
    let edits: &[Edit] = &[
        ("kind", |r| r.kind = "fisher".into()),
        ("version", |r| r.version = 4),
        ("params.draws.rate", |r| r.params["draws"]["rate"] = json!(0.25)),
        ("params.draws.seed", |r| r.params["draws"]["seed"] = json!(8)),
        ("params.flip", |r| r.params["flip"] = json!(false)),
        ("params.names.0", |r| r.params["names"][0] = json!("c")),
        ("params.names.1", |r| r.params["names"][1] = json!("c")),
        ("params.none", |r| r.params["none"] = json!(1)),
        ("inputs.latents", |r| *r.inputs.get_mut("latents").unwrap() = digest("x")),
        ("inputs.unet", |r| *r.inputs.get_mut("unet").unwrap() = digest("x")),
        ("numerics.libtorch", |r| numerics(r).libtorch = "2".into()),
        ("numerics.device", |r| numerics(r).device = "cuda".into()),
        ("numerics.deterministic", |r| numerics(r).deterministic = false),
        ("unit.rows.0", |r| r.unit = Some(json!({ "rows": [1, 32] }))),
        ("unit.rows.1", |r| r.unit = Some(json!({ "rows": [0, 33] }))),
    ];
    let old = recipe();
    let names: Vec<String> = old.fields().into_iter().map(|(name, _)| name).collect();
    let edited: Vec<&str> = edits.iter().map(|(field, _)| *field).collect();
    assert_eq!(names[1..], edited, "a field without an edit here");
    let mut seen = vec![old.fingerprint()];
    for (field, edit) in edits {
        let mut new = recipe();
        edit(&mut new);
        let reported: Vec<String> = changes(&old, &new).into_iter().map(|change| change.field).collect();
        assert_eq!(reported, [*field]);
        assert!(!seen.contains(&new.fingerprint()), "`{field}` is not hashed");
        seen.push(new.fingerprint());
    }
}

#[test]
fn absence_is_hashed_too() {
    let old = recipe();
    let mut fewer_inputs = recipe();
    fewer_inputs.inputs.remove("unet");
    let mut moved_input = recipe();
    let unet = moved_input.inputs.remove("unet").unwrap();
    moved_input.inputs.insert("vae".into(), unet);
    let others = [
        Recipe { numerics: None, ..recipe() },
        Recipe { unit: None, ..recipe() },
        Recipe { unit: Some(json!(null)), kind: "x".into(), ..recipe() },
        fewer_inputs,
        moved_input,
    ];
    for other in others {
        assert_ne!(other.fingerprint(), old.fingerprint());
        assert!(!changes(&old, &other).is_empty());
    }
}

#[test]
fn the_text_of_changes() {
    let old = with(json!({ "seed": 1, "gone": [1, 2], "steps": 10, "rate": 1 }));
    let mut new = with(json!({ "seed": 1, "new": {}, "steps": 20, "rate": 1.0 }));
    new.kind = "other".into();
    new.inputs.insert("latents".into(), digest("new"));
    let reported: Vec<String> = changes(&old, &new).iter().map(ToString::to_string).collect();
    let expected = [
        "kind: \"loss\" -> \"other\"".to_owned(),
        "params.new: absent -> {}".to_owned(),
        "params.rate: 1 -> 1.0".to_owned(),
        "params.steps: 10 -> 20".to_owned(),
        format!("inputs.latents: {} -> {}", digest("l").short(), digest("new").short()),
        "params.gone.0: 1 -> absent".to_owned(),
        "params.gone.1: 2 -> absent".to_owned(),
    ];
    assert_eq!(reported, expected);
    assert_eq!(changes(&old, &old), []);
}

/// Pairs that a careless encoding would confuse.
#[test]
fn near_misses() {
    let pairs = [
        (json!({ "a": 1, "b": 2 }), json!({ "a": { "b": 2 } })),
        (json!({ "a": 1, "b": 2 }), json!({ "a": { "1": { "b": 2 } } })),
        (json!({ "a": { "b": 1 }, "c": 2 }), json!({ "a": { "b": 1, "c": 2 } })),
        (json!({ "a": [1], "b": [2] }), json!({ "a": [1, 2] })),
        (json!({ "a": [[1], [2]] }), json!({ "a": [[1, 2]] })),
        (json!({ "a": [1, 2] }), json!({ "a": { "0": 1, "1": 2 } })),
        (json!({ "a.b": 1 }), json!({ "a": { "b": 1 } })),
        (json!({ "a": "b" }), json!({ "ab": "" })),
        (json!({ "": "ab" }), json!({ "a": "b" })),
        (json!(1), json!(1.0)),
        (json!(0.0), json!(-0.0)),
        (json!(1), json!("1")),
        (json!(1), json!(true)),
        (json!(0), json!(false)),
        (json!(-1), json!(u64::MAX)),
        (json!("none"), json!(null)),
        (json!(""), json!(null)),
        (json!([]), json!({})),
        (json!([]), json!(null)),
        (json!({}), json!(null)),
        (json!([]), json!([[]])),
        (json!([]), json!("[]")),
        (json!({}), json!("{}")),
        (json!([null]), json!([])),
        (json!({ "a": null }), json!({})),
    ];
    for (one, two) in pairs {
        let (old, new) = (with(one.clone()), with(two.clone()));
        assert_ne!(old.fingerprint(), new.fingerprint(), "{one} and {two}");
        assert!(!changes(&old, &new).is_empty(), "no change is reported between {one} and {two}");
        assert!(!changes(&new, &old).is_empty(), "no change is reported between {two} and {one}");
        let (old, new) = (Recipe { unit: Some(one), ..recipe() }, Recipe { unit: Some(two), ..recipe() });
        assert_ne!(old.fingerprint(), new.fingerprint(), "as units");
    }
}

/// So few leaves and keys that two values are often similar.
fn any_json() -> impl Strategy<Value = Json> {
    let leaves =
        [json!(null), json!(true), json!(0), json!(1), json!(1.0), json!(-0.0), json!(0.0), json!("1")];
    let leaf = prop_oneof![
        4 => prop::sample::select(leaves.to_vec()),
        1 => any::<i64>().prop_map(Json::from),
        1 => any::<f64>().prop_map(Json::from),
        1 => "[ab0.{}\\[\\]\"\\\\]{0,3}".prop_map(Json::from),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        let key = prop::sample::select(vec!["", "0", "a", "a.0", "\"a"]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::btree_map(key, inner, 0..3)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

/// Equality by type and bits: `1` is not `1.0`, and `0.0` is not `-0.0`.
fn same(one: &Json, two: &Json) -> bool {
    serde_json::to_string(one).unwrap() == serde_json::to_string(two).unwrap()
}

/// The same value with every map filled in the opposite order.
fn reversed(value: &Json) -> Json {
    match value {
        Json::Object(map) => {
            Json::Object(map.iter().rev().map(|(key, item)| (key.clone(), reversed(item))).collect())
        }
        Json::Array(items) => items.iter().map(reversed).collect(),
        other => other.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn different_params_have_different_fingerprints(one in any_json(), two in any_json()) {
        let (old, new) = (with(one.clone()), with(two.clone()));
        prop_assert_eq!(old.fingerprint() == new.fingerprint(), same(&one, &two));
        prop_assert_eq!(changes(&old, &new).is_empty(), same(&one, &two), "{:?}", changes(&old, &new));
    }

    #[test]
    fn a_value_may_not_move(one in any_json(), two in any_json()) {
        prop_assume!(!same(&one, &two));
        let (a, b) = (with(json!({ "a": one, "b": two })), with(json!({ "a": two, "b": one })));
        prop_assert_ne!(a.fingerprint(), b.fingerprint());
        let as_unit = |unit: &Json, params: &Json| Recipe { unit: Some(unit.clone()), ..with(params.clone()) };
        prop_assert_ne!(as_unit(&one, &two).fingerprint(), as_unit(&two, &one).fingerprint());
    }

    #[test]
    fn the_order_of_keys_is_not_hashed(value in any_json()) {
        prop_assert_eq!(with(value.clone()).fingerprint(), with(reversed(&value)).fingerprint());
    }

    #[test]
    fn a_recipe_survives_its_file(value in any_json()) {
        let recipe = with(value);
        let text = serde_json::to_vec_pretty(&recipe).unwrap();
        let read: Recipe = serde_json::from_slice(&text).unwrap();
        prop_assert_eq!(read.fingerprint(), recipe.fingerprint());
    }
}

fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Digest) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs_err::create_dir(&root).unwrap();
    for (name, text) in files {
        fs_err::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs_err::write(root.join(name), text).unwrap();
    }
    let digest = Store::open(&folder.path().join("cache")).unwrap().source(&root).unwrap();
    (folder, digest)
}

#[test]
fn folders() {
    let same = [("a", "1"), ("b/c", "2"), ("b.x", "3")];
    let (kept, digest) = folder(&same);
    assert_eq!(digest, folder(&[same[2], same[1], same[0]]).1, "the order that files are made in is hashed");
    fs_err::create_dir(kept.path().join("root/empty")).unwrap();
    let store = Store::open(&kept.path().join("cache")).unwrap();
    assert_eq!(store.source(&kept.path().join("root")).unwrap(), digest, "an empty folder is hashed");
    let others: &[&[(&str, &str)]] = &[
        &[("a", "1"), ("b/c", "2"), ("b.x", "4")],
        &[("a", "1"), ("b/c", "2"), ("b.y", "3")],
        &[("a", "1"), ("b/c", "2")],
        &[("a", "1"), ("b/c", "3"), ("b.x", "2")],
        &[("a", "1"), ("b/c", "2"), ("b.x", "3"), ("d", "")],
        &[("a", "1"), ("bc", "2"), ("b.x", "3")],
        &[],
    ];
    for other in others {
        assert_ne!(folder(other).1, digest, "{other:?}");
    }
    let link = kept.path().join("root/link");
    std::os::unix::fs::symlink(kept.path().join("root/a"), link).unwrap();
    let linked = store.source(&kept.path().join("root")).unwrap();
    assert_eq!(linked, folder(&[same[0], same[1], same[2], ("link", "1")]).1, "a link is what it leads to");
}

fn listing(files: &[(&str, &str)]) -> Listing {
    let listed = |(path, text): &(&str, &str)| Listed {
        path: (*path).to_owned(),
        size: text.len() as u64,
        digest: digest(text),
    };
    Listing(files.iter().map(listed).collect())
}

#[test]
fn digests_below_a_folder() {
    let whole = listing(&[("a/b/c", "1"), ("a/b/d", "2"), ("ab", "3")]);
    assert_eq!(whole.sub("ab"), Some(digest("3")));
    assert_eq!(whole.sub("a/b/c"), Some(digest("1")));
    assert_eq!(whole.sub("a/b"), Some(listing(&[("c", "1"), ("d", "2")]).digest()));
    assert_eq!(whole.sub("a"), Some(listing(&[("b/c", "1"), ("b/d", "2")]).digest()));
    for nothing in ["b", "a/", "a/b/", "a/bc", "", "/", "a/b/c/d"] {
        assert_eq!(whole.sub(nothing), None, "{nothing:?}");
    }
    let alone = folder(&[("c", "1"), ("d", "2")]).1;
    assert_eq!(whole.sub("a/b"), Some(alone), "the digest below is that of the folder alone");
    assert_eq!(whole.size(), 3);
    // The path's length precedes it, so that a digest cannot be mistaken for the end of a name.
    assert_ne!(listing(&[("a", "1"), ("b", "2")]).digest(), listing(&[("b", "1"), ("a", "2")]).digest());
}

#[test]
fn digests_are_written_in_one_form() {
    let hex = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    let empty = tempfile::NamedTempFile::new().unwrap();
    let digest = Digest::of_file(empty.path()).unwrap();
    assert_eq!(digest.to_string(), hex, "BLAKE3 of nothing");
    assert_eq!(digest.short(), "af1349b9");
    assert_eq!(hex.parse::<Digest>(), Ok(digest));
    assert_eq!(serde_json::to_value(digest).unwrap(), json!(hex));
    let error = "af13".parse::<Digest>().unwrap_err();
    assert_eq!(error, "`af13` is not a digest: expected 64 hexadecimal digits in lower case");
    assert!(hex.to_uppercase().parse::<Digest>().is_err());
    let missing = Digest::of_file(Path::new("nowhere/at all")).unwrap_err().to_string();
    assert!(missing.contains("`nowhere/at all`: No such file"), "{missing}");
}
