"""Writes bigcodec_tiny: a tiny seeded BigCodec with inputs and outputs.

The model is a torch file as the published one, in the folder of that name (f16, exact in f32). Entries:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [1, n_frames], u8, of the first N samples
    vector.N.margins        [1, n_frames], f16, see dac_models.trace
    vector.N.audio.1        [1, n_samples], f32, decoded

Usage: BIGCODEC=CHECKOUT cargo xtask vectors bigcodec, or python bigcodec_vectors.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from bigcodec_models import SAMPLE_RATE, decode, make_model, trace
from encodec_models import make_signal
from safetensors.torch import save_file

MAX_BYTES = 300_000

ENCODER = dict(ngf=4, up_ratios=(2, 5), out_channels=12)
DECODER = dict(in_channels=12, upsample_initial_channel=16, up_ratios=(5, 2), vq_dim=12, codebook_size=64, codebook_dim=3)
LENGTHS = [1, 2, 7, 9, 10, 11, 3_101]


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    model = make_model(30, ENCODER, DECODER, torch.float16)
    pcm = (32767 * make_signal(LENGTHS[-1], 1, SAMPLE_RATE, 1000)).round().to(torch.int16)
    signal, tensors = pcm / 32768, {"vector.input": pcm}
    for n in LENGTHS:
        codes, margins = trace(model, signal[:, :n])
        tensors[f"vector.{n}.codes"] = torch.stack(codes).to(torch.uint8)
        tensors[f"vector.{n}.margins"] = torch.stack(margins).half()
        tensors[f"vector.{n}.audio.1"] = decode(model, codes).contiguous()
    path = directory / "bigcodec_tiny.safetensors"
    save_file(tensors, path)
    folder = directory / "bigcodec_tiny"
    folder.mkdir(exist_ok=True)
    halves = {part: {name: tensor.half() for name, tensor in state.items()} for part, state in model.checkpoint().items()}
    torch.save(halves, folder / "bigcodec.pt")
    size = path.stat().st_size + (folder / "bigcodec.pt").stat().st_size
    assert size < MAX_BYTES, size
    usage, peak = len(set(codes[0].tolist())), tensors[f"vector.{n}.audio.1"].abs().max()
    print(f"{path.name}: {size} bytes, entries used {usage} of 64, margin >= {margins[0].min():.1e}, peak {peak:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
