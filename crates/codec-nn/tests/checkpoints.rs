//! Every dialect of a checkpoint gives the same codec, and hostile files cost little.
//!
//! The files are those of `tests/reference/checkpoint_vectors.py`: one tiny model, saved by torch and
//! transformers in all the ways in which such models are published.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise")]

use candle_core::{Device, Tensor};
use codec_core::{AudioBuffer, Codes};
use codec_nn::Result;
use codec_nn::weights::{Checkpoint, Weights};
use peak_alloc::PeakAlloc;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const CPU: Device = Device::Cpu;
const DIALECTS: [&str; 9] = [
    "audiocraft",
    "audiotools",
    "folded",
    "lightning",
    "original",
    "parametrized",
    "pytorch",
    "sharded",
    "weight-norm",
];
/// A hostile file of some 50 KB may make the loader allocate so much: the file twice, an index of its
/// tensors, and what its longest pickle can hold.
const MAX_HOSTILE_BYTES: usize = 4 << 20;

/// The allocator counts for the whole process, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/checkpoints")
}

/// A tone that glides over noise, so that codes differ over time.
fn audio(sample_rate: u32) -> AudioBuffer {
    let mut noise = 1_u32;
    let sample = |i: u32| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let t = i as f32 / 4000.0;
        0.5 * (t * (40.0 + 300.0 * t)).sin() + 0.2 * (noise as f32 / u32::MAX as f32 - 0.5)
    };
    AudioBuffer::mono(sample_rate, (0..4_000).map(sample).collect()).unwrap()
}

fn codes(path: &Path) -> Result<Codes> {
    let codec = codec_nn::load(path, &CPU)?.codec;
    let info = codec.info();
    Ok(codec.encode(&audio(info.audio.sample_rate), info.layout.n_codebooks())?)
}

#[test]
fn every_dialect_gives_the_same_codes() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut folders: Vec<String> = std::fs::read_dir(vectors())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(folders, DIALECTS);
    let expected = codes(&vectors().join("parametrized"))?;
    assert_eq!((expected.layout().n_codebooks(), expected.n_frames()), (3, 500));
    for row in expected.rows() {
        let used: BTreeSet<&u32> = row.iter().collect();
        assert!(used.len() > 8, "the codebooks are degenerate: {used:?}");
    }
    for dialect in DIALECTS {
        assert_eq!(codes(&vectors().join(dialect))?, expected, "{dialect}");
    }
    Ok(())
}

#[test]
fn the_same_files_by_name_are_the_same_checkpoint() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for dialect in ["audiotools", "sharded", "audiocraft"] {
        let folder = vectors().join(dialect);
        let files: Vec<PathBuf> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let (whole, named) = (Checkpoint::open(&folder, &CPU)?, Checkpoint::open_files(&files, &CPU)?);
        assert_eq!(whole.sha256()?, named.sha256()?, "{dialect}");
        assert_eq!(whole.files()?, named.files()?, "{dialect}");
        assert_eq!(whole.config(), named.config(), "{dialect}");
        assert_eq!(whole.config().is_none(), dialect == "audiocraft");
        // A configuration of the caller's fills a gap and replaces nothing.
        let config = named.or_config("{}").config().map(str::to_owned);
        assert_eq!(config.as_deref(), whole.config().or(Some("{}")));
    }
    Ok(())
}

#[test]
fn what_training_programs_save_beside_the_weights_is_kept_apart() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = |path: &str| Checkpoint::open(&vectors().join(path), &CPU);
    let metadata = |checkpoint: &Checkpoint| -> serde_json::Value {
        serde_json::from_str(checkpoint.metadata().unwrap()).unwrap()
    };
    let lightning = open("lightning/last.ckpt")?;
    assert_eq!(metadata(&lightning)["hyper_parameters"]["decay"], 0.99);
    assert_eq!(metadata(&lightning)["optimizer_states"][0]["param_groups"][0]["params"][0], 0);
    assert!(metadata(&lightning).get("state_dict").is_none());
    assert!(lightning.weights().unwrap().contains("encoder.layers.0.conv.weight_g"));
    let audiotools = open("audiotools/weights.pth")?;
    let kwargs = &metadata(&audiotools)["metadata"]["kwargs"];
    assert_eq!(kwargs["rates"], serde_json::json!([4, 2]));
    assert_eq!(kwargs["latent_dim"], serde_json::Value::Null);
    assert_eq!(kwargs["quantizer_dropout"], false);
    assert!(metadata(&open("audiocraft")?)["xp.cfg"].as_str().unwrap().contains("pad_mode: constant"));
    Ok(())
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

