//! Functions with a gradient of their own in libtorch's graph: the bindings have none.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use attrflow_autograd_sys::attrflow_with_gradient;
use tch::{Device, Tensor};

type State = Box<dyn Fn(&Tensor) -> Tensor>;

/// `output`, computed of `input` without a graph, as a function of it in the graph: `gradient` takes the gradient at the output and
/// returns that at the input, of the input's shape.
///
/// For tensors on a CPU: there, libtorch computes gradients on the thread that asks for them, on which alone the function is called
/// and dropped. Where `input` wants no gradient, `output` is returned as it is.
///
/// # Panics
/// `input` is not on a CPU, or `output` has a history.
pub(super) fn with_gradient(
    input: &Tensor,
    mut output: Tensor,
    gradient: impl Fn(&Tensor) -> Tensor + 'static,
) -> Tensor {
    if !input.requires_grad() {
        return output;
    }
    assert!(
        input.device() == Device::Cpu && !output.requires_grad(),
        "a function on a CPU, without a history"
    );
    let state: State = Box::new(gradient);
    let state = Box::into_raw(Box::new(state)).cast();
    let mut input = input.shallow_clone();
    // SAFETY: both tensors live through the call. The node owns the state from here on, and drops it once.
    let done = unsafe {
        attrflow_with_gradient(input.as_mut_ptr().cast(), output.as_mut_ptr().cast(), state, call, drop_state)
    };
    assert!(done, "libtorch took no node");
    output
}

/// Calls the function; null if it panics.
///
/// # Safety
/// `state` comes from [`with_gradient`], and `gradient` is a tensor that is given away.
unsafe extern "C" fn call(state: *mut c_void, gradient: *mut c_void) -> *mut c_void {
    // SAFETY: as above.
    let (state, gradient) = unsafe { (&*state.cast::<State>(), Tensor::from_ptr(gradient.cast())) };
    let found = catch_unwind(AssertUnwindSafe(|| state(&gradient)));
    // The tensor behind the pointer is given away: its handle here must not free it.
    found.map_or(std::ptr::null_mut(), |found| std::mem::ManuallyDrop::new(found).as_mut_ptr().cast())
}

/// # Safety
/// `state` comes from [`with_gradient`], and is not used again.
unsafe extern "C" fn drop_state(state: *mut c_void) {
    // SAFETY: as above.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tch::Kind;

    use super::*;

    fn leaf() -> Tensor {
        Tensor::from_slice(&[1f32, -2.0, 3.0]).set_requires_grad(true)
    }

    /// In a graph of libtorch's own functions, several times, with what the function holds freed at the end.
    #[test]
    fn the_gradient_is_the_functions_own() {
        let (x, held) = (leaf(), Rc::new(7.0));
        let y = tch::no_grad(|| x.square());
        let kept = held.clone();
        let y = with_gradient(&x, y, move |gradient| gradient * *kept);
        assert!(y.requires_grad());
        let z = (&y * 2.0).sum(Kind::Float) + x.sum(Kind::Float);
        let found = Tensor::run_backward(&[&z], &[&x], true, false);
        assert_eq!(Vec::<f32>::try_from(&found[0]).unwrap(), [15.0; 3]);
        let again = Tensor::run_backward(&[&z], &[&y, &x], false, false);
        assert_eq!(Vec::<f32>::try_from(&again[0]).unwrap(), [2.0; 3]);
        drop((y, z));
        assert_eq!(Rc::strong_count(&held), 1);
    }

    #[test]
    fn without_a_gradient_nothing_is_kept() {
        let (x, held) = (leaf().detach(), Rc::new(()));
        let kept = held.clone();
        let y = with_gradient(&x, x.square(), move |gradient| {
            let _ = &kept;
            gradient.shallow_clone()
        });
        assert!(!y.requires_grad());
        assert_eq!(Rc::strong_count(&held), 1);
    }

    #[test]
    fn a_panic_is_an_error_of_the_pass() {
        let x = leaf();
        let y = with_gradient(&x, tch::no_grad(|| x.square()), |_| panic!("as the test wants"));
        assert!(Tensor::f_run_backward(&[&y.sum(Kind::Float)], &[&x], false, false).is_err());
    }
}
