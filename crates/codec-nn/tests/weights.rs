//! Checkpoints: every container and spelling, strictness, identity, and hostile files.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise")]

use candle_core::{DType, Device, Tensor};
use codec_nn::weights::{Checkpoint, Weights};
use codec_nn::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const CPU: Device = Device::Cpu;

fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn safetensors(tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    safetensors::serialize(tensors.iter().copied(), None).unwrap()
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::new(values, &CPU).unwrap()
}

/// A folder that goes away with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &[u8])]) -> Self {
        let path = std::env::temp_dir().join(format!("codec-nn-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for (name, bytes) in files {
            std::fs::write(path.join(name), bytes).unwrap();
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The values that `tests/reference/torch_vectors.py` wrote.
fn check_torch(weights: &Weights) -> Result<()> {
    let at = |i: usize, j: usize, k: usize| (12 * i + 4 * j + k) as f32 / 8.0;
    let plain = weights.get((2, 3, 4), "plain")?.to_vec3::<f32>()?;
    let transposed = weights.get((4, 2, 3), "transposed")?.to_vec3::<f32>()?;
    let part = weights.get((2, 2, 2), "part")?.to_vec3::<f32>()?;
    for i in 0..2 {
        for j in 0..3 {
            for k in 0..4 {
                assert_eq!(plain[i][j][k], at(i, j, k));
                assert_eq!(transposed[k][i][j], at(i, j, k));
                if j > 0 && k % 2 == 0 {
                    assert_eq!(part[i][j - 1][k / 2], at(i, j, k));
                }
            }
        }
    }
    assert_eq!(weights.values(&[2], "parameter")?, [1.5, -2.5]);
    assert_eq!(weights.values(&[3], "half")?, [0.099_975_586, 1.192_092_9e-7, -65504.0]);
    assert_eq!(weights.values(&[2], "bfloat")?, [0.100_097_656, 3.004_055_3e38]);
    assert_eq!(weights.values(&[1], "double")?, [1.0 / 3.0]);
    assert_eq!(weights.values(&[], "scalar")?, [0.25]);
    assert_eq!(weights.values(&[0, 3], "empty")?, [] as [f32; 0]);
    assert!(matches!(weights.values(&[], "count"), Err(Error::Unsupported { .. })));
    weights.finish(&["count"])
}

#[test]
fn both_torch_containers_hold_the_same_tensors() -> Result<()> {
    for name in ["torch_zip.pth", "torch_legacy.pth"] {
        check_torch(&Weights::from_bytes(vector(name), &CPU)?)?;
    }
    Ok(())
}

#[test]
fn the_plain_data_beside_a_state_dict_is_json() -> Result<()> {
    for name in ["torch_zip.pth", "torch_legacy.pth"] {
        let checkpoint = Checkpoint::from_bytes(vector(name), &CPU)?;
        let metadata: serde_json::Value = serde_json::from_str(checkpoint.metadata().unwrap()).unwrap();
        let notes = serde_json::json!(["a", null, [1, -2, 1_u64 << 40]]);
        assert_eq!(
            metadata,
            serde_json::json!({"epoch": 3, "loss": 0.5, "done": true, "notes": notes}),
            "{name}"
        );
    }
    let a = floats(&[1.0]);
    let texts = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize([("a", &a)], Some(texts)).unwrap();
    assert_eq!(Checkpoint::from_bytes(bytes, &CPU)?.metadata(), Some(r#"{"format":"pt"}"#));
    Ok(())
}

/// Tensors beside a state dict do not hide it, and of plain data, however large its numbers and whatever its
/// classes, what JSON can hold is kept.
#[test]
fn what_training_programs_keep_beside_a_state_dict_is_no_hindrance() -> Result<()> {
    for name in ["torch_beside_zip.pth", "torch_beside_legacy.pth"] {
        let checkpoint = Checkpoint::from_bytes(vector(name), &CPU)?;
        check_torch(checkpoint.weights().unwrap())?;
        let metadata: serde_json::Value = serde_json::from_str(checkpoint.metadata().unwrap()).unwrap();
        let expected = serde_json::json!({
            "epoch": 3,
            "counts": {"steps": 7},
            "names": {"a": "b"},
            "types": {},
            "seed": {"small": 7},
            "seen": {},
            "recent": [1.5, 2.5],
            "ranges": {},
            "bytes": {},
            "times": {},
        });
        assert_eq!(metadata, expected, "{name}");
    }
    Ok(())
}

#[test]
fn a_wrapper_around_the_whole_model_is_no_part_of_its_names() -> Result<()> {
    let (a, b) = (floats(&[1.0]), floats(&[2.0]));
    let names = |tensors: &[(&str, &Tensor)]| -> Result<Vec<String>> {
        let checkpoint = Checkpoint::from_bytes(safetensors(tensors), &CPU)?;
        Ok(checkpoint.weights().unwrap().names().map(str::to_owned).collect())
    };
    assert_eq!(names(&[("model.module.x.a", &a), ("model.module.y", &b)])?, ["x.a", "y"]);
    // A part that only some tensors belong to, or that is no wrapper, is a part of the model.
    assert_eq!(names(&[("model.x", &a), ("y", &b)])?, ["model.x", "y"]);
    assert_eq!(names(&[("encoder.x", &a), ("encoder.y", &b)])?, ["encoder.x", "encoder.y"]);
    Ok(())
}

#[test]
fn what_a_file_is_its_bytes_say() -> Result<()> {
    // A zip archive under the name of a safetensors file, in a folder as on the Hub.
    let folder = Folder::new("names", &[("model.safetensors", &vector("torch_zip.pth"))]);
    check_torch(&Weights::open(&folder.0, &CPU)?)?;
    let folder =
        Folder::new("odd", &[("anything.bin", &vector("torch_legacy.pth")), ("notes.txt", b"hello")]);
    check_torch(&Weights::open(&folder.0, &CPU)?)
}

#[test]
fn all_spellings_of_weight_norm_are_one_weight() -> Result<()> {
    let v = Tensor::new(&[[[3.0_f32, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]], &CPU)?;
    let g = Tensor::new(&[[[10.0_f32]], [[-1.0]]], &CPU)?;
    let folded = Tensor::new(&[[[6.0_f32, 0.0], [0.0, 8.0]], [[-0.5, -0.5], [-0.5, -0.5]]], &CPU)?;
    let spellings = [
        safetensors(&[("conv.weight_g", &g), ("conv.weight_v", &v)]),
        safetensors(&[
            ("conv.parametrizations.weight.original0", &g),
            ("conv.parametrizations.weight.original1", &v),
        ]),
        safetensors(&[("conv.weight", &folded)]),
    ];
    for bytes in spellings {
        let weights = Weights::from_bytes(bytes, &CPU)?;
        let weight = weights.pp("conv").conv_weight((2, 2, 2), "weight")?;
        assert_eq!(weight.to_vec3::<f32>()?, folded.to_vec3::<f32>()?);
        weights.finish(&[])?;
    }
    Ok(())
}

#[test]
fn a_row_of_zeros_cannot_be_normalized() -> Result<()> {
    let g = Tensor::ones((2, 1, 1), DType::F32, &CPU)?;
    let v = Tensor::new(&[[[1.0_f32]], [[0.0]]], &CPU)?;
    let weights = Weights::from_bytes(safetensors(&[("weight_g", &g), ("weight_v", &v)]), &CPU)?;
    let result = weights.conv_weight((2, 1, 1), "weight");
    assert!(matches!(result, Err(Error::NotFinite { index: 1, .. })), "{result:?}");
    Ok(())
}

#[test]
fn missing_misshapen_infinite_and_unread_tensors_are_named() -> Result<()> {
    let (a, b) = (floats(&[1.0, 2.0]), floats(&[f32::INFINITY]));
    let bytes = safetensors(&[("x.a", &a), ("x.b", &b), ("y.c", &a), ("y.cluster_size", &a)]);
    let weights = Weights::from_bytes(bytes, &CPU)?;
    let message = |result: Result<Vec<f32>>| result.unwrap_err().to_string();
    assert_eq!(message(weights.pp("x").values(&[2], "z")), "the checkpoint lacks x.z");
    assert_eq!(message(weights.pp("x").values(&[3], "a")), "x.a: expected shape [3], got [2]");
    assert_eq!(message(weights.pp("x").values(&[1], "b")), "x.b: value 0 is not finite");
    weights.values(&[2], "x.a")?;
    let Err(Error::UnreadTensors { names }) = weights.finish(&["cluster_size"]) else {
        panic!("two tensors were not read");
    };
    assert_eq!(names, ["x.b", "y.c"]);
    weights.pp("x").values(&[2], "a")?;
    assert!(weights.pp("y").finish(&["cluster_size", "c"]).is_ok());
    Ok(())
}

#[test]
fn two_tensors_cannot_get_one_name() -> Result<()> {
    let a = floats(&[1.0]);
    let weights = Weights::from_bytes(safetensors(&[("a", &a), ("b", &a)]), &CPU)?;
    assert!(weights.renamed(|name| name.replace('a', "c"))?.contains("c"));
    assert!(matches!(weights.renamed(|_| "c".into()), Err(Error::Config { .. })));
    Ok(())
}

#[test]
fn shards_are_one_checkpoint_with_one_identity() -> Result<()> {
    let (a, b) = (floats(&[1.0]), floats(&[2.0]));
    let (first, second) = (safetensors(&[("a", &a)]), safetensors(&[("b", &b)]));
    let index = br#"{"metadata": {}, "weight_map": {"b": "z.safetensors", "a": "y.safetensors"}}"#;
    let folder = Folder::new(
        "shards",
        &[
            ("model.safetensors.index.json", index),
            ("y.safetensors", &first),
            ("z.safetensors", &second),
            ("config.json", br#"{"model_type": "none"}"#),
        ],
    );
    let checkpoint = Checkpoint::open(&folder.0, &CPU)?;
    let weights = checkpoint.weights().expect("tensors");
    assert_eq!([weights.values(&[1], "a")?, weights.values(&[1], "b")?].concat(), [1.0, 2.0]);
    assert_eq!(checkpoint.config(), Some(r#"{"model_type": "none"}"#));

    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let list = format!("{}  y.safetensors\n{}  z.safetensors\n", hex(&first), hex(&second));
    assert_eq!(checkpoint.sha256()?, <[u8; 32]>::from(Sha256::digest(list)));
    let single = Checkpoint::open(&folder.0.join("y.safetensors"), &CPU)?;
    assert_eq!(single.sha256()?, <[u8; 32]>::from(Sha256::digest(&first)));
    Ok(())
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for target in ["../secret", "/etc/passwd", "a/b", "..", ""] {
        let index = format!(r#"{{"weight_map": {{"a": "{target}"}}}}"#);
        let folder = Folder::new("escape", &[("model.safetensors.index.json", index.as_bytes())]);
        let result = Weights::open(&folder.0, &CPU);
        assert!(matches!(result, Err(Error::Config { field: "weight_map", .. })), "{target}: {result:?}");
    }
}

#[test]
fn what_is_no_codec_is_said() {
    let a = floats(&[1.0]);
    let folder = Folder::new(
        "unknown",
        &[("model.safetensors", &safetensors(&[("a", &a)])), ("config.json", br#"{"model_type": "bert"}"#)],
    );
    let message = |path: &Path| codec_nn::load(path, &CPU).unwrap_err().to_string();
    let expected =
        "not a known codec: safetensors with 1 tensors (a), and the configuration of a model of type `bert`";
    assert!(message(&folder.0).contains(expected), "{}", message(&folder.0));
    let folder = Folder::new("empty", &[("notes.txt", b"hello")]);
    assert!(message(&folder.0).contains("a directory of 1 files, none of them weights"));
    std::fs::create_dir(folder.0.join("model")).unwrap();
    assert!(message(&folder.0).contains("a directory of 1 files and 1 folders"), "{}", message(&folder.0));
    let folder = Folder::new("text", &[("model.safetensors", b"hello")]);
    assert!(message(&folder.0).contains("neither safetensors nor a file of torch.save"));
    assert!(matches!(codec_nn::load(&folder.0.join("absent"), &CPU), Err(Error::Io { .. })));
}

const ENCODEC: &str = "checkpoints/parametrized/model.safetensors";
const ENCODEC_CONFIG: &str = "checkpoints/parametrized/config.json";

#[test]
fn what_does_not_fit_is_told_whole_and_by_family() -> Result<()> {
    let file = vector(ENCODEC);
    let whole = safetensors::SafeTensors::deserialize(&file).unwrap();
    let n_all = whole.len();
    let is_dropped =
        |name: &str| name == "encoder.layers.0.conv.bias" || name.starts_with("quantizer.layers.2.");
    let mut tensors: Vec<_> = whole.tensors().into_iter().filter(|(name, _)| !is_dropped(name)).collect();
    let n_kept = tensors.len();
    let odd = tensors[0].1.clone();
    tensors.extend((0..3_000).map(|i| (format!("odd.{i:04}"), odd.clone())));
    let file = safetensors::serialize(tensors, None).unwrap();
    let files = [("model.safetensors", file.as_slice()), ("config.json", &vector(ENCODEC_CONFIG))];
    let folder = Folder::new("misfit", &files);
    let error = codec_nn::load(&folder.0, &CPU).unwrap_err();
    let Error::Misfit { family: "encodec", n_fit, missing, unknown, looks_like: None } = &error else {
        panic!("{error}");
    };
    // Those that a family ignores are none that it needs.
    assert!(*n_fit <= n_kept && *n_fit > n_kept / 2, "{n_fit} of {n_kept} of {n_all}");
    assert_eq!(missing, &["encoder.layers.0.conv.bias", "quantizer.layers.2.codebook.embed"]);
    assert_eq!(unknown.len(), 3_000);
    let text = error.to_string();
    let start =
        format!("recognized as encodec: {n_fit} of the {} tensors that it needs are there", n_fit + 2);
    assert!(text.starts_with(&start), "{text}");
    assert!(text.contains("encoder.layers.0.conv.bias, quantizer.layers.2.codebook.embed"), "{text}");
    assert!(
        text.ends_with("not known are odd.0000, odd.0001, odd.0002, odd.0003, odd.0004 and 2995 more"),
        "{text}"
    );
    Ok(())
}

/// A configuration whose tensors are all missing must not make us allocate them.
#[test]
fn a_survey_of_what_is_missing_is_bounded() {
    let config = br#"{"model_type": "encodec", "num_filters": 2048, "hidden_size": 128}"#;
    let file = safetensors(&[("a", &floats(&[1.0]))]);
    let folder = Folder::new("bounded", &[("model.safetensors", &file), ("config.json", config)]);
    let error = codec_nn::load(&folder.0, &CPU).unwrap_err();
    let Error::Misfit { n_fit: 0, missing, .. } = &error else { panic!("{error}") };
    assert!(missing.len() > 30, "{error}");
}

#[test]
fn a_configuration_of_another_model_is_named_or_passed_over() -> Result<()> {
    let (config, dac) = (vector(ENCODEC_CONFIG), vector("dac_narrow/weights.pth"));
    // In a folder both are the checkpoint.
    let folder = Folder::new("mixed", &[("weights.pth", &dac), ("config.json", &config)]);
    let error = codec_nn::load(&folder.0, &CPU).unwrap_err().to_string();
    assert!(error.contains("recognized as encodec") && error.ends_with("named like those of dac"), "{error}");
    // A file that is asked for says itself what it is.
    assert_eq!(codec_nn::load(&folder.0.join("weights.pth"), &CPU)?.codec.info().family, "dac");

    // Its own configuration still counts.
    let folder = Folder::new("own", &[("model.safetensors", &vector(ENCODEC)), ("config.json", &config)]);
    assert_eq!(codec_nn::load(&folder.0.join("model.safetensors"), &CPU)?.codec.info().family, "encodec");
    Ok(())
}

#[test]
fn a_configuration_that_is_missing_or_broken_is_what_is_said() {
    let folder = Folder::new("no-config", &[("model.safetensors", &vector(ENCODEC))]);
    let message = || codec_nn::load(&folder.0, &CPU).unwrap_err().to_string();
    let expected = "the tensors are named like those of encodec, whose configuration is needed";
    assert!(message().ends_with(expected), "{}", message());
    std::fs::write(folder.0.join("config.json"), "{").unwrap();
    assert!(message().starts_with("configuration: config.json: EOF while parsing"), "{}", message());
}

#[test]
fn an_archive_that_is_cut_off_is_called_so() {
    let whole = vector("torch_zip.pth");
    for end in [whole.len() / 2, whole.len() - 30] {
        let error = Weights::from_bytes(whole[..end].to_vec(), &CPU).unwrap_err().to_string();
        assert!(error.contains("the file is cut off"), "{end}: {error}");
    }
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

/// A damaged file is read or refused; nothing panics and nothing is allocated that the file has no
/// bytes for.
#[test]
fn damaged_files_are_refused_or_read() {
    let small = safetensors(&[("a", &floats(&[1.0, 2.0])), ("b", &floats(&[3.0]))]);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut n_refused = 0;
    let beside = vector("torch_beside_legacy.pth");
    for original in [vector("torch_zip.pth"), vector("torch_legacy.pth"), beside, small] {
        for _ in 0..12_000 {
            let mut bytes = original.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes.truncate(at.max(1)),
                    _ => drop(bytes.splice(at..at, vec![random.below(256) as u8; 1 + random.below(4)])),
                }
            }
            let Ok(weights) = Weights::from_bytes(bytes, &CPU) else {
                n_refused += 1;
                continue;
            };
            for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
                let shape = weights.shape(&name).unwrap_or_default().to_vec();
                drop(weights.values(&shape, &name));
            }
        }
    }
    assert!(n_refused > 10_000, "only {n_refused} of 48000 refused");
}
