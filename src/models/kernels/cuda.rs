//! The fused steps on a GPU: CUDA kernels, compiled for the GPU when a worker first needs them.
//!
//! libtorch includes NVIDIA's run-time compiler and loads the driver's library, so there is nothing to install and no
//! machine code to ship. Kernels go to the stream that libtorch computes on.

use std::cell::OnceCell;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null_mut;

use attrflow_kernels::philox::{self, Place};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW, Symbol};
use tch::{Kind, Tensor};

/// The kernels' source.
const SOURCE: &str = include_str!("kernels.cu");

/// Vectors that a thread of `group_norm` may keep in registers: one kernel for each.
const KEPT: [i64; 4] = [2, 4, 8, 16];

/// Channels that a lane of `layer_norm` may have: one kernel for each.
const PER: [i64; 8] = [1, 2, 3, 4, 8, 10, 20, 40];

/// Threads of a block of `group_norm` at most, as its launch bounds say.
const THREADS: i64 = 512;

type Handle = *mut c_void;

/// libtorch's door to NVIDIA's compiler and driver.
struct Nvidia(Library);

impl Nvidia {
    fn load() -> Result<Nvidia, String> {
        // SAFETY: libtorch itself loads this library in the same way; its initialisers rely on nothing of ours.
        let library = unsafe { Library::open(Some("libcaffe2_nvrtc.so"), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| error.to_string())?;
        load_builtins();
        Ok(Nvidia(library))
    }

    /// A function of the library or of those it needs.
    ///
    /// # Safety
    /// `F` must be the function's type.
    unsafe fn get<F>(&self, name: &CStr) -> Result<Symbol<F>, String> {
        // SAFETY: as the caller promises.
        unsafe { self.0.get(name.to_bytes_with_nul()) }.map_err(|error| error.to_string())
    }

    /// The machine code of a source for one GPU, such as `90`.
    fn compile(&self, source: &str, architecture: &str, options: &[&CStr]) -> Result<Vec<u8>, String> {
        // SAFETY: the types are those of nvrtc.h; every pointer outlives its call, every buffer has the size asked for.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut Handle,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            type Compile = unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int;
            type Size = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
            type Fill = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;
            let create: Symbol<Create> = self.get(c"nvrtcCreateProgram")?;
            let build: Symbol<Compile> = self.get(c"nvrtcCompileProgram")?;
            let bytes = |size: &CStr, fill: &CStr, program| -> Result<Vec<u8>, String> {
                let (size, fill): (Symbol<Size>, Symbol<Fill>) = (self.get(size)?, self.get(fill)?);
                let mut count = 0;
                check("the compiler", size(program, &mut count))?;
                let mut bytes = vec![0u8; count];
                check("the compiler", fill(program, bytes.as_mut_ptr().cast()))?;
                Ok(bytes)
            };
            let source = CString::new(source).map_err(|error| error.to_string())?;
            let architecture = CString::new(format!("-arch=sm_{architecture}")).expect("no zero in it");
            let all = [architecture.as_c_str(), c"-std=c++17", c"-default-device"];
            let options: Vec<*const c_char> =
                all.iter().chain(options).map(|option| option.as_ptr()).collect();
            let mut program = null_mut();
            let none = std::ptr::null();
            check(
                "the compiler",
                create(&mut program, source.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none),
            )?;
            if build(program, options.len() as c_int, options.as_ptr()) != 0 {
                let log = bytes(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog", program)?;
                return Err(String::from_utf8_lossy(&log).into_owned());
            }
            bytes(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN", program)
        }
    }
}

/// Loads the compiler's second library, which it asks for by name alone and so would not find beside itself.
fn load_builtins() {
    let maps = fs_err::read_to_string("/proc/self/maps").unwrap_or_default();
    let compiler = maps
        .lines()
        .find(|line| line.contains("/libnvrtc.so"))
        .and_then(|line| line.find('/').map(|at| &line[at..]));
    let Some(folder) = compiler.and_then(|file| Path::new(file).parent()) else { return };
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
            // SAFETY: a library of the compiler's own data; its initialisers rely on nothing of ours.
            if let Ok(library) = unsafe { Library::open(Some(entry.path()), RTLD_NOW | RTLD_GLOBAL) } {
                std::mem::forget(library);
            }
        }
    }
}

