//! Judges raw audio, one pair per line: for comparisons with other implementations.
//!
//! Reads lines `METRIC RATE REFERENCE DEGRADED` from stdin, the last two files of little-endian f32 samples
//! (one channel). Writes one line for each: the score and the seconds that it took, or `-` and why there is none.

use codec_metrics::{Error, Metric, Pair};
use std::io::BufRead;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let [metric, rate, reference, degraded] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("`{line}` is not `METRIC RATE REFERENCE DEGRADED`").into());
        };
        let metric = Metric::by_name(metric).ok_or_else(|| format!("no metric {metric}"))?;
        let (rate, reference, degraded) = (rate.parse()?, samples(reference)?, samples(degraded)?);
        let start = Instant::now();
        let score = judge(metric, &reference, &degraded, rate);
        let seconds = start.elapsed().as_secs_f64();
        match score {
            Ok(score) => println!("{score:e} {seconds:e}"),
            Err(error) => println!("- {error}"),
        }
    }
    Ok(())
}

fn judge(metric: Metric, reference: &[f32], degraded: &[f32], rate: u32) -> Result<f64, Error> {
    metric.judge_pair(&Pair::new(reference, degraded, rate)?)
}

fn samples(path: &str) -> Outcome<Vec<f32>> {
    let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
}
