//! The text of a pipeline and its config for one's own data. Both say every choice that changes numbers.

use std::path::{Path, PathBuf};

use super::places::Origin;

/// What is attributed.
pub(super) struct Query {
    pub name: String,
    pub caption: String,
    /// None for a picture that is drawn.
    pub picture: Option<PathBuf>,
}

/// What the two files say.
pub(super) struct Project {
    pub name: String,
    pub images: Origin,
    pub model: Origin,
    pub config: Option<PathBuf>,
    pub lora: Option<PathBuf>,
    /// Whether it changes the UNet, and the text encoder.
    pub lora_unet: bool,
    pub lora_text: bool,
    pub queries: Vec<Query>,
    pub pixels: u32,
    /// Whether the model has two text encoders, and encodes the empty text.
    pub sdxl: bool,
    pub encodes_empty: bool,
    /// Images with a caption, if they can be counted.
    pub count: Option<usize>,
    pub captions: usize,
    /// The form of the images, if it was given.
    pub form: Option<&'static str>,
    /// Whether images without a caption are left out.
    pub skip: bool,
    /// Whether images are turned as their EXIF orientation says.
    pub upright: bool,
    pub snr_gamma: Option<f64>,
    pub noise_offset: Option<f64>,
}

/// The files of a model on the Hub: what is read of its folder.
const MODEL: [&str; 9] = [
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer",
    "scheduler",
];

/// What is read besides of one with two text encoders.
const SECOND: [&str; 3] = ["text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2"];

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A path as the files in `pipelines/` and `configs/` write it.
fn path(path: &Path) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    quoted(
        &if path.is_absolute() { path.to_path_buf() } else { Path::new("..").join(path) }.to_string_lossy(),
    )
}

impl Project {
    /// Whether the queries are pictures that exist.
    fn has_pictures(&self) -> bool {
        self.queries.iter().any(|query| query.picture.is_some())
    }

    /// The selection of weights, and why.
    fn select(&self) -> (&'static str, &'static str) {
        match self.lora_unet {
            true => ("lora", "The maps of the LoRA: what the training on these images has changed."),
            false => ("cross-attn-kv", "Keys and values of the cross attention, as published."),
        }
    }
}

/// The config: hyperparameters, each with a comment.
pub(super) fn config(project: &Project) -> String {
    let Project { name, pixels, captions, .. } = project;
    // A set that is not there yet is taken for a large one.
    let count = project.count.unwrap_or(1000);
    let (select, why) = project.select();
    let mut text = format!(
        "# The parameters of pipelines/{name}.toml. Each can be overridden for one run: --set loss.time_samples=5\n\
         # `attrflow kinds KIND` explains each key; one that is not below has to be passed on in the pipeline too.\n\n\
         # What is attributed. `name` is what the results are called.\n"
    );
    for query in &project.queries {
        text +=
            &format!("[[queries]]\nname = {}\ncaption = {}\n", quoted(&query.name), quoted(&query.caption));
        text += &match &query.picture {
            Some(picture) => format!("image = {}\n\n", path(picture)),
            None => "seed = 0\n\n".to_owned(),
        };
    }
    if project.has_pictures() {
        text += "[captions]\n# `a1111` takes LoRA tags, weights and brackets out of the captions of pictures; `plain` reads them as they stand.\n\
                 prompt_syntax = \"plain\"\n\n";
    }
    let form = project.form.map_or(String::new(), |form| format!("form = \"{form}\"\n"));
    let missing = if project.skip { "skip" } else { "refuse" };
    let orientation = if project.upright { "apply" } else { "ignore" };
    // Enough rows that the mean is steady on a small set, and one epoch on a large one.
    let epochs = 1000usize.div_ceil(count).max(1);
    text += &format!(
        "[data]\n{form}# Images without a caption: `refuse`, `skip`, or `fill` with the text `caption`.\nmissing = \"{missing}\"\n\n\
         [latents]\n# Height and width that images are resized to: what the model was trained with.\npixels = {pixels}\n\
         # The number of captions per image that are embedded.\ncaptions = {captions}\n\
         # What is done with EXIF orientations: `apply` turns the image, `ignore` does not, as kohya's scripts do it.\n\
         orientation = \"{orientation}\"\n\
         # Transparent pixels: `drop` takes their colour without alpha, `white` blends them with white.\ntransparency = \"drop\"\n\
         # The latent of an image: a `sample` of the autoencoder's posterior, as in training, or its `mode`.\nposterior = \"sample\"\n\n"
    );
    let gamma = project
        .snr_gamma
        .map_or("# snr_gamma = 5.0\n".to_owned(), |gamma| format!("snr_gamma = {gamma:?}\n"));
    let offset = project.noise_offset.unwrap_or(0.0);
    text += &format!(
        "[loss]\n# Timesteps per image; more make the scores steadier, at proportional cost.\ntime_samples = 10\ncaptions = 1\n\
         noise = \"per_image\"\n\n\
         # What the model was trained to minimise, beyond what its scheduler says.\n[loss.objective]\n{gamma}noise_offset = {offset:?}\n\n\
         [fisher]\n# Rounds through the images, each and its mirror image with one random timestep.\nepochs = {epochs}\n\
         batch_size = 32\n# {why}\nselect = \"{select}\"\n\n"
    );
    if !project.has_pictures() {
        // The default of diffusers' pipelines.
        let scale = if project.sdxl { 5.0 } else { 7.5 };
        text += &format!("[generate]\nsteps = 50\nguidance_scale = {scale:?}\n\n");
    }
    text += &format!(
        "[unlearn]\n# How much the step should raise the query's own loss, as a share of it; the learning rate follows.\nrise = 0.2\n\
         # Added to the Fisher information as a share of its mean, where it can be zero.\nrelative_damping = {damping}\n\
         grad_accum_steps = 10\nbatch_size = 80\nselect = \"{select}\"\n\n\
         [ranking]\n# How many of the most influential images the table lists and the picture shows.\nrows = {rows}\n\
         images_shown = {shown}\n\n\
         # How to compute. Nothing here is hashed, so no change runs a stage again.\n[run]\ndevice = \"auto\"\n",
        damping = if project.lora_unet { "0.01" } else { "1e-6" },
        rows = count.min(100),
        shown = count.min(10),
    );
    text
}

