//! The machine that was measured, and what it can do at best.

use anyhow::Result;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;

/// Rounds of multiply-adds per timing: about a millisecond.
const ROUNDS: usize = 20_000;
/// Timings, of which the best counts: others only add to it.
const REPEATS: usize = 100;
/// Floats of an array that no cache holds.
const LARGE: usize = 1 << 25;

/// What stands above the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) n_cores: usize,
    /// Instructions that our kernels use.
    pub(super) instructions: String,
    pub(super) system: String,
    /// Of one core, with multiply-adds in registers.
    pub(super) peak_gflops: f64,
    /// Of all threads that were measured with: two arrays read and one written.
    pub(super) memory_gigabytes: f64,
    /// Other processes that wanted to run at the start of the measurement, as the system's load average has it.
    pub(super) load: Option<f64>,
}

impl Machine {
    /// Looks at this machine; the bandwidth is that of rayon's current pool.
    pub(super) fn new() -> Result<Self> {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        Ok(Self {
            cpu: name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            n_cores: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: format!("{:?}", codec_kernels::level()),
            system: std::env::consts::OS.to_owned(),
            peak_gflops: peak(),
            memory_gigabytes: bandwidth()?,
            load: load.and_then(|load| load.split(' ').next()?.parse().ok()),
        })
    }
}

/// GFLOP/s of multiply-adds in registers, on one core.
pub(super) fn peak() -> f64 {
    let rate = |_| {
        let began = Instant::now();
        let n = codec_kernels::multiply_adds(black_box(ROUNDS));
        2.0 * n as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    (0..REPEATS).map(rate).fold(0.0, f64::max)
}

fn bandwidth() -> Result<f64> {
    let (xs, ys, mut out) = (vec![1.0_f32; LARGE], vec![2.0_f32; LARGE], vec![0.0_f32; LARGE]);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let began = Instant::now();
        codec_kernels::add(&xs, &ys, black_box(&mut out))?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok((3 * 4 * LARGE) as f64 / best / 1e9)
}
