//! Writes what `tests/golden/check_written.py` then reads with torch and numpy; see there.

use std::path::{Path, PathBuf};

use attrflow::io::NpyWriter;
use attrflow::io::npy::Dtype;
use attrflow::io::npy::writer;
use attrflow::io::torch::{self, Entry};
use tch::{Kind, Tensor};

use crate::golden::{Tensors, tiny};

fn write_tensors(file: PathBuf, tensors: &Tensors, dtype: Dtype) {
    let stored: Vec<(&String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (name, tensor.size().iter().map(|&size| size as usize).collect(), bytes)
        })
        .collect();
    let entries: Vec<Entry<'_>> =
        stored.iter().map(|(name, shape, bytes)| Entry { name, dtype, shape, bytes }).collect();
    torch::write(file, &entries).unwrap();
}

fn write_floats(file: &Path, dtype: Dtype) {
    let values: Vec<f32> = (-12..12).map(|i| i as f32 / 8.0).collect();
    let mut writer = NpyWriter::create(file, dtype, &[2, 3, 4]).unwrap();
    writer.write_f32(&values).unwrap();
    writer.finish().unwrap();
}

#[test]
#[ignore = "half of a check: the other is tests/golden/check_written.py"]
fn files_for_python() {
    let folder =
        PathBuf::from(std::env::var_os("ATTRFLOW_WRITE_TO").expect("ATTRFLOW_WRITE_TO names a folder"));
    fs_err::create_dir_all(&folder).unwrap();
    let at = |name: &str| folder.join(name);

    let unet = tiny();
    write_tensors(at("model.bin"), unet.parameters(), Dtype::F32);
    let square = |tensor: &Tensor| tensor.to_kind(Kind::Double).square();
    let squares = unet.parameters().iter().map(|(name, tensor)| (name.clone(), square(tensor))).collect();
    write_tensors(at("fisher_info.pt"), &squares, Dtype::F64);

    write_floats(&at("half.npy"), Dtype::F16);
    write_floats(&at("single.npy"), Dtype::F32);
    write_floats(&at("double.npy"), Dtype::F64);
    writer::write_i64(at("long.npy"), &[2, 3, 4], &(-12..12).collect::<Vec<_>>()).unwrap();
    writer::concat(&[at("single.npy"), at("single.npy")], at("joined.npy")).unwrap();
    writer::write_f32(at("empty.npy"), &[0, 3], &[]).unwrap();
}
