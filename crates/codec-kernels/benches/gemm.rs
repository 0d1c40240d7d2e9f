//! GFLOP/s of the products in EnCodec 24 kHz, beside candle's matmul and convolutions in the same run, and what a
//! search of its codebooks takes.
//!
//! `cargo bench -p codec-kernels [-- SECONDS]`: the layers for SECONDS of audio (10), once in a rayon pool of one
//! thread and once in a pool of all cores, the same for both sides. The peak is measured first, with
//! multiply-adds that touch nothing but registers. Candle's matmul gets its im2col matrix for free; its
//! convolutions run as a caller would run them, and part of them stays on one thread in any pool.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use codec_kernels::{
    Level, PackedMatrix, Rows, Start, available_levels, gemm, level, lstm_sequence, n_minima,
    squared_distances,
};

/// Whatever went wrong, in any of the libraries.
type Failure = Box<dyn Error + Send + Sync>;

/// Timings of each product; the best one counts, since others only add to it.
const REPEATS: usize = 5;
/// Short products are repeated for this long: on a busy machine some run will be left alone.
const MIN_DURATION: Duration = Duration::from_millis(100);
/// Timings of candle's convolutions, which take long.
const CANDLE_REPEATS: usize = 3;
const SAMPLE_RATE: usize = 24_000;
/// Strides of the encoder's blocks; the decoder has them backwards.
const RATIOS: [usize; 4] = [2, 4, 5, 8];
const FIRST_CHANNELS: usize = 32;
const LATENT_DIM: usize = 128;

fn main() -> Result<(), Failure> {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse::<usize>().ok()).unwrap_or(10);
    let mut peak_of_level = f64::NAN;
    for each in available_levels() {
        if let Some(peak) = peak(each) {
            println!("{each:?}: peak of one core {peak:.1} GFLOP/s");
            if each == level() {
                peak_of_level = peak;
            }
        }
    }
    let n_cores = std::thread::available_parallelism()?.get();
    for n_threads in [1, n_cores] {
        println!("\n{seconds} s of audio, {n_threads} thread(s) for both sides, level {:?}", level());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build()?;
        pool.install(|| print_table(seconds, peak_of_level * n_threads as f64))?;
        pool.install(|| print_lstm(seconds))?;
        pool.install(print_few_rows)?;
        pool.install(print_search)?;
        if n_threads == n_cores {
            break;
        }
    }
    Ok(())
}

/// Measures every layer of [`layers`] in rayon's current pool.
fn print_table(seconds: usize, peak: f64) -> Result<(), Failure> {
    println!(
        "{:<24} {:>7} {:>5} {:>5} | {:>8} {:>7} | {:>13} {:>13} | {:>10}",
        "layer", "rows", "k", "n", "GFLOP/s", "% peak", "candle matmul", "candle conv1d", "conv1d / us"
    );
    let (mut ours, mut candle, mut inner) = (0.0, 0.0, (0.0, 0.0));
    for layer in layers(seconds) {
        let row = measure(&layer)?;
        let share = 100.0 * row.gflops(row.ours) / peak;
        println!(
            "{:<24} {:>7} {:>5} {:>5} | {:>8.1} {:>7.1} | {:>13.1} {:>13.1} | {:>10.1}",
            layer.name,
            layer.n_rows(),
            layer.k(),
            layer.n(),
            row.gflops(row.ours),
            share,
            row.gflops(row.matmul),
            row.gflops(row.conv),
            row.conv / row.ours,
        );
        ours += row.ours;
        candle += row.conv;
        if layer.c_in.max(layer.c_out) >= 64 {
            inner = (inner.0 + row.flops, inner.1 + row.ours);
        }
    }
    println!("whole list: ours {:.1} ms, candle's convolutions {:.1} ms", ours * 1e3, candle * 1e3);
    println!("whole list: candle's convolutions / ours = {:.1}", candle / ours);
    println!("layers of 64 channels and more: {:.1} % of peak", 100.0 * inner.0 / inner.1 / 1e9 / peak);
    Ok(())
}

