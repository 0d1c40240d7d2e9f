//! The steady state of a stream allocates nothing.

use allocation_counter::measure;
use codec_core::{AudioBuffer, Codec, Codes};
use codec_tests::Result;
use codec_tests::vectors::{Subject, subjects};

/// Steps before the steady state: more than twice the context of any transformer here.
const N_WARM: usize = 600;
/// Steps that are counted.
const N_COUNTED: usize = 300;

/// Allocations of the encoder and of the decoder in [`N_COUNTED`] steps of a block each.
fn allocations(codec: &dyn Codec, clip: &AudioBuffer) -> Result<[u64; 2]> {
    let info = codec.info();
    let hop = info.hop_length as usize * info.layout.block_frames() as usize;
    let steps: Vec<AudioBuffer> =
        (0..clip.n_samples() / hop).map(|i| clip.slice(i * hop..(i + 1) * hop)).collect();
    let (mut encoder, mut decoder) = (codec.encoder(info.layout.n_codebooks())?, codec.decoder()?);
    let (mut codes, mut audio) = (Codes::empty(info.layout.clone()), AudioBuffer::empty(info.audio)?);
    let mut counts = [0; 2];
    for (step_idx, step) in steps.iter().cycle().take(N_WARM + N_COUNTED).enumerate() {
        codes.clear();
        audio.clear();
        let (mut encoded, mut decoded) = (Ok(()), Ok(()));
        let of_encoder = measure(|| encoded = encoder.push_to(step, &mut codes));
        let of_decoder = measure(|| decoded = decoder.push_to(&codes, &mut audio));
        encoded?;
        decoded?;
        if step_idx >= N_WARM {
            counts[0] += of_encoder.count_total;
            counts[1] += of_decoder.count_total;
        }
    }
    assert!(codes.n_frames() > 0 && audio.n_samples() > 0, "nothing came of the last step");
    Ok(counts)
}

/// Models whose steps still allocate: layers that work on tensors (those of Lyra, NanoCodec's activation and sums of
/// groups, the doubled rate of BigCodec), codes in groups (NanoCodec), segments that are clips of their own, and
/// windows whose layers begin anew.
const ALLOCATE: [&str; 7] = [
    "bigcodec_tiny",
    "encodec_segments",
    "nanocodec_causal",
    "nanocodec_symmetric",
    "snac_windows",
    "soundstream_lyra",
    "soundstream_tiny",
];

#[test]
fn a_step_of_a_stream_allocates_nothing() -> Result<()> {
    let (mut n_without, mut others, mut n_excused) = (0, Vec::new(), 0);
    // A thread that hands work to others allocates what it hands over.
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(|| {
        for Subject { name, codec, clip } in subjects()? {
            n_excused += usize::from(ALLOCATE.contains(&name.as_str()));
            let streams = codec.info().delays.algorithmic_delay.is_some();
            match streams.then(|| allocations(codec.as_ref(), &clip)).transpose()? {
                None => {}
                Some([0, 0]) => n_without += 1,
                Some(counts) => others.push((name, counts)),
            }
        }
        let unexpected: Vec<_> =
            others.iter().filter(|(name, _)| !ALLOCATE.contains(&name.as_str())).collect();
        assert!(unexpected.is_empty(), "encoder and decoder: {unexpected:?}");
        assert_eq!(others.len(), n_excused, "others need not be excused any more, beside {others:?}");
        assert!(n_without >= 8, "{n_without} models, beside {others:?}");
        Ok(())
    })
}
