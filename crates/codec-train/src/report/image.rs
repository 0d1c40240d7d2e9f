//! Spectrograms as pictures inside a page.

use codec_core::AudioBuffer;
use realfft::RealFftPlanner;

const WINDOW: usize = 512;
const HOP: usize = 128;
/// Widest picture.
const MAX_WIDTH: usize = 1200;
/// From black to white, dB below the loudest.
const RANGE_DB: f32 = 80.0;

/// The log-magnitude spectrogram of the first channel as a data URI of a bitmap.
pub(super) fn spectrogram(audio: &AudioBuffer) -> String {
    let xs = audio.channel(0).unwrap_or_default();
    let n_frames = (xs.len().saturating_sub(WINDOW) / HOP + 1).min(MAX_WIDTH);
    let height = WINDOW / 2;
    let plan = RealFftPlanner::<f32>::new().plan_fft_forward(WINDOW);
    let (mut frame, mut spectrum) = (plan.make_input_vec(), plan.make_output_vec());
    let mut levels = Vec::with_capacity(n_frames * height);
    for frame_idx in 0..n_frames {
        for (i, x) in frame.iter_mut().enumerate() {
            let window = 0.5 - 0.5 * (std::f32::consts::TAU * i as f32 / WINDOW as f32).cos();
            *x = window * xs.get(frame_idx * HOP + i).copied().unwrap_or(0.0);
        }
        // The lengths are those of the plan.
        let _ = plan.process(&mut frame, &mut spectrum);
        levels.extend(spectrum[..height].iter().map(|x| 10.0 * (x.norm_sqr() + 1e-12).log10()));
    }
    let top = levels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shade = |level: f32| (255.0 * (1.0 - (top - level) / RANGE_DB).clamp(0.0, 1.0)) as u8;
    bitmap(n_frames, height, |x, y| shade(levels[x * height + y]))
}

/// An 8-bit bitmap with a palette from dark blue over red to white; row 0 is at the bottom.
fn bitmap(width: usize, height: usize, pixel: impl Fn(usize, usize) -> u8) -> String {
    let pitch = width.next_multiple_of(4);
    let offset = 14 + 40 + 4 * 256;
    let u32s = |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let mut bytes = b"BM".to_vec();
    bytes.extend(u32s(&[
        (offset + pitch * height) as u32,
        0,
        offset as u32,
        40,
        width as u32,
        height as u32,
    ]));
    // One plane, eight bits.
    bytes.extend([1, 0, 8, 0]);
    bytes.extend(u32s(&[0, (pitch * height) as u32, 2835, 2835, 256, 0]));
    for shade in 0..256_u32 {
        let ramp = |from: u32, to: u32| ((shade.clamp(from, to) - from) * 255 / (to - from)) as u8;
        bytes.extend([
            ramp(0, 96).saturating_sub(ramp(96, 176)).max(ramp(192, 255)),
            ramp(140, 240),
            ramp(48, 176),
            0,
        ]);
    }
    for y in 0..height {
        bytes.extend((0..pitch).map(|x| if x < width { pixel(x, y) } else { 0 }));
    }
    format!("data:image/bmp;base64,{}", base64(&bytes))
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_picture_has_the_size_of_its_audio() {
        let audio = AudioBuffer::mono(16_000, (0..8_000).map(|t| (t as f32 * 0.3).sin()).collect()).unwrap();
        let uri = spectrogram(&audio);
        let n_frames: usize = (8_000 - WINDOW) / HOP + 1;
        let n_bytes = 14 + 40 + 1024 + n_frames.next_multiple_of(4) * WINDOW / 2;
        assert_eq!(uri.len(), "data:image/bmp;base64,".len() + n_bytes.div_ceil(3) * 4);
    }
}
