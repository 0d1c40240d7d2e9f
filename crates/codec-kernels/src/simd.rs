//! Vectors of `f32` behind one trait, and the choice of the instructions at run time.
//!
//! A kernel is written once, generic over [`Simd`], and handed to [`dispatch`], which compiles it a second
//! and third time inside functions that enable AVX2 and AVX-512. Only operations that IEEE 754 defines to
//! the last bit are offered, so the lanes of every level agree. A value of a token type ([`Avx512`],
//! [`Avx2`]) exists only after the CPU was asked: that is what makes the methods safe to call.

use std::cell::Cell;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::scope::with_value;

/// The instructions that kernels run on. Results are the same bits on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// 16 lanes: AVX-512 F, VL and DQ.
    Avx512,
    /// 8 lanes: AVX2 and FMA.
    Avx2,
    /// Whatever the compiler makes of `f32::mul_add`; fast where the target has FMA (aarch64).
    Portable,
    /// 16 portable lanes: the tiles of AVX-512 on a CPU without it.
    #[cfg(test)]
    Wide,
}

thread_local! {
    static OVERRIDE: Cell<Option<Level>> = const { Cell::new(None) };
}

/// The level that calls from this thread run on: the best one of this CPU, unless [`with_level`] says otherwise.
pub fn level() -> Level {
    OVERRIDE.get().unwrap_or_else(detected)
}

/// The levels that this CPU can run, best first.
pub fn available_levels() -> impl Iterator<Item = Level> {
    let skip = match detected() {
        Level::Avx512 => 0,
        Level::Avx2 => 1,
        _ => 2,
    };
    let levels = [Level::Avx512, Level::Avx2, Level::Portable].into_iter().skip(skip);
    #[cfg(test)]
    let levels = levels.chain([Level::Wide]);
    levels
}

/// Runs `f` with the calls of this thread on `level`, for tests and benches.
///
/// Work that a call hands to other threads runs on the level of the calling thread.
///
/// # Errors
/// [`Error::Level`] where the CPU lacks the instructions.
pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> Result<R> {
    if !available_levels().any(|available| available == level) {
        return Err(Error::Level { level });
    }
    Ok(with_value(&OVERRIDE, Some(level), f))
}

/// A computation that [`dispatch`] runs; `run` must be `#[inline(always)]`, or it misses its instructions. So must
/// every function that it calls with vectors; a closure that it calls at two places is one that is not.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel` on `level`, or on the portable lanes where the CPU lacks it.
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            if let Some(token) = x86::Avx512::new() {
                return token.dispatch(kernel);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            if let Some(token) = x86::Avx2::new() {
                return token.dispatch(kernel);
            }
        }
        #[cfg(test)]
        Level::Wide => return kernel.run(Portable::<16>),
        _ => {}
    }
    kernel.run(Portable::<8>)
}

