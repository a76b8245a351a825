//! A node of libtorch's graph with a gradient of the caller's own: the bindings have none. `models::autograd` of attrflow is its safe
//! form.
//!
//! Nothing but C++ is compiled here: the front program is linked without it.

use std::ffi::c_void;

/// Takes the state and the gradient at the output, a tensor that is given away; returns the gradient at the input as a tensor that is
/// given away, or null after a failure.
pub type Gradient = unsafe extern "C" fn(state: *mut c_void, gradient: *mut c_void) -> *mut c_void;

/// Frees the state.
pub type Drop = unsafe extern "C" fn(state: *mut c_void);

unsafe extern "C" {
    /// Makes the tensor `output`, which has no history, the result of a function of the tensor `input`. False if libtorch refused.
    ///
    /// # Safety
    /// Both are tensors of libtorch. The state is dropped once, when the graph is, on any thread that drops it.
    pub fn attrflow_with_gradient(
        input: *mut c_void,
        output: *mut c_void,
        state: *mut c_void,
        gradient: Gradient,
        drop: Drop,
    ) -> bool;
}
