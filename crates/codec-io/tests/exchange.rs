//! Files of other programs, made by their own writers (`tests/reference/exchange_vectors.py`): what they
//! are read as, that what is written is the same to the byte, and that damage is refused.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise")]

use codec_core::{AudioSpec, CodeLayout, CodecInfo, Codes};
use codec_io::Error;
use codec_io::exchange::dac::DacFile;
use codec_io::exchange::ecdc::{EcdcReader, EcdcWriter};
use codec_io::exchange::{TokenArrays, read_npz, read_safetensors, write_npy, write_npz, write_safetensors};
use codec_io::tokens::{TokenHeader, Totals, WeightsHash};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

fn vector(name: &str) -> Vec<u8> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/exchange");
    std::fs::read(folder.join(name)).unwrap()
}

/// A tensor of a safetensors file, as its bytes and shape.
fn tensor(name: &str, key: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
    let bytes = vector(name);
    let head_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let head: serde_json::Value = serde_json::from_slice(&bytes[8..8 + head_len]).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<usize> {
        value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
    };
    let range = numbers(&head[key]["data_offsets"]);
    let data = &bytes[8 + head_len..][range[0]..range[1]];
    (numbers(&head[key]["shape"]), data.as_chunks::<4>().0.to_vec())
}

/// Rows of codes that a vector has to be read as.
fn rows(name: &str) -> Vec<Vec<u32>> {
    let (shape, values) = tensor(name, "codes");
    let n_columns = *shape.last().unwrap();
    values.chunks(n_columns).map(|row| row.iter().map(|v| u32::from_le_bytes(*v)).collect()).collect()
}

