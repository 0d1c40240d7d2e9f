//! Grouped quantization: the latent's values are dealt out in runs, one quantizer for each run.

use crate::codes::CodeLayout;
use crate::error::{Error, Result};
use crate::quantizer::{Latents, Quantizer, check_latents, check_rows, with_rows, zeros};

/// One quantizer for each group of consecutive values; `Grouped<Rvq>` is grouped RVQ.
///
/// Codebook order: stage by stage, and within a stage group by group, so that a prefix refines all
/// groups alike. Codebook `k` of `n_groups` equal groups is stage `k / n_groups` of group
/// `k % n_groups`; a group that has run out of stages is passed over. A group of which a prefix
/// holds no codebook decodes to zeros.
///
/// # Source
/// Yang et al. 2023, arXiv 2305.02765 (group-residual vector quantization). The order is ours: the
/// paper's code keeps the groups apart.
#[derive(Clone, Debug)]
pub struct Grouped<Q> {
    layout: CodeLayout,
    dim: usize,
    groups: Vec<Q>,
    /// The group of each codebook.
    owners: Vec<usize>,
}

impl<Q: Quantizer> Grouped<Q> {
    /// Takes the quantizers of the groups, in the order of the latent's values.
    ///
    /// # Errors
    /// [`Error::Range`] as [`CodeLayout::new`], and when the dimensions add up to more than a
    /// latent can have; [`Error::Mismatch`] when a group's layout has scales.
    pub fn new(groups: Vec<Q>) -> Result<Self> {
        let codebooks = |group: &Q| group.layout().codebooks().to_vec();
        let mut left: Vec<_> = groups.iter().map(|group| codebooks(group).into_iter()).collect();
        let (mut specs, mut owners) = (Vec::new(), Vec::new());
        loop {
            let before = specs.len();
            for (group_idx, stages) in left.iter_mut().enumerate() {
                if let Some(spec) = stages.next() {
                    specs.push(spec);
                    owners.push(group_idx);
                }
            }
            if specs.len() == before {
                break;
            }
        }
        let layout = CodeLayout::new(specs)?;
        if let Some(odd) = groups.iter().find(|group| group.layout().scale_frames().is_some()) {
            let right = odd.layout().to_string();
            return Err(Error::Mismatch {
                what: "code layout",
                left: "a layout without scales".into(),
                right,
            });
        }
        let max = usize::MAX as u64;
        let dim = groups.iter().try_fold(0_usize, |sum, group| sum.checked_add(group.dim()));
        let dim = dim.ok_or(Error::Range { what: "latent dimension", min: 1, max, actual: max })?;
        Ok(Self { layout, dim, groups, owners })
    }

    /// The quantizers of the groups.
    pub fn groups(&self) -> &[Q] {
        &self.groups
    }

    /// Each group with its range of values and the codebooks that the first `n_codebooks` hold of it.
    fn parts(&self, n_codebooks: usize) -> impl Iterator<Item = (&Q, std::ops::Range<usize>, Vec<usize>)> {
        let mut start = 0;
        self.groups.iter().enumerate().map(move |(group_idx, group)| {
            let values = start..start + group.dim();
            start = values.end;
            let of_group = |&k: &usize| self.owners[k] == group_idx;
            (group, values, (0..n_codebooks).filter(of_group).collect())
        })
    }
}