/// The kernels for one GPU and element type, ready to be launched.
struct Module {
    nvidia: Nvidia,
    module: Handle,
    launch: Launch,
}

type Launch = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

impl Module {
    /// Compiles for the GPU whose context is current in this thread: that of the tensors at hand.
    fn new(source: &str, options: &[&CStr]) -> Result<Module, String> {
        let nvidia = Nvidia::load()?;
        // SAFETY: the types are those of cuda.h, and pointers outlive their calls. libtorch has initialised the driver.
        unsafe {
            type Device = unsafe extern "C" fn(*mut c_int) -> c_int;
            type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
            type Load = unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int;
            let device: Symbol<Device> = nvidia.get(c"cuCtxGetDevice")?;
            let attribute: Symbol<Attribute> = nvidia.get(c"cuDeviceGetAttribute")?;
            let load: Symbol<Load> = nvidia.get(c"cuModuleLoadData")?;
            let launch: Symbol<Launch> = nvidia.get(c"cuLaunchKernel")?;
            let launch = *launch;
            let (mut id, mut major, mut minor) = (0, 0, 0);
            check("the driver", device(&mut id))?;
            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
            check("the driver", attribute(&mut major, 75, id))?;
            check("the driver", attribute(&mut minor, 76, id))?;
            let code = nvidia.compile(source, &(major * 10 + minor).to_string(), options)?;
            let mut module = null_mut();
            check("the driver", load(&mut module, code.as_ptr().cast()))?;
            Ok(Module { nvidia, module, launch })
        }
    }

    /// Puts one kernel on the stream. `threads` of each of `blocks`, with `shared` bytes.
    ///
    /// # Safety
    /// `arguments` must be those of the kernel in `kernels.cu`.
    unsafe fn launch(&self, name: &str, blocks: i64, threads: i64, shared: i64, arguments: &mut [Argument]) {
        type Function = unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int;
        let name = CString::new(name).expect("a kernel's name");
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(Argument::pointer).collect();
        let mut function = null_mut();
        // SAFETY: the types are those of cuda.h; the null stream is the one that libtorch computes on.
        let done = unsafe {
            let find: Symbol<Function> = self.nvidia.get(c"cuModuleGetFunction").expect("it loaded a module");
            match find(&mut function, self.module, name.as_ptr()) {
                0 => (self.launch)(
                    function,
                    blocks as c_uint,
                    1,
                    1,
                    threads as c_uint,
                    1,
                    1,
                    shared as c_uint,
                    null_mut(),
                    pointers.as_mut_ptr(),
                    null_mut(),
                ),
                error => error,
            }
        };
        assert!(done == 0, "the CUDA kernel {name:?} could not be started: the driver's error {done}");
    }
}

fn check(who: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{who} answers with error {code}")) }
}

/// An argument of a kernel.
enum Argument {
    Pointer(*mut c_void),
    Int(c_int),
    Long(i64),
    Float(f32),
}

impl Argument {
    fn of(tensor: &Tensor) -> Argument {
        Argument::Pointer(tensor.data_ptr())
    }

    fn maybe(tensor: Option<&Tensor>) -> Argument {
        Argument::Pointer(tensor.map_or(null_mut(), Tensor::data_ptr))
    }

    fn pointer(&mut self) -> *mut c_void {
        match self {
            Argument::Pointer(value) => (&raw mut *value).cast(),
            Argument::Int(value) => (&raw mut *value).cast(),
            Argument::Long(value) => (&raw mut *value).cast(),
            Argument::Float(value) => (&raw mut *value).cast(),
        }
    }
}

thread_local! {
    /// For float32 and for bfloat16. A worker computes on one GPU, in one thread.
    static MODULES: [OnceCell<Option<Module>>; 2] = const { [OnceCell::new(), OnceCell::new()] };
}

/// Does something with the kernels for this element type; `None` where there are none, with one warning.
fn with<T>(kind: Kind, what: impl FnOnce(&Module) -> T) -> Option<T> {
    let bf16 = match kind {
        Kind::Float => false,
        Kind::BFloat16 => true,
        _ => return None,
    };
    let make = || match Module::new(SOURCE, &[if bf16 { c"-DBF16=1" } else { c"-DBF16=0" }]) {
        Ok(module) => Some(module),
        Err(error) => {
            tracing::warn!("the fused CUDA kernels cannot be used, so this is slower: {error}");
            None
        }
    };
    MODULES.with(|modules| modules[usize::from(bf16)].get_or_init(make).as_ref().map(what))
}

