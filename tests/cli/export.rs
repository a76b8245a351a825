//! `attrflow export`: results in the formats of others. `tests/golden/check_exports.py` loads them in Python.

use std::path::Path;

use attrflow::io::image::load_rgb;
use attrflow::io::npy::{Dtype, Npy};
use attrflow::io::tensor_file::TensorFile;
use attrflow::io::torch::TorchFile;
use attrflow::io::torch::pickle::writer::{Array, dict};

use crate::project::{DEMO, Project, files};

const PUBLISHED: [&str; 6] = [
    "fisher_info.pt",
    "influence_grin.pkl",
    "influence_pizza.pkl",
    "pretrain_loss.npy",
    "visualization_grin.jpg",
    "visualization_pizza.jpg",
];

fn names(folder: &Path) -> Vec<String> {
    files(folder).into_keys().collect()
}

#[test]
fn the_published_files_hold_the_results() {
    let project = Project::finished();
    let ran = project.attrflow(["export", "--published", "out/mscoco", "pipelines/demo.toml"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let out = project.path("out/mscoco");
    assert_eq!(names(&out), PUBLISHED);
    for name in PUBLISHED {
        let line = ran.out.lines().find(|line| line.starts_with(&format!("out/mscoco/{name}"))).unwrap();
        assert!(line.contains(" written ") && line.ends_with('B'), "{line}");
    }

    let losses = fs_err::read(project.result("pretrain_loss/pretrain_loss.npy")).unwrap();
    assert_eq!(fs_err::read(out.join("pretrain_loss.npy")).unwrap(), losses);
    let own = TensorFile::open(project.result("fisher/fisher.safetensors")).unwrap();
    let fisher = TorchFile::open(out.join("fisher_info.pt")).unwrap();
    assert_eq!(fisher.tensors().len(), own.headers().len());
    for tensor in fisher.tensors() {
        let header = own.header(&tensor.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (Dtype::F64, &header.shape));
        assert_eq!(fisher.read(tensor).unwrap(), own.bytes(header).unwrap());
    }
    for query in ["grin", "pizza"] {
        let folder = project.result("influence").join(query);
        let (npy, ranks) = (folder.join("influence.npy"), folder.join("rank.npy"));
        let (npy, ranks) = (Npy::open(npy).unwrap(), Npy::open(ranks).unwrap());
        assert_eq!((npy.dtype(), ranks.dtype()), (Dtype::F32, Dtype::I64));
        let (mut influence, mut rank) = (Vec::new(), Vec::new());
        npy.read_f32(0..6, &mut influence).unwrap();
        ranks.read_i64(0..6, &mut rank).unwrap();
        let expected = dict(&[("influence", Array::F32(&influence)), ("rank", Array::I64(&rank))]);
        assert_eq!(fs_err::read(out.join(format!("influence_{query}.pkl"))).unwrap(), expected);
        let picture = load_rgb(out.join(format!("visualization_{query}.jpg"))).unwrap();
        assert_eq!(
            picture.dimensions(),
            load_rgb(project.result("ranking").join(query).join("top.png")).unwrap().dimensions()
        );
    }
}

#[test]
fn one_table_has_all_scores() {
    let project = Project::finished();
    let export = |name: &str| project.attrflow(["export", "pipelines/demo.toml", "--table", name]);
    let ran = export("out/scores.csv");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.contains("out/scores.csv"), "{ran:?}");
    let mut table = csv::Reader::from_path(project.path("out/scores.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 12);
    for (query, rows) in ["grin", "pizza"].into_iter().zip(rows.chunks(6)) {
        let of = |file: &str| project.result("influence").join(query).join(file);
        let scores = Npy::vector(of("influence.npy")).unwrap();
        let mut order = Vec::new();
        Npy::open(of("rank.npy")).unwrap().read_i64(0..6, &mut order).unwrap();
        for (index, row) in rows.iter().enumerate() {
            assert_eq!((&row[0], &row[1]), (query, index.to_string().as_str()));
            assert_eq!(row[5].parse::<f32>().unwrap(), scores[index]);
            let rank: usize = row[7].parse().unwrap();
            assert_eq!(order[rank - 1], index as i64);
            assert_eq!(row[8].parse::<f64>().unwrap(), 20.0 * (6 - rank) as f64);
            assert!(row[3].ends_with(".png") && !row[4].is_empty(), "{row:?}");
        }
    }
    assert_eq!(export("scores.parquet").code, 0);
    assert!(fs_err::read(project.path("scores.parquet")).unwrap().starts_with(b"PAR1"));
    let ran = export("scores.xlsx");
    assert!(ran.code == 2 && ran.err.contains("scores.xlsx: expected a name that ends in"), "{ran:?}");
    assert!(!project.path("scores.xlsx").exists());
}

#[test]
fn a_whole_network_is_exported() {
    let project = Project::finished();
    let ran =
        project.attrflow(["export", "--unet", "out", "pipelines/demo.toml", "--target", "unlearn[grin]"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let out = project.path("out");
    assert_eq!(names(&out), ["unet_grin/config.json", "unet_grin/diffusion_pytorch_model.safetensors"]);
    let model = Path::new(DEMO).join("model/unet");
    let config = |folder: &Path| fs_err::read(folder.join("config.json")).unwrap();
    assert_eq!(config(&out.join("unet_grin")), config(&model));
    let file = "diffusion_pytorch_model.safetensors";
    let base = TensorFile::open(model.join(file)).unwrap();
    let changed = TensorFile::open(project.result("unlearn/grin/unlearned.safetensors")).unwrap();
    let whole = TensorFile::open(out.join("unet_grin").join(file)).unwrap();
    assert_eq!(whole.headers().len(), base.headers().len());
    let mut differ = 0;
    for header in whole.headers() {
        assert_eq!(header.dtype, Dtype::F32);
        let old = base.header(&header.name).unwrap();
        assert_eq!(header.shape, old.shape);
        let new = whole.bytes(header).unwrap();
        match changed.header(&header.name) {
            Some(changed_header) => {
                assert_eq!(new, changed.bytes(changed_header).unwrap(), "{}", header.name)
            }
            None => assert_eq!(new, base.bytes_as(old, Dtype::F32).unwrap(), "{}", header.name),
        }
        differ += usize::from(new != base.bytes_as(old, Dtype::F32).unwrap());
    }
    assert_eq!(differ, changed.headers().len());
}

#[test]
fn files_with_other_content_stay_unless_forced() {
    let project = Project::finished();
    let export = |more: &[&str]| {
        project.attrflow([&["export", "--published", "out", "pipelines/demo.toml"], more].concat())
    };
    assert_eq!(export(&[]).code, 0);
    let again = export(&[]);
    assert!(again.code == 0 && again.out.matches(" unchanged ").count() == PUBLISHED.len(), "{again:?}");
    project.write("out/influence_grin.pkl", "mine");
    fs_err::remove_file(project.path("out/fisher_info.pt")).unwrap();
    let refused = export(&[]);
    let message = "error: out/influence_grin.pkl exists with other content: --force replaces it\n";
    assert_eq!((refused.code, refused.err.as_str(), refused.out.as_str()), (1, message, ""));
    // Nothing at all was written.
    assert_eq!(names(&project.path("out")).len(), PUBLISHED.len() - 1);
    assert_eq!(fs_err::read(project.path("out/influence_grin.pkl")).unwrap(), b"mine");
    let forced = export(&["--force"]);
    let word = |name: &str| forced.out.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(word("influence_grin.pkl").contains(" replaced "), "{forced:?}");
    assert!(word("fisher_info.pt").contains(" written "), "{forced:?}");
    assert!(word("influence_pizza.pkl").contains(" unchanged "), "{forced:?}");
    assert_eq!(names(&project.path("out")), PUBLISHED);
}

#[test]
fn results_that_are_not_cached_are_named() {
    let project = Project::finished();
    let run = |arguments: &[&str]| project.attrflow([&["export"], arguments].concat());
    let ran = run(&["--published", "out", "pipelines/demo.toml", "--set", "unlearn.lr=1"]);
    let message = "error: not cached: influence[grin], influence[pizza], ranking[grin], ranking[pizza]; \
                run `attrflow run pipelines/demo.toml --set unlearn.lr=1` first\n";
    assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (1, message, ""));
    assert!(!project.path("out").exists());
    // What does not read the difference can be written.
    let ran =
        run(&["--published", "out", "pipelines/demo.toml", "--set", "unlearn.lr=1", "--target", "fisher"]);
    assert_eq!((ran.code, names(&project.path("out"))), (0, vec!["fisher_info.pt".to_owned()]), "{ran:?}");
    let ran = run(&["--unet", "out", "pipelines/demo.toml", "--target", "fisher"]);
    assert!(
        ran.code == 1 && ran.err.contains("has no stage of the kinds that can be exported: unlearn"),
        "{ran:?}"
    );
    let ran = run(&["pipelines/demo.toml"]);
    assert!(ran.code == 2 && ran.err.contains("--published"), "{ran:?}");
}
