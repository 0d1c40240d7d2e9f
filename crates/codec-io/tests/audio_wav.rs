//! WAV: every encoding and every kind of header, read and written.

#![expect(clippy::unwrap_used, reason = "a helper of tests may stop them")]

mod support;

use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, Error, WavFormat, WavWriter};
use proptest::prelude::*;
use std::io::Write;
use std::sync::{Arc, Mutex};
use support::{chunk, fmt, riff, seekable, stream};

const MONO: AudioSpec = AudioSpec { sample_rate: 8_000, channels: 1 };

/// Reads the bytes in both ways; both must agree.
#[track_caller]
fn read(bytes: &[u8]) -> (AudioBuffer, bool) {
    let [a, b] = [seekable(bytes), stream(bytes)].map(|reader| {
        let mut reader = reader.unwrap();
        let audio = reader.read_to_end().unwrap();
        assert!(reader.read().unwrap().is_none(), "there is nothing after the end");
        (audio, reader.is_truncated())
    });
    assert_eq!(a, b);
    a
}

#[track_caller]
fn check(tag: u16, bits: u16, data: &[u8], expected: &[f32]) {
    let bytes = riff(&[fmt(tag, 1, 8_000, bits), chunk(b"data", data)]);
    assert_eq!(read(&bytes).0.channel(0).unwrap(), expected, "tag {tag}, {bits} bits");
}

#[test]
fn every_encoding_is_scaled_exactly() {
    check(1, 8, &[0, 128, 255], &[-1.0, 0.0, 127.0 / 128.0]);
    check(1, 16, &[0, 0x80, 1, 0, 0xFF, 0x7F], &[-1.0, 1.0 / 32_768.0, 32_767.0 / 32_768.0]);
    check(1, 24, &[0, 0, 0x80, 1, 0, 0, 0xFF, 0xFF, 0x7F], &[-1.0, 2f32.powi(-23), 1.0 - 2f32.powi(-23)]);
    check(1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0x40], &[-1.0, 0.5]);
    check(1, 12, &[0x10, 0, 0, 0x40], &[16.0 / 32_768.0, 0.5]);
    check(3, 32, &1.5f32.to_le_bytes(), &[1.5]);
    check(3, 64, &0.1f64.to_le_bytes(), &[0.1]);
    check(6, 8, &[0xD5, 0x2A], &[8.0 / 32_768.0, -32_256.0 / 32_768.0]);
    check(7, 8, &[0xFF, 0x00], &[0.0, -32_124.0 / 32_768.0]);
}

#[test]
fn extensible_names_the_encoding_in_its_guid() {
    let mut body = fmt(0xFFFE, 2, 48_000, 24)[8..].to_vec();
    body.extend([22, 0, 20, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71]);
    let data = [0, 0, 0x40, 0, 0, 0xC0];
    let bytes = riff(&[chunk(b"fmt ", &body), chunk(b"data", &data)]);
    let (audio, _) = read(&bytes);
    assert_eq!(audio.spec(), AudioSpec { sample_rate: 48_000, channels: 2 });
    assert_eq!(audio.to_interleaved(), [0.5, -0.5]);
    // Another GUID is another codec.
    body[39] ^= 1;
    let bytes = riff(&[chunk(b"fmt ", &body), chunk(b"data", &data)]);
    assert!(matches!(seekable(&bytes), Err(Error::Unsupported { offset: 44, .. })));
}

#[test]
fn odd_chunks_and_chunks_behind_the_samples_are_passed_over() {
    let (fmt, data) = (fmt(1, 1, 8_000, 16), chunk(b"data", &[0, 0x40, 0, 0xC0]));
    let (list, cue) = (chunk(b"LIST", b"odd"), chunk(b"cue ", &[7; 5]));
    let bytes = riff(&[list.clone(), fmt, cue.clone(), data, list, cue]);
    let (audio, is_truncated) = read(&bytes);
    assert_eq!(audio.channel(0).unwrap(), [0.5, -0.5]);
    assert!(!is_truncated);
}

