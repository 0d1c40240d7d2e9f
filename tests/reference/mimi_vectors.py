"""Writes mimi_*.safetensors: a tiny seeded Mimi model in three dialects, with inputs and outputs.

`mimi_hf` has the names of Hugging Face, `mimi_kyutai` those of `moshi`, `mimi_mlx` those of `moshi_mlx`;
the weights (f16, exact in f32), the configuration (the metadata entry `config`) and the clips are the
same, the first has more of these. Entries under `vector.`:

    vector.input            [channels, n_samples], i16, over 32768; every clip is a start of it
    vector.N.codes          [n_codebooks, n_frames], u8, of the first N samples
    vector.N.margins        [n_codebooks, n_frames], f16, see mimi_models.trace
    vector.N.audio.K        [channels, n_samples], f32, decoded from the first K codebooks

What `moshi` makes of the clips is compared where it is installed, see requirements.txt.

Usage: cargo xtask vectors mimi, or python mimi_vectors.py DIRECTORY
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from encodec_models import make_signal
from mimi_models import decode, hub_state, kyutai_state, make_model, make_moshi, mlx_state, trace
from safetensors.torch import save_file
from transformers import MimiConfig

MAX_BYTES = 100_000

CONFIG = MimiConfig(
    sampling_rate=1_000,
    hidden_size=16,
    num_filters=4,
    upsampling_ratios=[5, 4],
    codebook_size=32,
    codebook_dim=8,
    vector_quantization_hidden_dimension=8,
    num_quantizers=4,
    upsample_groups=16,
    num_hidden_layers=2,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    # Passed many times over by the longest clip.
    sliding_window=9,
)
# Around frames of 40 samples, and steps of 20.
LENGTHS = [1, 2, 19, 21, 39, 40, 41, 60, 3_000]


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    model = make_model(CONFIG, 1, torch.float16)
    pcm = (32767 * make_signal(LENGTHS[-1], 1, CONFIG.sampling_rate, 1000)).round().to(torch.int16)
    signal, vectors = pcm / 32768, {"vector.input": pcm}
    moshi = make_moshi(model) if importlib.util.find_spec("moshi") else None
    if moshi is None:
        print("moshi is not installed, so nothing is compared with it")
    for n in LENGTHS:
        codes, margins = trace(model, signal[:, :n])
        assert torch.equal(codes, model.encode(signal[None, :, :n]).audio_codes[0])
        vectors[f"vector.{n}.codes"] = codes.to(torch.uint8)
        vectors[f"vector.{n}.margins"] = margins.half()
        for n_codebooks in [1, 2, 4]:
            audio = decode(model, codes[:n_codebooks])
            vectors[f"vector.{n}.audio.{n_codebooks}"] = audio.contiguous()
            if moshi is not None:
                with torch.no_grad():
                    other = moshi.decode(codes[None, :n_codebooks])[0]
                assert torch.allclose(audio, other, atol=1e-5), (n, n_codebooks, (audio - other).abs().max())
        if moshi is not None and n % CONFIG.frame_size == 0:
            with torch.no_grad():
                unequal = moshi.encode(signal[None, :, :n])[0] != codes
            assert not (unequal & (margins > 1e-5)).any(), n
    longest = LENGTHS[-1]
    few = {key: entry for key, entry in vectors.items() if f".{longest}." in key or key == "vector.input"}
    for n_codebooks in [1, 2]:
        few.pop(f"vector.{longest}.audio.{n_codebooks}")
    dialects = {"hf": (hub_state, vectors), "kyutai": (kyutai_state, few), "mlx": (mlx_state, few)}
    for name, (state, entries) in dialects.items():
        path = directory / f"mimi_{name}.safetensors"
        tensors = {key: tensor.half() for key, tensor in state(model).items()} | entries
        save_file(tensors, path, metadata={"config": json.dumps(CONFIG.to_dict(), sort_keys=True)})
        size = path.stat().st_size
        assert size < MAX_BYTES, (name, size)
        print(f"{path.name}: {size} bytes")
    usage = [len(set(row.tolist())) for row in codes]
    print(f"entries used {usage} of 32, margin >= {margins.min():.1e}, peak {audio.abs().max():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
