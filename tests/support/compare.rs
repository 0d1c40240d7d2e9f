//! Comparing with a reference, and with oneself.

use crate::Result;
use codec_core::{AudioBuffer, Codes};

/// How well codes agree with a reference.
#[derive(Clone, Copy, Debug)]
pub struct Agreement {
    /// Codes that were compared.
    pub n_compared: usize,
    /// Those that are equal.
    pub n_equal: usize,
    /// Smallest margin among the equal ones.
    pub smallest_margin: f32,
}

impl Agreement {
    /// Nothing compared yet.
    pub const NONE: Self = Self { n_compared: 0, n_equal: 0, smallest_margin: f32::INFINITY };

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            n_compared: self.n_compared + other.n_compared,
            n_equal: self.n_equal + other.n_equal,
            smallest_margin: self.smallest_margin.min(other.smallest_margin),
        }
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n_equal, n_compared, smallest_margin } = self;
        write!(f, "{n_equal} of {n_compared} codes equal, smallest margin {smallest_margin:.1e}")
    }
}

/// Compares codes with those of a reference, coarse to fine.
///
/// A code may differ where its margin is below `tolerance`; the finer codes of its frames code another
/// residual and are not compared.
///
/// # Errors
/// When the shapes differ, or a code whose margin is not that small.
pub fn codes(ours: &Codes, theirs: &[Vec<u32>], margins: &[Vec<f32>], tolerance: f32) -> Result<Agreement> {
    let lengths = |rows: &mut dyn Iterator<Item = usize>| rows.collect::<Vec<_>>();
    let sides = [lengths(&mut ours.rows().map(<[u32]>::len)), lengths(&mut theirs.iter().map(Vec::len))];
    if sides[0] != sides[1] || sides[1] != lengths(&mut margins.iter().map(Vec::len)) {
        return Err(format!("{:?} codes against {:?}", sides[0], sides[1]).into());
    }
    let mut agreement = Agreement::NONE;
    let mut is_same = vec![true; ours.n_frames()];
    let strides = ours.layout().codebooks().iter().map(|codebook| codebook.stride as usize);
    for (codebook_idx, (row, stride)) in ours.rows().zip(strides).enumerate() {
        let (theirs, margins) = (&theirs[codebook_idx], &margins[codebook_idx]);
        for (i, frames) in is_same.chunks_exact_mut(stride).enumerate() {
            if frames.contains(&false) {
                frames.fill(false);
                continue;
            }
            agreement.n_compared += 1;
            if row[i] == theirs[i] {
                agreement.n_equal += 1;
                agreement.smallest_margin = agreement.smallest_margin.min(margins[i]);
                continue;
            }
            let (our, their, margin) = (row[i], theirs[i], margins[i]);
            if margin > tolerance {
                let place = format!("codebook {codebook_idx}, position {i} of {}", row.len());
                return Err(format!("{place}: code {our} against {their}, margin {margin:.1e}").into());
            }
            frames.fill(false);
        }
    }
    Ok(agreement)
}

/// Compares audio with that of a reference: gives the largest difference, in units of full scale.
///
/// # Errors
/// When rate, channels or lengths differ, or a sample differs by more than `tolerance`.
pub fn audio(ours: &AudioBuffer, theirs: &AudioBuffer, tolerance: f32) -> Result<f32> {
    if ours.spec() != theirs.spec() || ours.n_samples() != theirs.n_samples() {
        let sides = [ours, theirs].map(|audio| format!("{} samples of {}", audio.n_samples(), audio.spec()));
        return Err(sides.join(" against ").into());
    }
    let mut worst = (0.0, 0, 0, 0.0, 0.0);
    for (channel_idx, (ours, theirs)) in ours.channels().zip(theirs.channels()).enumerate() {
        for (i, (&our, &their)) in ours.iter().zip(theirs).enumerate() {
            let difference = (our - their).abs();
            if difference > worst.0 || difference.is_nan() {
                worst = (difference, channel_idx, i, our, their);
            }
        }
    }
    let (difference, channel_idx, i, our, their) = worst;
    if difference <= tolerance {
        return Ok(difference);
    }
    Err(format!("channel {channel_idx}, sample {i}: {our} against {their}, {difference:.1e} apart").into())
}

/// Whether two clips are the same bits.
///
/// # Errors
/// When they are not: where they part.
pub fn same_audio(ours: &AudioBuffer, theirs: &AudioBuffer) -> Result<()> {
    audio(ours, theirs, f32::INFINITY)?;
    for (channel_idx, (ours, theirs)) in ours.channels().zip(theirs.channels()).enumerate() {
        if let Some(i) = ours.iter().zip(theirs).position(|(a, b)| a.to_bits() != b.to_bits()) {
            let (our, their) = (ours[i], theirs[i]);
            return Err(
                format!("channel {channel_idx}, sample {i}: {our:e} and {their:e} differ in bits").into()
            );
        }
    }
    Ok(())
}

/// Whether codes are the same, scales bit for bit.
///
/// # Errors
/// When they are not: where they part.
pub fn same_codes(ours: &Codes, theirs: &Codes) -> Result<()> {
    if ours.layout() != theirs.layout() || ours.n_frames() != theirs.n_frames() {
        let sides =
            [ours, theirs].map(|codes| format!("{} frames of {:?}", codes.n_frames(), codes.layout()));
        return Err(sides.join(" against ").into());
    }
    for (codebook_idx, (ours, theirs)) in ours.rows().zip(theirs.rows()).enumerate() {
        if let Some(i) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
            return Err(
                format!("codebook {codebook_idx}, position {i}: {} against {}", ours[i], theirs[i]).into()
            );
        }
    }
    let bits = |codes: &Codes| -> Vec<u32> { codes.scales().iter().map(|scale| scale.to_bits()).collect() };
    if bits(ours) != bits(theirs) {
        return Err(format!("scales {:?} against {:?}", ours.scales(), theirs.scales()).into());
    }
    Ok(())
}
