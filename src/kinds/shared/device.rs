//! The device that a worker computes on, and its settings.

use std::ffi::c_void;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::io::libtorch;
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::kind::Device;
use attrflow_engine::worker::protocol::Facts;

/// The device in libtorch's terms.
pub fn torch(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(index) => tch::Device::Cuda(index),
    }
}

/// Sets the number of threads and makes the device usable.
///
/// # Errors
/// A GPU that libtorch cannot use, and why.
pub fn prepare(device: Device, threads: usize) -> Result<(), String> {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    tch::set_num_interop_threads(1);
    check_version()?;
    let Device::Cuda(index) = device else { return Ok(()) };
    load_cuda()?;
    allow_tf32(false);
    tch::Cuda::cudnn_set_benchmark(false);
    let found = tch::Cuda::device_count();
    choose(index);
    if !tch::Cuda::is_available() || index as i64 >= found {
        return Err(format!(
            "cuda:{index} cannot be used: libtorch sees {found} CUDA devices; \
             see `attrflow doctor`, or compute with --device cpu"
        ));
    }
    Ok(())
}

/// Sets libtorch to one thread, and restores the number when dropped.
#[must_use]
pub struct ThreadsGuard(i32);

impl Drop for ThreadsGuard {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}

/// Lets libtorch compute on one thread for a while.
pub fn one_thread() -> ThreadsGuard {
    let before = tch::get_num_threads();
    tch::set_num_threads(1);
    ThreadsGuard(before)
}

/// Sets the mode of the process for a network, and restores the default when dropped.
#[must_use]
pub struct ModeGuard {
    deterministic: bool,
}

impl Drop for ModeGuard {
    fn drop(&mut self) {
        set(ModelMode::Inference(Precision::Fp32));
        if self.deterministic {
            only_deterministic(false);
        }
    }
}

/// Sets the process to float32 with the same kernels each time, until it is dropped: what is summed in another order is another
/// model after a thousand steps. On a CPU this changes nothing.
pub fn deterministic() -> ModeGuard {
    set(ModelMode::Inference(Precision::Fp32));
    only_deterministic(true);
    ModeGuard { deterministic: true }
}

/// Sets the process to a network's mode.
pub fn apply_mode(mode: ModelMode) -> ModeGuard {
    set(mode);
    ModeGuard { deterministic: false }
}

fn set(mode: ModelMode) {
    allow_tf32(mode.precision() == Precision::Tf32);
    // cuDNN's benchmark mode may choose another kernel each time. Both loss passes must be rounded in the same way, so it
    // is on for gradients only, which become a quarter faster.
    tch::Cuda::cudnn_set_benchmark(matches!(mode, ModelMode::Gradients(_)));
}

/// Allows or forbids TF32: matrix products of float32 factors rounded to 10 bits of mantissa.
///
/// libtorch lets convolutions do so by default. These are the functions behind `torch.backends.cuda.matmul.allow_tf32` and `torch.backends.cudnn.allow_tf32`.
pub fn allow_tf32(allow: bool) {
    // SAFETY: the types are those of ATen/Context.h.
    set_in_context("libtorch's precision on GPUs", |library, context| unsafe {
        library.get::<Set>(b"_ZN2at7Context18setAllowTF32CuBLASEb\0")?(context, allow);
        library.get::<Set>(b"_ZN2at7Context17setAllowTF32CuDNNEb\0")?(context, allow);
        Ok(())
    });
}

/// A method of libtorch's context that takes a switch.
type Set = unsafe extern "C" fn(*mut c_void, bool);

/// Sets what `tch` has no function for, by methods of libtorch's context; a warning says what could not be set.
fn set_in_context(what: &str, set: impl FnOnce(&Library, *mut c_void) -> Result<(), libloading::Error>) {
    let library = Library::this();
    // SAFETY: the type is that of ATen/Context.h: a method takes its object first, and the object is static.
    let context = unsafe {
        let global = library.get::<unsafe extern "C" fn() -> *mut c_void>(b"_ZN2at13globalContextEv\0");
        global.map(|global| global())
    };
    if let Err(error) = context.and_then(|context| set(&library, context)) {
        tracing::warn!("cannot set {what}: {error}");
    }
}

/// Whether libtorch takes only kernels that sum in one order, where it has one; otherwise it warns.
///
/// These are the functions behind `torch.use_deterministic_algorithms` and `torch.backends.cudnn.deterministic`.
fn only_deterministic(only: bool) {
    type SetBoth = unsafe extern "C" fn(*mut c_void, bool, bool);
    // SAFETY: the types are those of ATen/Context.h.
    set_in_context("libtorch to deterministic kernels", |library, context| unsafe {
        library.get::<Set>(b"_ZN2at7Context21setDeterministicCuDNNEb\0")?(context, only);
        let only_warn = true;
        library.get::<SetBoth>(b"_ZN2at7Context26setDeterministicAlgorithmsEbb\0")?(context, only, only_warn);
        Ok(())
    });
}

