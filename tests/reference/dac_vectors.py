"""Writes dac_*: tiny seeded DAC models with inputs and outputs.

`dac_odd` is a Hugging Face model with the rates of the 16 and 24 kHz models, its weights (f16, exact
in f32) in the safetensors file itself; `dac_narrow` is one of the original package, with latents of
their own width, in a torch file as audiotools writes it, in the folder of that name. Entries:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [n_codebooks, n_frames], u8, of the first N samples
    vector.N.margins        [n_codebooks, n_frames], f16, see dac_models.trace
    vector.N.audio.K        [1, n_samples], f32, decoded from the first K codebooks

Usage: cargo xtask vectors dac, or python dac_vectors.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import dac
import torch
from dac_models import calibrate, decode, padded, trace
from encodec_models import make_signal
from safetensors.torch import save_file
from transformers import DacConfig, DacModel

MAX_BYTES = 300_000

CODEBOOKS = dict(n_codebooks=4, codebook_size=32, codebook_dim=3)
ODD = dict(
    encoder_hidden_size=2,
    downsampling_ratios=[2, 4, 5, 8],
    decoder_hidden_size=16,
    sampling_rate=16_000,
    **CODEBOOKS,
)
NARROW = dict(
    encoder_dim=4,
    encoder_rates=[2, 3, 4],
    latent_dim=10,
    decoder_dim=24,
    decoder_rates=[4, 3, 2],
    sample_rate=2_000,
    **CODEBOOKS,
)
LENGTHS = {"odd": [1, 2, 319, 320, 321, 12_500], "narrow": [1, 2, 7, 23, 24, 25, 2_500]}


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = DacConfig(**ODD)
    model = calibrate(DacModel(config), config.sampling_rate, config.hop_length, 10, torch.float16)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    entries = vectors("odd", model, config.sampling_rate, config.hop_length)
    metadata = {"config": json.dumps(config.to_dict(), sort_keys=True)}
    save(directory, "odd", weights | entries, metadata)

    model = calibrate(dac.DAC(**NARROW), NARROW["sample_rate"], 24, 20, torch.float16)
    save(directory, "narrow", vectors("narrow", model, NARROW["sample_rate"], 24), None)
    folder = directory / "dac_narrow"
    folder.mkdir(exist_ok=True)
    model.half().save(folder / "weights.pth", package=False)


def vectors(name: str, model, sample_rate: int, hop_length: int) -> dict[str, torch.Tensor]:
    pcm = (32767 * make_signal(LENGTHS[name][-1], 1, sample_rate, 1000)).round().to(torch.int16)
    signal, tensors = pcm / 32768, {"vector.input": pcm}
    for n in LENGTHS[name]:
        clip = padded(signal[:, :n], hop_length)
        codes, margins = trace(model, clip)
        public = model.encode(clip[None]).audio_codes if name == "odd" else model.encode(clip[None])[1]
        assert torch.equal(torch.stack(codes), public[0])
        tensors[f"vector.{n}.codes"] = torch.stack(codes).to(torch.uint8)
        tensors[f"vector.{n}.margins"] = torch.stack(margins).half()
        for n_codebooks in [len(codes)] if n > 10_000 else [1, len(codes)]:
            audio = decode(model, codes[:n_codebooks])
            tensors[f"vector.{n}.audio.{n_codebooks}"] = audio.contiguous()
        if name == "odd":
            public = model.decode(audio_codes=torch.stack(codes)[None]).audio_values
            assert torch.allclose(audio, public, atol=1e-6)
    usage = [len(set(row.tolist())) for row in codes]
    smallest = min(m.min().item() for m in margins)
    peak = tensors[f"vector.{n}.audio.{len(codes)}"].abs().max()
    print(f"dac_{name}: entries used {usage} of 32, margin >= {smallest:.1e}, peak {peak:.2f}")
    return tensors


def save(directory: Path, name: str, tensors, metadata) -> None:
    path = directory / f"dac_{name}.safetensors"
    save_file(tensors, path, metadata=metadata)
    size = path.stat().st_size
    assert size < MAX_BYTES, (name, size)
    print(f"{path.name}: {size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
