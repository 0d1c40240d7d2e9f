"""Writes exchange/: small files of the packages encodec and descript-audio-codec, with the codes in them.

The packages' own writers write them. The codes are random, since what is tested is the files; NAME.safetensors
holds what NAME has to be read as. codes.npy is what NumPy makes of the first codes.

Usage: cargo xtask vectors exchange, or python exchange_vectors.py DIRECTORY
"""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from dac.model.base import DACFile
from encodec.compress import compress_to_file
from safetensors.torch import save_file

HOP = 320


class Codes:
    """As much of an `EncodecModel` as the writer asks for."""

    bits_per_codebook = 10

    def __init__(self, name: str, n_codebooks: int, generator: torch.Generator):
        self.name, self.n_codebooks, self.generator = name, n_codebooks, generator

    def encode(self, wav: torch.Tensor) -> list:
        n_samples = wav.shape[-1]
        segmented = self.name == "encodec_48khz"
        length, stride = (48000, 47520) if segmented else (n_samples, n_samples)
        frames = []
        for start in range(0, n_samples, stride):
            n_frames = math.ceil(min(length, n_samples - start) / HOP)
            codes = torch.randint(1024, (1, self.n_codebooks, n_frames), generator=self.generator)
            scale = torch.rand(1, 1, generator=self.generator) if segmented else None
            frames.append((codes, scale))
        return frames


def write_ecdc(root: Path, name: str, model: str, n_codebooks: int, n_samples: int, seed: int) -> torch.Tensor:
    stub = Codes(model, n_codebooks, torch.Generator().manual_seed(seed))
    channels = 2 if model == "encodec_48khz" else 1
    wav = torch.zeros(channels, n_samples)
    with open(root / f"{name}.ecdc", "wb") as file:
        compress_to_file(stub, wav, file, use_lm=False)
    frames = Codes(model, n_codebooks, torch.Generator().manual_seed(seed)).encode(wav)
    tensors = {"codes": torch.cat([codes[0] for codes, _ in frames], dim=-1).int().contiguous()}
    if frames[0][1] is not None:
        tensors["scales"] = torch.cat([scale[0] for _, scale in frames])
    save_file(tensors, root / f"{name}.ecdc.safetensors")
    return tensors["codes"]


def write_dac(root: Path, name: str, channels: int, n_codebooks: int, n_frames: int, seed: int, **fields) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1024, (channels, n_codebooks, n_frames), generator=generator)
    loudness = torch.tensor([-23.5 + channel for channel in range(channels)])
    file = DACFile(codes=codes, channels=channels, input_db=loudness, dac_version="1.0.0", **fields)
    file.save(root / f"{name}.dac")
    save_file({"codes": codes.int(), "input_db": loudness}, root / f"{name}.dac.safetensors")


def main(directory: Path) -> None:
    root = directory / "exchange"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    codes = write_ecdc(root, "causal", "encodec_24khz", 3, 7001, 1)
    np.save(root / "codes.npy", codes.numpy().astype(np.uint16))
    # A length at which the package finds one frame too many when it reads.
    write_ecdc(root, "unreadable", "encodec_24khz", 2, 53760, 2)
    write_ecdc(root, "segments", "encodec_48khz", 2, 100000, 3)
    # A clip whose last segment repeats the end of the one before.
    write_ecdc(root, "repeated", "encodec_48khz", 2, 47600, 4)
    whole = {"chunk_length": 12, "original_length": 6000, "sample_rate": 44100, "padding": True}
    write_dac(root, "whole", 1, 9, 12, 5, **whole)
    windows = {"chunk_length": 72, "original_length": 65536, "sample_rate": 48000, "padding": False}
    write_dac(root, "windows", 2, 9, 216, 6, **windows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
