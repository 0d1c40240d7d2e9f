//! A stream gives the bits that the whole clip gives, however it is cut, batched or threaded.

use candle_core::{Device, Tensor};
use codec_core::{AudioBuffer, Codec, Codes, Error, PerChannel};
use codec_nn::Precision;
use codec_nn::families::{load_checkpoint, networks};
use codec_nn::layers::Layer as _;
use codec_nn::weights::{Checkpoint, Variables};
use codec_tests::Result;
use codec_tests::compare::{same_audio, same_codes};
use codec_tests::vectors::{DecoderSubject, Subject, decoder_subjects, subjects};
use proptest::prelude::{Just, Strategy};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Random cases per codec and number of threads.
const CASES: u32 = 12;

/// Sizes of pieces, from mostly single steps to mostly large ones; they are repeated until the clip ends.
fn cuts(largest: usize) -> impl Strategy<Value = Vec<usize>> {
    let size = (0..=largest.ilog2()).prop_flat_map(|bits| 0..(2_usize << bits));
    proptest::collection::vec(size, 1..8).prop_filter("must advance", |cuts| cuts.iter().sum::<usize>() > 0)
}

/// Cuts `0..n` into ranges of the sizes in `cuts`, over and over.
fn ranges(n: usize, cuts: &[usize]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    cuts.iter().cycle().map_while(move |cut| {
        let range = start..n.min(start + cut);
        start = range.end;
        (range.start < n).then_some(range)
    })
}

fn encode_stream(codec: &dyn Codec, clip: &AudioBuffer, n_codebooks: usize, cuts: &[usize]) -> Result<Codes> {
    let mut encoder = codec.encoder(n_codebooks)?;
    let mut codes = Codes::empty(codec.info().layout.truncated(n_codebooks)?);
    for range in ranges(clip.n_samples(), cuts) {
        codes.append(&encoder.push(&clip.slice(range))?)?;
    }
    codes.append(&encoder.finish()?)?;
    Ok(codes)
}

fn decode_stream(codec: &dyn Codec, codes: &Codes, cuts: &[usize]) -> Result<AudioBuffer> {
    let mut decoder = codec.decoder()?;
    let mut audio = AudioBuffer::empty(codec.info().audio)?;
    let block = codes.layout().block_frames() as usize;
    for range in ranges(codes.n_frames().div_ceil(block), cuts) {
        let frames = range.start * block..codes.n_frames().min(range.end * block);
        audio.append(&decoder.push(&codes.slice(frames)?)?)?;
    }
    audio.append(&decoder.finish()?)?;
    Ok(audio)
}

/// One random case: a stretch of the clip, a number of codebooks, and two ways to cut.
fn check(subject: &Subject, n_samples: usize, n_codebooks: usize, cuts: [&[usize]; 2]) -> Result<()> {
    let codec = subject.codec.as_ref();
    let clip = subject.clip.slice(0..n_samples);
    let codes = codec.encode(&clip, n_codebooks)?;
    let audio = codec.decode(&codes)?;
    same_codes(&encode_stream(codec, &clip, n_codebooks, cuts[0])?, &codes)?;
    same_audio(&decode_stream(codec, &codes, cuts[1])?, &audio)
}

#[test]
fn streams_give_the_bits_of_the_whole_clip() -> Result<()> {
    for subject in subjects()? {
        for n_threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build()?;
            let n_samples = 0..=subject.clip.n_samples();
            let n_codebooks = 1..=subject.codec.info().layout.n_codebooks();
            let largest = subject.clip.n_samples();
            let case = (n_samples, n_codebooks, cuts(largest), cuts(16));
            let mut runner =
                TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
            runner.run(&case, |(n_samples, n_codebooks, audio_cuts, code_cuts)| {
                pool.install(|| check(&subject, n_samples, n_codebooks, [&audio_cuts, &code_cuts]))
                    .map_err(|e| TestCaseError::fail(format!("{}, {n_threads} threads: {e}", subject.name)))
            })?;
        }
    }
    Ok(())
}

#[test]
fn single_samples_and_single_frames_give_the_bits_of_the_whole_clip() -> Result<()> {
    for subject in subjects()? {
        let n_codebooks = subject.codec.info().layout.n_codebooks();
        let n_samples = subject.clip.n_samples().min(1_000);
        check(&subject, n_samples, n_codebooks, [&[1], &[1]])
            .map_err(|e| format!("{}: {e}", subject.name))?;
    }
    Ok(())
}