impl<Q: Quantizer> Quantizer for Grouped<Q> {
    fn layout(&self) -> &CodeLayout {
        &self.layout
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()> {
        check_latents(&self.layout, self.dim, latents, rows.len())?;
        let mut of_group = Vec::new();
        for (group, values, codebooks) in self.parts(rows.len()) {
            if codebooks.is_empty() {
                continue;
            }
            of_group.clear();
            latents
                .data()
                .chunks_exact(self.dim)
                .for_each(|row| of_group.extend_from_slice(&row[values.clone()]));
            let mut codes: Vec<_> = codebooks.iter().map(|&k| std::mem::take(&mut rows[k])).collect();
            let encoded =
                Latents::new(&of_group, group.dim()).and_then(|latents| group.encode_to(latents, &mut codes));
            for (codebook_idx, row) in codebooks.into_iter().zip(codes) {
                rows[codebook_idx] = row;
            }
            encoded?;
        }
        Ok(())
    }

    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        check_rows(&self.layout, self.dim, rows, out)?;
        out.fill(0.0);
        let n_frames = out.len() / self.dim;
        for (group, values, codebooks) in self.parts(rows.len()) {
            if codebooks.is_empty() {
                continue;
            }
            let mut decoded = zeros("decoded latents", n_frames, group.dim())?;
            with_rows(codebooks.iter().map(|&k| rows[k]), |rows| group.decode_to(rows, &mut decoded))?;
            for (row, part) in out.chunks_exact_mut(self.dim).zip(decoded.chunks_exact(values.len())) {
                row[values.clone()].copy_from_slice(part);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::testing::{check_hostile, check_laws, hostile_f32, hostile_size, noise};
    use crate::quantizer::{Fsq, Rvq};
    use proptest::prelude::*;

    fn rvq(seed: u64, n_codebooks: usize, dim: usize) -> Rvq {
        Rvq::from_codebooks(&noise(seed, n_codebooks * 50 * dim), 50, dim).unwrap()
    }

    #[test]
    fn codebooks_come_stage_by_stage_and_group_by_group() {
        let grouped = Grouped::new(vec![rvq(1, 2, 3), rvq(2, 3, 2)]).unwrap();
        assert_eq!((grouped.dim(), grouped.layout().n_codebooks()), (5, 5));
        let xs = noise(4, 30 * 5);
        let codes = grouped.encode(Latents::new(&xs, 5).unwrap(), 5).unwrap();
        let part = |values: std::ops::Range<usize>| -> Vec<f32> {
            xs.chunks_exact(5).flat_map(|row| row[values.clone()].to_vec()).collect()
        };
        let [a, b] = [(0..3, 2), (3..5, 3)].map(|(values, n): (std::ops::Range<usize>, usize)| {
            let group = &grouped.groups()[usize::from(values.start > 0)];
            let xs = part(values.clone());
            group.encode(Latents::new(&xs, values.len()).unwrap(), n).unwrap().into_rows()
        });
        assert!(codes.rows().eq([&a[0], &b[0], &a[1], &b[1], &b[2]]));
    }

    #[test]
    fn a_group_without_codebooks_decodes_to_zeros() {
        let grouped = Grouped::new(vec![rvq(1, 1, 2), rvq(2, 1, 2)]).unwrap();
        let xs = noise(4, 2);
        let codes = grouped.encode(Latents::new(&[xs[0], xs[1], 5.0, 5.0], 4).unwrap(), 1).unwrap();
        let decoded = grouped.decode(&codes).unwrap();
        assert!(decoded[..2].iter().all(|&x| x != 0.0));
        assert_eq!(decoded[2..], [0.0, 0.0]);
    }

    #[test]
    fn the_laws_hold() {
        check_laws(&Grouped::new(vec![rvq(1, 2, 3), rvq(2, 3, 2)]).unwrap(), 150);
        check_laws(&Grouped::new(vec![Fsq::new(&[8, 5, 5, 5]).unwrap(); 4]).unwrap(), 150);
        let strided = |seed: u64| {
            let vq =
                |k| crate::quantizer::Vq::new(noise(seed + k, 120), 3, crate::quantizer::Distance::Cosine);
            Rvq::with_strides(vec![(vq(0).unwrap(), 2), (vq(1).unwrap(), 1)]).unwrap()
        };
        check_laws(&Grouped::new(vec![strided(1), strided(7)]).unwrap(), 150);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(Grouped::<Rvq>::new(vec![]), Err(Error::Range { .. })));
        let many = vec![Fsq::new(&[2]).unwrap(); 257];
        assert!(matches!(Grouped::new(many), Err(Error::Range { actual: 257, .. })));
    }

    proptest! {
        #[test]
        fn nothing_panics(
            group_sizes in prop::collection::vec((1_usize..4, 1_usize..3), 0..4),
            xs in prop::collection::vec(hostile_f32(), 0..24),
            dim in hostile_size(),
            n_codebooks in hostile_size(),
        ) {
            let groups = group_sizes.iter().map(|&(n, dim)| rvq(1, n, dim)).collect();
            if let Ok(grouped) = Grouped::new(groups) {
                check_hostile(&grouped, &xs, dim, n_codebooks);
                check_hostile(&grouped, &xs, grouped.dim(), n_codebooks);
            }
        }
    }
}