/// The two sizes of a header, as programs leave them when they cannot go back.
#[test]
fn unfinished_headers_are_read_to_the_end() {
    let whole = riff(&[fmt(1, 1, 8_000, 16), chunk(b"data", &[0, 0x40, 0, 0xC0])]);
    let sox = (0x7FFF_F024, 0x7FFF_F000);
    for (riff_size, data_size) in [(0, 0), (36, 0), (u32::MAX, u32::MAX), (u32::MAX, 0), (0, u32::MAX), sox] {
        let mut bytes = whole.clone();
        bytes[4..8].copy_from_slice(&riff_size.to_le_bytes());
        bytes[40..44].copy_from_slice(&data_size.to_le_bytes());
        let (audio, is_truncated) = read(&bytes);
        assert_eq!(audio.channel(0).unwrap(), [0.5, -0.5], "{riff_size:#x} {data_size:#x}");
        assert!(!is_truncated);
    }
    // A finished file without samples stays one, whatever follows.
    let empty = riff(&[fmt(1, 1, 8_000, 16), chunk(b"data", &[]), chunk(b"LIST", b"info")]);
    assert_eq!(read(&empty), (AudioBuffer::empty(MONO).unwrap(), false));
}

#[test]
fn sizes_of_64_bits() {
    for name in [b"RF64", b"BW64"] {
        let mut ds64 = Vec::new();
        for size in [1000u64, 4, 2] {
            ds64.extend(size.to_le_bytes());
        }
        ds64.extend([0; 4]);
        let data = chunk(b"data", &[0, 0x40, 0, 0xC0]);
        let mut bytes = riff(&[chunk(b"ds64", &ds64), fmt(1, 1, 8_000, 16), data, chunk(b"axml", b"more!!")]);
        bytes[..4].copy_from_slice(name);
        let at = bytes.windows(4).position(|w| w == b"data").unwrap();
        bytes[at + 4..at + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&bytes).0.channel(0).unwrap(), [0.5, -0.5]);
        assert_eq!(seekable(&bytes).unwrap().format().as_bytes(), name);
    }
}