#[test]
fn batches_give_the_bits_of_single_clips() -> Result<()> {
    let case = proptest::collection::vec((0..6_usize, 0..40_usize), 0..9);
    for subject in subjects()? {
        let codec = subject.codec.as_ref();
        let n_codebooks = codec.info().layout.n_codebooks();
        let case = (case.clone(), Just(n_codebooks)).prop_flat_map(|(clips, n)| (Just(clips), 1..=n));
        let mut runner =
            TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
        runner.run(&case, |(clips, n_codebooks)| {
            // Few lengths, so that some clips share one, at many places of the audio.
            let clip = |&(length, start): &(usize, usize)| {
                let length = subject.clip.n_samples() * length / 12;
                subject.clip.slice(start * 50..start * 50 + length)
            };
            let clips: Vec<AudioBuffer> = clips.iter().map(clip).collect();
            let batched = || -> Result<()> {
                let codes = codec.encode_batch(&clips, n_codebooks)?;
                assert_eq!(codes.len(), clips.len());
                for (clip, codes) in clips.iter().zip(&codes) {
                    same_codes(codes, &codec.encode(clip, n_codebooks)?)?;
                }
                let audio = codec.decode_batch(&codes)?;
                assert_eq!(audio.len(), clips.len());
                codes
                    .iter()
                    .zip(&audio)
                    .try_for_each(|(codes, audio)| same_audio(audio, &codec.decode(codes)?))
            };
            batched().map_err(|e| TestCaseError::fail(format!("{}: {e}", subject.name)))
        })?;
    }
    Ok(())
}

#[test]
fn each_channel_is_coded_as_if_it_were_alone() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        if codec.info().audio.channels != 1 || codec.info().segment.is_some() {
            assert!(matches!(PerChannel::new(codec.as_ref(), 2), Err(Error::Mismatch { .. })), "{name}");
            continue;
        }
        let both = PerChannel::new(codec.as_ref(), 2)?;
        let clip = clip.slice(0..clip.n_samples().min(3_000));
        let backwards = clip.channels().map(|c| c.iter().rev().copied().collect()).collect();
        let clips = [clip.clone(), AudioBuffer::from_planar(clip.spec(), backwards)?];
        let channels = clips.iter().cloned().flat_map(AudioBuffer::into_channels).collect();
        let stereo = AudioBuffer::from_planar(both.info().audio, channels)?;
        let n_codebooks = both.info().layout.n_codebooks();
        for n_codebooks in [2, (n_codebooks - 1).max(2), n_codebooks] {
            let codes = both.encode(&stereo, n_codebooks)?;
            let audio = both.decode(&codes)?;
            for (channel_idx, clip) in clips.iter().enumerate() {
                let alone = codec.encode(clip, (n_codebooks - channel_idx).div_ceil(2))?;
                let rows = codes.rows().skip(channel_idx).step_by(2);
                assert!(rows.eq(alone.rows()), "{name}, channel {channel_idx} of {n_codebooks} codebooks");
                assert_eq!(audio.channel(channel_idx), codec.decode(&alone)?.channel(0), "{name}");
            }
            same_codes(&encode_stream(&both, &stereo, n_codebooks, &[1, 700])?, &codes)?;
            same_audio(&decode_stream(&both, &codes, &[1, 3])?, &audio)?;
        }
        assert!(matches!(both.encode(&stereo, 1), Err(Error::Range { min: 2, .. })), "{name}");
        assert!(matches!(both.encode(&clips[0], 2), Err(Error::Mismatch { .. })), "{name}");
        assert!(matches!(PerChannel::new(codec.as_ref(), 0), Err(Error::Range { .. })), "{name}");
    }
    Ok(())
}

#[test]
fn an_empty_clip_has_no_codes_and_no_codes_no_audio() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        let nothing = clip.slice(0..0);
        let codes = codec.encode(&nothing, 1)?;
        assert!(codes.is_empty(), "{name}");
        assert!(codec.decode(&codes)?.is_empty(), "{name}");
        let mut encoder = codec.encoder(1)?;
        assert!(encoder.push(&nothing)?.is_empty(), "{name}");
        assert!(encoder.finish()?.is_empty(), "{name}");
    }
    Ok(())
}

#[test]
fn foreign_audio_and_codes_are_refused_and_the_stream_goes_on() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        let info = codec.info();
        let n_codebooks = info.layout.n_codebooks();
        let mut spec = info.audio;
        spec.sample_rate += 1;
        let foreign = AudioBuffer::empty(spec)?;
        let mut encoder = codec.encoder(n_codebooks)?;
        assert!(matches!(encoder.push(&foreign), Err(Error::Mismatch { .. })), "{name}");
        let mut codes = encoder.push(&clip)?;
        codes.append(&encoder.finish()?)?;
        same_codes(&codes, &codec.encode(&clip, n_codebooks)?)?;

        let foreign = Codes::empty(codec_core::CodeLayout::uniform(1, 3)?);
        let mut decoder = codec.decoder()?;
        assert!(matches!(decoder.push(&foreign), Err(Error::Mismatch { .. })), "{name}");
        let mut audio = decoder.push(&codes)?;
        audio.append(&decoder.finish()?)?;
        same_audio(&audio, &codec.decode(&codes)?)?;
        for n in [0, n_codebooks + 1] {
            assert!(matches!(codec.encoder(n), Err(Error::Range { .. })), "{name}: {n} codebooks");
        }
    }
    Ok(())
}