/// Measures the recurrence of one LSTM layer, which reads all of its weights at every step.
fn print_lstm(seconds: usize) -> Result<(), Failure> {
    const HIDDEN: usize = 512;
    let n_steps = seconds * SAMPLE_RATE / RATIOS.iter().product::<usize>();
    let recurrent = PackedMatrix::new(&noise(4 * HIDDEN * HIDDEN), HIDDEN, 4 * HIDDEN)?;
    for batch in [1, 8] {
        let input = noise(batch * n_steps * 4 * HIDDEN);
        let mut out = vec![0.0; batch * n_steps * HIDDEN];
        let mut gates = input.clone();
        let seconds = best_of(REPEATS, || {
            gates.copy_from_slice(&input);
            let (mut hidden, mut cell) = (vec![0.0; batch * HIDDEN], vec![0.0; batch * HIDDEN]);
            lstm_sequence(&mut gates, &recurrent, batch, &mut hidden, &mut cell, &mut out)?;
            Ok(())
        })?;
        let bytes = (n_steps * 16 * HIDDEN * HIDDEN) as f64;
        println!(
            "lstm {HIDDEN}, batch {batch}: {:.1} us per step, weights at {:.1} GB/s",
            seconds / n_steps as f64 * 1e6,
            bytes / seconds / 1e9
        );
    }
    Ok(())
}

/// Measures products of a few rows with weights that no cache holds, as a step of a stream makes them.
fn print_few_rows() -> Result<(), Failure> {
    const SIDE: usize = 2048;
    let matrix = || PackedMatrix::new(&noise(SIDE * SIDE), SIDE, SIDE);
    let matrices = (0..10).map(|_| matrix()).collect::<Result<Vec<_>, _>>()?;
    let n_weights = (matrices.len() * SIDE * SIDE) as f64;
    for n_rows in [1, 2, 4, 8, 12, 16] {
        let data = noise(n_rows * SIDE);
        let mut out = vec![0.0; n_rows * SIDE];
        let seconds = best_of(REPEATS, || {
            for matrix in &matrices {
                gemm(Rows::new(&data, n_rows, SIDE, SIDE)?, matrix, Start::Zero, black_box(&mut out))?;
            }
            Ok(())
        })?;
        println!(
            "{n_rows} row(s): weights at {:.1} GB/s, {:.1} GFLOP/s",
            4.0 * n_weights / seconds / 1e9,
            2.0 * n_weights * n_rows as f64 / seconds / 1e9
        );
    }
    Ok(())
}

/// Measures a search among the entries of a codebook: the products, and what makes distances of them.
fn print_search() -> Result<(), Failure> {
    const N_ROWS: usize = 64;
    const DIM: usize = 128;
    const N_ENTRIES: usize = 1024;
    let entries = PackedMatrix::new(&noise(DIM * N_ENTRIES), DIM, N_ENTRIES)?;
    let (data, row_norms, entry_norms) = (noise(N_ROWS * DIM), noise(N_ROWS), noise(N_ENTRIES));
    let mut distances = vec![0.0; N_ROWS * N_ENTRIES];
    let mut minima = vec![0.0; N_ROWS * n_minima(N_ENTRIES)];
    let products = best_of(REPEATS, || {
        Ok(gemm(Rows::new(&data, N_ROWS, DIM, DIM)?, &entries, Start::Zero, black_box(&mut distances))?)
    })?;
    let search = best_of(REPEATS, || {
        gemm(Rows::new(&data, N_ROWS, DIM, DIM)?, &entries, Start::Zero, &mut distances)?;
        Ok(squared_distances(&mut distances, &row_norms, &entry_norms, black_box(&mut minima))?)
    })?;
    println!(
        "search of {N_ENTRIES} entries: {:.2} us for each of {N_ROWS} rows, {:.0} % of it the products",
        search / N_ROWS as f64 * 1e6,
        100.0 * products / search
    );
    Ok(())
}

