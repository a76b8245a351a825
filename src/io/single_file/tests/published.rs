//! Models as they were published, by their names and shapes.

use std::io::Read as _;

use flate2::read::GzDecoder;

use super::*;

/// The tensors of a published model: the name in the file, the shape there, the part, the name there, the shape there.
pub(in crate::io) fn published(family: &str) -> Vec<[String; 5]> {
    let bytes = fs_err::read(golden(&format!("names/{family}.tsv.gz"))).unwrap();
    let mut text = String::new();
    GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    let fields = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
    text.lines().map(fields).collect()
}

/// Names and shapes of Stable Diffusion 1, 2 and XL as they were published, each against diffusers' own.
#[test]
fn published_models_give_the_folders_of_diffusers() {
    for (family, name, counts, unused) in [
        (Family::Sd1, "sd1", [686, 248, 196, 0], 1),
        (Family::Sd2, "sd2", [686, 248, 372, 0], 14),
        (Family::Sdxl, "sdxl", [1680, 248, 196, 517], 2),
    ] {
        let lines = published(name);
        let shape = |text: &str| -> Vec<usize> {
            text.split('x').filter(|size| !size.is_empty()).map(|size| size.parse().unwrap()).collect()
        };
        let tensors = lines.iter().map(|[source, sizes, ..]| (source.clone(), shape(sizes))).collect();
        let parts = plan_of(&tensors).unwrap();
        assert_eq!((parts.family, parts.ignored), (family, unused), "{name}");
        let mut found = [&parts.unet, &parts.vae, &parts.text_encoder, &parts.text_encoder_2];
        assert_eq!(found.map(BTreeMap::len), counts, "{name}");
        for [source, _, part, target, sizes] in &lines {
            let pieces = match part.as_str() {
                "unet" => &mut found[0],
                "vae" => &mut found[1],
                "text_encoder" => &mut found[2],
                "text_encoder_2" => &mut found[3],
                _ => continue,
            };
            let piece = &pieces[target];
            assert_eq!((&piece.source, &piece.shape), (source, &shape(sizes)), "{name}: {target}");
            let third = ["q_proj", "k_proj", "v_proj"].iter().position(|map| target.contains(map));
            let rows = third.filter(|_| source.contains(".in_proj_"));
            let rows = rows.map(|third| third * piece.shape[0]..(third + 1) * piece.shape[0]);
            assert_eq!(piece.rows, rows, "{name}: {target}");
            assert_eq!(piece.transposed, source.ends_with(".text_projection"), "{name}: {target}");
        }
    }
}
