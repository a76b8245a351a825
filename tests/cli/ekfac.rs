//! Unlearning with Kronecker factors through the program: own ones, of a LoRA, and others' in kronfluence's format.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow::io::npy::Npy;
use attrflow::io::tensor_file::TensorFile;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::project::{Project, Ran};

const STAGES: &str = r#"
config = "../configs/demo.toml"
include = ["demo.toml"]

[defaults.eigenbasis]
every = 2

[stages.basis]
kind = "eigenbasis"
params = { fisher = { epochs = 2, batch_size = 4, select = "cross-attn-kv" } }
[stages.basis.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"

[stages.factors]
kind = "ekfac"
params = { fisher = { epochs = 2, batch_size = 4, select = "cross-attn-kv" } }
[stages.factors.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
eigenbasis = "basis.eigenbasis"

[stages.projected]
kind = "gradients"
params = { loss = "${loss}", projection = "eigen", projection_dim = 256 }
[stages.projected.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
eigenbasis = "basis.eigenbasis"

[stages.diagonal]
kind = "fisher"
params = { epochs = 2, batch_size = 4, select = "cross-attn-kv" }
[stages.diagonal.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"

[stages.forget]
kind = "unlearn"
each = { query = "${queries}" }
params = { grad_accum_steps = 2, batch_size = 4, rise = 0.02, curvature = "ekfac" }
[stages.forget.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
ekfac = "factors.ekfac"
latents = "generate.latents"
text_embeddings = "generate.text_embeddings"

[stages.score]
kind = "influence"
each = { query = "${queries}" }
[stages.score.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
weights = "forget.weights"
pretrain_loss = "pretrain_loss.losses"
"#;

/// The same step with factors of a folder, scaled to the diagonal.
const PUBLISHED: &str = r#"
[stages.published]
kind = "unlearn"
each = { query = "${queries}" }
params = { grad_accum_steps = 2, batch_size = 4, rise = 0.02, curvature = "ekfac" }
[stages.published.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
ekfac = "../kronfluence"
fisher = "diagonal.fisher"
latents = "generate.latents"
text_embeddings = "generate.text_embeddings"
"#;

const RUN: [&str; 4] = ["run", "pipelines/ekfac.toml", "--target", "score"];

fn project(stages: &str) -> Project {
    let project = Project::new(6);
    project.write("pipelines/ekfac.toml", stages);
    fs_err::create_dir(project.path("kronfluence")).unwrap();
    project
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(file: &Path) -> Tensors {
    let bytes = fs_err::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, view): (String, TensorView<'_>)| {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
        (name, (view.shape().to_vec(), values.collect()))
    };
    tensors.tensors().into_iter().map(of).collect()
}

fn write(file: &Path, tensors: &Tensors) {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| (*name, TensorView::new(Dtype::F32, (*shape).clone(), data).unwrap()));
    fs_err::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Factors as kronfluence keeps them: a file a kind, every layer with its own eigenvectors, eigenvalues summed over rows. Their
/// unit is another: the losses were divided by 7.
fn publish(own: &Tensors, folder: &Path) {
    fs_err::create_dir_all(folder).unwrap();
    let layers: Vec<&str> = own.keys().filter_map(|name| name.strip_suffix(".lambda_matrix")).collect();
    for kind in ["activation_eigenvectors", "gradient_eigenvectors", "lambda_matrix"] {
        let of = |layer: &&str| {
            let shared = format!("text_embeddings.{kind}");
            let (shape, values) = own.get(&format!("{layer}.{kind}")).unwrap_or_else(|| &own[&shared]);
            let scale = if kind == "lambda_matrix" { 24.0 / 49.0 } else { 1.0 };
            ((*layer).to_owned(), (shape.clone(), values.iter().map(|x| x * scale).collect()))
        };
        write(&folder.join(format!("{kind}.safetensors")), &layers.iter().map(of).collect());
    }
    let counts = layers.iter().map(|layer| ((*layer).to_owned(), (vec![1], vec![24.0]))).collect();
    write(&folder.join("num_lambda_processed.safetensors"), &counts);
}

fn fails(project: &Project, target: &str, parts: &[&str]) {
    let ran = project.attrflow(["run", "pipelines/ekfac.toml", "--target", target]);
    refused(&ran, parts);
}

fn refused(ran: &Ran, parts: &[&str]) {
    assert_ne!(ran.code, 0, "{ran:?}");
    parts.iter().for_each(|part| assert!(ran.err.contains(part), "{part}: {}", ran.err));
}

#[test]
fn a_step_with_own_factors_and_with_others() {
    let project = project(&[STAGES, PUBLISHED].concat());
    let ran = project.attrflow([&RUN[..], &["-vv"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let factors = project.path("results/ekfac/factors/ekfac.safetensors");
    let file = TensorFile::open(&factors).unwrap();
    let difference: f64 = file.metadata("trace_difference").unwrap().parse().unwrap();
    assert!(difference < 1e-5 && file.metadata("images") == Some("6"), "{difference}");
    let own = read(&factors);
    let (inputs, (shape, _)) = (64, &own["text_embeddings.activation_eigenvectors"]);
    assert_eq!(shape, &[inputs, inputs], "once for all keys and values");
    assert!(own.values().flat_map(|(_, values)| values).all(|value| value.is_finite()));
    let query = "grin";
    let weights = project.path(format!("results/ekfac/forget/{query}/unlearned.safetensors"));
    let number = |key: &str| {
        let file = TensorFile::open(&weights).unwrap();
        file.metadata(key).unwrap_or_else(|| panic!("{key}")).parse::<f64>().unwrap()
    };
    let (predicted, found) = (number("query_rise_predicted"), number("query_rise"));
    // Of eight rows, the gradient is noisy.
    assert!((0.1..3.0).contains(&(found / predicted)), "{predicted} {found}");
    // Damping makes it less than what the step would cost without: lr / 2 times what it gains to first order.
    let form = number("quadratic_form");
    let lr = number("lr");
    assert!(form > 0.0 && form < 0.5 * lr * predicted, "{form} {lr} {predicted}");

    publish(&own, &project.path("kronfluence"));
    let ran = project.attrflow(["run", "pipelines/ekfac.toml", "--target", "published", "-vv"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // The traces of the same rows are equal, apart from the factor.
    assert!(ran.err.contains("the trace of the Fisher information is 4.9000e1 times the sum"), "{}", ran.err);
    assert!(
        ran.err.contains("by layer 4.9000e1 to 4.9000e1 times: the eigenvalues are multiplied by it"),
        "{}",
        ran.err
    );
    // A factor of the eigenvalues is one of the learning rate: the same only if they were scaled.
    let other =
        TensorFile::open(project.path(format!("results/ekfac/published/{query}/unlearned.safetensors")))
            .unwrap();
    let scaled = other.metadata("lr").unwrap().parse::<f64>().unwrap();
    assert!((scaled / lr - 1.0).abs() < 1e-4, "{scaled} {lr}");
    let published = read(&project.path(format!("results/ekfac/published/{query}/unlearned.safetensors")));
    for (name, (_, values)) in read(&weights) {
        let far = values.iter().zip(&published[&name].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-6, "{name}: {far}");
    }

    // The same basis serves projections: as many numbers of each matrix.
    let ran = project.attrflow(["run", "pipelines/ekfac.toml", "--target", "projected"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let gradients = Npy::open(project.path("results/ekfac/projected/gradients.npy")).unwrap();
    let layers = own.keys().filter(|name| name.ends_with(".lambda_matrix")).count();
    assert!(gradients.rows() == 12 && gradients.shape()[1].is_multiple_of(layers), "{:?}", gradients.shape());
    assert!(gradients.shape()[1] > 128, "{:?}", gradients.shape());

    // More rows of eigenvalues recompute no eigenvectors.
    project.edit(
        "pipelines/ekfac.toml",
        "kind = \"ekfac\"\nparams = { fisher = { epochs = 2",
        "kind = \"ekfac\"\nparams = { fisher = { epochs = 3",
    );
    let ran = project.attrflow([&RUN[..], &["--json"]].concat());
    assert_eq!(ran.computed(), ["factors", "forget[grin]", "forget[pizza]", "score[grin]", "score[pizza]"]);
}

#[test]
fn factors_that_do_not_fit_are_named() {
    let project = project(&[STAGES, PUBLISHED].concat());
    let edit = |from: &str, to: &str, target: &str, parts: &[&str]| {
        let good = fs_err::read(project.path("pipelines/ekfac.toml")).unwrap();
        project.edit("pipelines/ekfac.toml", from, to);
        fails(&project, target, parts);
        project.write("pipelines/ekfac.toml", good);
    };
    let needs = "the input `ekfac` is not connected, which the `curvature` \"ekfac\" needs: connect the output of a stage of the kind `ekfac`";
    edit("ekfac = \"factors.ekfac\"\n", "", "forget", &[needs]);
    let unused = "the input `ekfac` is connected, which `curvature = \"diagonal\"` does not use";
    edit("curvature = \"ekfac\" }\n[stages.forget.inputs]", "}\n[stages.forget.inputs]", "forget", &[unused]);
    let unused = "the input `eigenbasis` is connected, which `projection` does not use";
    edit("projection = \"eigen\", ", "", "projected", &[unused]);
    let needs = "`projection = \"eigen\"` needs the input `eigenbasis`";
    edit(
        "eigenbasis = \"basis.eigenbasis\"\n\n[stages.diagonal]",
        "\n[stages.diagonal]",
        "projected",
        &[needs],
    );
    let more_dims = "projection_dim = 256, select = [\"attn2\"]";
    edit(
        "projection_dim = 256",
        more_dims,
        "projected",
        &["attn2.to_out.0.bias`, which is no weight of a linear layer"],
    );
    // What does not fit is said before anything has run.
    let more = |select: &str| {
        format!("rise = 0.02, curvature = \"ekfac\", select = {select} }}\n[stages.forget.inputs]")
    };
    let this = "rise = 0.02, curvature = \"ekfac\" }\n[stages.forget.inputs]";
    let wide = |port: &str| {
        let wide = "`select` is \"cross-attn\", and that of the stage on the input";
        format!("{wide} `{port}` is \"cross-attn-kv\": it has to hold all weights that are chosen here")
    };
    edit(this, &more("\"cross-attn\""), "latents", &[&wide("ekfac")]);
    let diagonal = "curvature = \"diagonal\", select = \"cross-attn\" }\n[stages.forget.inputs]";
    let good = fs_err::read(project.path("pipelines/ekfac.toml")).unwrap();
    project.edit("pipelines/ekfac.toml", "ekfac = \"factors.ekfac\"\n", "fisher = \"diagonal.fisher\"\n");
    project.edit("pipelines/ekfac.toml", &this[13..], diagonal);
    fails(&project, "latents", &[&wide("fisher")]);
    project.write("pipelines/ekfac.toml", good);
    let factors = |select: &str| format!("select = \"{select}\" }} }}\n[stages.factors");
    edit(&factors("cross-attn-kv"), &factors("cross-attn"), "latents", &[&wide("eigenbasis")]);
    edit(
        "[stages.factors.inputs]\nunet = \"data.files/model/unet\"",
        "[stages.factors.inputs]\nunet = \"../data/demo/model/unet\"",
        "latents",
        &[
            "and of the stage `basis` on the input `eigenbasis` it is `data.files/model/unet`: both stages must",
        ],
    );
    let ran =
        project.attrflow(["run", "pipelines/ekfac.toml", "--target", "factors", "--target", "diagonal"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // Weights that the factors do not have, and of no linear layer.
    edit(
        this,
        &more("[\"attn2\"]"),
        "forget",
        &["attn2.to_out.0.activation_eigenvectors`, which `select` needs: compute the factors with"],
    );
    edit(
        this,
        &more("[\"conv_in\"]"),
        "forget",
        &["2 weights of no linear layer, for instance `conv_in.bias`, which EK-FAC does not cover"],
    );
    let convolutions = "chooses no weight of a linear layer of ";
    edit(
        "batch_size = 4, select = \"cross-attn-kv\" } }\n[stages.basis",
        "batch_size = 4, select = [\"conv_in\"] } }\n[stages.basis",
        "basis",
        &[convolutions],
    );

    // Others' factors: of another network, without the information that they are scaled to, not finite.
    let own = read(&project.path("results/ekfac/factors/ekfac.safetensors"));
    let folder = project.path("kronfluence");
    publish(&own, &folder);
    let no_scale = "the unit of others' factors is unknown: connect `fisher`, to whose trace they are scaled";
    edit("fisher = \"diagonal.fisher\"\n", "", "published", &[no_scale, "kronfluence"]);
    let damaged = |kind: &str, damage: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let file = folder.join(format!("{kind}.safetensors"));
        let good = fs_err::read(&file).unwrap();
        let mut tensors = read(&file);
        damage(&mut tensors);
        write(&file, &tensors);
        fails(&project, "published", parts);
        fs_err::write(&file, good).unwrap();
    };
    damaged(
        "gradient_eigenvectors",
        &|all| {
            let (shape, values) = all.values_mut().next().unwrap();
            (*shape, *values) = (vec![2, 2], vec![1.0, 0.0, 0.0, 1.0]);
        },
        &[
            "gradient_eigenvectors.safetensors",
            "has the shape [2, 2], expected [",
            "the factors are of another network",
        ],
    );
    damaged(
        "lambda_matrix",
        &|all| drop(all.pop_first()),
        &["lambda_matrix.safetensors: no `", "which `select` needs"],
    );
    damaged(
        "lambda_matrix",
        &|all| all.values_mut().for_each(|(_, values)| values[5] = f32::NAN),
        &["kronfluence", "eigenvalues of `"],
    );
    damaged(
        "num_lambda_processed",
        &|all| drop(all.pop_first()),
        &[
            "num_lambda_processed.safetensors: no `",
            "expected the number of rows that its eigenvalues are a sum over",
        ],
    );
    damaged(
        "gradient_eigenvectors",
        &|all| all.values_mut().for_each(|(_, values)| values.fill(0.5)),
        &["kronfluence", "are not orthogonal"],
    );
    damaged(
        "num_lambda_processed",
        &|all| all.values_mut().for_each(|(_, values)| values[0] = 0.0),
        &["is 0, expected a number of rows above 0"],
    );
}

/// The maps of low rank are linear layers too: the first reads the texts, the second has inputs of its own.
#[test]
fn factors_of_a_lora() {
    const LORA: &str = r#"
[stages.tune]
kind = "train"
params = { init = "checkpoint", steps = 2, batch_size = 4, lr = 1e-2, lr_warmup_steps = 1, lora = { rank = 2, alpha = 4.0, targets = "cross-attn" } }
[stages.tune.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
moments = "latents.moments"
text_embeddings = "latents.text_embeddings"
captions = "data.files/captions.json"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"
"#;
    let (before, _) = STAGES.split_once("[stages.projected]").unwrap();
    let (_, rest) = STAGES.split_once("[stages.diagonal]").unwrap();
    let forget = rest.split_once("[stages.forget]").unwrap().1.split_once("[stages.score]").unwrap().0;
    let lora = [before, "[stages.forget]", forget, LORA]
        .concat()
        .replace("cross-attn-kv", "lora")
        .replace("curvature = \"ekfac\" }", "curvature = \"ekfac\", select = \"lora\" }");
    let connect = |stages: &str, stage: &str| {
        let head = format!("[stages.{stage}.inputs]\n");
        stages.replace(&head, &format!("{head}lora = \"tune.lora\"\n"))
    };
    let stages = ["basis", "factors", "forget"].iter().fold(lora, |stages, stage| connect(&stages, stage));
    let project = project(&stages);
    project.edit("configs/demo.toml", "[latents]\n", "[latents]\nmoments = true\n");
    let ran = project.attrflow(["run", "pipelines/ekfac.toml", "--target", "forget"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let own = read(&project.path("results/ekfac/factors/ekfac.safetensors"));
    let vectors = |end: &str| own.keys().filter(|name| name.ends_with(end)).count();
    let shared = own.keys().filter(|name| name.contains("to_k.lora_A") || name.contains("to_v.lora_A"));
    assert_eq!(shared.filter(|name| name.ends_with("activation_eigenvectors")).count(), 0);
    assert_eq!(own["text_embeddings.activation_eigenvectors"].0, [64, 64]);
    let layers = vectors(".lambda_matrix");
    assert_eq!(vectors(".gradient_eigenvectors"), layers);
    // Queries, keys, values and outputs: only the first maps of keys and values share the texts.
    assert_eq!(vectors(".activation_eigenvectors"), layers - layers / 4 + 1);
    let changed = TensorFile::open(project.path("results/ekfac/forget/grin/unlearned.safetensors")).unwrap();
    assert_eq!(changed.headers().len(), layers);
}
