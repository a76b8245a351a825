//! The worker program: computes on libtorch what the front program hands it.
//!
//! It is started by `attrflow`, with one argument: its setting as JSON, or `--doctor`; or with `--measure` and its setting.

use attrflow::cli::{DoctorReport, MEASURE, serve_measurement};
use attrflow::kinds::shared::device;
use attrflow_engine::worker::local::WorkerConfig;
use attrflow_engine::worker::measure::{Memory, peak_memory};
use attrflow_engine::worker::serve::serve;

fn main() -> Result<(), String> {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--doctor" {
        let report = doctor();
        return serde_json::to_writer(std::io::stdout(), &report).map_err(|error| error.to_string());
    }
    let measures = argument == MEASURE;
    let argument = if measures { std::env::args().nth(2).unwrap_or_default() } else { argument };
    let setting: WorkerConfig = serde_json::from_str(&argument)
        .map_err(|_| "this program is started by `attrflow`, not by hand".to_owned())?;
    let prepared = device::prepare(setting.device, setting.threads);
    if measures {
        let memory = || Memory { host: peak_memory(), device: device::taken(setting.device) };
        serve_measurement(&attrflow::kinds::with_libtorch(), &setting, prepared, &memory);
        return Ok(());
    }
    serve(&attrflow::kinds::with_libtorch(), &setting, prepared);
    Ok(())
}

/// What libtorch can do here.
fn doctor() -> DoctorReport {
    let cuda_error = device::load_cuda().err();
    let ones = tch::Tensor::ones([8, 8], (tch::Kind::Float, tch::Device::Cpu));
    let product = ones.matmul(&ones).sum(tch::Kind::Float).double_value(&[]);
    DoctorReport {
        library: device::library(),
        cuda_error,
        cuda: tch::Cuda::is_available(),
        cudnn: tch::Cuda::cudnn_is_available(),
        devices: tch::Cuda::device_count(),
        threads: tch::get_num_threads(),
        computes: product == 512.0,
    }
}
