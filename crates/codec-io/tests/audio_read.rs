//! Every compressed format, against the lossless original of the same signal.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests may stop them")]

mod support;

use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, Error};
use std::f64::consts::TAU;
use support::{seekable, snr, stream, vector, vector_names};

const N_SAMPLES: usize = 13_230;

/// The signal that all vectors were made from, as `data/make.sh` states it.
fn signal(sample_rate: u32) -> AudioBuffer {
    let spec = AudioSpec { sample_rate, channels: 2 };
    let at = |f: &dyn Fn(f64) -> f64| {
        (0..sample_rate * 3 / 10).map(|t| f(f64::from(t) / f64::from(sample_rate)) as f32).collect()
    };
    let chirp = at(&|t| 0.4 * (TAU * (300.0 * t + 2833.0 * t * t)).sin());
    let tone = at(&|t| 0.3 * (TAU * 440.0 * t).sin());
    AudioBuffer::from_planar(spec, vec![chirp, tone]).unwrap()
}

#[track_caller]
fn read(name: &str) -> AudioBuffer {
    let mut reader = seekable(&vector(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let audio = reader.read_to_end().unwrap();
    assert_eq!((reader.is_truncated(), reader.n_corrupt_packets()), (false, 0), "{name}");
    if let Some(n) = reader.n_samples() {
        assert_eq!(audio.n_samples() as u64, n, "{name}: the length stated and the length read");
    }
    audio
}

/// Compares without printing thousands of samples.
#[track_caller]
fn assert_same(actual: &AudioBuffer, expected: &AudioBuffer, what: &str) {
    assert_eq!(actual.spec(), expected.spec(), "{what}");
    assert_eq!(actual.n_samples(), expected.n_samples(), "{what}: length");
    for (channel_idx, (a, b)) in actual.channels().zip(expected.channels()).enumerate() {
        let first = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(t) = first {
            panic!("{what}: channel {channel_idx}, sample {t}: {} instead of {}", a[t], b[t]);
        }
    }
}

/// The first channel has the reference's samples, and not those of a neighbouring instant.
#[track_caller]
fn check_lossy(name: &str, reference: &[f32], actual: &[f32], min_snr: f64) {
    const MARGIN: usize = 600;
    let part = |xs: &[f32], shift: isize| {
        let from = MARGIN.checked_add_signed(shift).unwrap();
        xs[from..from + reference.len().min(actual.len()) - 2 * MARGIN].to_vec()
    };
    let at = |shift| snr(&part(reference, 0), &part(actual, shift));
    let ratio = at(0);
    println!("{name}: {ratio:.1} dB, one sample early {:.1}, late {:.1}", at(-1), at(1));
    assert!(ratio > min_snr, "{name}: {ratio:.1} dB");
    assert!(ratio > at(-1) && ratio > at(1), "{name}: off by a sample");
}

#[test]
fn lossless_formats_agree_to_the_bit() {
    let flac = read("chirp.flac");
    assert_eq!(flac.n_samples(), N_SAMPLES);
    let formula = signal(44_100);
    for (theirs, ours) in flac.channels().zip(formula.channels()) {
        let worst = theirs.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The 16-bit original was rounded to one step.
        assert!(worst <= 1.0 / 32_768.0, "{worst}");
    }
    for name in ["chirp-ogg.flac.ogg", "chirp-alac.m4a", "chirp.caf"] {
        assert_same(&read(name), &flac, name);
    }
}

#[test]
fn lossy_formats_are_where_they_should_be() {
    let reference = read("chirp.flac");
    for (name, min_snr) in [
        ("chirp.mp3", 25.0),
        ("chirp.ogg", 15.0),
        ("chirp.m4a", 14.0),
        ("chirp-faststart.m4a", 14.0),
        ("chirp-ima.wav", 20.0),
        ("chirp.mka", 15.0),
    ] {
        let audio = read(name);
        // Matroska counts in packets, IMA ADPCM in blocks; the others trim to the sample.
        let is_exact = !matches!(name, "chirp.mka" | "chirp-ima.wav");
        assert!(!is_exact || audio.n_samples() == N_SAMPLES, "{name}: {}", audio.n_samples());
        assert!((N_SAMPLES..N_SAMPLES + 2048).contains(&audio.n_samples()), "{name}");
        for channel_idx in 0..2 {
            let channel = |audio: &AudioBuffer| audio.channel(channel_idx).unwrap().to_vec();
            check_lossy(name, &channel(&reference), &channel(&audio), min_snr);
        }
    }
}

/// A bare AAC stream does not say how long the encoder's delay is, so it stays.
#[test]
fn adts_keeps_the_delay() {
    let audio = read("chirp.aac");
    let delayed = audio.slice(1024..1024 + N_SAMPLES);
    check_lossy("chirp.aac", read("chirp.flac").channel(0).unwrap(), delayed.channel(0).unwrap(), 14.0);
}

#[test]
fn opus_is_trimmed_to_the_sample() {
    let reference = signal(48_000);
    for name in ["chirp.opus", "chirp.webm"] {
        let audio = read(name);
        assert_eq!((audio.spec().sample_rate, audio.n_samples()), (48_000, 14_400), "{name}");
        check_lossy(name, reference.channel(0).unwrap(), audio.channel(0).unwrap(), 15.0);
    }
}

/// Mapping family 1 comes in Vorbis order and leaves in WAV order: the front pair is first, and
/// the other channels of an upmix from stereo are silent.
#[test]
fn surround_opus_has_the_channels_of_wav() {
    let audio = read("chirp-surround.opus");
    assert_eq!((audio.spec().channels, audio.n_samples()), (6, 14_400));
    let energy = |c: usize| audio.channel(c).unwrap().iter().map(|x| x * x).sum::<f32>() / 14_400.0;
    assert!(energy(0) > 0.01 && energy(1) > 0.01, "front {} {}", energy(0), energy(1));
    for channel_idx in 2..6 {
        assert!(energy(channel_idx) < 1e-4, "channel {channel_idx}: {}", energy(channel_idx));
    }
}

#[test]
fn files_pipes_and_wrong_names_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in vector_names() {
        let bytes = vector(&name);
        let expected = seekable(&bytes).unwrap().read_to_end().unwrap();
        let mut piped = stream(&bytes).unwrap();
        let mut audio = piped.read_to_end().unwrap();
        if name == "chirp.webm" {
            // The padding at the end is stated behind it.
            assert!((expected.n_samples()..expected.n_samples() + 960).contains(&audio.n_samples()));
            audio.truncate(expected.n_samples());
        }
        assert_same(&audio, &expected, &name);
        assert!(!piped.is_truncated(), "{name}");
        let path = folder.path().join("wrong.txt");
        std::fs::write(&path, &bytes).unwrap();
        assert_same(&AudioReader::open(&path).unwrap().read_to_end().unwrap(), &expected, &name);
    }
}

#[test]
fn aiff_is_big_endian() {
    let samples: [i16; 6] = [0, 1, -1, 32_767, -32_768, 256];
    let mut comm = vec![0, 2, 0, 0, 0, 3, 0, 16];
    // 44 100 as an 80-bit float.
    comm.extend([0x40, 0x0E, 0xAC, 0x44, 0, 0, 0, 0, 0, 0]);
    let mut ssnd = vec![0; 8];
    ssnd.extend(samples.iter().flat_map(|s| s.to_be_bytes()));
    let chunk = |id: &[u8], body: &[u8]| [id, &(body.len() as u32).to_be_bytes(), body].concat();
    let body = [b"AIFF".to_vec(), chunk(b"COMM", &comm), chunk(b"SSND", &ssnd)].concat();
    let bytes = chunk(b"FORM", &body);
    for reader in [seekable(&bytes), stream(&bytes)] {
        let audio = reader.unwrap().read_to_end().unwrap();
        assert_eq!(audio.spec(), AudioSpec { sample_rate: 44_100, channels: 2 });
        assert_eq!(audio.to_interleaved(), samples.map(|s| f32::from(s) / 32_768.0));
    }
}

/// What is there comes out as in the whole file, and the reader says that more was promised.
#[test]
fn truncated_files_give_their_start() {
    let mut n_partial = 0;
    for name in vector_names() {
        let bytes = vector(&name);
        let whole = seekable(&bytes).unwrap().read_to_end().unwrap();
        for percent in [45, 75, 97] {
            let cut = &bytes[..bytes.len() * percent / 100];
            let mut reader = match seekable(cut) {
                Ok(reader) => reader,
                // The tables come last, or the first page is longer than what is left.
                Err(Error::Format { format: "MP4", offset, .. } | Error::Truncated { offset, .. }) => {
                    assert_eq!(offset, cut.len() as u64, "{name}");
                    continue;
                }
                Err(e) => panic!("{name} at {percent} %: {e}"),
            };
            let mut audio = AudioBuffer::empty(reader.spec()).unwrap();
            while let Ok(Some(piece)) = reader.read() {
                audio.append(&piece).unwrap();
            }
            let n = audio.n_samples();
            assert!(n > 0 && n < whole.n_samples(), "{name} at {percent} %: {n}");
            n_partial += 1;
            // Without a length in the header the end of a stream of frames is any frame.
            if name != "chirp.aac" {
                assert!(reader.is_truncated(), "{name} at {percent} %");
            }
            // The last packet of a Vorbis stream is trimmed by the page that is missing.
            let n = n.saturating_sub(2048);
            assert_same(&audio.slice(0..n), &whole.slice(0..n), &name);
        }
    }
    println!("{n_partial} of {} cut files gave their start", 3 * vector_names().len());
    assert!(n_partial >= 20);
}

#[test]
fn chained_opus_streams_follow_each_other() {
    let once = read("chirp.opus");
    let mut twice = once.clone();
    twice.append(&once).unwrap();
    let chained = stream(&vector("chirp-chained.opus")).unwrap().read_to_end().unwrap();
    assert_same(&chained, &twice, "chained");
}

#[test]
fn a_corrupt_opus_page_is_an_error_with_its_place() {
    let mut bytes = vector("chirp.opus");
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    let mut reader = match stream(&bytes) {
        Ok(reader) => reader,
        Err(Error::Format { format: "Ogg Opus", offset, .. }) => return assert!(offset > 0),
        Err(e) => panic!("{e}"),
    };
    assert!(matches!(reader.read_to_end(), Err(Error::Format { format: "Ogg Opus", .. })));
}

/// An ID3 tag with a large picture, whose bytes look like frames.
#[test]
fn tags_before_mp3_are_passed_over() {
    let picture = [0xFFu8, 0xFB, 0x90, 0x64].repeat(50_000);
    let frame_len = picture.len() as u32 + 4;
    let mut frame = b"APIC".to_vec();
    frame.extend(frame_len.to_be_bytes());
    frame.extend([0, 0, 0, b'x', 0, 3]);
    frame.extend(&picture);
    let n = frame.len() as u32;
    let mut tagged = b"ID3\x03\0\0".to_vec();
    tagged.extend([n >> 21 & 127, n >> 14 & 127, n >> 7 & 127, n & 127].map(|b| b as u8));
    tagged.extend(frame);
    tagged.extend(vector("chirp.mp3"));
    let expected = read("chirp.mp3");
    for reader in [seekable(&tagged), stream(&tagged)] {
        assert_same(&reader.unwrap().read_to_end().unwrap(), &expected, "tagged");
    }
}

/// The edit list decides what is heard; its parts are changed here in a real file.
#[test]
fn edit_lists_are_obeyed() {
    let bytes = vector("chirp.m4a");
    let whole = read("chirp.m4a");
    let at = bytes.windows(4).position(|w| w == b"elst").unwrap();
    // Version and flags, number of entries, then duration, media time and rate.
    let patched = |entry: [u32; 2], n_entries: u32| {
        let mut bytes = bytes.clone();
        bytes[at + 8..at + 12].copy_from_slice(&n_entries.to_be_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&entry[0].to_be_bytes());
        bytes[at + 16..at + 20].copy_from_slice(&entry[1].to_be_bytes());
        seekable(&bytes).unwrap().read_to_end().unwrap()
    };
    assert_same(&patched([300, 1024], 1), &whole, "as made");
    assert_same(&patched([0, 1124], 1), &whole.slice(100..N_SAMPLES), "later start");
    // 99 ms and the tick that rounding may have taken.
    assert_same(&patched([99, 1024], 1), &whole.slice(0..4410), "earlier end");
    let untrimmed = patched([0, 0], 1);
    assert_eq!(untrimmed.n_samples(), N_SAMPLES + 1024);
    assert_same(&untrimmed.slice(1024..N_SAMPLES + 1024), &whole, "untrimmed");
}

#[test]
fn what_is_not_audio_is_named() {
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [b"Once upon a time".as_slice(), b"\x7FELF\x02\x01\x01", &noise, &[0; 5000]] {
        for result in [seekable(bytes), stream(bytes)] {
            assert!(matches!(result, Err(Error::NotAudio { .. })), "{result:?}");
        }
    }
    assert!(matches!(stream(&[]), Err(Error::Empty)));
    let missing = AudioReader::open("no such file");
    assert!(matches!(missing, Err(Error::File { .. })));
    assert!(matches!(AudioReader::open("."), Err(Error::File { .. })));
}

/// FLAC written to a pipe does not know its length.
#[test]
fn flac_of_unknown_length() {
    let mut bytes = vector("chirp.flac");
    // STREAMINFO: the lower 36 bits of bytes 10 to 17 are the number of samples.
    bytes[8 + 13] &= 0xF0;
    bytes[8 + 14..8 + 18].fill(0);
    let mut reader = seekable(&bytes).unwrap();
    assert_eq!(reader.n_samples(), None);
    let audio = reader.read_to_end().unwrap();
    assert!(!reader.is_truncated());
    assert_same(&audio, &read("chirp.flac"), "unknown length");
}