/// One convolution, or one transposed convolution with a kernel of twice its stride.
struct Layer {
    name: String,
    c_in: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    transposed: bool,
    /// Steps of input.
    n_in: usize,
}

impl Layer {
    /// Rows of the product: outputs, or pairs of neighbouring inputs.
    fn n_rows(&self) -> usize {
        if self.transposed { self.n_in + 1 } else { self.n_in / self.stride }
    }
    fn k(&self) -> usize {
        if self.transposed { 2 * self.c_in } else { self.kernel * self.c_in }
    }
    fn n(&self) -> usize {
        if self.transposed { self.stride * self.c_out } else { self.c_out }
    }
    fn pitch(&self) -> usize {
        if self.transposed { self.c_in } else { self.stride * self.c_in }
    }
}

/// The convolutions of the encoder and of the decoder, in order.
fn layers(seconds: usize) -> Vec<Layer> {
    let conv = |side: &str, c_in, c_out, kernel, stride, n_in| {
        let name = format!("{side} {c_in}->{c_out} k{kernel} s{stride}");
        Layer { name, c_in, c_out, kernel, stride, transposed: false, n_in }
    };
    let block = |side: &str, c: usize, n_in| {
        [conv(side, c, c / 2, 3, 1, n_in), conv(side, c / 2, c, 1, 1, n_in), conv(side, c, c, 1, 1, n_in)]
    };
    let (mut steps, mut c) = (seconds * SAMPLE_RATE, FIRST_CHANNELS);
    let mut list = vec![conv("enc", 1, c, 7, 1, steps)];
    for ratio in RATIOS {
        list.extend(block("enc", c, steps));
        list.push(conv("enc", c, 2 * c, 2 * ratio, ratio, steps));
        (steps, c) = (steps / ratio, 2 * c);
    }
    list.push(conv("enc", c, LATENT_DIM, 7, 1, steps));
    list.push(conv("dec", LATENT_DIM, c, 7, 1, steps));
    for ratio in RATIOS.into_iter().rev() {
        let name = format!("dec {c}->{} k{} t{ratio}", c / 2, 2 * ratio);
        list.push(Layer {
            name,
            c_in: c,
            c_out: c / 2,
            kernel: 2 * ratio,
            stride: ratio,
            transposed: true,
            n_in: steps,
        });
        (steps, c) = (steps * ratio, c / 2);
        list.extend(block("dec", c, steps));
    }
    list.push(conv("dec", c, 1, 7, 1, steps));
    list
}

/// Seconds that one layer takes.
struct Row {
    flops: f64,
    ours: f64,
    matmul: f64,
    conv: f64,
}

impl Row {
    fn gflops(&self, seconds: f64) -> f64 {
        self.flops / seconds / 1e9
    }
}

