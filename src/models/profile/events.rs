//! Moments on the stream of a GPU, from the driver that libtorch has loaded.

use std::ffi::{c_int, c_uint, c_void};

use libloading::os::unix::{Library, Symbol};

/// A moment on the stream that libtorch computes on.
#[derive(Debug, Clone, Copy)]
pub struct Event(*mut c_void);

type Create = unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int;
type Record = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Wait = unsafe extern "C" fn(*mut c_void) -> c_int;
type Elapsed = unsafe extern "C" fn(*mut f32, *mut c_void, *mut c_void) -> c_int;

/// The driver's functions for events.
pub struct Events {
    /// Holds the functions.
    _driver: Library,
    create: Create,
    record: Record,
    wait: Wait,
    elapsed: Elapsed,
}

impl Events {
    /// Finds them. A context must be current in this thread, as libtorch leaves it once it has computed.
    ///
    /// # Errors
    /// There is no driver, or one without them.
    pub fn load() -> Result<Events, String> {
        // SAFETY: the types are those of cuda.h; the driver is loaded by libtorch too and relies on nothing of ours.
        unsafe {
            let driver = Library::new("libcuda.so.1").map_err(|error| error.to_string())?;
            let get = |error: libloading::Error| error.to_string();
            let create: Symbol<Create> = driver.get(b"cuEventCreate\0").map_err(get)?;
            let record: Symbol<Record> = driver.get(b"cuEventRecord\0").map_err(get)?;
            let wait: Symbol<Wait> = driver.get(b"cuEventSynchronize\0").map_err(get)?;
            let elapsed: Symbol<Elapsed> = driver.get(b"cuEventElapsedTime\0").map_err(get)?;
            let (create, record, wait, elapsed) = (*create, *record, *wait, *elapsed);
            Ok(Events { _driver: driver, create, record, wait, elapsed })
        }
    }

    /// This moment on the stream; `None` where the driver gives none.
    pub fn mark(&self) -> Option<Event> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the types are those of cuda.h; the null stream is the one that libtorch computes on.
        unsafe {
            let made = (self.create)(&raw mut event, 0) == 0;
            (made && (self.record)(event, std::ptr::null_mut()) == 0).then_some(Event(event))
        }
    }

    /// The seconds between two moments, once the second is there.
    ///
    /// # Errors
    /// The driver's.
    pub fn seconds(&self, before: Event, after: Event) -> Result<f64, String> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are those of `mark`, and the number outlives the call.
        let code = unsafe {
            match (self.wait)(after.0) {
                0 => (self.elapsed)(&raw mut milliseconds, before.0, after.0),
                code => code,
            }
        };
        if code == 0 {
            Ok(f64::from(milliseconds) / 1e3)
        } else {
            Err(format!("the driver answers with error {code}"))
        }
    }
}