#[test]
fn who_only_decodes_streams_and_says_so() -> Result<()> {
    for DecoderSubject { name, codec, codes } in decoder_subjects()? {
        let codec = codec.as_ref();
        let audio = codec.decode(&codes)?;
        for cuts in [&[1][..], &[3, 1], &[64]] {
            same_audio(&decode_stream(codec, &codes, cuts)?, &audio).map_err(|e| format!("{name}: {e}"))?;
        }
        let clips = [codes.slice(0..7)?, codes.slice(5..12)?, codes.slice(0..0)?, codes.slice(2..3)?];
        for (clip, audio) in clips.iter().zip(codec.decode_batch(&clips)?) {
            same_audio(&audio, &codec.decode(clip)?).map_err(|e| format!("{name}: {e}"))?;
        }
        let foreign = Codes::empty(codec_core::CodeLayout::uniform(1, 3)?);
        assert!(matches!(codec.decoder()?.push(&foreign), Err(Error::Mismatch { .. })), "{name}");

        let clip = audio.slice(0..1);
        let refused = [
            codec.encoder(1).err(),
            codec.encode(&clip, 1).err(),
            codec.encode_batch(&[clip], 1).err(),
            PerChannel::new(codec, 2)?.encoder(2).err(),
        ];
        for error in refused {
            assert!(matches!(error, Some(Error::Unsupported { .. })), "{name}: {error:?}");
        }
        let info = codec.info();
        assert_eq!((info.delays.lookahead, info.delays.algorithmic_delay), (None, None), "{name}");
    }
    Ok(())
}

/// Models with random weights whose matrices are large enough to be rounded.
const LARGE: [&str; 5] = [
    r#"{"model_type": "encodec", "num_filters": 8, "hidden_size": 128, "codebook_dim": 128}"#,
    r#"{"model_type": "dac", "encoder_hidden_size": 16, "decoder_hidden_size": 256, "hidden_size": 256}"#,
    r#"{"sampling_rate": 24000, "encoder_dim": 16, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 256,
        "decoder_rates": [8, 8, 4, 2], "attn_window_size": null, "codebook_size": 64, "codebook_dim": 8,
        "vq_strides": [4, 2, 1], "noise": false, "depthwise": true}"#,
    r#"{"model_type": "mimi", "hidden_size": 128, "num_filters": 8, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 256, "codebook_dim": 64,
        "vector_quantization_hidden_dimension": 64, "num_quantizers": 4, "codebook_size": 64, "upsample_groups": 128}"#,
    r#"{"model_type": "lapped", "sampling_rate": 16000, "hop_length": 320, "n_codebooks": 3, "codebook_size": 64,
        "latent_dim": 64, "encoder": {"n_blocks": 1, "dim": 128, "hidden": 256, "kernel": 7},
        "decoder": {"n_blocks": 1, "dim": 128, "hidden": 256, "kernel": 7}}"#,
];

#[test]
fn rounded_weights_reach_both_networks_and_stream_as_the_whole_clip() -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    for config in LARGE {
        let variables = Variables::seeded(&Device::Cpu, 5);
        let made = networks(&Checkpoint::from_config(config, &Device::Cpu).trained(&variables))?;
        let (family, rate) = (made.info.family, made.info.audio.sample_rate as usize);
        let values = variables.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
        let tensors: Vec<(String, Tensor)> = values.chain(variables.constants()).collect();
        let checkpoint = Checkpoint::from_bytes(safetensors::serialize(tensors, None)?, &Device::Cpu)?;
        let checkpoint = checkpoint.or_config(config);
        let xs: Vec<f32> = (0..rate).map(|t| (0.3 * (t as f32 * 0.05).sin()).powi(2)).collect();
        let clip = AudioBuffer::mono(rate as u32, xs.clone())?;
        let outputs = |precision: Precision| -> Result<[Vec<f32>; 2]> {
            let checkpoint = checkpoint.clone().with_options(precision);
            let nets = pool.install(|| networks(&checkpoint))?;
            let latents = nets.encoder.forward(&Tensor::from_slice(&xs, (1, rate, 1), &Device::Cpu)?)?;
            let latents = latents.ok_or("no latents")?;
            let audio = nets.decoder.forward(&latents)?.ok_or("no audio")?;
            Ok([latents.flatten_all()?.to_vec1()?, audio.flatten_all()?.to_vec1()?])
        };
        let (exact, rounded) = (outputs(Precision::Float32)?, outputs(Precision::Int8)?);
        let power = |xs: &[f32]| xs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        for (exact, rounded) in exact.iter().zip(&rounded) {
            let apart: Vec<f32> = exact.iter().zip(rounded).map(|(a, b)| a - b).collect();
            let share = power(&apart) / power(exact);
            assert!(share > 1e-9 && share < 0.1, "{family}: {share:e} of the power");
        }
        let checkpoint = checkpoint.with_options(Precision::Int8);
        let codec = load_checkpoint(&checkpoint, &Device::Cpu)?.codec;
        let n_codebooks = codec.info().layout.n_codebooks();
        let codes = codec.encode(&clip, n_codebooks)?;
        same_codes(&encode_stream(codec.as_ref(), &clip, n_codebooks, &[1000, 77, 4000])?, &codes)?;
        same_audio(&decode_stream(codec.as_ref(), &codes, &[1, 3])?, &codec.decode(&codes)?)?;
    }
    Ok(())
}