/// The pipeline: stages and how they hang together.
pub(super) fn pipeline(project: &Project) -> String {
    let Project { name, .. } = project;
    let mut text = format!(
        "# Which of the images in {} made the model draw these pictures?\n\
         # The parameters of the stages are in the config; `${{a.b}}` refers to it. `attrflow kinds KIND` explains a kind.\n\n\
         config = \"../configs/{name}.toml\"\n\n",
        project.images.written()
    );
    let mut downloads = Vec::new();
    let images = match &project.images {
        Origin::Path(images) => path(images),
        Origin::Hub(address) => {
            // A file keeps its name, which tells its form.
            let name = address
                .rsplit('/')
                .next()
                .filter(|name| name.ends_with(".parquet") || name.ends_with(".tar"));
            let to = name.map_or("images".to_owned(), |name| format!("images/{name}"));
            downloads.push((address.clone(), to));
            "\"download.files/images\"".to_owned()
        }
    };
    let source = match &project.model {
        Origin::Path(model) => path(model),
        Origin::Hub(address) => {
            let files = MODEL.iter().chain(if project.sdxl { SECOND.as_slice() } else { &[] });
            downloads.extend(files.map(|file| (format!("{address}/{file}"), format!("model/{file}"))));
            "\"download.files/model\"".to_owned()
        }
    };
    if !downloads.is_empty() {
        text += "# From the Hugging Face Hub. `attrflow.lock` pins what is downloaded.\n[stages.download]\nkind = \"download\"\n\n\
                 [stages.download.params]\nfiles = [\n";
        for (from, to) in downloads {
            text += &format!("  {{ from = {}, to = {} }},\n", quoted(&from), quoted(&to));
        }
        text += "]\n\n";
    }
    let params = if project.sdxl { "params = { sdxl = true } # it has two text encoders\n" } else { "" };
    text +=
        &format!("[stages.model]\nkind = \"model\"\n{params}\n[stages.model.inputs]\nsource = {source}\n");
    if let Some(config) = &project.config {
        text += &format!("config = {}\n", path(config));
    }
    text += &format!(
        "\n[stages.data]\nkind = \"dataset\"\nparams = \"${{data}}\"\ninputs = {{ source = {images} }}\n\n"
    );
    let lora = project.lora.as_ref().map_or(String::new(), |lora| format!("lora = {}\n", path(lora)));
    let second = "text_encoder_2 = \"model.text_encoder_2\"\ntokenizer_2 = \"model.tokenizer_2\"\n";
    let plain = format!(
        "vae = \"model.vae\"\ntext_encoder = \"model.text_encoder\"\ntokenizer = \"model.tokenizer\"\n{}",
        if project.sdxl { second } else { "" }
    );
    let encoders = format!("{plain}{}", if project.lora_text { &lora } else { "" });
    let network = format!("unet = \"model.unet\"\n{lora}scheduler = \"model.scheduler\"\n");
    let set = "latents = \"latents.latents\"\ntext_embeddings = \"latents.text_embeddings\"\n";
    text += &format!(
        "# Latents of the images, and embeddings of the captions.\n[stages.latents]\nkind = \"latents\"\nparams = \"${{latents}}\"\n\n\
         [stages.latents.inputs]\nimages = \"data.images\"\ncaptions = \"data.captions\"\n{encoders}\n\
         # The loss of each training image before anything is unlearned.\n[stages.pretrain_loss]\nkind = \"pretrain-loss\"\n\n\
         [stages.pretrain_loss.params]\nper_timestep = true\nloss = \"${{loss}}\"\n\n[stages.pretrain_loss.inputs]\n{network}{set}\n\
         # The Fisher information of each weight: it scales the unlearning step.\n[stages.fisher]\nkind = \"fisher\"\n\n\
         [stages.fisher.params]\nepochs = \"${{fisher.epochs}}\"\nbatch_size = \"${{fisher.batch_size}}\"\n\
         select = \"${{fisher.select}}\"\nobjective = \"${{loss.objective}}\"\n\n[stages.fisher.inputs]\n{network}{set}\n\
         # From here on once per query.\n\n"
    );
    let (latents, texts, picture) = match project.has_pictures() {
        true => {
            text += &format!(
                "[stages.query]\nkind = \"query\"\neach = {{ query = \"${{queries}}\" }}\n\
                 params = {{ caption = \"${{query.caption}}\", prompt_syntax = \"${{captions.prompt_syntax}}\" }}\ninputs = {{ image = \"${{query.image}}\" }}\n\n\
                 # Encoded as the training images are.\n[stages.query_latents]\nkind = \"latents\"\n\
                 each = {{ query = \"${{queries}}\" }}\n\
                 params = {{ pixels = \"${{latents.pixels}}\", orientation = \"${{latents.orientation}}\", \
                 transparency = \"${{latents.transparency}}\", posterior = \"${{latents.posterior}}\", captions = 1 }}\n\n\
                 [stages.query_latents.inputs]\nimages = \"query.images\"\ncaptions = \"query.captions\"\n{encoders}\n"
            );
            ("query_latents.latents", "query_latents.text_embeddings", "${query.image}")
        }
        false => {
            text += &format!(
                "[stages.generate]\nkind = \"generate\"\neach = {{ query = \"${{queries}}\" }}\n\n[stages.generate.params]\n\
                 caption = \"${{query.caption}}\"\nseed = \"${{query.seed}}\"\nsteps = \"${{generate.steps}}\"\n\
                 guidance_scale = \"${{generate.guidance_scale}}\"\n{empty}\n[stages.generate.inputs]\n{network}{plain}\n",
                empty = if project.encodes_empty { "force_zeros_for_empty_prompt = false\n" } else { "" },
            );
            ("generate.latents", "generate.text_embeddings", "generate.images/0.png")
        }
    };
    text += &format!(
        "[stages.unlearn]\nkind = \"unlearn\"\neach = {{ query = \"${{queries}}\" }}\n\n[stages.unlearn.params]\n\
         rise = \"${{unlearn.rise}}\"\nrelative_damping = \"${{unlearn.relative_damping}}\"\n\
         grad_accum_steps = \"${{unlearn.grad_accum_steps}}\"\nbatch_size = \"${{unlearn.batch_size}}\"\n\
         select = \"${{unlearn.select}}\"\nobjective = \"${{loss.objective}}\"\n\n[stages.unlearn.inputs]\n{network}\
         fisher = \"fisher.fisher\"\nlatents = \"{latents}\"\ntext_embeddings = \"{texts}\"\n\n\
         # The loss parameters come from the stage on `pretrain_loss`: the two passes cannot differ.\n\
         [stages.influence]\nkind = \"influence\"\neach = {{ query = \"${{queries}}\" }}\nparams = {{ per_timestep = true }}\n\n\
         [stages.influence.inputs]\n{network}{set}weights = \"unlearn.weights\"\npretrain_loss = \"pretrain_loss.losses\"\n\
         pretrain_loss_per_timestep = \"pretrain_loss.per_timestep\"\n\n\
         [stages.ranking]\nkind = \"ranking\"\neach = {{ query = \"${{queries}}\" }}\n\n[stages.ranking.params]\n\
         title = \"${{query.caption}}\"\nrows = \"${{ranking.rows}}\"\nimages_shown = \"${{ranking.images_shown}}\"\n\n\
         [stages.ranking.inputs]\ninfluence = \"influence.influence\"\nrank = \"influence.rank\"\n\
         per_timestep = \"influence.per_timestep\"\nweights = \"unlearn.weights\"\ncaptions = \"data.captions\"\n\
         images = \"data.images\"\nquery = \"{picture}\"\n"
    );
    text
}