/// Where the part of a file lies that is parsed; what follows are numbers.
fn parsed(bytes: &[u8]) -> std::ops::Range<usize> {
    if bytes.starts_with(b"PK") {
        return first_member(bytes);
    }
    if bytes.starts_with(b"\x80") {
        // The pickles of an older file end with the list of its storages; the last one is long.
        return 0..bytes.len().min(12_000);
    }
    let n_header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    0..8 + n_header
}

/// Gives the pickle of a zip archive the checksum of its damaged bytes: what is tested is the pickle's
/// reader, not the archive's.
fn with_checksum(mut bytes: Vec<u8>, pickle: &std::ops::Range<usize>) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in &bytes[pickle.clone()] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let entry = directory(&bytes);
    bytes[entry + 16..entry + 20].copy_from_slice(&(!crc).to_le_bytes());
    bytes
}

/// The first entry of a zip archive's directory.
fn directory(bytes: &[u8]) -> usize {
    bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap()
}

/// The bytes of a zip archive's first member, which is the pickle.
fn first_member(bytes: &[u8]) -> std::ops::Range<usize> {
    let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let start = 30 + short(26) + short(28);
    // The length stands in the directory, for it was not known before the member was written.
    let entry = directory(bytes);
    let length = u32::from_le_bytes(bytes[entry + 24..entry + 28].try_into().unwrap()) as usize;
    start..start + length
}

/// 10,000 files with damage where it hurts: each is read or refused, quickly and in little memory.
#[test]
fn mutated_pickles_and_safetensors_cost_little() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let paths = [
        "original/encodec.th",
        "lightning/last.ckpt",
        "audiotools/weights.pth",
        "audiocraft/compression_state_dict.bin",
        "weight-norm/model.safetensors",
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut n_refused, mut peak) = (0, 0);
    for path in paths {
        let original = std::fs::read(vectors().join(path)).unwrap();
        let range = parsed(&original);
        assert!(Weights::from_bytes(original.clone(), &CPU).is_ok(), "{path}");
        let mut n_read = 0;
        for _ in 0..2_000 {
            let mut bytes = original.clone();
            for _ in 0..1 + random.below(3) {
                let at = range.start + random.below(range.len());
                match random.below(5) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => bytes[at] ^= 1 << random.below(8),
                    // Lengths and counts of all sizes.
                    2 => bytes[at] = [0x00, 0x7f, 0x80, 0xff][random.below(4)],
                    // A run of opcodes from elsewhere in the same file.
                    3 => {
                        let from = range.start + random.below(range.len());
                        let n = (1 + random.below(16)).min(range.end - at).min(range.end - from);
                        bytes.copy_within(from..from + n, at);
                    }
                    _ => bytes.truncate(at.max(1)),
                }
                if bytes.len() < range.end {
                    break;
                }
            }
            if bytes.starts_with(b"PK") && bytes.len() == original.len() {
                bytes = with_checksum(bytes, &range);
            }
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            match Checkpoint::from_bytes(bytes, &CPU) {
                Ok(checkpoint) => {
                    n_read += 1;
                    let weights = checkpoint.weights().unwrap();
                    for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
                        let shape = weights.shape(&name).unwrap_or_default().to_vec();
                        drop(weights.values(&shape, &name));
                    }
                }
                Err(_) => n_refused += 1,
            }
            let used = MEMORY.peak_usage().saturating_sub(before);
            assert!(used <= MAX_HOSTILE_BYTES, "{path}: {used} bytes");
            peak = peak.max(used);
        }
        assert!(n_read > 20, "{path}: the damage never got past the first check: {n_read}");
    }
    println!("{n_refused} of 10000 files refused, at most {peak} bytes");
    assert!(n_refused > 5_000, "only {n_refused} of 10000 refused");
}

