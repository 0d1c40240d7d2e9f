//! How exactly a model that does not train holds its weights.

use crate::Result;
use codec_kernels::quantize_columns;
use std::borrow::Cow;
use std::cell::Cell;

/// The numbers that the weights of convolutions, linear and recurrent layers are held in on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the checkpoint has them.
    #[default]
    Float32,
    /// Rounded to integers of 8 bits with a factor for each output: a quarter of the memory, which is faster where a
    /// step of a stream waits for its weights. Activations, norms and codebooks stay as they are. Codes and audio
    /// differ from those of [`Precision::Float32`], and are the same bits on every machine all the same.
    Int8,
}

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::Float32) };
}

/// Runs `load`; what it makes on this thread holds its weights in this precision, and what a
/// family loads side by side as well.
pub fn with_precision<R>(precision: Precision, load: impl FnOnce() -> R) -> R {
    /// Puts the former precision back, also when `load` unwinds.
    struct Restore(Precision);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRECISION.set(self.0);
        }
    }
    let _restore = Restore(PRECISION.replace(precision));
    load()
}

/// Runs both parts of a loading, side by side if there are threads, in the precision of this thread.
pub(crate) fn load_both<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    let precision = PRECISION.get();
    rayon::join(|| with_precision(precision, a), || with_precision(precision, b))
}

/// The matrix, `[k, n]`, as it is to be held.
pub(super) fn held(matrix: &[f32], n: usize) -> Result<Cow<'_, [f32]>> {
    match PRECISION.get() {
        Precision::Float32 => Ok(Cow::Borrowed(matrix)),
        Precision::Int8 => {
            let mut matrix = matrix.to_vec();
            quantize_columns(&mut matrix, n)?;
            Ok(Cow::Owned(matrix))
        }
    }
}