/// Each operation rounded by itself, as on a CPU.
const ROUNDED: [&CStr; 3] = [c"--fmad=false", c"--prec-sqrt=true", c"--ftz=false"];

thread_local! {
    /// For the random numbers.
    static RANDOM: OnceCell<Option<Module>> = const { OnceCell::new() };
}

/// See [`super::philox_normals`]; `None` where the GPU does not draw the CPU's numbers, with one warning.
pub(super) fn philox_normals(key: [u32; 2], places: &[Place], out: &Tensor) -> Option<()> {
    let make = || {
        let made = Module::new(philox::SOURCE, &ROUNDED).and_then(|module| {
            // Before any number is used: some, and the same from the CPU.
            let places = [[3, 1, 4], [1, 5, 9]];
            let found = Tensor::zeros([2, 4095], (Kind::Float, out.device()));
            draw(&module, [2, 6], &places, &found);
            let mut expected = vec![0.0; 2 * 4095];
            philox::normals([2, 6], &places, false, &mut expected);
            let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
            let found = Vec::<f32>::try_from(found.to_device(tch::Device::Cpu).view(-1)).unwrap_or_default();
            let same = bits(&found) == bits(&expected);
            if same { Ok(module) } else { Err("its numbers are not those of the CPU".to_owned()) }
        });
        made.inspect_err(|error| tracing::warn!("this GPU cannot draw the noise, so the CPU does: {error}"))
            .ok()
    };
    RANDOM.with(|module| module.get_or_init(make).as_ref().map(|module| draw(module, key, places, out)))
}

fn draw(module: &Module, key: [u32; 2], places: &[Place], out: &Tensor) {
    let (rows, count) = (places.len() as i64, out.size()[1]);
    let words: Vec<i32> = places.as_flattened().iter().map(|word| word.cast_signed()).collect();
    let words = Tensor::from_slice(&words).to_device(out.device());
    let mut arguments = [
        Argument::of(out),
        Argument::of(&words),
        Argument::Long(rows),
        Argument::Long(count),
        Argument::Int(key[0].cast_signed()),
        Argument::Int(key[1].cast_signed()),
    ];
    // SAFETY: the arguments are those of `philox_normals`; the words live until the kernel has run, since libtorch frees memory in the
    // order of the stream.
    unsafe { module.launch("philox_normals", ceil(rows * ceil(count, 4), 256), 256, 0, &mut arguments) };
}

/// Values in 16 bytes.
fn vector(kind: Kind) -> i64 {
    if kind == Kind::BFloat16 { 8 } else { 4 }
}

/// See [`super::group_norm`].
pub(super) fn group_norm(
    norm: &super::GroupNorm<'_>,
    x: &super::ConcatInput<'_>,
    out: &Tensor,
) -> Option<()> {
    let kind = out.kind();
    let v = vector(kind);
    let (rows, channels, height, width) = out.size4().ok()?;
    let (positions, c1) = (height * width, x.first.size()[1]);
    let across = channels / v;
    let step = across / gcd(across, 32) * 32;
    if channels % v != 0 || c1 % v != 0 || step > THREADS {
        return None;
    }
    // As many slices as there is room and work for.
    let threads = step * (THREADS / step).min(ceil(positions * across, step)).max(1);
    let slices = threads / across;
    let vectors = ceil(positions, slices);
    let kept = KEPT.into_iter().find(|&kept| vectors <= kept).unwrap_or(0);
    let shared = 4 * (slices * channels + 2 * norm.groups);
    let mut arguments = [
        Argument::of(x.first),
        Argument::maybe(x.second),
        Argument::maybe(norm.shift),
        Argument::of(norm.weight),
        Argument::of(norm.bias),
        Argument::of(out),
        Argument::Int(positions as c_int),
        Argument::Int(c1 as c_int),
        Argument::Int((channels - c1) as c_int),
        Argument::Int(norm.groups as c_int),
        Argument::Int(norm.shift.map_or(1, |shift| shift.size()[0]) as c_int),
        Argument::Int(norm.silu.into()),
        Argument::Float(norm.eps as f32),
    ];
    // SAFETY: the arguments are those of `group_norm_*`, and the shapes were checked here and by the caller.
    with(kind, |module| unsafe {
        module.launch(&format!("group_norm_{kept}"), rows, threads, shared, &mut arguments);
    })
}

