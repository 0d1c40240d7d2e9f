//! Codebooks that follow the averages of what they code, and the revival of entries that code nothing.

use super::kmeans::gather;
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
    /// An entry whose count falls below `revive_below` times the mean becomes a row drawn at random,
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
        decay: f64,
        revive_below: f64,
        rng: &mut Rng,
    ) -> Result<Update> {
        let (n, k) = (rows.dim(0)?, self.counts.dim(0)?);
        let rows = rows.detach();
        let (counts, sums) = gather(&rows, codes, k)?;
        self.counts = ((&self.counts * decay)? + (counts * (1.0 - decay))?)?;
        self.sums = ((&self.sums * decay)? + (sums * (1.0 - decay))?)?;
        let mut counts: Vec<f32> = self.counts.to_vec1()?;
        let mean = counts.iter().map(|&count| f64::from(count)).sum::<f64>() / k as f64;
        let is_dead = |count: f32| f64::from(count) < revive_below * mean;
        let revived: Vec<u32> = (0..k as u32).filter(|&i| is_dead(counts[i as usize])).collect();
        if !revived.is_empty() && n > 0 {
            let device = rows.device();
            let mut sources: Vec<u32> = (0..k as u32).collect();
            for &entry_idx in &revived {
                sources[entry_idx as usize] = (k + rng.below(n)) as u32;
                counts[entry_idx as usize] = mean as f32;
            }
            let all = Tensor::cat(&[&self.sums, &(&rows * mean)?], 0)?;
            self.sums = all.index_select(&Tensor::from_vec(sources, k, device)?, 0)?;
            self.counts = Tensor::from_vec(counts, k, device)?;
        }
        Ok(Update { codebook: self.codebook()?, revived })
    }

    /// The entries.
    pub(crate) fn codebook(&self) -> Result<Tensor> {
        Ok(self.sums.broadcast_div(&self.counts.maximum(COUNT_FLOOR)?.unsqueeze(1)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::search::nearest;
    use super::*;
    use crate::losses::testing::{assert_close, noise, values};
    use codec_core::quantizer::Distance;

    const DECAY: f64 = 0.9;

    /// One step on fresh rows around the origin.
    fn step(averages: &mut Averages, codebook: &Tensor, step: u64) -> Update {
        let rows = noise(100 + step, &[400, 2]);
        let codes = nearest(&rows, codebook, Distance::Euclidean).unwrap();
        averages.update(&rows, &codes, DECAY, 0.1, &mut Rng::of(1, "revive", step)).unwrap()
    }

    #[test]
    fn entries_move_to_the_means_of_what_they_code() {
        let codebook = (noise(1, &[4, 2]) * 0.5).unwrap();
        let mut averages = Averages::of(&codebook, 100.0).unwrap();
        let rows = noise(2, &[200, 2]);
        let codes = nearest(&rows, &codebook, Distance::Euclidean).unwrap();
        let update = averages.update(&rows, &codes, DECAY, 0.0, &mut Rng::of(1, "r", 0)).unwrap();
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
        // Half of the entries lie where nothing is ever coded.
        let far = (noise(1, &[8, 2]) + 50.0).unwrap();
        let mut codebook = Tensor::cat(&[noise(2, &[8, 2]), far], 0).unwrap();
        let mut averages = Averages::of(&codebook, 25.0).unwrap();
        let mut revived_at = [None; 16];
        for step_idx in 0..200 {
            let update = step(&mut averages, &codebook, step_idx);
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
        let used: std::collections::BTreeSet<u32> = codes.to_vec1().unwrap().into_iter().collect();
        assert_eq!(used.len(), 16, "every entry is used in the end");
    }
}
