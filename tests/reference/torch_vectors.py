"""Writes torch_{zip,legacy}.pth: one small state dict in both containers of torch.save.

Usage: cargo xtask vectors torch, or python torch_vectors.py DIRECTORY
"""

import sys
from collections import OrderedDict
from pathlib import Path

import torch


def main(directory: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8
    state = OrderedDict()
    state["plain"] = base
    state["transposed"] = base.permute(2, 0, 1)
    state["part"] = base[:, 1:, ::2]
    state["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.5]))
    state["half"] = torch.tensor([0.1, 1e-7, -65504.0], dtype=torch.float16)
    state["bfloat"] = torch.tensor([0.1, 3e38], dtype=torch.bfloat16)
    state["double"] = torch.tensor([1 / 3], dtype=torch.float64)
    state["count"] = torch.tensor(7)
    state["scalar"] = torch.tensor(0.25)
    state["empty"] = torch.zeros(0, 3)
    state._metadata = OrderedDict({"": {"version": 1}})
    package = {"state_dict": state, "epoch": 3, "loss": 0.5, "done": True, "notes": ["a", None, (1, -2, 1 << 40)]}
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(package, directory / f"torch_{name}.pth", _use_new_zipfile_serialization=zipped)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