/// See [`super::layer_norm`].
pub(super) fn layer_norm(
    norm: &super::LayerNorm<'_>,
    x: &Tensor,
    branch: Option<&Tensor>,
    out: &Tensor,
) -> Option<()> {
    let channels = *x.size().last()?;
    let (rows, per) = (x.numel() as i64 / channels, channels / 32);
    if channels % 32 != 0 || !PER.contains(&per) {
        return None;
    }
    let mut arguments = [
        Argument::of(x),
        Argument::maybe(branch),
        Argument::maybe(norm.branch_bias),
        Argument::of(norm.weight),
        Argument::of(norm.bias),
        Argument::of(out),
        Argument::Long(rows),
        Argument::Float(norm.eps as f32),
    ];
    // SAFETY: the arguments are those of `layer_norm_*`, and the shapes were checked here and by the caller.
    with(x.kind(), |module| unsafe {
        module.launch(&format!("layer_norm_{per}"), ceil(rows, 8), 256, 0, &mut arguments);
    })
}

/// See [`super::gated_gelu`].
pub(super) fn gated_gelu(both: &Tensor, out: &Tensor) -> Option<()> {
    let (width, v) = (*out.size().last()?, vector(out.kind()));
    if width % v != 0 {
        return None;
    }
    let vectors = out.numel() as i64 / v;
    let mut arguments =
        [Argument::of(both), Argument::of(out), Argument::Int(width as c_int), Argument::Long(vectors)];
    // SAFETY: the arguments are those of `gated_gelu`, and the shapes were checked here and by the caller.
    with(out.kind(), |module| unsafe {
        module.launch("gated_gelu", ceil(vectors, 256), 256, 0, &mut arguments);
    })
}

/// See [`super::add`].
pub(super) fn add(x: &Tensor, bias: &Tensor, y: &Tensor) -> Option<()> {
    let (channels, v) = (bias.size()[0], vector(y.kind()));
    if channels % v != 0 {
        return None;
    }
    let vectors = y.numel() as i64 / v;
    let mut arguments = [
        Argument::of(x),
        Argument::of(bias),
        Argument::of(y),
        Argument::Int(channels as c_int),
        Argument::Long(vectors),
    ];
    // SAFETY: the arguments are those of `add`, and the shapes were checked here and by the caller.
    with(y.kind(), |module| unsafe {
        module.launch("add", ceil(vectors, 256), 256, 0, &mut arguments);
    })
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn ceil(a: i64, b: i64) -> i64 {
    (a + b - 1) / b
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The compiler alone, which needs no driver: beside libtorch, in the packages that it was installed with.
    fn compiler() -> Option<Nvidia> {
        let torch = Path::new(env!("ATTRFLOW_LIBTORCH_FOLDER")).canonicalize().ok()?;
        let packages = fs_err::read_dir(torch.parent()?.join("nvidia")).ok()?;
        let folders = packages.flatten().map(|package| package.path().join("lib"));
        let files = folders.filter_map(|folder| fs_err::read_dir(folder).ok()).flatten().flatten();
        let names_it =
            |file: &fs_err::DirEntry| file.file_name().to_string_lossy().starts_with("libnvrtc.so");
        let file = files.filter(names_it).map(|file| file.path()).next()?;
        // SAFETY: a library of the compiler's own; its initialisers rely on nothing of ours.
        let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) }.ok()?;
        load_builtins();
        Some(Nvidia(library))
    }

    /// Where NVIDIA's compiler is installed.
    #[test]
    fn kernels_compile_for_every_supported_gpu() {
        let Some(nvidia) = compiler() else { return println!("not tested, since the compiler is not here") };
        for architecture in ["80", "90a", "100", "120"] {
            let compiled = nvidia.compile(philox::SOURCE, architecture, &ROUNDED);
            assert!(compiled.as_ref().is_ok_and(|code| code.len() > 1000), "{architecture}: {compiled:?}");
            for bf16 in [c"-DBF16=1", c"-DBF16=0"] {
                let compiled = nvidia.compile(SOURCE, architecture, &[bf16]);
                assert!(
                    compiled.as_ref().is_ok_and(|code| code.len() > 1000),
                    "{architecture}: {compiled:?}"
                );
            }
        }
        assert!(nvidia.compile("not C++", "80", &[]).unwrap_err().contains("error"));
    }
}
