"""Writes nanocodec_*: tiny seeded codecs of NeMo with inputs and outputs.

`nanocodec_causal` has NanoCodec's networks: a symmetric encoder, a causal decoder with convolutions in groups and half
snakes; `nanocodec_symmetric` those of the low-frame-rate codec, with a clamp at the end. Each is a `.nemo` archive in
the folder of its name (f16, exact in f32). Entries:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [n_codebooks, n_frames], u8, of the first N samples
    vector.N.margins        [n_codebooks, n_frames], f16, see nanocodec_models.trace
    vector.N.audio.K        [1, n_samples], f32, decoded from the first K codebooks

Usage: NEMO=FOLDER cargo xtask vectors nanocodec, or python nanocodec_vectors.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from encodec_models import make_signal
from nanocodec_models import decode, make_config, make_model, save, trace
from safetensors.torch import save_file

MAX_BYTES = 300_000

BLOCKS = dict(resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[1, 3])
MODELS = {
    "causal": make_config(
        2_000,
        [2, 3, 2],
        [5, 4],
        3,
        ("HiFiGANEncoder", dict(base_channels=4, activation="lrelu", pad_mode="replicate", **BLOCKS)),
        ("CausalHiFiGANDecoder", dict(base_channels=32, activation="half_snake", pad_mode="zeros", **BLOCKS)),
    ),
    "symmetric": make_config(
        2_000,
        [3, 4],
        [8, 3, 5],
        2,
        ("HiFiGANEncoder", dict(base_channels=4, activation="snake", **BLOCKS)),
        ("HiFiGANDecoder", dict(base_channels=16, activation="elu", output_activation="clamp", **BLOCKS)),
    ),
}
# A reflecting padding of the reference must not be longer than what it reflects: four frames, in the last layer.
LENGTHS = {"causal": [1, 2, 11, 12, 13, 2_500], "symmetric": [37, 48, 49, 2_500]}


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(MODELS.items()):
        model = make_model(config, 50 + 10 * seed, torch.float16)
        lengths = LENGTHS[name]
        pcm = (32767 * make_signal(lengths[-1], 1, config["sample_rate"], 1000)).round().to(torch.int16)
        signal, tensors = pcm / 32768, {"vector.input": pcm}
        for n in lengths:
            codes, margins = trace(model, signal[:, :n])
            tensors[f"vector.{n}.codes"] = torch.stack(codes).to(torch.uint8)
            tensors[f"vector.{n}.margins"] = torch.stack(margins).half()
            for n_codebooks in [1, len(codes)]:
                tensors[f"vector.{n}.audio.{n_codebooks}"] = decode(model, codes[:n_codebooks]).contiguous()
        path = directory / f"nanocodec_{name}.safetensors"
        save_file(tensors, path)
        folder = directory / f"nanocodec_{name}"
        folder.mkdir(exist_ok=True)
        save(model, folder / "tiny.nemo", torch.float16)
        size = path.stat().st_size + (folder / "tiny.nemo").stat().st_size
        assert size < MAX_BYTES, size
        usage = [len(set(row.tolist())) for row in codes]
        smallest, peak = min(m.min().item() for m in margins), tensors[f"vector.{n}.audio.{len(codes)}"].abs().max()
        print(f"{path.name}: {size} bytes, points used {usage}, margin >= {smallest:.1e}, peak {peak:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
