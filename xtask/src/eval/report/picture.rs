//! Spectrograms as small pictures.

use anyhow::{Context, Result};
use codec_core::AudioBuffer;
use realfft::RealFftPlanner;

pub(super) const WIDTH: usize = 256;
pub(super) const HEIGHT: usize = 80;
/// From black to white, in dB below the loudest of the original.
const RANGE_DB: f64 = 75.0;
const N_SHADES: usize = 16;
const WINDOW_SECONDS: f64 = 0.032;

/// Power in bands of the mel scale over time, in dB, the lowest band first.
#[derive(Debug)]
pub(super) struct Spectrogram {
    /// Column by column.
    levels: Vec<f64>,
}

impl Spectrogram {
    /// Of the mean of all channels.
    pub(super) fn new(audio: &AudioBuffer) -> Result<Self> {
        let rate = f64::from(audio.spec().sample_rate);
        let window = ((WINDOW_SECONDS * rate) as usize).next_power_of_two();
        let mut planner = RealFftPlanner::<f64>::new();
        let plan = planner.plan_fft_forward(window);
        let (mut frame, mut spectrum) = (plan.make_input_vec(), plan.make_output_vec());
        let n_channels = f64::from(audio.spec().channels);
        let sample =
            |i: usize| audio.channels().map(|c| c.get(i).map_or(0.0, |x| f64::from(*x))).sum::<f64>();
        let hann = |i: usize| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / window as f64).cos();
        let edges = edges(rate, window);
        let mut levels = Vec::with_capacity(WIDTH * HEIGHT);
        for column in 0..WIDTH {
            let middle = (column as f64 + 0.5) / WIDTH as f64 * audio.n_samples() as f64;
            let start = middle as usize;
            for (i, x) in frame.iter_mut().enumerate() {
                let at = (start + i).checked_sub(window / 2);
                *x = hann(i) * at.map_or(0.0, sample) / n_channels;
            }
            plan.process(&mut frame, &mut spectrum).context("the Fourier transform")?;
            levels.extend(edges.windows(2).map(|edge| {
                // A band narrower than a bin has the bin that it lies in.
                let (low, high) = (edge[0] as usize, (edge[1] as usize).max(edge[0] as usize + 1));
                let bins = &spectrum[low.min(window / 2)..high.min(window / 2 + 1)];
                let power = bins.iter().map(|bin| bin.norm_sqr()).sum::<f64>() / bins.len().max(1) as f64;
                10.0 * (power / window as f64 + 1e-12).log10()
            }));
        }
        Ok(Self { levels })
    }

    pub(super) fn loudest(&self) -> f64 {
        self.levels.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// A PNG of sixteen shades; white is `top` dB.
    pub(super) fn to_png(&self, top: f64) -> Result<Vec<u8>> {
        let shade = |level: f64| {
            let fraction = (1.0 + (level - top) / RANGE_DB).clamp(0.0, 1.0);
            (fraction * (N_SHADES - 1) as f64).round() as u8
        };
        let mut pixels = Vec::with_capacity(WIDTH * HEIGHT / 2);
        for row in (0..HEIGHT).rev() {
            for column in (0..WIDTH).step_by(2) {
                let at = |column: usize| shade(self.levels[column * HEIGHT + row]);
                pixels.push(at(column) << 4 | at(column + 1));
            }
        }
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, WIDTH as u32, HEIGHT as u32);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Four);
        encoder.set_palette(palette());
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(file)
    }
}

/// The edges of the bands, as bins: equal steps on the mel scale (O'Shaughnessy 1987) from 0 to half the rate.
fn edges(rate: f64, window: usize) -> Vec<f64> {
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let hertz = |mel: f64| 700.0 * (10.0_f64.powf(mel / 2595.0) - 1.0);
    let top = mel(rate / 2.0);
    (0..=HEIGHT).map(|i| hertz(top * i as f64 / HEIGHT as f64) / rate * window as f64).collect()
}

/// From black over violet and orange to a light yellow, of steadily growing lightness.
fn palette() -> Vec<u8> {
    const STOPS: [[f64; 3]; 5] = [
        [4.0, 4.0, 16.0],
        [66.0, 20.0, 110.0],
        [170.0, 46.0, 92.0],
        [240.0, 132.0, 40.0],
        [252.0, 250.0, 190.0],
    ];
    let colour = |shade: usize| {
        let at = shade as f64 / (N_SHADES - 1) as f64 * (STOPS.len() - 1) as f64;
        let below = (at as usize).min(STOPS.len() - 2);
        let part = at - below as f64;
        let mix = move |i: usize| (STOPS[below][i] * (1.0 - part) + STOPS[below + 1][i] * part) as u8;
        [mix(0), mix(1), mix(2)]
    };
    (0..N_SHADES).flat_map(colour).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone lights up its own row.
    #[test]
    fn a_tone_lies_where_its_pitch_is() {
        let rate = 16_000;
        let tone = |t: usize| (std::f32::consts::TAU * 1_000.0 * t as f32 / rate as f32).sin();
        let audio = AudioBuffer::mono(rate, (0..16_000).map(tone).collect()).unwrap();
        let spectrogram = Spectrogram::new(&audio).unwrap();
        let column = &spectrogram.levels[HEIGHT * 100..HEIGHT * 101];
        let row = (0..HEIGHT).max_by(|a, b| column[*a].total_cmp(&column[*b])).unwrap();
        let edges = edges(f64::from(rate), 512);
        let (low, high) = (edges[row] / 512.0 * 16_000.0, edges[row + 1] / 512.0 * 16_000.0);
        assert!(low < 1_040.0 && high > 960.0, "{low} to {high}");
        assert!(column[row] - column[5] > 40.0);
        let png = spectrogram.to_png(spectrogram.loudest()).unwrap();
        let decoder = png::Decoder::new(std::io::Cursor::new(&png));
        let info = decoder.read_info().unwrap();
        assert_eq!((info.info().width, info.info().height), (WIDTH as u32, HEIGHT as u32));
        assert!(png.len() < WIDTH * HEIGHT / 2 + 1_000, "{}", png.len());
    }

    #[test]
    fn silence_and_nothing_have_pictures_too() {
        for n_samples in [0, 1, 8_000] {
            let audio = AudioBuffer::mono(8_000, vec![0.0; n_samples]).unwrap();
            let spectrogram = Spectrogram::new(&audio).unwrap();
            assert!(spectrogram.to_png(spectrogram.loudest()).is_ok());
        }
    }
}