fn measure(layer: &Layer) -> Result<Row, Failure> {
    let (n_rows, k, n, pitch) = (layer.n_rows(), layer.k(), layer.n(), layer.pitch());
    let data = noise((n_rows - 1) * pitch + k);
    let weights = noise(k * n);
    let bias = noise(n);
    let matrix = PackedMatrix::new(&weights, k, n)?;
    let rows = Rows::new(&data, n_rows, k, pitch)?;
    let mut out = vec![0.0; n_rows * n];
    let ours = best_of(REPEATS, || Ok(gemm(rows, &matrix, Start::Bias(&bias), black_box(&mut out))?))?;

    let device = Device::Cpu;
    let im2col: Vec<f32> = (0..n_rows).flat_map(|r| data[r * pitch..][..k].iter().copied()).collect();
    let (left, right) =
        (Tensor::from_vec(im2col, (n_rows, k), &device)?, Tensor::from_slice(&weights, (k, n), &device)?);
    let mut product = Vec::new();
    let matmul = best_of(CANDLE_REPEATS, || {
        product = vec![left.matmul(&right)?];
        Ok(())
    })?;
    // Both sides must have done the same work.
    let theirs =
        product[0].broadcast_add(&Tensor::from_slice(&bias, n, &device)?)?.flatten_all()?.to_vec1()?;
    let worst = out.iter().zip::<Vec<f32>>(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if worst > 1e-3 {
        return Err(format!("{}: off by {worst}", layer.name).into());
    }
    drop((left, product));

    // Channel-major, as candle has it; the padding is there already.
    let n_padded = data.len().div_ceil(layer.c_in);
    let xs = Tensor::from_vec(noise(layer.c_in * n_padded), (1, layer.c_in, n_padded), &device)?;
    let shape = if layer.transposed {
        (layer.c_in, layer.c_out, layer.kernel)
    } else {
        (layer.c_out, layer.c_in, layer.kernel)
    };
    let kernel = Tensor::from_vec(noise(layer.c_in * layer.c_out * layer.kernel), shape, &device)?;
    let conv = best_of(CANDLE_REPEATS, || {
        black_box(if layer.transposed {
            xs.conv_transpose1d(&kernel, 0, 0, layer.stride, 1, 1)?
        } else {
            xs.conv1d(&kernel, 0, layer.stride, 1, 1)?
        });
        Ok(())
    })?;
    Ok(Row { flops: 2.0 * n_rows as f64 * k as f64 * n as f64, ours, matmul, conv })
}

/// The shortest of at least `repeats` timings, in seconds, after one call that is not timed.
fn best_of(repeats: usize, mut f: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    f()?;
    let (mut best, mut n_runs, all) = (f64::INFINITY, 0, Instant::now());
    while n_runs < repeats || all.elapsed() < MIN_DURATION {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
        n_runs += 1;
    }
    Ok(best)
}

/// Numbers between -0.05 and 0.05, always the same.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05
    };
    (0..n).map(|_| next()).collect()
}

/// GFLOP/s of multiply-adds in registers, where the level has instructions for them.
fn peak(level: Level) -> Option<f64> {
    const ROUNDS: usize = 200_000;
    let (run, lanes): (fn(usize) -> f32, usize) = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (x86::avx512, 16),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (x86::avx2, 8),
        _ => return None,
    };
    let seconds = best_of(50, || {
        black_box(run(black_box(ROUNDS)));
        Ok(())
    })
    .ok()?;
    Some((ROUNDS * CHAINS * lanes * 2) as f64 / seconds / 1e9)
}

/// Independent chains: more than the latency times the throughput of the multiply-add units.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions, for the levels that the CPU was asked about")]
mod x86 {
    //! Loops of nothing but multiply-adds.

    use std::arch::x86_64::{
        _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_cvtss_f32, _mm512_fmadd_ps, _mm512_set1_ps,
    };

    use super::CHAINS;

    pub(super) fn avx512(rounds: usize) -> f32 {
        #[target_feature(enable = "avx512f")]
        fn run(rounds: usize) -> f32 {
            let (a, b) = (_mm512_set1_ps(0.5), _mm512_set1_ps(0.25));
            let mut acc = [_mm512_set1_ps(0.0); CHAINS];
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = _mm512_fmadd_ps(*acc, a, b);
                }
            }
            acc.into_iter().map(|x| _mm512_cvtss_f32(x)).sum()
        }
        // SAFETY: called only for a level that the CPU has.
        unsafe { run(rounds) }
    }

    pub(super) fn avx2(rounds: usize) -> f32 {
        #[target_feature(enable = "avx2,fma")]
        fn run(rounds: usize) -> f32 {
            let (a, b) = (_mm256_set1_ps(0.5), _mm256_set1_ps(0.25));
            let mut acc = [_mm256_set1_ps(0.0); CHAINS];
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = _mm256_fmadd_ps(*acc, a, b);
                }
            }
            acc.into_iter().map(|x| _mm256_cvtss_f32(x)).sum()
        }
        // SAFETY: called only for a level that the CPU has.
        unsafe { run(rounds) }
    }
}
