//! Codebooks that follow the averages of what they code, and the revival of entries that code nothing.

use super::kmeans::gather;
use crate::config::{QuantizerConfig, Revival};
use crate::error::Result;
use crate::rng::Rng;
use candle_core::{DType, Tensor};

/// Keeps an entry finite whose count has decayed to nothing.
const COUNT_FLOOR: f64 = 1e-6;

/// Moving averages of one codebook.
#[derive(Clone, Debug)]
pub(crate) struct Averages {
    /// Vectors per step of each entry, `[codebook_size]`.
    pub(crate) counts: Tensor,
    /// Their sums, `[codebook_size, dim]`.
    pub(crate) sums: Tensor,
}

/// What a step did to a codebook.
#[derive(Debug)]
pub(crate) struct Update {
    /// The new entries.
    pub(crate) codebook: Tensor,
    /// Entries that were replaced.
    pub(crate) revived: Vec<u32>,
}

impl Averages {
    /// The averages that make these entries, each of which coded `count` vectors per step.
    pub(crate) fn of(codebook: &Tensor, count: f64) -> Result<Self> {
        let codebook = codebook.detach();
        let counts = (Tensor::ones(codebook.dim(0)?, DType::F32, codebook.device())? * count)?;
        Ok(Self { sums: (codebook * count)?, counts })
    }

    /// Takes what was coded in a step: `rows` as `codes`.
    ///
    /// An entry whose count falls below `revive_below` times the mean moves to a row of this step, see [`Revival`],
    /// *with the averages of an entry in the middle of its life*: else the next update would undo it.
    ///
    /// # Shapes
    /// `rows` `[n, dim]`, `codes` `[n]`.
    ///
    /// # Source
    /// van den Oord et al. 2017, arXiv 1711.00937, appendix A.1.
    pub(crate) fn update(
        &mut self,
        rows: &Tensor,
        codes: &Tensor,
        config: &QuantizerConfig,
        rng: &mut Rng,
    ) -> Result<Update> {
        let k = self.counts.dim(0)?;
        let rows = rows.detach();
        let (counts, sums) = gather(&rows, codes, k)?;
        self.counts = ((&self.counts * config.decay)? + (counts * (1.0 - config.decay))?)?;
        self.sums = ((&self.sums * config.decay)? + (sums * (1.0 - config.decay))?)?;
        let moves = Moves::of(&self.counts.to_vec1()?, &codes.to_vec1()?, config, rng);
        if !moves.revived.is_empty() {
            let device = rows.device();
            let all = Tensor::cat(&[&self.sums, &rows], 0)?;
            let factors = Tensor::from_vec(moves.factors, (k, 1), device)?;
            self.sums =
                all.index_select(&Tensor::from_vec(moves.sources, k, device)?, 0)?.broadcast_mul(&factors)?;
            self.counts = Tensor::from_vec(moves.counts, k, device)?;
        }
        Ok(Update { codebook: self.codebook()?, revived: moves.revived })
    }

    /// The entries.
    pub(crate) fn codebook(&self) -> Result<Tensor> {
        Ok(self.sums.broadcast_div(&self.counts.maximum(COUNT_FLOOR)?.unsqueeze(1)?)?)
    }
}

/// What the revival of a step does to each entry.
struct Moves {
    /// The entries that move.
    revived: Vec<u32>,
    /// The new counts.
    counts: Vec<f32>,
    /// Where the new sums come from: an entry's, or a row's after all of them.
    sources: Vec<u32>,
    /// What these are multiplied by.
    factors: Vec<f32>,
}