/// Refuses a libtorch of another minor version, whose interface is another.
fn check_version() -> Result<(), String> {
    let (built, found) = (env!("ATTRFLOW_LIBTORCH_VERSION"), version());
    if libtorch::series(&found) == libtorch::series(built) {
        return Ok(());
    }
    let (library, wanted) = (library().unwrap_or_default(), libtorch::series(built));
    Err(format!("{library} is version {found}, this program needs {wanted}; see `attrflow doctor`"))
}

/// The version of the libtorch that was loaded, as its folder names it.
fn version() -> String {
    let library = library().unwrap_or_default();
    let folder = Path::new(&library).parent().and_then(Path::parent).unwrap_or(Path::new(""));
    libtorch::version(folder).unwrap_or_else(|| "unknown".into())
}

/// The device in words, such as `NVIDIA H200 (compute capability 9.0)`.
pub fn describe(device: Device) -> String {
    match device {
        Device::Cpu => "the CPU".to_owned(),
        Device::Cuda(index) => match model(index) {
            Some((name, capability)) => format!("{name} (compute capability {capability})"),
            None => "an unknown GPU".to_owned(),
        },
    }
}

/// A worker's facts about libtorch and its device.
pub fn facts(machine: Facts, device: Device) -> Facts {
    let facts = Facts { libtorch: Some(version()), ..machine };
    let Device::Cuda(index) = device else { return facts };
    let driver = fs_err::read_to_string("/sys/module/nvidia/version").ok();
    let (gpu, compute_capability) = model(index).unzip();
    Facts { gpu, compute_capability, driver: driver.map(|text| text.trim().to_owned()), ..facts }
}

/// Model and compute capability of a GPU, as the driver names them.
fn model(index: usize) -> Option<(String, String)> {
    type Init = unsafe extern "C" fn(u32) -> i32;
    type Get = unsafe extern "C" fn(*mut i32, i32) -> i32;
    type Name = unsafe extern "C" fn(*mut std::ffi::c_char, i32, i32) -> i32;
    type Attribute = unsafe extern "C" fn(*mut i32, i32, i32) -> i32;
    /// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
    const CAPABILITY: [i32; 2] = [75, 76];
    let (mut gpu, mut name, mut capability) = (0, [0 as std::ffi::c_char; 256], [0; 2]);
    // SAFETY: these functions have this form in every release of the driver; each writes only to its arguments, and the name
    // ends with a zero within its length.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let ordinal = i32::try_from(index).ok()?;
        let found = driver.get::<Init>(b"cuInit\0").ok()?(0) == 0
            && driver.get::<Get>(b"cuDeviceGet\0").ok()?(&raw mut gpu, ordinal) == 0
            && driver.get::<Name>(b"cuDeviceGetName\0").ok()?(name.as_mut_ptr(), name.len() as i32, gpu) == 0;
        let attribute = driver.get::<Attribute>(b"cuDeviceGetAttribute\0").ok()?;
        let found = found
            && CAPABILITY.iter().zip(&mut capability).all(|(key, value)| attribute(value, *key, gpu) == 0);
        let name = || std::ffi::CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        found.then(|| (name(), format!("{}.{}", capability[0], capability[1])))
    }
}

/// Loads the CUDA part of libtorch, which registers itself.
///
/// Nothing calls it by name, so the linker would drop it, and a machine without a GPU is spared its time and memory.
///
/// # Errors
/// The error of the dynamic loader.
pub fn load_cuda() -> Result<(), String> {
    // SAFETY: the library's initialisers register CUDA kernels with libtorch and rely on nothing of ours.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| error.to_string())?;
    // It stays until the process ends: kernels that it registered may be called at any time.
    std::mem::forget(library);
    Ok(())
}

/// The file that libtorch was loaded from.
pub fn library() -> Option<String> {
    let maps = fs_err::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("libtorch_cpu.so"))?;
    line.find('/').map(|start| line[start..].to_owned())
}

/// Makes a device this thread's default, on which our own kernels run.
fn choose(index: usize) -> bool {
    type SetDevice = unsafe extern "C" fn(i32) -> i32;
    // The libraries that `load_cuda` loaded are found among those of the process itself.
    // SAFETY: the function has this form in every release of the CUDA runtime; libtorch calls it itself whenever it computes.
    unsafe {
        let set = Library::this().get::<SetDevice>("cudaSetDevice").map(|set| *set);
        set.is_ok_and(|set| set(i32::try_from(index).unwrap_or_default()) == 0)
    }
}

/// Bytes of device memory in use by all processes; 0 on the CPU and where the runtime has no number.
///
/// libtorch never returns memory, so at the end this is the peak.
pub fn taken(device: Device) -> u64 {
    let Device::Cuda(index) = device else { return 0 };
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> i32;
    let (mut free, mut total) = (0, 0);
    // SAFETY: the function has this form in every release of the CUDA runtime, and writes to the two numbers alone.
    let known = choose(index)
        && unsafe {
            let info = Library::this().get::<MemGetInfo>("cudaMemGetInfo").map(|info| *info);
            info.is_ok_and(|info| info(&raw mut free, &raw mut total) == 0)
        };
    if known { total.saturating_sub(free) as u64 } else { 0 }
}