/// Cut after `n` bytes: the whole samples that are there, and a mark.
#[test]
fn truncated_files_give_what_is_there() {
    let data: Vec<u8> = (0..40).collect();
    let bytes = riff(&[fmt(1, 2, 8_000, 16), chunk(b"data", &data)]);
    for cut in 48..bytes.len() {
        let (audio, is_truncated) = read(&bytes[..cut]);
        assert_eq!(audio.n_samples(), (cut - 44) / 4, "cut at {cut}");
        assert!(is_truncated);
    }
    for cut in 1..48 {
        let is_magic = cut >= 12;
        for result in [seekable(&bytes[..cut]), stream(&bytes[..cut]).and_then(|mut r| r.read().map(|_| r))] {
            match result {
                Err(Error::Truncated { format: "WAV", offset }) if is_magic => assert_eq!(offset, cut as u64),
                Err(Error::NotAudio { .. }) if !is_magic => {}
                Err(Error::Truncated { .. }) if !is_magic => {}
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }
    assert!(matches!(seekable(&[]), Err(Error::Empty)));
}

#[test]
fn impossible_headers_are_named_with_their_place() {
    let wav = |fmt: Vec<u8>| riff(&[fmt, chunk(b"data", &[0; 8])]);
    let field = |fmt: Vec<u8>, name: &str, at: u64| match seekable(&wav(fmt)) {
        Err(Error::Field { format: "WAV", what, offset, .. }) => assert_eq!((what, offset), (name, at)),
        other => panic!("{other:?}"),
    };
    field(fmt(1, 1, 0, 16), "the sample rate", 24);
    field(fmt(1, 0, 8_000, 16), "the number of channels", 22);
    field(chunk(b"fmt ", &[1; 14]), "the size of the fmt chunk", 12);
    let mut block = fmt(1, 1, 8_000, 16);
    block[20] = 3;
    field(block, "the block size", 32);
    assert!(matches!(seekable(&wav(fmt(1, 1, 8_000, 40))), Err(Error::Unsupported { offset: 20, .. })));
    assert!(matches!(seekable(&wav(fmt(0x1234, 1, 8_000, 16))), Err(Error::Unsupported { .. })));
    let early = riff(&[chunk(b"data", &[0; 4]), fmt(1, 1, 8_000, 16)]);
    assert!(matches!(seekable(&early), Err(Error::Format { offset: 12, .. })));
}

#[test]
fn hound_reads_what_is_written() {
    let spec = AudioSpec { sample_rate: 44_100, channels: 3 };
    let samples: Vec<f32> = (0..3 * 1000).map(|i| ((i * 7919) % 65_536) as f32 / 32_768.0 - 1.0).collect();
    let audio = AudioBuffer::from_interleaved(spec, &samples).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for format in [WavFormat::Pcm16, WavFormat::Pcm24, WavFormat::Float32] {
        let path = folder.path().join("x.wav");
        let mut writer = WavWriter::create(&path, spec, format).unwrap();
        writer.write(&audio.slice(0..333)).unwrap();
        writer.write(&audio.slice(333..1000)).unwrap();
        let summary = writer.finish().unwrap();
        assert_eq!((summary.n_samples, summary.n_clipped), (1000, 0));
        let mut hound = hound::WavReader::open(&path).unwrap();
        let header = hound.spec();
        assert_eq!((header.channels, header.sample_rate), (3, 44_100));
        let theirs: Vec<f32> = match header.sample_format {
            hound::SampleFormat::Float => hound.samples::<f32>().map(Result::unwrap).collect(),
            hound::SampleFormat::Int => {
                let scale = (1i64 << (header.bits_per_sample - 1)) as f32;
                hound.samples::<i32>().map(|x| x.unwrap() as f32 / scale).collect()
            }
        };
        assert_eq!(theirs, samples, "{format:?}");
        assert_eq!(AudioReader::open(&path).unwrap().read_to_end().unwrap(), audio);
    }
}

#[test]
fn what_hound_writes_is_read() {
    for (bits, sample_format) in [8, 16, 24, 32].map(|b| (b, hound::SampleFormat::Int)) {
        let spec = hound::WavSpec { channels: 2, sample_rate: 16_000, bits_per_sample: bits, sample_format };
        let mut file = std::io::Cursor::new(Vec::new());
        let mut writer = hound::WavWriter::new(&mut file, spec).unwrap();
        let values = [-100i32, -1, 0, 1, 77, 127];
        values.iter().for_each(|&v| writer.write_sample(v).unwrap());
        writer.finalize().unwrap();
        let expected = values.map(|v| v as f32 / 2f32.powi(i32::from(bits) - 1));
        assert_eq!(read(file.get_ref()).0.to_interleaved(), expected, "{bits} bits");
    }
}

#[test]
fn a_file_appears_when_it_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.wav");
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    let mut writer = WavWriter::create(&path, MONO, WavFormat::Pcm16).unwrap();
    writer.write(&AudioBuffer::mono(8_000, vec![0.5]).unwrap()).unwrap();
    assert!(!path.exists());
    drop(writer);
    assert_eq!(names(), 0);
    WavWriter::create(&path, MONO, WavFormat::Pcm16).unwrap().finish().unwrap();
    assert_eq!((path.exists(), names()), (true, 1));
    assert_eq!(AudioReader::open(&path).unwrap().n_samples(), Some(0));
    let missing = folder.path().join("no/folder.wav");
    assert!(matches!(WavWriter::create(&missing, MONO, WavFormat::Pcm16), Err(Error::File { .. })));
}

#[test]
fn a_growing_file_is_read_before_and_after_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.wav");
    // What was there makes place at once.
    std::fs::write(&path, [7; 1000]).unwrap();
    let audio = AudioBuffer::mono(8_000, vec![0.5, -0.25, 0.125]).unwrap();
    for format in [WavFormat::Pcm16, WavFormat::Pcm24, WavFormat::Float32] {
        let mut writer = WavWriter::create_growing(&path, MONO, format).unwrap();
        writer.write(&audio).unwrap();
        let head = std::fs::read(&path).unwrap();
        assert_eq!((&head[..4], &head[4..8]), (b"RIFF".as_slice(), [0xFF; 4].as_slice()), "{format:?}");
        let mut reader = AudioReader::open(&path).unwrap();
        assert_eq!((reader.read_to_end().unwrap(), reader.is_truncated()), (audio.clone(), false));
        writer.write(&audio).unwrap();
        writer.finish().unwrap();
        // In the end it is the file that appears whole.
        let whole = folder.path().join("whole.wav");
        let mut writer = WavWriter::create(&whole, MONO, format).unwrap();
        writer.write(&audio).unwrap();
        writer.write(&audio).unwrap();
        writer.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap(), "{format:?}");
    }
    assert!(matches!(
        WavWriter::create_growing(folder.path(), MONO, WavFormat::Pcm16),
        Err(Error::File { .. })
    ));
}

