"""Writes speechtokenizer_*.safetensors: tiny seeded SpeechTokenizer models with inputs and outputs.

Each file holds the weights of one model under their own names (f16, exact in f32), its configuration
as the metadata entry `config`, and under `vector.`:

    vector.input            [1, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [n_codebooks, n_frames], u8, of the first N samples
    vector.N.margins        [n_codebooks, n_frames], f16, see encodec_models.trace
    vector.N.audio.K        [1, n_samples], f32, decoded from the first K codebooks

Usage: cargo xtask vectors speechtokenizer, or python speechtokenizer_vectors.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from encodec_models import make_signal
from safetensors.torch import save_file
from speechtokenizer_models import PUBLISHED, decode, make_model, trace

MAX_BYTES = 300_000

TINY = dict(sample_rate=1_000, n_filters=3, strides=[5, 4], dimension=12, semantic_dimension=6, codebook_size=32, n_q=4)
CONFIGS = {
    "elu": PUBLISHED | TINY,
    # A variant that the package can make.
    "snake": PUBLISHED | TINY | dict(activation="Snake", bidirectional=False, n_residual_layers=2, lstm_layers=1),
}
LENGTHS = [1, 2, 7, 19, 20, 21, 1_500]


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = make_model(config, 30 * seed, torch.float16)
        pcm = (32767 * make_signal(LENGTHS[-1], 1, config["sample_rate"], 1000 + seed)).round().to(torch.int16)
        signal, tensors = pcm / 32768, {key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}
        tensors["vector.input"] = pcm
        for n in LENGTHS:
            codes, margins = trace(model, signal[:, :n])
            assert torch.equal(codes, model.encode(signal[None, :, :n])[:, 0])
            tensors[f"vector.{n}.codes"] = codes.to(torch.uint8)
            tensors[f"vector.{n}.margins"] = margins.half()
            for n_codebooks in [1, 4]:
                tensors[f"vector.{n}.audio.{n_codebooks}"] = decode(model, codes[:n_codebooks]).contiguous()
        path = directory / f"speechtokenizer_{name}.safetensors"
        save_file(tensors, path, metadata={"config": json.dumps(config, sort_keys=True)})
        size = path.stat().st_size
        assert size < MAX_BYTES, (name, size)
        usage = [len(set(row.tolist())) for row in codes]
        peak = tensors[f"vector.{n}.audio.4"].abs().max()
        print(f"{path.name}: {size} bytes, entries used {usage} of 32, margin >= {margins.min():.1e}, peak {peak:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
