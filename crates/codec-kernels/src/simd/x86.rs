//! The two levels of x86-64: AVX2 with FMA, and AVX-512.
//!
//! Every method's SAFETY argument is the same and is made here once: `self` exists, `new` is the only way to
//! make one, and `new` asked the CPU for the instructions; pointers are vouched for by the caller.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument for all of them, at the head of the file"
)]

use std::arch::x86_64 as arch;

use super::{Kernel, Simd};

/// Proof that the CPU has AVX-512 F, VL and DQ, AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma"))
        .then_some(Self(()))
    }

    pub(super) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
        fn run<K: Kernel>(kernel: K, token: Avx512) -> K::Output {
            kernel.run(token)
        }
        unsafe { run(kernel, self) }
    }
}

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"))
            .then_some(Self(()))
    }

    pub(super) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        fn run<K: Kernel>(kernel: K, token: Avx2) -> K::Output {
            kernel.run(token)
        }
        unsafe { run(kernel, self) }
    }
}

/// The lanes of `[-1; 8]` and `[0; 8]`: a mask of `n` lanes starts at `8 - n`.
static PART: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Into the second-level cache.
#[inline(always)]
fn prefetch(place: *const f32) {
    // Never faults, whatever the address.
    unsafe { arch::_mm_prefetch::<{ arch::_MM_HINT_T1 }>(place.cast()) }
}

impl Simd for Avx512 {
    type V = arch::__m512;
    type W = [arch::__m512d; 2];
    type M = arch::__mmask16;
    type N = [arch::__mmask8; 2];

    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;

    #[inline(always)]
    fn prefetch(self, place: *const f32) {
        prefetch(place);
    }