fn detected() -> Level {
    static DETECTED: OnceLock<Level> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if x86::Avx512::new().is_some() {
                return Level::Avx512;
            }
            if x86::Avx2::new().is_some() {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}

/// Most lanes of any level: the size of buffers for remainders.
pub(crate) const MAX_LANES: usize = 16;

/// Adding this to a small f32 leaves the nearest integer in the low mantissa bits.
pub(crate) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
/// The same for f64.
pub(crate) const ROUND_WIDE: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52

/// `LANES` floats and the exact operations on them; `wide` is the same number of lanes in f64.
#[expect(unsafe_code, reason = "raw loads and stores for the innermost loops")]
pub(crate) trait Simd: Copy + Send + Sync {
    /// `LANES` of f32.
    type V: Copy;
    /// `LANES` of f64.
    type W: Copy;
    /// One truth value per lane of `V`.
    type M: Copy;
    /// One truth value per lane of `W`.
    type N: Copy;

    /// 8 or 16.
    const LANES: usize;
    /// Rows of the largest tile of a product that two vectors wide accumulators leave registers for.
    const TILE_ROWS: usize;

    /// # Safety
    /// `LANES` floats can be read at `xs`.
    unsafe fn load_ptr(self, xs: *const f32) -> Self::V;
    /// Loads `n < LANES` floats, the other lanes are 0.
    /// # Safety
    /// `n` floats can be read at `xs`.
    unsafe fn load_part(self, xs: *const f32, n: usize) -> Self::V;
    /// Loads `LANES` integers of eight bits and converts them.
    /// # Safety
    /// `LANES` integers can be read at `xs`.
    unsafe fn load_bytes_ptr(self, xs: *const i8) -> Self::V;
    /// # Safety
    /// `LANES` floats can be written at `out`.
    unsafe fn store_ptr(self, v: Self::V, out: *mut f32);
    /// Stores the first `n < LANES` lanes.
    /// # Safety
    /// `n` floats can be written at `out`.
    unsafe fn store_part(self, v: Self::V, out: *mut f32, n: usize);
    /// # Safety
    /// `LANES` doubles can be read at `xs`.
    unsafe fn load_wide_ptr(self, xs: *const f64) -> Self::W;
    /// # Safety
    /// `LANES` doubles can be written at `out`.
    unsafe fn store_wide_ptr(self, w: Self::W, out: *mut f64);

    /// Asks for the line of memory at `place`, any address, to be brought near; may do nothing.
    #[inline(always)]
    fn prefetch(self, _place: *const f32) {}

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a < b ? a : b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    fn select(self, m: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    /// Whether every lane is true.
    fn all(self, m: Self::M) -> bool;
    /// `2^n` where `t = ROUND + n` and n is an exponent of a normal number.
    fn pow2(self, t: Self::V) -> Self::V;

    fn widen(self, v: Self::V) -> Self::W;
    fn narrow(self, w: Self::W) -> Self::V;
    fn wide_splat(self, x: f64) -> Self::W;
    fn wide_add(self, a: Self::W, b: Self::W) -> Self::W;
    fn wide_sub(self, a: Self::W, b: Self::W) -> Self::W;
    fn wide_mul(self, a: Self::W, b: Self::W) -> Self::W;
    fn wide_div(self, a: Self::W, b: Self::W) -> Self::W;
    fn wide_sqrt(self, a: Self::W) -> Self::W;
    /// `a * b + c`, rounded once.
    fn wide_fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// `c - a * b`, rounded once.
    fn wide_fnma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    fn wide_lt(self, a: Self::W, b: Self::W) -> Self::N;
    fn wide_select(self, m: Self::N, yes: Self::W, no: Self::W) -> Self::W;
    /// `2^n` where `t = ROUND_WIDE + n` and n is an exponent of a normal number.
    fn wide_pow2(self, t: Self::W) -> Self::W;
    /// `-x` where `t = ROUND_WIDE + n` and n is odd, else `x`.
    fn wide_negate_odd(self, t: Self::W, x: Self::W) -> Self::W;

    /// Loads the first `LANES` floats of `xs`.
    #[inline(always)]
    fn load(self, xs: &[f32]) -> Self::V {
        assert!(xs.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.load_ptr(xs.as_ptr()) }
    }

    /// Stores into the first `LANES` floats of `out`.
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32]) {
        assert!(out.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe {
            self.store_ptr(v, out.as_mut_ptr());
        }
    }

    /// Loads the first `LANES` doubles of `xs`.
    #[inline(always)]
    fn load_wide(self, xs: &[f64]) -> Self::W {
        assert!(xs.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.load_wide_ptr(xs.as_ptr()) }
    }

    /// Stores into the first `LANES` doubles of `out`.
    #[inline(always)]
    fn store_wide(self, w: Self::W, out: &mut [f64]) {
        assert!(out.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe {
            self.store_wide_ptr(w, out.as_mut_ptr());
        }
    }
}

/// Lanes in arrays: eight are two NEON registers on aarch64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable<const N: usize>;

/// Applies `f` to each lane of two arrays.
#[inline(always)]
fn zip<const N: usize, A: Copy, B: Copy, R: Copy + Default>(
    a: [A; N],
    b: [B; N],
    f: impl Fn(A, B) -> R,
) -> [R; N] {
    let mut out = [R::default(); N];
    for i in 0..N {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[expect(unsafe_code, reason = "raw loads and stores of whole vectors")]
impl<const N: usize> Simd for Portable<N> {
    type V = [f32; N];
    type W = [f64; N];
    type M = [bool; N];
    type N = [bool; N];

    const LANES: usize = N;
    // As the levels of so many lanes have them.
    const TILE_ROWS: usize = if N == MAX_LANES { 12 } else { 6 };

    #[inline(always)]
    unsafe fn load_ptr(self, xs: *const f32) -> Self::V {
        // SAFETY: the caller vouches for `N` floats; arrays of f32 need no more alignment than f32.
        unsafe { xs.cast::<[f32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn load_part(self, xs: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; N];
        for (i, x) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller vouches for `n` floats.
            *x = unsafe { *xs.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn load_bytes_ptr(self, xs: *const i8) -> Self::V {
        // SAFETY: the caller vouches for `N` integers.
        unsafe { xs.cast::<[i8; N]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::V, out: *mut f32) {
        // SAFETY: the caller vouches for `N` floats.
        unsafe { out.cast::<[f32; N]>().write(v) }
    }
    #[inline(always)]
    unsafe fn store_part(self, v: Self::V, out: *mut f32, n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller vouches for `n` floats.
            unsafe { *out.add(i) = x };
        }
    }
    #[inline(always)]
    unsafe fn load_wide_ptr(self, xs: *const f64) -> Self::W {
        // SAFETY: the caller vouches for `N` doubles.
        unsafe { xs.cast::<[f64; N]>().read() }
    }
    #[inline(always)]
    unsafe fn store_wide_ptr(self, w: Self::W, out: *mut f64) {
        // SAFETY: the caller vouches for `N` doubles.
        unsafe { out.cast::<[f64; N]>().write(w) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; N]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..N {
            c[i] = a[i].mul_add(b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..N {
            c[i] = (-a[i]).mul_add(b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn select(self, m: Self::M, yes: Self::V, mut no: Self::V) -> Self::V {
        for i in 0..N {
            no[i] = if m[i] { yes[i] } else { no[i] };
        }
        no
    }
    #[inline(always)]
    fn all(self, m: Self::M) -> bool {
        m.into_iter().all(|lane| lane)
    }
    #[inline(always)]
    fn pow2(self, t: Self::V) -> Self::V {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(1.0_f32.to_bits())))
    }

    #[inline(always)]
    fn widen(self, v: Self::V) -> Self::W {
        v.map(f64::from)
    }
    #[inline(always)]
    fn narrow(self, w: Self::W) -> Self::V {
        w.map(|x| x as f32)
    }
    #[inline(always)]
    fn wide_splat(self, x: f64) -> Self::W {
        [x; N]
    }
    #[inline(always)]
    fn wide_add(self, a: Self::W, b: Self::W) -> Self::W {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn wide_sub(self, a: Self::W, b: Self::W) -> Self::W {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn wide_mul(self, a: Self::W, b: Self::W) -> Self::W {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn wide_div(self, a: Self::W, b: Self::W) -> Self::W {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn wide_sqrt(self, a: Self::W) -> Self::W {
        a.map(f64::sqrt)
    }
    #[inline(always)]
    fn wide_fma(self, a: Self::W, b: Self::W, mut c: Self::W) -> Self::W {
        for i in 0..N {
            c[i] = a[i].mul_add(b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    fn wide_fnma(self, a: Self::W, b: Self::W, mut c: Self::W) -> Self::W {
        for i in 0..N {
            c[i] = (-a[i]).mul_add(b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    fn wide_lt(self, a: Self::W, b: Self::W) -> Self::N {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn wide_select(self, m: Self::N, yes: Self::W, mut no: Self::W) -> Self::W {
        for i in 0..N {
            no[i] = if m[i] { yes[i] } else { no[i] };
        }
        no
    }
    #[inline(always)]
    fn wide_pow2(self, t: Self::W) -> Self::W {
        t.map(|t| f64::from_bits((t.to_bits() << 52).wrapping_add(1.0_f64.to_bits())))
    }
    #[inline(always)]
    fn wide_negate_odd(self, t: Self::W, x: Self::W) -> Self::W {
        zip(t, x, |t, x| f64::from_bits(x.to_bits() ^ (t.to_bits() << 63)))
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions, called only with a proof that the CPU has them")]
mod x86;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_lasts_as_long_as_its_scope() {
        let outside = level();
        let inside = with_level(Level::Portable, || {
            let nested = available_levels().next().expect("a level");
            (with_level(nested, level).expect("available") == nested, level())
        });
        assert_eq!(inside, Ok((true, Level::Portable)));
        assert_eq!(level(), outside);
    }

    #[test]
    fn levels_that_the_cpu_lacks_are_refused() {
        let available: Vec<Level> = available_levels().collect();
        assert_eq!(available[available.len() - 2..], [Level::Portable, Level::Wide]);
        for each in [Level::Avx512, Level::Avx2, Level::Portable] {
            assert_eq!(with_level(each, level).ok(), available.contains(&each).then_some(each));
        }
    }
}