fn scales(name: &str) -> Vec<f32> {
    tensor(name, "scales").1.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn read_ecdc(bytes: &[u8]) -> Result<(EcdcReader<&[u8]>, Codes), Error> {
    let mut reader = EcdcReader::new(bytes)?;
    let mut codes = Codes::empty(reader.info().layout.truncated(reader.n_codebooks())?);
    while let Some(piece) = reader.next_codes()? {
        codes.append(&piece)?;
    }
    Ok((reader, codes))
}

fn header(reader: &EcdcReader<&[u8]>) -> TokenHeader {
    let info = reader.info();
    TokenHeader::new(info, reader.n_codebooks(), WeightsHash::UNKNOWN, info.audio).unwrap()
}

fn write_ecdc(header: &TokenHeader, n_samples: u64, codes: &Codes, piece: usize) -> Result<Vec<u8>, Error> {
    let mut writer = EcdcWriter::new(Vec::new(), header, n_samples)?;
    for start in (0..codes.n_frames()).step_by(piece) {
        writer.push(&codes.slice(start..codes.n_frames().min(start + piece))?)?;
    }
    writer.finish()
}

#[test]
fn ecdc_is_read_as_it_was_written_and_written_as_it_was_read() {
    for (name, n_samples, piece) in
        [("causal", 7_001, 7), ("unreadable", 53_760, 1), ("segments", 100_000, 150)]
    {
        let bytes = vector(&format!("{name}.ecdc"));
        let (reader, codes) = read_ecdc(&bytes).unwrap();
        let expected = format!("{name}.ecdc.safetensors");
        assert_eq!(codes.rows().map(<[u32]>::to_vec).collect::<Vec<_>>(), rows(&expected), "{name}");
        assert_eq!(reader.n_samples(), n_samples);
        if name == "segments" {
            assert_eq!((codes.scales(), codes.n_frames()), (scales(&expected).as_slice(), 316));
        }
        for piece in [piece, 300] {
            let written = write_ecdc(&header(&reader), n_samples, &codes, piece).unwrap();
            assert!(written == bytes, "{name} in pieces of {piece}: other bytes");
        }
    }
}

#[test]
fn a_segment_that_repeats_the_one_before_is_left_out() {
    let bytes = vector("repeated.ecdc");
    let (reader, codes) = read_ecdc(&bytes).unwrap();
    let expected: Vec<Vec<u32>> =
        rows("repeated.ecdc.safetensors").into_iter().map(|row| row[..149].to_vec()).collect();
    assert_eq!(codes.rows().map(<[u32]>::to_vec).collect::<Vec<_>>(), expected);
    assert_eq!(codes.scales(), &scales("repeated.ecdc.safetensors")[..1]);
    // Written, the clip ends where the repetition started.
    let written = write_ecdc(&header(&reader), reader.n_samples(), &codes, 150).unwrap();
    let (again, same) = read_ecdc(&written).unwrap();
    assert_eq!((again.n_samples(), same), (47_520, codes));
}

#[test]
fn what_an_ecdc_file_cannot_say_is_refused() {
    let bytes = vector("causal.ecdc");
    let (reader, codes) = read_ecdc(&bytes).unwrap();
    let header = header(&reader);
    let refused = |header: &TokenHeader| EcdcWriter::new(Vec::new(), header, 7_001).unwrap_err().to_string();
    let other = TokenHeader { model: "dac_44khz".into(), ..header.clone() };
    assert!(refused(&other).contains("model `dac_44khz`"));
    assert!(refused(&TokenHeader { start_trim: 5, ..header.clone() }).contains("starts inside a frame"));
    let audio = AudioSpec { sample_rate: 22_050, channels: 1 };
    assert!(refused(&TokenHeader { audio, ..header.clone() }).contains("other codes"));
    let error = write_ecdc(&header, 10_000, &codes, 7).unwrap_err();
    assert!(error.to_string().contains("fewer frames"), "{error}");
    // More frames than the audio takes are left out.
    let shorter = write_ecdc(&header, 640, &codes, 7).unwrap();
    assert_eq!(read_ecdc(&shorter).unwrap().1, codes.slice(0..2).unwrap());
}

#[test]
fn damaged_ecdc_files_are_refused_with_a_reason() {
    let good = vector("causal.ecdc");
    for length in 0..good.len() {
        assert!(read_ecdc(&good[..length]).is_err(), "cut at {length}");
    }
    let replaced = |from: &str, to: &str| {
        let json_len = u32::from_be_bytes(good[5..9].try_into().unwrap()) as usize;
        let json = String::from_utf8(good[9..9 + json_len].to_vec()).unwrap();
        assert!(json.contains(from));
        let json = json.replace(from, to);
        let mut bytes = good[..5].to_vec();
        bytes.extend((json.len() as u32).to_be_bytes());
        bytes.extend(json.as_bytes());
        bytes.extend(&good[9 + json_len..]);
        read_ecdc(&bytes).unwrap_err().to_string()
    };
    for (from, to, expected) in [
        ("false", "true", "language model"),
        ("encodec_24khz", "encodec_99khz", "model `encodec_99khz`"),
        ("\"nc\": 3", "\"nc\": 33", "codebooks"),
        ("\"nc\": 3", "\"nc\": 2", "more after the last code"),
        ("7001", "99999999999999", "samples of an ecdc file"),
        ("7001", "7999999", "ends inside the codes"),
        ("\"al\"", "\"la\"", "expected JSON"),
    ] {
        let error = replaced(from, to);
        assert!(error.contains(expected), "{to}: {error}");
    }
    for (at, value, expected) in [(0, b'X', "ECDC"), (4, 1, "version 1"), (5, 9, "length of the JSON")] {
        let mut bytes = good.clone();
        bytes[at] = value;
        let error = read_ecdc(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut bytes = vector("segments.ecdc");
    let scale_at = 9 + u32::from_be_bytes(bytes[5..9].try_into().unwrap()) as usize;
    bytes[scale_at..scale_at + 4].copy_from_slice(&f32::NAN.to_be_bytes());
    assert!(read_ecdc(&bytes).unwrap_err().to_string().contains("scale"));
}

/// A model of that name, with codes like those of DAC at 44.1 kHz.
fn dac(model: &str, sample_rate: u32, n_codebooks: usize, size: u32) -> CodecInfo {
    CodecInfo {
        model: model.into(),
        family: "dac",
        audio: AudioSpec { sample_rate, channels: 1 },
        hop_length: 512,
        delays: Default::default(),
        segment: None,
        layout: CodeLayout::uniform(n_codebooks, size).unwrap(),
    }
}

#[test]
fn a_dac_file_that_was_coded_at_once_is_one_clip() {
    let file = DacFile::read(vector("whole.dac").as_slice()).unwrap();
    assert_eq!((file.n_channels(), file.n_codebooks(), file.sample_rate), (1, 9, 44_100));
    assert_eq!((file.original_length, file.input_db.as_slice(), file.padding), (6_000, &[-23.5][..], true));
    assert_eq!(file.likely_model(), Some("dac_44khz"));
    let clips = file.clips(&dac("mine", 44_100, 9, 1024)).unwrap();
    assert_eq!((clips.len(), file.n_clips()), (1, 1));
    assert_eq!((clips[0].start_trim, clips[0].n_samples), (0, 6_000));
    let rows: Vec<Vec<u32>> = clips[0].codes.rows().map(<[u32]>::to_vec).collect();
    assert_eq!(rows, self::rows("whole.dac.safetensors"));
    // The codes may have been made of audio at another rate; then the audio is shorter or longer.
    assert_eq!(file.clips(&dac("mine", 22_050, 9, 1024)).unwrap()[0].n_samples, 3_000);
    assert!(file.clips(&dac("mine", 44_100, 8, 1024)).is_err());
    assert!(file.clips(&dac("mine", 44_100, 9, 512)).is_err());
}

#[test]
fn windows_of_a_dac_file_are_clips_that_follow_one_another() {
    let file = DacFile::read(vector("windows.dac").as_slice()).unwrap();
    let clips = file.clips(&dac("dac_44khz", 44_100, 9, 1024)).unwrap();
    let rows = rows("windows.dac.safetensors");
    // 65,536 samples at 48 kHz are 60,211 at 44.1 kHz; a window of 72 frames stands for 28,522.
    let lengths: Vec<u64> = clips.iter().map(|clip| clip.n_samples).collect();
    assert_eq!(lengths, [28_522, 28_522, 3_167]);
    assert_eq!(file.n_clips(), 3);
    for (window_idx, clip) in clips.iter().enumerate() {
        assert_eq!((clip.start_trim, clip.codes.n_codebooks(), clip.codes.n_frames()), (4_171, 2 * 9, 72));
        let frames = window_idx * 72..(window_idx + 1) * 72;
        for (codebook_idx, row) in clip.codes.rows().enumerate() {
            // The vector has one channel after the other, the clip one codebook after the other.
            assert_eq!(row, &rows[codebook_idx % 2 * 9 + codebook_idx / 2][frames.clone()]);
        }
    }
    assert!(matches!(file.clips(&dac("mine", 44_100, 9, 1024)), Err(Error::Unsupported { .. })));
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

#[test]
fn damaged_dac_and_ecdc_files_never_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut n_refused = 0;
    for name in ["whole.dac", "windows.dac", "causal.ecdc", "repeated.ecdc"] {
        let good = vector(name);
        for length in 0..good.len().min(1_000) {
            assert!(DacFile::read(&good[..length]).is_err(), "{name} cut at {length}");
        }
        for _ in 0..5_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random.below(3) {
                // Most of a file are codes, and all codes are right.
                let at = random.below(bytes.len().min(1_200));
                match random.below(3) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => bytes[at] ^= 1 << random.below(8),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let read = DacFile::read(bytes.as_slice());
            if let Ok(file) = &read {
                drop(file.clips(&dac("dac_44khz", 44_100, 9, 1024)));
            }
            let is_read = read.is_ok() || read_ecdc(&bytes).is_ok();
            n_refused += usize::from(!is_read);
        }
    }
    assert!(n_refused > 10_000, "only {n_refused} of 20000 refused");
}

#[test]
fn a_dac_file_cannot_name_what_it_likes() {
    let mut bytes = vector("whole.dac");
    let name = b"numpy._core.multiarray";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(b"subprocess.multiarrays");
    let error = DacFile::read(bytes.as_slice()).unwrap_err().to_string();
    assert!(error.contains("subprocess.multiarrays._reconstruct"), "{error}");
}

#[test]
fn arrays_are_what_numpy_writes() {
    let (reader, codes) =
        read_ecdc(&vector("causal.ecdc")).map(|(reader, codes)| (header(&reader), codes)).unwrap();
    let mut npy = Vec::new();
    write_npy(&mut npy, &codes).unwrap();
    assert!(npy == vector("codes.npy"), "npy: other bytes");

    let totals = Totals { n_samples: 7_001, source_samples: 7_001 };
    let mut npz = Cursor::new(Vec::new());
    write_npz(&mut npz, &reader, totals, &codes).unwrap();
    let mut archive = zip::ZipArchive::new(npz).unwrap();
    let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
    assert_eq!(names, ["codes.npy", "metadata.npy"]);
    let mut member = Vec::new();
    archive.by_name("codes.npy").unwrap().read_to_end(&mut member).unwrap();
    assert!(member == npy, "the member of the archive is another array");
}

#[test]
fn strided_codebooks_have_an_array_each() {
    let layout =
        CodeLayout::new([4, 2, 1].map(|stride| codec_core::CodebookSpec { size: 70_000, stride }).to_vec())
            .unwrap();
    let codes =
        Codes::new(layout.clone(), vec![vec![69_999, 1], vec![1, 2, 3, 4], (0..8).collect()]).unwrap();
    assert!(matches!(write_npy(Vec::new(), &codes), Err(Error::Unsupported { .. })));
    let info = CodecInfo {
        model: "toy".into(),
        family: "none",
        audio: AudioSpec { sample_rate: 16_000, channels: 1 },
        hop_length: 320,
        delays: Default::default(),
        segment: None,
        layout,
    };
    let header = TokenHeader::new(&info, 3, [7; 32], info.audio).unwrap().with_tag("title", "x");
    let totals = Totals { n_samples: 2_500, source_samples: 2_500 };
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &header, totals, &codes).unwrap();
    let head_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert!(head_len.is_multiple_of(8));
    let head: serde_json::Value = serde_json::from_slice(&bytes[8..8 + head_len]).unwrap();
    assert_eq!(head["codes_1"]["shape"], serde_json::json!([4]));
    let start = 8 + head_len + head["codes_0"]["data_offsets"][0].as_u64().unwrap() as usize;
    assert_eq!(bytes[start..start + 8], [0x6f, 0x11, 0x01, 0, 1, 0, 0, 0]);
    let metadata = &head["__metadata__"];
    assert!(metadata.as_object().unwrap().values().all(serde_json::Value::is_string));
    assert_eq!((&metadata["model"], &metadata["n_samples"]), (&"toy".into(), &"2500".into()));
    assert_eq!(metadata["tags"], r#"[["title","x"]]"#);

    let mut npz = Cursor::new(Vec::new());
    write_npz(&mut npz, &header, totals, &codes).unwrap();
    let archive = zip::ZipArchive::new(npz.clone()).unwrap();
    assert_eq!(archive.len(), 4);

    // Both come back whole.
    let header = TokenHeader { totals: Some(totals), ..header };
    let arrays = TokenArrays { header, totals, codes };
    assert_eq!(read_safetensors(bytes.as_slice()).unwrap(), arrays);
    assert_eq!(read_npz(npz.get_ref().as_slice()).unwrap(), arrays);
}

#[test]
fn arrays_with_scales_come_back_and_damaged_ones_never_panic() {
    let bytes = vector("segments.ecdc");
    let (reader, codes) = read_ecdc(&bytes).unwrap();
    let totals = Totals { n_samples: 100_000, source_samples: 100_000 };
    let header = TokenHeader { totals: Some(totals), ..header(&reader) };
    let (mut safetensors, mut npz) = (Vec::new(), Cursor::new(Vec::new()));
    write_safetensors(&mut safetensors, &header, totals, &codes).unwrap();
    write_npz(&mut npz, &header, totals, &codes).unwrap();
    let arrays = TokenArrays { header, totals, codes };
    assert_eq!(read_safetensors(safetensors.as_slice()).unwrap(), arrays);
    assert_eq!(read_npz(npz.get_ref().as_slice()).unwrap(), arrays);

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut n_refused = 0;
    for good in [safetensors, npz.into_inner()] {
        assert!(
            read_safetensors(&good[..good.len() - 1]).is_err() && read_npz(&good[..good.len() - 1]).is_err()
        );
        for _ in 0..3_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random.below(3) {
                // Half of the damage in the first bytes, which say where the others are.
                let reach = [1_000, bytes.len()][random.below(2)];
                let at = random.below(bytes.len().min(reach));
                match random.below(3) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => bytes[at] ^= 1 << random.below(8),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let is_read = read_safetensors(bytes.as_slice()).is_ok() || read_npz(bytes.as_slice()).is_ok();
            n_refused += usize::from(!is_read);
        }
    }
    assert!(n_refused > 2_000, "only {n_refused} of 6000 refused");
}