    #[inline(always)]
    unsafe fn load_ptr(self, xs: *const f32) -> Self::V {
        unsafe { arch::_mm512_loadu_ps(xs) }
    }
    #[inline(always)]
    unsafe fn load_part(self, xs: *const f32, n: usize) -> Self::V {
        unsafe { arch::_mm512_maskz_loadu_ps(((1_u32 << n) - 1) as u16, xs) }
    }
    #[inline(always)]
    unsafe fn load_bytes_ptr(self, xs: *const i8) -> Self::V {
        unsafe { arch::_mm512_cvtepi32_ps(arch::_mm512_cvtepi8_epi32(arch::_mm_loadu_si128(xs.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::V, out: *mut f32) {
        unsafe { arch::_mm512_storeu_ps(out, v) }
    }
    #[inline(always)]
    unsafe fn store_part(self, v: Self::V, out: *mut f32, n: usize) {
        unsafe { arch::_mm512_mask_storeu_ps(out, ((1_u32 << n) - 1) as u16, v) }
    }
    #[inline(always)]
    unsafe fn load_wide_ptr(self, xs: *const f64) -> Self::W {
        unsafe { [arch::_mm512_loadu_pd(xs), arch::_mm512_loadu_pd(xs.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_wide_ptr(self, w: Self::W, out: *mut f64) {
        unsafe {
            arch::_mm512_storeu_pd(out, w[0]);
            arch::_mm512_storeu_pd(out.add(8), w[1]);
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        unsafe { arch::_mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { arch::_mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { arch::_mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        unsafe { arch::_mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        unsafe { arch::_mm512_cmp_ps_mask::<{ arch::_CMP_LT_OQ }>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: Self::M, yes: Self::V, no: Self::V) -> Self::V {
        unsafe { arch::_mm512_mask_blend_ps(m, no, yes) }
    }
    #[inline(always)]
    fn all(self, m: Self::M) -> bool {
        m == u16::MAX
    }
    #[inline(always)]
    fn pow2(self, t: Self::V) -> Self::V {
        unsafe {
            let exponent = arch::_mm512_slli_epi32::<23>(arch::_mm512_castps_si512(t));
            let one = arch::_mm512_castps_si512(arch::_mm512_set1_ps(1.0));
            arch::_mm512_castsi512_ps(arch::_mm512_add_epi32(exponent, one))
        }
    }

    #[inline(always)]
    fn widen(self, v: Self::V) -> Self::W {
        unsafe {
            let (low, high) = (arch::_mm512_castps512_ps256(v), arch::_mm512_extractf32x8_ps::<1>(v));
            [arch::_mm512_cvtps_pd(low), arch::_mm512_cvtps_pd(high)]
        }
    }
    #[inline(always)]
    fn narrow(self, w: Self::W) -> Self::V {
        unsafe {
            let (low, high) = (arch::_mm512_cvtpd_ps(w[0]), arch::_mm512_cvtpd_ps(w[1]));
            arch::_mm512_insertf32x8::<1>(arch::_mm512_castps256_ps512(low), high)
        }
    }
    #[inline(always)]
    fn wide_splat(self, x: f64) -> Self::W {
        unsafe { [arch::_mm512_set1_pd(x); 2] }
    }
    #[inline(always)]
    fn wide_add(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm512_add_pd(a[0], b[0]), arch::_mm512_add_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_sub(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm512_sub_pd(a[0], b[0]), arch::_mm512_sub_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_mul(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm512_mul_pd(a[0], b[0]), arch::_mm512_mul_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_div(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm512_div_pd(a[0], b[0]), arch::_mm512_div_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_sqrt(self, a: Self::W) -> Self::W {
        unsafe { [arch::_mm512_sqrt_pd(a[0]), arch::_mm512_sqrt_pd(a[1])] }
    }
    #[inline(always)]
    fn wide_fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W {
        unsafe { [arch::_mm512_fmadd_pd(a[0], b[0], c[0]), arch::_mm512_fmadd_pd(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn wide_fnma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W {
        unsafe { [arch::_mm512_fnmadd_pd(a[0], b[0], c[0]), arch::_mm512_fnmadd_pd(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn wide_lt(self, a: Self::W, b: Self::W) -> Self::N {
        unsafe {
            [
                arch::_mm512_cmp_pd_mask::<{ arch::_CMP_LT_OQ }>(a[0], b[0]),
                arch::_mm512_cmp_pd_mask::<{ arch::_CMP_LT_OQ }>(a[1], b[1]),
            ]
        }
    }
    #[inline(always)]
    fn wide_select(self, m: Self::N, yes: Self::W, no: Self::W) -> Self::W {
        unsafe {
            [arch::_mm512_mask_blend_pd(m[0], no[0], yes[0]), arch::_mm512_mask_blend_pd(m[1], no[1], yes[1])]
        }
    }
    #[inline(always)]
    fn wide_pow2(self, t: Self::W) -> Self::W {
        unsafe {
            let one = arch::_mm512_castpd_si512(arch::_mm512_set1_pd(1.0));
            let [low, high] = [arch::_mm512_castpd_si512(t[0]), arch::_mm512_castpd_si512(t[1])];
            [
                arch::_mm512_castsi512_pd(arch::_mm512_add_epi64(arch::_mm512_slli_epi64::<52>(low), one)),
                arch::_mm512_castsi512_pd(arch::_mm512_add_epi64(arch::_mm512_slli_epi64::<52>(high), one)),
            ]
        }
    }
    #[inline(always)]
    fn wide_negate_odd(self, t: Self::W, x: Self::W) -> Self::W {
        unsafe {
            let [low, high] = [arch::_mm512_castpd_si512(t[0]), arch::_mm512_castpd_si512(t[1])];
            let (low, high) = (arch::_mm512_slli_epi64::<63>(low), arch::_mm512_slli_epi64::<63>(high));
            [
                arch::_mm512_xor_pd(x[0], arch::_mm512_castsi512_pd(low)),
                arch::_mm512_xor_pd(x[1], arch::_mm512_castsi512_pd(high)),
            ]
        }
    }
}

impl Simd for Avx2 {
    type V = arch::__m256;
    type W = [arch::__m256d; 2];
    type M = arch::__m256;
    type N = [arch::__m256d; 2];

    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    fn prefetch(self, place: *const f32) {
        prefetch(place);
    }

    #[inline(always)]
    unsafe fn load_ptr(self, xs: *const f32) -> Self::V {
        unsafe { arch::_mm256_loadu_ps(xs) }
    }
    #[inline(always)]
    unsafe fn load_part(self, xs: *const f32, n: usize) -> Self::V {
        unsafe { arch::_mm256_maskload_ps(xs, part(n)) }
    }
    #[inline(always)]
    unsafe fn load_bytes_ptr(self, xs: *const i8) -> Self::V {
        unsafe { arch::_mm256_cvtepi32_ps(arch::_mm256_cvtepi8_epi32(arch::_mm_loadl_epi64(xs.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::V, out: *mut f32) {
        unsafe { arch::_mm256_storeu_ps(out, v) }
    }
    #[inline(always)]
    unsafe fn store_part(self, v: Self::V, out: *mut f32, n: usize) {
        unsafe { arch::_mm256_maskstore_ps(out, part(n), v) }
    }
    #[inline(always)]
    unsafe fn load_wide_ptr(self, xs: *const f64) -> Self::W {
        unsafe { [arch::_mm256_loadu_pd(xs), arch::_mm256_loadu_pd(xs.add(4))] }
    }
    #[inline(always)]
    unsafe fn store_wide_ptr(self, w: Self::W, out: *mut f64) {
        unsafe {
            arch::_mm256_storeu_pd(out, w[0]);
            arch::_mm256_storeu_pd(out.add(4), w[1]);
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        unsafe { arch::_mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { arch::_mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { arch::_mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { arch::_mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        unsafe { arch::_mm256_andnot_ps(arch::_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        unsafe { arch::_mm256_cmp_ps::<{ arch::_CMP_LT_OQ }>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: Self::M, yes: Self::V, no: Self::V) -> Self::V {
        unsafe { arch::_mm256_blendv_ps(no, yes, m) }
    }
    #[inline(always)]
    fn all(self, m: Self::M) -> bool {
        unsafe { arch::_mm256_movemask_ps(m) == 0xff }
    }
    #[inline(always)]
    fn pow2(self, t: Self::V) -> Self::V {
        unsafe {
            let exponent = arch::_mm256_slli_epi32::<23>(arch::_mm256_castps_si256(t));
            let one = arch::_mm256_castps_si256(arch::_mm256_set1_ps(1.0));
            arch::_mm256_castsi256_ps(arch::_mm256_add_epi32(exponent, one))
        }
    }

    #[inline(always)]
    fn widen(self, v: Self::V) -> Self::W {
        unsafe {
            let (low, high) = (arch::_mm256_castps256_ps128(v), arch::_mm256_extractf128_ps::<1>(v));
            [arch::_mm256_cvtps_pd(low), arch::_mm256_cvtps_pd(high)]
        }
    }
    #[inline(always)]
    fn narrow(self, w: Self::W) -> Self::V {
        unsafe {
            let (low, high) = (arch::_mm256_cvtpd_ps(w[0]), arch::_mm256_cvtpd_ps(w[1]));
            arch::_mm256_insertf128_ps::<1>(arch::_mm256_castps128_ps256(low), high)
        }
    }
    #[inline(always)]
    fn wide_splat(self, x: f64) -> Self::W {
        unsafe { [arch::_mm256_set1_pd(x); 2] }
    }
    #[inline(always)]
    fn wide_add(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm256_add_pd(a[0], b[0]), arch::_mm256_add_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_sub(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm256_sub_pd(a[0], b[0]), arch::_mm256_sub_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_mul(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm256_mul_pd(a[0], b[0]), arch::_mm256_mul_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_div(self, a: Self::W, b: Self::W) -> Self::W {
        unsafe { [arch::_mm256_div_pd(a[0], b[0]), arch::_mm256_div_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_sqrt(self, a: Self::W) -> Self::W {
        unsafe { [arch::_mm256_sqrt_pd(a[0]), arch::_mm256_sqrt_pd(a[1])] }
    }
    #[inline(always)]
    fn wide_fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W {
        unsafe { [arch::_mm256_fmadd_pd(a[0], b[0], c[0]), arch::_mm256_fmadd_pd(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn wide_fnma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W {
        unsafe { [arch::_mm256_fnmadd_pd(a[0], b[0], c[0]), arch::_mm256_fnmadd_pd(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn wide_lt(self, a: Self::W, b: Self::W) -> Self::N {
        unsafe {
            [
                arch::_mm256_cmp_pd::<{ arch::_CMP_LT_OQ }>(a[0], b[0]),
                arch::_mm256_cmp_pd::<{ arch::_CMP_LT_OQ }>(a[1], b[1]),
            ]
        }
    }
    #[inline(always)]
    fn wide_select(self, m: Self::N, yes: Self::W, no: Self::W) -> Self::W {
        unsafe { [arch::_mm256_blendv_pd(no[0], yes[0], m[0]), arch::_mm256_blendv_pd(no[1], yes[1], m[1])] }
    }
    #[inline(always)]
    fn wide_pow2(self, t: Self::W) -> Self::W {
        unsafe {
            let one = arch::_mm256_castpd_si256(arch::_mm256_set1_pd(1.0));
            let [low, high] = [arch::_mm256_castpd_si256(t[0]), arch::_mm256_castpd_si256(t[1])];
            [
                arch::_mm256_castsi256_pd(arch::_mm256_add_epi64(arch::_mm256_slli_epi64::<52>(low), one)),
                arch::_mm256_castsi256_pd(arch::_mm256_add_epi64(arch::_mm256_slli_epi64::<52>(high), one)),
            ]
        }
    }
    #[inline(always)]
    fn wide_negate_odd(self, t: Self::W, x: Self::W) -> Self::W {
        unsafe {
            let [low, high] = [arch::_mm256_castpd_si256(t[0]), arch::_mm256_castpd_si256(t[1])];
            let (low, high) = (arch::_mm256_slli_epi64::<63>(low), arch::_mm256_slli_epi64::<63>(high));
            [
                arch::_mm256_xor_pd(x[0], arch::_mm256_castsi256_pd(low)),
                arch::_mm256_xor_pd(x[1], arch::_mm256_castsi256_pd(high)),
            ]
        }
    }
}

/// A mask of the first `n` of eight lanes.
#[inline(always)]
fn part(n: usize) -> arch::__m256i {
    assert!(n <= 8);
    // SAFETY: `PART` has 16 entries and the load reads `8 - n .. 16 - n`; AVX2 is the caller's own.
    unsafe { arch::_mm256_loadu_si256(PART.as_ptr().add(8 - n).cast()) }
}