#[test]
fn a_stream_gets_samples_at_once() {
    struct Counts(Arc<Mutex<[usize; 2]>>);
    impl Write for Counts {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap()[0] += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            let mut counts = self.0.lock().unwrap();
            counts[1] = counts[0];
            Ok(())
        }
    }
    let counts = Arc::new(Mutex::new([0; 2]));
    let sink = Box::new(Counts(Arc::clone(&counts)));
    let mut writer = WavWriter::to_stream(sink, MONO, WavFormat::Pcm16).unwrap();
    writer.write(&AudioBuffer::mono(8_000, vec![0.5; 3]).unwrap()).unwrap();
    assert_eq!(*counts.lock().unwrap(), [44 + 6; 2]);
}

#[test]
fn a_sample_without_a_value_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = WavWriter::create(folder.path().join("x"), MONO, WavFormat::Float32).unwrap();
    writer.write(&AudioBuffer::mono(8_000, vec![0.0; 5]).unwrap()).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let result = writer.write(&AudioBuffer::mono(8_000, vec![0.0, bad]).unwrap());
        assert!(matches!(result, Err(Error::NotFinite { channel_idx: 0, sample_idx: 6 })));
    }
    let other = AudioBuffer::mono(16_000, vec![0.0]).unwrap();
    assert!(matches!(writer.write(&other), Err(Error::Spec { .. })));
}

/// A sink that can be looked into afterwards.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Floats come back with their bits, through a pipe too.
    #[test]
    fn floats_round_trip(xs in prop::collection::vec(-2.0f32..2.0, 0..200), channels in 1u16..4) {
        let spec = AudioSpec { sample_rate: 24_000, channels };
        let n = xs.len() - xs.len() % usize::from(channels);
        let audio = AudioBuffer::from_interleaved(spec, &xs[..n]).unwrap();
        let pipe = Shared::default();
        let mut writer = WavWriter::to_stream(Box::new(pipe.clone()), spec, WavFormat::Float32).unwrap();
        writer.write(&audio).unwrap();
        writer.finish().unwrap();
        prop_assert_eq!(read(&pipe.0.lock().unwrap()), (audio, false));
    }

    /// The stored value is the nearest one, and the count is that of the values outside.
    #[test]
    fn integers_are_nearest_or_clipped(xs in prop::collection::vec(-1.5f32..1.5, 1..100)) {
        for (format, bits) in [(WavFormat::Pcm16, 15), (WavFormat::Pcm24, 23)] {
            let pipe = Shared::default();
            let mut writer = WavWriter::to_stream(Box::new(pipe.clone()), MONO, format).unwrap();
            writer.write(&AudioBuffer::mono(8_000, xs.clone()).unwrap()).unwrap();
            let summary = writer.finish().unwrap();
            let half = 0.5f64.powi(bits + 1);
            let top = 1.0 - 2.0 * half;
            let out = read(&pipe.0.lock().unwrap()).0;
            let mut n_clipped = 0;
            for (&x, &y) in xs.iter().zip(out.channel(0).unwrap()) {
                let (x, y) = (f64::from(x), f64::from(y));
                let is_outside = x > top + half || x < -1.0 - half;
                n_clipped += u64::from(is_outside);
                prop_assert!((x.clamp(-1.0, top) - y).abs() <= half, "{} {}", x, y);
            }
            prop_assert_eq!(summary.n_clipped, n_clipped);
        }
    }
}

/// A file beyond 4 GiB that occupies no space: the sizes must survive.
#[cfg(unix)]
#[test]
fn a_long_file_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.wav");
    let mut bytes = riff(&[fmt(1, 1, 8_000, 16), chunk(b"data", &[])]);
    bytes[4..8].copy_from_slice(&0u32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    if file.set_len(5 << 30).is_err() {
        // Past the test harness, which keeps what passing tests print.
        let _ = writeln!(std::io::stderr(), "skipped: the file system has no sparse files");
        return;
    }
    let mut reader = AudioReader::open(&path).unwrap();
    assert_eq!(reader.n_samples(), Some(((5 << 30) - 44) / 2));
    assert!(reader.read().unwrap().unwrap().n_samples() <= 1 << 16, "pieces are bounded");
}
