"""Writes xcodec2_*: a tiny seeded decoder of X-codec2 with codes and audio, in both dialects.

`xcodec2_hf` is a model of transformers, its weights (f16, exact in f32) in the safetensors file itself;
`xcodec2_original` is the same model under the names of the published checkpoints, in a torch file in the folder of
that name, beside tensors of an encoder. Entries:

    vector.N.codes          [1, N], u8
    vector.N.audio.1        [1, n_samples], f32, decoded

Usage: NEUCODEC=FOLDER cargo xtask vectors xcodec2, or python xcodec2_vectors.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from xcodec2_models import make_codes, make_config, make_model, make_original, original_state

MAX_BYTES = 300_000

# With as many channels as groups, the norms of a single frame have nothing to measure.
LENGTHS = [2, 3, 7, 200]
# As in a whole checkpoint.
OF_THE_ENCODER = ["semantic_model.masked_spec_embed", "CodecEnc.conv_blocks.0.bias", "fc_prior.bias"]


@torch.no_grad()
def main(directory: Path) -> None:
    torch.set_num_threads(1)
    config = make_config(32, 2, 128, 40, 3, (2, 5))
    model = make_model(config, 40, torch.float16)
    original = make_original(model)
    codes, entries = make_codes(config, LENGTHS[-1], 41), {}
    for n in LENGTHS:
        audio, theirs = model(codes[:, :n]), original(codes[:, :n])
        assert torch.allclose(audio, theirs, atol=1e-5), (audio - theirs).abs().max()
        entries[f"vector.{n}.codes"] = codes[:, :n].to(torch.uint8).contiguous()
        entries[f"vector.{n}.audio.1"] = audio.contiguous()
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    weights |= {"semantic_adapter.conv1.weight": torch.ones(2, dtype=torch.float16)}
    keys = ("num_attention_heads", "num_key_value_heads", "quantization_levels", "rms_norm_eps", "hidden_act", "model_type")
    metadata = {"config": json.dumps({key: config.to_dict()[key] for key in keys})}
    path = directory / "xcodec2_hf.safetensors"
    save_file(weights | entries, path, metadata=metadata)
    (directory / "xcodec2_original").mkdir(exist_ok=True)
    state = {name: tensor.half() for name, tensor in original_state(model).items()}
    # Periods of the window are not exact in half of the digits.
    state["generator.head.istft.window"] = original_state(model)["generator.head.istft.window"]
    state |= {name: torch.ones(3, dtype=torch.float16) for name in OF_THE_ENCODER}
    torch.save(state, directory / "xcodec2_original" / "pytorch_model.bin")
    save_file(entries, directory / "xcodec2_original.safetensors")
    files = [path, directory / "xcodec2_original.safetensors", directory / "xcodec2_original" / "pytorch_model.bin"]
    sizes = [file.stat().st_size for file in files]
    assert sum(sizes) < MAX_BYTES, sizes
    print(f"xcodec2: {sizes} bytes, peak {audio.abs().max():.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
