"""Writes snac_*.safetensors: tiny seeded SNAC models with inputs and outputs.

Each file holds the weights of one model under their names in the package (f16, exact in f32), its
arguments as the metadata entry `config`, and under `vector.`:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes.K        [n_codes], u8, of codebook K for the first N samples
    vector.N.margins.K      [n_codes], f16, see dac_models.trace
    vector.N.audio.K        [1, n_samples], f32, decoded from the first K codebooks

The package draws noise from PyTorch's generator; here it draws ours, see snac_models.

Usage: cargo xtask vectors snac, or python snac_vectors.py DIRECTORY
"""

import json
import math
import sys
from pathlib import Path

import torch
from dac_models import calibrate, decode, padded, trace
from encodec_models import make_signal
from safetensors.torch import save_file
from snac import SNAC
from snac_models import with_our_noise

MAX_BYTES = 180_000

SMALL = dict(codebook_size=32, codebook_dim=3, decoder_rates=[3, 2])
CONFIGS = {
    # The parts of the 24 kHz model.
    "strided": dict(
        sampling_rate=2_000,
        encoder_dim=4,
        encoder_rates=[2, 5],
        decoder_dim=12,
        attn_window_size=None,
        vq_strides=[4, 2, 1],
        noise=True,
        depthwise=True,
    )
    | SMALL
    | dict(decoder_rates=[5, 2]),
    # The parts of the 32 and 44.1 kHz models: windows that are no multiple of the largest stride.
    "windows": dict(
        sampling_rate=750,
        encoder_dim=32,
        encoder_rates=[3],
        decoder_dim=64,
        attn_window_size=4,
        vq_strides=[2, 1],
        noise=True,
        depthwise=True,
    )
    | SMALL
    | dict(decoder_rates=[3]),
    # What no published model has but the configuration allows.
    "dense": dict(
        sampling_rate=1_500,
        encoder_dim=4,
        encoder_rates=[2, 3],
        decoder_dim=12,
        attn_window_size=None,
        vq_strides=[2, 1],
        noise=False,
        depthwise=False,
    )
    | SMALL,
}
LENGTHS = {"strided": [1, 2, 39, 40, 41, 3_000], "windows": [1, 2, 11, 12, 13, 700], "dense": [1, 11, 12, 13, 1_400]}


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = with_our_noise(SNAC(**config))
        hop = math.prod(config["encoder_rates"])
        calibrate(model, config["sampling_rate"], hop, 10 * seed, torch.float16)
        tensors = {key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}
        pcm = (32767 * make_signal(LENGTHS[name][-1], 1, config["sampling_rate"], 1000 + seed)).round().to(torch.int16)
        signal = pcm / 32768
        tensors["vector.input"] = pcm
        multiple = hop * math.lcm(config["vq_strides"][0], config["attn_window_size"] or 1)
        for n in LENGTHS[name]:
            codes, margins = trace(model, padded(signal[:, :n], multiple))
            public = model.encode(signal[None, :, :n])
            assert all(torch.equal(ours, theirs[0]) for ours, theirs in zip(codes, public, strict=True))
            for codebook_idx, (row, row_margins) in enumerate(zip(codes, margins)):
                tensors[f"vector.{n}.codes.{codebook_idx}"] = row.to(torch.uint8)
                tensors[f"vector.{n}.margins.{codebook_idx}"] = row_margins.half()
            for n_codebooks in [1, len(codes)]:
                tensors[f"vector.{n}.audio.{n_codebooks}"] = decode(model, codes[:n_codebooks]).contiguous()
            public = model.decode([row[None] for row in codes])[0]
            assert torch.allclose(tensors[f"vector.{n}.audio.{len(codes)}"], public, atol=1e-6)
        path = directory / f"snac_{name}.safetensors"
        save_file(tensors, path, metadata={"config": json.dumps(config, sort_keys=True)})
        size = path.stat().st_size
        assert size < MAX_BYTES, (name, size)
        usage = [len(set(row.tolist())) for row in codes]
        smallest = min(m.min().item() for m in margins)
        print(f"{name}: {size} bytes, entries used {usage} of 32, margin >= {smallest:.1e}, peak {public.abs().max():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
