//! Codebooks that follow the averages of what they code, and the revival of entries that code nothing.

use super::kmeans::gather;
use crate::config::{QuantizerConfig, Revival};
use crate::error::Result;
use crate::rng::Rng;
use candle_core::{DType, Tensor};

/// Keeps an entry finite whose count has decayed to nothing.
const COUNT_FLOOR: f64 = 1e-6;
/// How far the halves of an entry are put from it, of the way to one of its rows.
const SPLIT_STEP: f32 = 0.1;

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
    /// Entries that were given other work.
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
    /// An entry whose count falls below `revive_below` times the mean moves as `revive_as` says, *with the averages of
    /// one in the middle of its life*: else the next update would undo it.
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
            let scaled = |from: &Tensor, of: Vec<(u32, f32)>| {
                let (sources, factors): (Vec<u32>, Vec<f32>) = of.into_iter().unzip();
                let factors = Tensor::from_vec(factors, (k, 1), rows.device())?;
                from.index_select(&Tensor::from_vec(sources, k, rows.device())?, 0)?.broadcast_mul(&factors)
            };
            self.sums = (scaled(&self.sums, moves.from_sums)? + scaled(&rows, moves.from_rows)?)?;
            self.counts = Tensor::from_vec(moves.counts, k, rows.device())?;
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
    /// The entries that get other work.
    revived: Vec<u32>,
    /// The new counts.
    counts: Vec<f32>,
    /// The entry whose sums, times a factor, are a part of the new ones.
    from_sums: Vec<(u32, f32)>,
    /// The row that is, times a factor, the rest of them.
    from_rows: Vec<(u32, f32)>,
}

impl Moves {
    fn of(counts: &[f32], codes: &[u32], config: &QuantizerConfig, rng: &mut Rng) -> Self {
        let k = counts.len();
        let mean = counts.iter().map(|&count| f64::from(count)).sum::<f64>() / k as f64;
        let mut moves = Self {
            revived: Vec::new(),
            counts: counts.to_vec(),
            from_sums: (0..k as u32).map(|i| (i, 1.0)).collect(),
            from_rows: vec![(0, 0.0); k],
        };
        let least = config.revive_below * mean;
        let dead: Vec<usize> = (0..k).filter(|&i| f64::from(counts[i]) < least).collect();
        if codes.is_empty() || dead.is_empty() {
            return moves;
        }
        match config.revive_as {
            Revival::Row => dead.iter().for_each(|&i| moves.replace(i, rng.below(codes.len()), mean as f32)),
            Revival::Split => {
                let mut rows_of = vec![Vec::new(); k];
                codes.iter().enumerate().for_each(|(row, &code)| rows_of[code as usize].push(row));
                // Halves must not die at once; a row shows where an entry can be cut.
                let divides = |&i: &usize| f64::from(counts[i]) >= 2.0 * least && !rows_of[i].is_empty();
                let mut parents: Vec<usize> = (0..k).filter(divides).collect();
                parents.sort_by(|&a, &b| counts[a].total_cmp(&counts[b]));
                for i in dead {
                    // What finds no parent waits for the next step.
                    let Some(parent) = parents.pop() else { break };
                    moves.split(i, parent, rows_of[parent][rng.below(rows_of[parent].len())]);
                }
            }
        }
        moves
    }

    /// Moves an entry to a row, as if it had coded `count` like it.
    fn replace(&mut self, entry_idx: usize, row: usize, count: f32) {
        self.revived.push(entry_idx as u32);
        self.counts[entry_idx] = count;
        self.from_sums[entry_idx].1 = 0.0;
        self.from_rows[entry_idx] = (row as u32, count);
    }

