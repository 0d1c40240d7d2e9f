"""Writes encodec_*.safetensors: tiny seeded EnCodec models with inputs and outputs.

Each file holds the weights of one model under their Hugging Face names (f16, exact in f32), its
configuration as the metadata entry `config`, and under `vector.`:

    vector.input            [channels, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [n_codebooks, n_frames], u8, of the first N samples
    vector.N.margins        [n_codebooks, n_frames], f16, see encodec_models.trace
    vector.N.scales         [n_segments], f32, where the model has scales
    vector.N.audio.K        [channels, n_samples], f32, decoded from the first K codebooks

Usage: cargo xtask vectors encodec, or python encodec_vectors.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from encodec_models import decode, make_model, make_signal, trace
from safetensors.torch import save_file
from transformers import EncodecConfig

MAX_BYTES = 300_000

TINY = dict(hidden_size=16, codebook_size=32)
CONFIGS = {
    "causal": dict(num_filters=2, sampling_rate=24_000, target_bandwidths=[0.75, 1.5, 3.0], **TINY),
    "segments": dict(
        num_filters=4,
        upsampling_ratios=[5, 4, 2],
        sampling_rate=2_000,
        audio_channels=2,
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
        target_bandwidths=[0.5, 1.0, 2.0],
        **TINY,
    ),
    "true_skip": dict(
        num_filters=4,
        upsampling_ratios=[5, 4, 4],
        sampling_rate=4_000,
        use_causal_conv=False,
        use_conv_shortcut=False,
        pad_mode="constant",
        target_bandwidths=[1.0],
        **TINY,
    ),
    # What no published model has but the configuration allows.
    "variant": dict(
        num_filters=6,
        upsampling_ratios=[5, 3],
        sampling_rate=1_500,
        pad_mode="replicate",
        trim_right_ratio=0.5,
        num_residual_layers=2,
        dilation_growth_rate=3,
        kernel_size=5,
        last_kernel_size=3,
        residual_kernel_size=5,
        compress=3,
        num_lstm_layers=1,
        target_bandwidths=[1.0, 2.0],
        **TINY,
    ),
}
LENGTHS = {
    "causal": [1, 2, 7, 319, 320, 321, 5_000],
    "segments": [1, 2, 7, 39, 40, 41, 2_000, 4_100],
    "true_skip": [1, 2, 7, 79, 80, 81, 5_000],
    "variant": [1, 2, 7, 14, 15, 16, 3_000],
}
# The name that the original package gives a parameter that Hugging Face spells parametrized.
OLD_SPELLING = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        config = EncodecConfig(**config)
        model = make_model(config, 10 * seed, torch.float16)
        tensors = {}
        for key, tensor in model.state_dict().items():
            if name == "true_skip":
                for new, old in OLD_SPELLING.items():
                    key = key.replace(new, old)
            tensors[key] = tensor.half().contiguous()
        signal = make_signal(LENGTHS[name][-1], config.audio_channels, config.sampling_rate, 1000 + seed)
        pcm = (32767 * signal).round().to(torch.int16)
        signal = pcm / 32768
        tensors["vector.input"] = pcm
        used = [set() for _ in range(config.num_quantizers)]
        smallest = 1.0
        bits = (config.codebook_size - 1).bit_length()
        for n in LENGTHS[name]:
            segments = trace(model, signal[:, :n])
            codes = torch.cat([codes for codes, _, _ in segments], dim=1)
            check_against_model(model, signal[:, :n], segments)
            margins = torch.cat([margins for _, margins, _ in segments], dim=1)
            smallest = min(smallest, margins.min().item())
            tensors[f"vector.{n}.codes"] = codes.to(torch.uint8)
            tensors[f"vector.{n}.margins"] = margins.half()
            if config.normalize:
                tensors[f"vector.{n}.scales"] = torch.cat([scale.flatten() for _, _, scale in segments])
            for bandwidth in config.target_bandwidths[-1:] if n == 2_000 else config.target_bandwidths:
                n_codebooks = int(1000 * bandwidth / (config.frame_rate * bits))
                tensors[f"vector.{n}.audio.{n_codebooks}"] = decode(model, segments, n_codebooks).contiguous()
            for row, seen in zip(codes, used):
                seen.update(row.tolist())
        path = directory / f"encodec_{name}.safetensors"
        save_file(tensors, path, metadata={"config": json.dumps(config.to_dict(), sort_keys=True)})
        size = path.stat().st_size
        assert size < MAX_BYTES, (name, size)
        peak = max(t.abs().max().item() for k, t in tensors.items() if ".audio." in k)
        usage = min(len(seen) for seen in used)
        print(f"{name}: {size} bytes, {config.num_quantizers} codebooks, least used {usage}/32, margin >= {smallest:.1e}, peak {peak:.2f}")


@torch.no_grad()
def check_against_model(model, clip, segments) -> None:
    """The traced codes are those of the public `encode`."""
    bandwidth = model.config.target_bandwidths[-1]
    encoded = model.encode(clip[None], bandwidth=bandwidth)
    pad = encoded.last_frame_pad_length or 0
    public = [codes[0] for codes in encoded.audio_codes]
    public[-1] = public[-1][:, : public[-1].shape[-1] - pad]
    for ours, theirs in zip(segments, public, strict=True):
        assert torch.equal(ours[0], theirs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
