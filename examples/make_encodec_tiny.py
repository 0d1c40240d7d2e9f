"""Writes encodec-tiny/: the random model of tests/vectors/encodec_causal.safetensors as a checkpoint folder.

Needs Python with `safetensors` and `numpy`.
"""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

here = Path(__file__).parent
with safe_open(here / "../tests/vectors/encodec_causal.safetensors", "np") as vector:
    config = json.loads(vector.metadata()["config"])
    names = [name for name in vector.keys() if name.split(".")[0] in ("encoder", "decoder", "quantizer")]
    weights = {name: vector.get_tensor(name) for name in names}

folder = here / "encodec-tiny"
folder.mkdir(exist_ok=True)
(folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
