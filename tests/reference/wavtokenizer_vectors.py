"""Writes wavtokenizer_tiny.safetensors: a tiny seeded WavTokenizer with inputs and outputs.

The file holds the weights under the names of the reference (f16, exact in f32), and under `vector.`:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [1, n_frames], u8, of the first N samples
    vector.N.margins        [1, n_frames], f16, see encodec_models.trace
    vector.N.audio.1        [1, n_samples], f32, decoded

Usage: WAVTOKENIZER=CHECKOUT cargo xtask vectors wavtokenizer, or python wavtokenizer_vectors.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from encodec_models import make_signal
from safetensors.torch import save_file
from wavtokenizer_models import SAMPLE_RATE, decode, make_model, trace

MAX_BYTES = 300_000

LENGTHS = [1, 2, 7, 19, 20, 21, 3_100]


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    # As many channels as groups of the norms, or twice.
    model = make_model([5, 4], 60, 3, 32, 2, 8, 64, 24, 1, torch.float16)
    pcm = (32767 * make_signal(LENGTHS[-1], 1, SAMPLE_RATE, 1000)).round().to(torch.int16)
    signal, tensors = pcm / 32768, {"vector.input": pcm}
    for name, tensor in model.state_dict().items():
        # Of what has no use, a little is enough.
        if ".encodec.decoder." not in name or ".model.0." in name:
            tensors[name] = tensor.half().contiguous()
    for n in LENGTHS:
        codes, margins = trace(model, signal[:, :n])
        tensors[f"vector.{n}.codes"] = codes.to(torch.uint8)
        tensors[f"vector.{n}.margins"] = margins.half()
        tensors[f"vector.{n}.audio.1"] = decode(model, codes).contiguous()
    path = directory / "wavtokenizer_tiny.safetensors"
    save_file(tensors, path)
    size = path.stat().st_size
    assert size < MAX_BYTES, size
    usage, peak = len(set(codes[0].tolist())), tensors[f"vector.{n}.audio.1"].abs().max()
    print(f"{path.name}: {size} bytes, entries used {usage} of 32, margin >= {margins.min():.1e}, peak {peak:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
