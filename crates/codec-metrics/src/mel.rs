//! Mel filters: triangles that follow our resolution of pitch.

/// Triangular filters of equal area on the mel scale, from 0 Hz to `max_frequency`.
///
/// # Source
/// Slaney's Auditory Toolbox (linear below 1 kHz, logarithmic above), as `librosa.filters.mel` has it.
pub(crate) struct MelFilters {
    /// First bin and weights of each filter; a filter between two bins has none.
    filters: Vec<(usize, Vec<f64>)>,
}

impl MelFilters {
    /// Filters over the `n_bins` bins from 0 Hz to half of `sample_rate`.
    pub(crate) fn new(sample_rate: u32, n_bins: usize, n_mels: usize, max_frequency: f64) -> Self {
        let top = hz_to_mel(max_frequency);
        let edge = |i: usize| mel_to_hz(top * i as f64 / (n_mels + 1) as f64);
        let bin_width = f64::from(sample_rate) / 2.0 / (n_bins - 1) as f64;
        let filter = |mel: usize| {
            let (low, centre, high) = (edge(mel), edge(mel + 1), edge(mel + 2));
            let weight = |bin: usize| {
                let frequency = bin as f64 * bin_width;
                let slope = ((frequency - low) / (centre - low)).min((high - frequency) / (high - centre));
                slope.max(0.0) * 2.0 / (high - low)
            };
            let first = ((low / bin_width) as usize).min(n_bins);
            let end = ((high / bin_width) as usize + 1).min(n_bins).max(first);
            (first, (first..end).map(weight).collect())
        };
        Self { filters: (0..n_mels).map(filter).collect() }
    }

    /// The sums under the filters.
    pub(crate) fn apply(&self, spectrum: &[f64], out: &mut Vec<f64>) {
        out.clear();
        out.extend(self.filters.iter().map(|(first, weights)| {
            weights.iter().zip(&spectrum[*first..]).map(|(weight, bin)| weight * bin).sum::<f64>()
        }));
    }
}

/// Width of a mel below the knee, Hz.
const LINEAR: f64 = 200.0 / 3.0;
/// Where the scale becomes logarithmic, Hz.
const KNEE: f64 = 1000.0;

/// The logarithm of the frequency ratio of one mel above the knee: 27 of them make a factor of 6.4.
fn log_step() -> f64 {
    6.4_f64.ln() / 27.0
}

fn hz_to_mel(frequency: f64) -> f64 {
    if frequency < KNEE { frequency / LINEAR } else { KNEE / LINEAR + (frequency / KNEE).ln() / log_step() }
}

fn mel_to_hz(mel: f64) -> f64 {
    let above = mel - KNEE / LINEAR;
    if above < 0.0 { mel * LINEAR } else { KNEE * (above * log_step()).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_goes_both_ways() {
        assert!((hz_to_mel(1000.0) - 15.0).abs() < 1e-12);
        assert!((hz_to_mel(6400.0) - 42.0).abs() < 1e-12);
        for frequency in [0.0, 60.0, 999.0, 1001.0, 22_050.0] {
            assert!((mel_to_hz(hz_to_mel(frequency)) - frequency).abs() < 1e-9);
        }
    }

    #[test]
    fn filters_have_unit_area_and_lie_in_order() {
        let filters = MelFilters::new(16_000, 8193, 40, 8000.0);
        let bin_width = 8000.0 / 8192.0;
        for (first, weights) in &filters.filters {
            let area: f64 = weights.iter().sum::<f64>() * bin_width;
            assert!((area - 1.0).abs() < 0.02, "{area} from bin {first}");
        }
        assert!(filters.filters.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn filters_may_be_narrower_than_a_bin() {
        let filters = MelFilters::new(48_000, 17, 80, 24_000.0);
        let mut out = Vec::new();
        filters.apply(&[1.0; 17], &mut out);
        assert_eq!(out.len(), 80);
        assert!(out.contains(&0.0) && out.iter().all(|x| x.is_finite() && *x >= 0.0));
    }
}
