//! How evenly codes are used, per codebook and kind of clip.

use crate::error::Result;
use candle_core::{Device, Tensor};
use serde::Serialize;
use std::collections::BTreeMap;

/// Share of the past per step.
const DECAY: f32 = 0.99;
/// An entry counts as used when it has this share of an even distribution.
const USED_SHARE: f64 = 0.01;

/// Decaying counts of codes.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Per codebook, per kind, per entry; no entries for a kind that was not seen yet.
    counts: Vec<Vec<Vec<f32>>>,
}

/// How a codebook is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct UsageSummary {
    /// Share of the entries in use.
    pub used: f64,
    /// Two to the entropy in bits: as many entries of even use would say as much.
    pub perplexity: f64,
}

impl Usage {
    /// Takes the codes of a step, with the kind of clip of each.
    pub fn push(
        &mut self,
        codebook_idx: usize,
        size: usize,
        codes: &[u32],
        kinds: impl Iterator<Item = usize>,
    ) {
        let per_kind = at(&mut self.counts, codebook_idx);
        per_kind.iter_mut().flatten().for_each(|count| *count *= DECAY);
        for (&code, kind_idx) in codes.iter().zip(kinds) {
            let counts = at(per_kind, kind_idx);
            counts.resize(size, 0.0);
            counts[code as usize] += 1.0;
        }
    }

    /// The use of every codebook, by all clips or those of one kind.
    pub fn summaries(&self, kind_idx: Option<usize>) -> Vec<UsageSummary> {
        let of_codebook = |per_kind: &Vec<Vec<f32>>| {
            let size = per_kind.iter().map(Vec::len).max().unwrap_or(0);
            let mut sums = vec![0.0; size];
            for (_, counts) in per_kind.iter().enumerate().filter(|(i, _)| kind_idx.is_none_or(|k| k == *i)) {
                sums.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += f64::from(count));
            }
            summary(&sums)
        };
        self.counts.iter().map(of_codebook).collect()
    }

    /// The counts as `CODEBOOK.KIND`, for a checkpoint.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (codebook_idx, per_kind) in self.counts.iter().enumerate() {
            for (kind_idx, counts) in per_kind.iter().enumerate().filter(|(_, counts)| !counts.is_empty()) {
                let counts = Tensor::from_slice(counts, counts.len(), &Device::Cpu)?;
                tensors.insert(format!("{codebook_idx}.{kind_idx}"), counts);
            }
        }
        Ok(tensors)
    }

    /// Puts back what [`Usage::tensors`] gave.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.counts.clear();
        for (name, counts) in tensors {
            let place = name.split_once('.');
            let place = place.and_then(|(codebook, kind)| Some((codebook.parse().ok()?, kind.parse().ok()?)));
            let Some((codebook_idx, kind_idx)) = place else { continue };
            *at(at(&mut self.counts, codebook_idx), kind_idx) = counts.to_vec1()?;
        }
        Ok(())
    }
}

/// The item of an index in a list that grows to hold it.
fn at<T: Clone + Default>(list: &mut Vec<T>, idx: usize) -> &mut T {
    if list.len() <= idx {
        list.resize(idx + 1, T::default());
    }
    &mut list[idx]
}

/// The use of one codebook from the counts of its entries.
pub fn summary(counts: &[f64]) -> UsageSummary {
    let total: f64 = counts.iter().sum();
    if total <= 0.0 {
        return UsageSummary { used: 0.0, perplexity: 0.0 };
    }
    let floor = USED_SHARE * total / counts.len() as f64;
    let n_used = counts.iter().filter(|&&count| count > floor).count();
    let shares = counts.iter().map(|count| count / total).filter(|share| *share > 0.0);
    let entropy: f64 = shares.map(|share| -share * share.ln()).sum();
    UsageSummary { used: n_used as f64 / counts.len() as f64, perplexity: entropy.exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_kinds_apart() {
        let mut usage = Usage::default();
        usage.push(0, 4, &[0, 1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1].into_iter());
        let (first, second) = (usage.summaries(Some(0))[0], usage.summaries(Some(1))[0]);
        assert!((first.perplexity - 4.0).abs() < 1e-9 && first.used == 1.0);
        assert!((second.perplexity - 1.0).abs() < 1e-9 && second.used == 0.25);
        let all = usage.summaries(None)[0];
        assert!(all.perplexity > 1.0 && all.perplexity < 4.0);
    }

    #[test]
    fn a_resumed_run_goes_on_counting() {
        let mut usage = Usage::default();
        // The first kind and the first codebook are not seen.
        usage.push(1, 4, &[0, 1, 1], [2; 3].into_iter());
        let mut resumed = Usage::default();
        resumed.restore(&usage.tensors().unwrap()).unwrap();
        for usage in [&mut usage, &mut resumed] {
            usage.push(1, 4, &[3, 1], [0, 2].into_iter());
        }
        for kind_idx in [None, Some(0), Some(1), Some(2)] {
            assert_eq!(resumed.summaries(kind_idx), usage.summaries(kind_idx));
        }
    }
}