impl Moves {
    fn of(counts: &[f32], codes: &[u32], config: &QuantizerConfig, rng: &mut Rng) -> Self {
        let k = counts.len();
        let mean = counts.iter().map(|&count| f64::from(count)).sum::<f64>() / k as f64;
        let mut moves = Self {
            revived: Vec::new(),
            counts: counts.to_vec(),
            sources: (0..k as u32).collect(),
            factors: vec![1.0; k],
        };
        let dead = (0..k).filter(|&i| f64::from(counts[i]) < config.revive_below * mean);
        match config.revive_as {
            _ if codes.is_empty() => {}
            Revival::Row => dead.for_each(|i| moves.place(i, rng.below(codes.len()), mean as f32)),
            Revival::Split => {
                let dead: Vec<usize> = dead.collect();
                // Only entries that code something now have a row to give.
                let mut rows_of = vec![Vec::new(); k];
                codes.iter().enumerate().for_each(|(row, &code)| rows_of[code as usize].push(row));
                dead.iter().for_each(|&i| rows_of[i].clear());
                for i in dead {
                    let parents = (0..k).filter(|&i| !rows_of[i].is_empty());
                    let Some(parent) = parents.max_by(|&a, &b| moves.counts[a].total_cmp(&moves.counts[b]))
                    else {
                        break;
                    };
                    let rows = &rows_of[parent];
                    moves.counts[parent] /= 2.0;
                    moves.factors[parent] /= 2.0;
                    moves.place(i, rows[rng.below(rows.len())], moves.counts[parent]);
                }
            }
        }
        moves
    }