/// The same for archives of NeMo: damage in the headers and the configuration of one.
#[test]
fn mutated_nemo_archives_cost_little() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let original = std::fs::read(vectors().join("../nanocodec_causal/tiny.nemo")).unwrap();
    let block = |at: usize| &original[at..at + 512];
    let starts = (0..original.len()).step_by(512).filter(|&at| &block(at)[257..262] == b"ustar");
    let headers: Vec<usize> = starts.collect();
    assert_eq!(headers.len(), 2);
    let range = 0..headers[1] + 512;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut n_read, mut peak) = (0, 0);
    for i in 0..2_000 {
        let mut bytes = original.clone();
        let at = range.start + random.below(range.len());
        match i % 4 {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => {
                let from = random.below(range.len());
                let n = 1 + random.below(64.min(range.end - at.max(from)));
                bytes.copy_within(from..from + n, at);
            }
            _ => bytes.truncate(at),
        }
        // Damage is to be read, not found by its sum.
        let n_bytes = bytes.len();
        for &header in headers.iter().filter(|&&header| header + 512 <= n_bytes) {
            bytes[header + 148..header + 156].fill(b' ');
            let sum: u32 = bytes[header..header + 512].iter().map(|&byte| u32::from(byte)).sum();
            bytes[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        n_read += usize::from(Checkpoint::from_bytes(bytes, &CPU).is_ok());
        let used = MEMORY.peak_usage().saturating_sub(before);
        assert!(used <= MAX_HOSTILE_BYTES, "{used} bytes");
        peak = peak.max(used);
    }
    println!("{n_read} of 2000 archives read, at most {peak} bytes");
    assert!((200..1_800).contains(&n_read), "{n_read} of 2000 read");

    let gzip = Checkpoint::from_bytes(b"\x1f\x8b\x08\0".to_vec(), &CPU).unwrap_err();
    assert_eq!(gzip.to_string(), "compression `gzip of a .nemo file` is not supported");
    let mut other = original.clone();
    other[2] = b'n';
    let lacking = Checkpoint::from_bytes(other, &CPU).unwrap_err();
    assert!(lacking.to_string().contains(".nemo archive"), "{lacking}");
}

/// What is loaded from a file needs room for its tensors, not for the file beside them.
#[test]
fn a_file_is_read_tensor_by_tensor() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const N_TENSORS: usize = 16;
    const SIZE: usize = 1 << 20;
    let name = |i: usize| format!("tensors.{i}");
    let tensors = (0..N_TENSORS).map(|i| Ok((name(i), Tensor::full(i as f32, SIZE, &CPU)?)));
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let path = std::env::temp_dir().join(format!("codec-nn-{}-large.safetensors", std::process::id()));
    safetensors::serialize_to_file(tensors, None, &path).unwrap();

    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let checkpoint = Checkpoint::open(&path, &CPU)?;
    // The open file outlives its name.
    std::fs::remove_file(&path).unwrap();
    let weights = checkpoint.weights().unwrap();
    for i in 0..N_TENSORS {
        let values = weights.values(&[SIZE], &name(i))?;
        assert!(values.iter().all(|&value| value == i as f32));
    }
    checkpoint.sha256()?;
    let used = MEMORY.peak_usage().saturating_sub(before);
    let tensor = SIZE * size_of::<f32>();
    assert!(used < 3 * tensor, "{used} bytes for tensors of {tensor}");
    Ok(())
}

/// Programs that Python would run: each is refused by the name of what it calls.
#[test]
fn calls_are_refused_by_name() {
    for (program, expected) in [
        (&b"cos\nsystem\n(X\x04\x00\x00\x00exittR"[..], "os.system"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR", "builtins.eval"),
        (b"cbuiltins\ngetattr\n(K\x01X\x01\x00\x00\x00xtR", "builtins.getattr"),
        (b"ctorch._utils\n_rebuild_wrapper_subclass\n)R", "torch._utils._rebuild_wrapper_subclass"),
        (b"c__main__\nModel\n)\x81", "__main__.Model"),
        (b"cfunctools\npartial\nc__builtin__\nlong\n\x85R", "functools.partial"),
        (b"ccollections\nnamedtuple\n(X\x01\x00\x00\x00xtR", "collections.namedtuple"),
        (b"(cos\nsystem\no", "os.system"),
        (b"(ios\nsystem\n", "pickle opcode 0x69"),
        (b"\x82\x01", "pickle opcode 0x82"),
    ] {
        // The older container: magic, protocol and system, then the object.
        let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
        bytes.extend(b"\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.\x80\x02");
        bytes.extend(program);
        bytes.push(b'.');
        let Err(error) = Checkpoint::from_bytes(bytes, &CPU) else { panic!("{expected} was accepted") };
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

/// A pickle that doubles with every opcode is still as large as itself.
#[test]
fn what_would_grow_without_end_is_cut_off() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // a = {}; b = {"a": a, "b": a}; c = {"a": b, "b": b}; ...
    let mut object = b"\x80\x02}q\x00".to_vec();
    for level in 1..=60_u8 {
        object.extend(b"}(X\x01\x00\x00\x00ah");
        object.push(level - 1);
        object.extend(b"X\x01\x00\x00\x00bh");
        object.push(level - 1);
        object.extend([b'u', b'q', level]);
    }
    object.push(b'.');
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    bytes.extend(b"\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.");
    bytes.extend(object);
    bytes.extend(b"\x80\x02].");
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    drop(Checkpoint::from_bytes(bytes, &CPU));
    let used = MEMORY.peak_usage().saturating_sub(before);
    assert!(used < 256 << 20, "{used} bytes");
}
