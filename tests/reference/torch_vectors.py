"""Writes torch_{zip,legacy}.pth: one small state dict in both containers of torch.save, and
torch_beside_{zip,legacy}.pth: the same beside what training programs keep, each kind of plain data once.

Usage: cargo xtask vectors torch, or python torch_vectors.py DIRECTORY
"""

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta, timezone
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
    beside = {
        # A tensor before and after the state dict.
        "rng_state": torch.arange(16, dtype=torch.uint8),
        "state_dict": state,
        "best_score": torch.tensor(0.5),
        "epoch": 3,
        "counts": defaultdict(int, {"steps": 7}),
        "names": defaultdict(str, {"a": "b"}),
        "types": {"of": [int, str, float, bytes, torch.float32, torch.bfloat16, torch.int64]},
        "seed": {"small": 7, "large": 1 << 63, "larger": -(1 << 70)},
        "seen": {"frozen": frozenset([1]), "set": {1}, "words": Counter("aab")},
        "recent": deque([1.5, 2.5], maxlen=2),
        "ranges": {"range": range(3), "slice": slice(1, 2)},
        "bytes": {"some": b"a\xff", "none": b"", "array": bytearray(b"a\xff")},
        "times": {
            "started": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
            "day": date(2026, 1, 2),
            "took": timedelta(seconds=1.5),
        },
    }
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(package, directory / f"torch_{name}.pth", _use_new_zipfile_serialization=zipped)
        torch.save(beside, directory / f"torch_beside_{name}.pth", _use_new_zipfile_serialization=zipped)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