    /// Moves an entry to a row, as if it had coded `count` like it.
    fn place(&mut self, entry_idx: usize, row: usize, count: f32) {
        self.revived.push(entry_idx as u32);
        self.sources[entry_idx] = (self.counts.len() + row) as u32;
        self.factors[entry_idx] = count;
        self.counts[entry_idx] = count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::search::nearest;
    use super::*;
    use crate::losses::testing::{assert_close, noise, values};
    use codec_core::quantizer::Distance;

    fn config(revive_below: f64, revive_as: Revival) -> QuantizerConfig {
        QuantizerConfig { decay: 0.9, revive_below, revive_as, ..QuantizerConfig::default() }
    }

    /// One step on fresh rows around the origin.
    fn step(averages: &mut Averages, codebook: &Tensor, config: &QuantizerConfig, step: u64) -> Update {
        let rows = noise(100 + step, &[400, 2]);
        let codes = nearest(&rows, codebook, Distance::Euclidean).unwrap();
        averages.update(&rows, &codes, config, &mut Rng::of(1, "revive", step)).unwrap()
    }

    fn distinct(codes: &Tensor) -> usize {
        codes.to_vec1::<u32>().unwrap().into_iter().collect::<std::collections::BTreeSet<_>>().len()
    }

    #[test]
    fn entries_move_to_the_means_of_what_they_code() {
        let codebook = (noise(1, &[4, 2]) * 0.5).unwrap();
        let mut averages = Averages::of(&codebook, 100.0).unwrap();
        let rows = noise(2, &[200, 2]);
        let codes = nearest(&rows, &codebook, Distance::Euclidean).unwrap();
        let update =
            averages.update(&rows, &codes, &config(0.0, Revival::Row), &mut Rng::of(1, "r", 0)).unwrap();
        let (counts, sums) = gather(&rows, &codes, 4).unwrap();
        let (counts, sums, old) = (values(&counts), values(&sums), values(&codebook));
        let want: Vec<f64> = (0..8)
            .map(|i| (0.9 * 100.0 * old[i] + 0.1 * sums[i]) / (0.9 * 100.0 + 0.1 * counts[i / 2]))
            .collect();
        assert_close("entries", &values(&update.codebook), &want, 1e-5);
        assert!(update.revived.is_empty());
    }

    #[test]
    fn a_revived_entry_lives() {
        for revive_as in [Revival::Row, Revival::Split] {
            lives(&config(0.1, revive_as));
        }
    }

    fn lives(config: &QuantizerConfig) {
        // Half of the entries lie where nothing is ever coded.
        let far = (noise(1, &[8, 2]) + 50.0).unwrap();
        let mut codebook = Tensor::cat(&[noise(2, &[8, 2]), far], 0).unwrap();
        let mut averages = Averages::of(&codebook, 25.0).unwrap();
        let mut revived_at = [None; 16];
        for step_idx in 0..200 {
            let update = step(&mut averages, &codebook, config, step_idx);
            for &entry_idx in &update.revived {
                let before = revived_at[entry_idx as usize].replace(step_idx);
                assert_eq!(before, None, "entry {entry_idx} died again");
            }
            // The entry is a row of this step, not what the average would have made of it.
            if !update.revived.is_empty() {
                let rows = values(&noise(100 + step_idx, &[400, 2]));
                for &entry_idx in &update.revived {
                    let entry = &values(&update.codebook)[2 * entry_idx as usize..][..2];
                    let distance = |row: &[f64]| (row[0] - entry[0]).abs() + (row[1] - entry[1]).abs();
                    assert!(rows.chunks(2).any(|row| distance(row) < 1e-5), "entry {entry_idx}: {entry:?}");
                }
            }
            codebook = update.codebook;
        }
        assert!(revived_at[8..].iter().all(Option::is_some), "{revived_at:?}");
        let codes = nearest(&noise(7, &[4000, 2]), &codebook, Distance::Euclidean).unwrap();
        assert_eq!(distinct(&codes), 16, "every entry is used in the end");
    }

    #[test]
    fn a_split_takes_half_of_the_most_used_entry() {
        // Entry 0 codes three quarters, entry 3 nothing.
        let codebook = Tensor::new(&[[0.0_f32], [10.0], [20.0], [30.0]], &candle_core::Device::Cpu).unwrap();
        let mut averages = Averages::of(&codebook, 5.0).unwrap();
        averages.counts = Tensor::new(&[15.0_f32, 3.0, 2.0, 0.0], &candle_core::Device::Cpu).unwrap();
        averages.sums = averages.counts.unsqueeze(1).unwrap().mul(&codebook).unwrap();
        let mut rows = vec![-1.0_f32; 8];
        rows.extend([1.0; 7]);
        rows.extend([10.0, 10.0, 10.0, 20.0, 20.0]);
        let rows = Tensor::from_vec(rows, (20, 1), &candle_core::Device::Cpu).unwrap();
        let codes = nearest(&rows, &codebook, Distance::Euclidean).unwrap();
        let config = config(0.3, Revival::Split);
        let update = averages.update(&rows, &codes, &config, &mut Rng::of(1, "split", 0)).unwrap();
        assert_eq!(update.revived, [3]);
        assert_close("counts", &values(&averages.counts), &[7.5, 3.0, 2.0, 7.5], 1e-5);
        let entries = values(&update.codebook);
        assert!((entries[3].abs() - 1.0).abs() < 1e-6, "a row of entry 0: {entries:?}");
        // What is left of the entry stays where it was: 0.9 of 0 and 0.1 of the mean of its rows.
        assert_close("others", &entries[..3], &[-1.0 / 150.0, 10.0, 20.0], 1e-5);
    }

    #[test]
    fn splitting_evens_what_entries_code() {
        // As random rows do, but the fewest that an entry codes becomes more.
        let fewest = |revive_as| {
            let mut codebook = (noise(2, &[32, 2]) * 2.0).unwrap();
            let mut averages = Averages::of(&codebook, 12.5).unwrap();
            for step_idx in 0..300 {
                codebook = step(&mut averages, &codebook, &config(0.4, revive_as), step_idx).codebook;
            }
            let codes = nearest(&noise(7, &[8000, 2]), &codebook, Distance::Euclidean).unwrap();
            let (counts, _) = gather(&noise(7, &[8000, 2]), &codes, 32).unwrap();
            values(&counts).into_iter().fold(f64::MAX, f64::min) / 250.0
        };
        let (row, split) = (fewest(Revival::Row), fewest(Revival::Split));
        assert!(split > 0.3 && split > row, "{row} {split}");
    }
}
