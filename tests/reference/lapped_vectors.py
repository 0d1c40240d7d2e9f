"""Writes lapped_nearest.safetensors and lapped_beam.safetensors: tiny seeded models with inputs and outputs.

A file holds config.json in its metadata, the weights (f16, exact in f32), and under `vector.`:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [n_codebooks, n_frames], u8, of the first N samples
    vector.N.margins        [n_codebooks, n_frames], f16, see lapped_models
    vector.N.audio.K        [1, n_samples], f32, decoded from the first K codebooks

Usage: cargo xtask vectors lapped, or python lapped_vectors.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from encodec_models import make_signal
from lapped_models import make_model
from safetensors.torch import save_file

MAX_BYTES = 300_000
SAMPLE_RATE = 8_000
MODELS = {
    "lapped_nearest": dict(
        hop_length=20,
        n_codebooks=3,
        codebook_size=32,
        latent_dim=12,
        encoder=dict(n_blocks=2, dim=24, hidden=40, kernel=5),
        decoder=dict(n_blocks=1, dim=16, hidden=48, kernel=3),
    ),
    "lapped_beam": dict(
        hop_length=16,
        n_codebooks=4,
        codebook_size=16,
        beam=5,
        latent_dim=10,
        encoder=dict(n_blocks=1, dim=16, hidden=32, kernel=7),
        decoder=dict(n_blocks=3, dim=20, hidden=24, kernel=2),
    ),
}
LENGTHS = [1, 2, 15, 16, 17, 20, 21, 40, 3_100]


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, sizes) in enumerate(MODELS.items()):
        config = dict(model_type="lapped", name=name, sampling_rate=SAMPLE_RATE, **sizes)
        model = make_model(config, 10 + seed, torch.float16)
        pcm = (32767 * make_signal(LENGTHS[-1], 1, SAMPLE_RATE, 1000)).round().to(torch.int16)
        signal, tensors = pcm[0] / 32768, {"vector.input": pcm}
        for key, tensor in model.state_dict().items():
            tensors[key] = tensor.half().contiguous()
        n_all = config["n_codebooks"]
        for n in LENGTHS:
            codes, margins = model.quantize(model.latents(signal[:n]), n_all)
            tensors[f"vector.{n}.codes"] = codes.to(torch.uint8)
            tensors[f"vector.{n}.margins"] = margins.half().contiguous()
            for n_codebooks in {1, n_all}:
                audio = model.decode(codes[:n_codebooks])[None].contiguous()
                tensors[f"vector.{n}.audio.{n_codebooks}"] = audio
        path = directory / f"{name}.safetensors"
        save_file(tensors, path, metadata={"config": json.dumps(config)})
        size = path.stat().st_size
        assert size < MAX_BYTES, size
        usage = [len(set(row.tolist())) for row in codes]
        print(f"{path.name}: {size} bytes, entries used {usage} of {config['codebook_size']}, "
              f"margin >= {margins.min():.1e}, peak {audio.abs().max():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