    /// Moves an entry beside another, a little towards one of its rows, and that one as far the other way.
    ///
    /// At the row itself it would get next to nothing: with many dimensions a row is far from all others.
    fn split(&mut self, entry_idx: usize, parent_idx: usize, row: usize) {
        let count = self.counts[parent_idx] / 2.0;
        self.revived.push(entry_idx as u32);
        for (i, step) in [(entry_idx, SPLIT_STEP), (parent_idx, -SPLIT_STEP)] {
            self.counts[i] = count;
            self.from_sums[i] = (parent_idx as u32, (1.0 - step) / 2.0);
            self.from_rows[i] = (row as u32, step * count);
        }
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
        let rows = noise(100 + step, &[400, codebook.dim(1).unwrap()]);
        let codes = nearest(&rows, codebook, Distance::Euclidean).unwrap();
        averages.update(&rows, &codes, config, &mut Rng::of(1, "revive", step)).unwrap()
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
            // With `Row` the entry is a row of this step, not what the average would have made of it.
            if config.revive_as == Revival::Row && !update.revived.is_empty() {
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
        let used: std::collections::BTreeSet<u32> = codes.to_vec1().unwrap().into_iter().collect();
        assert_eq!(used.len(), 16, "every entry is used in the end");
    }

    #[test]
    fn a_split_takes_half_of_the_most_used_entry() {
        // Entry 0 codes three quarters, entry 3 nothing.
        let codebook = Tensor::new(&[[0.0_f32], [10.0], [20.0], [30.0]], &candle_core::Device::Cpu).unwrap();
        let mut averages = Averages::of(&codebook, 5.0).unwrap();
        averages.counts = Tensor::new(&[15.0_f32, 3.0, 2.0, 0.0], &candle_core::Device::Cpu).unwrap();
        averages.sums = averages.counts.unsqueeze(1).unwrap().mul(&codebook).unwrap();
        let mut rows = vec![1.0_f32; 15];
        rows.extend([10.0, 10.0, 10.0, 20.0, 20.0]);
        let rows = Tensor::from_vec(rows, (20, 1), &candle_core::Device::Cpu).unwrap();
        let codes = nearest(&rows, &codebook, Distance::Euclidean).unwrap();
        let config = config(0.3, Revival::Split);
        let update = averages.update(&rows, &codes, &config, &mut Rng::of(1, "split", 0)).unwrap();
        assert_eq!(update.revived, [3]);
        assert_close("counts", &values(&averages.counts), &[7.5, 3.0, 2.0, 7.5], 1e-5);
        // The average has moved to 0.1; its rows are at 1.
        assert_close("entries", &values(&update.codebook), &[0.01, 10.0, 20.0, 0.19], 1e-5);
    }

    #[test]
    fn only_large_entries_with_rows_are_split() {
        let moves = |counts: &[f32], codes: &[u32]| {
            let config = config(0.5, Revival::Split);
            let moves = Moves::of(counts, codes, &config, &mut Rng::of(1, "split", 0));
            (moves.revived, moves.counts)
        };
        // The mean is 10, so entries die below 5; each takes half of another one, the largest first.
        assert_eq!(moves(&[24.0, 2.0, 0.0, 14.0], &[0, 3, 0]), (vec![1, 2], vec![12.0, 12.0, 7.0, 7.0]));
        // The largest has no row, and then nothing has.
        assert_eq!(moves(&[24.0, 2.0, 0.0, 14.0], &[3, 1]), (vec![1], vec![24.0, 7.0, 0.0, 7.0]));
        assert!(moves(&[24.0, 2.0, 0.0, 14.0], &[1, 1]).0.is_empty());
        // The second largest would leave halves that are dead.
        assert_eq!(moves(&[25.0, 2.0, 4.0, 9.0], &[0, 1, 2, 3]), (vec![1], vec![12.5, 12.5, 4.0, 9.0]));
        assert!(moves(&[10.0, 10.0, 10.0, 10.0], &[0]).0.is_empty());
    }

    #[test]
    fn splitting_evens_what_entries_code() {
        // Both leave no entry idle; after splits the least used one codes more, also where rows are far apart.
        let fewest = |revive_as| {
            let mut codebook = (noise(2, &[32, 8]) * 2.0).unwrap();
            let mut averages = Averages::of(&codebook, 12.5).unwrap();
            for step_idx in 0..300 {
                codebook = step(&mut averages, &codebook, &config(0.4, revive_as), step_idx).codebook;
            }
            let rows = noise(7, &[8000, 8]);
            let codes = nearest(&rows, &codebook, Distance::Euclidean).unwrap();
            let (counts, _) = gather(&rows, &codes, 32).unwrap();
            values(&counts).into_iter().fold(f64::MAX, f64::min) / 250.0
        };
        let (row, split) = (fewest(Revival::Row), fewest(Revival::Split));
        assert!(split > 0.3 && split > row, "{row} {split}");
    }
}
