//! The worker program: computes with libtorch the tasks that the command-line program sends.
//!
//! `attrflow` starts it with its configuration as JSON, with `--measure` and its configuration, or with `--doctor`.

use attrflow::cli::{DoctorReport, build};
use attrflow::kinds::shared::device;
use attrflow_engine::store::report_file_size_limit;
use attrflow_engine::worker::measure::{MEASURE, Memory, serve_measurement};
use attrflow_engine::worker::protocol::{Facts, WorkerConfig, peak_memory};
use attrflow_engine::worker::serve::serve;

fn main() -> Result<(), String> {
    report_file_size_limit();
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--doctor" {
        let report = doctor();
        return serde_json::to_writer(std::io::stdout(), &report).map_err(|error| error.to_string());
    }
    let measures = argument == MEASURE;
    let argument = if measures { std::env::args().nth(2).unwrap_or_default() } else { argument };
    let config: WorkerConfig = serde_json::from_str(&argument)
        .map_err(|_| "`attrflow` starts this program; it is not meant to be run by hand".to_owned())?;
    let prepared = device::prepare(config.device, config.threads);
    if measures {
        let memory = || Memory { host: peak_memory(), device: device::taken(config.device) };
        serve_measurement(&attrflow::kinds::with_libtorch(), &config, prepared, &memory);
        return Ok(());
    }
    let facts = device::facts(Facts::of_machine(&build(), config.device), config.device);
    let memory = || device::taken(config.device);
    serve(&attrflow::kinds::with_libtorch(), &config, facts, prepared, &memory);
    Ok(())
}

/// Checks libtorch and the devices.
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
