use safetensors::tensor::{Dtype as Stored, TensorView};

use super::*;
use crate::io::single_file;

/// The tensors of a network of SDXL's kind in the golden files.
fn headers(network: Network) -> Vec<Header> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/single_file/sdxl").join(network.name());
    let name = if network == Network::Unet { "diffusion_pytorch_model" } else { "model" };
    TensorFile::open(folder.join(format!("{name}.safetensors"))).unwrap().headers().to_vec()
}

/// A file with adapters of rank 1 under these names, for weights of these shapes.
fn file(folder: &Path, layers: &[(String, Vec<usize>)]) -> PathBuf {
    let zeros = vec![0; 4 * 1000];
    let tensor = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        TensorView::new(Stored::F32, shape.to_vec(), &zeros[..4 * count]).unwrap()
    };
    let mut tensors = Vec::new();
    for (name, shape) in layers {
        let up = [&[shape[0], 1], &[1, 1][..shape.len() - 2]].concat();
        tensors.push((format!("{name}.lora_down.weight"), tensor(&[&[1], &shape[1..]].concat())));
        tensors.push((format!("{name}.lora_up.weight"), tensor(&up)));
        tensors.push((format!("{name}.alpha"), tensor(&[])));
    }
    let file = folder.join("lora.safetensors");
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    file
}

/// The layers of a network that can have adapters, by the names that kohya's scripts give them, and their weights' shapes.
fn layers(network: Network, of_ldm: bool) -> Vec<(String, Vec<usize>)> {
    let headers = headers(network);
    let weights = weights_of(network, &headers);
    let named: BTreeMap<String, &str> = match network {
        Network::Unet if of_ldm => single_file::names_in_ldm(weights.keys().copied()),
        _ => weights.keys().map(|layer| ((*layer).to_owned(), *layer)).collect(),
    };
    assert_eq!(named.len(), weights.len());
    let written = |name: &str| match network {
        Network::Unet => format!("lora_unet_{}", name.replace('.', "_")),
        Network::TextEncoder => format!("lora_te1_text_model_{}", name.replace('.', "_")),
        Network::TextEncoder2 if name == "text_projection" => "lora_te2_text_projection".to_owned(),
        Network::TextEncoder2 => format!("lora_te2_text_model_{}", name.replace('.', "_")),
    };
    named.iter().map(|(name, layer)| (written(name), weights[layer].to_vec())).collect()
}

const ALL: [Network; 3] = [Network::Unet, Network::TextEncoder, Network::TextEncoder2];

#[test]
fn a_file_of_three_networks_has_every_layer_of_each() {
    let folder = tempfile::tempdir().unwrap();
    for of_ldm in [true, false] {
        let all = ALL.map(|network| layers(network, of_ldm));
        let file = file(folder.path(), &all.concat());
        for (network, layers) in ALL.into_iter().zip(&all) {
            let lora = Lora::open(&file, network, &headers(network)).unwrap();
            assert_eq!(lora.adapters.len(), layers.len(), "{network}");
            let others = ALL.into_iter().filter(|other| *other != network);
            assert_eq!(lora.others, others.collect(), "{network}");
        }
    }
}

#[test]
fn a_file_of_some_networks_is_none_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), &layers(Network::TextEncoder2, true));
    for (network, others) in
        [(Network::Unet, vec![Network::TextEncoder2]), (Network::TextEncoder2, Vec::new())]
    {
        let lora = Lora::open(&file, network, &headers(network)).unwrap();
        assert_eq!(lora.adapters.is_empty(), !others.is_empty(), "{network}");
        assert_eq!(lora.others, others.into_iter().collect(), "{network}");
    }
    // As the UNet of Stable Diffusion 1.
    let mut unet = headers(Network::Unet);
    unet.retain(|header| !header.name.starts_with("add_embedding."));
    let error = Lora::open(&file, Network::Unet, &unet).err().unwrap().to_string();
    assert!(error.contains("is of a second text encoder, and the UNet is of a model without one"), "{error}");
}

#[test]
fn a_layer_under_both_its_names_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_input_blocks_3_1_proj_in"];
    let both = names.map(|name| (name.to_owned(), vec![4, 4]));
    let file = file(folder.path(), &both);
    let error = Lora::open(&file, Network::Unet, &headers(Network::Unet)).err().unwrap().to_string();
    let [first, second] = names.map(|name| format!("`{name}.alpha`"));
    let expected = format!("{first} and {second} are both of the layer `down_blocks.1.attentions.0.proj_in`");
    assert!(error.ends_with(&expected), "{error}");
}
