"""The decoders of X-codec2 and NeuCodec at full size, for full.py: transformers against `neucodec`, and ours.

Needs a folder with the latter, see xcodec2_models.
"""

import json
import os
from pathlib import Path

import torch
from full import AUDIO, Subject, Trace
from safetensors.torch import save_file


class Decoder(Subject):
    encodes = False
    lengths = [1, 2, 7, 50, 250, 1_500]

    def __init__(self, name, title, ratios, seed):
        self.name, self.title, self.ratios, self.seed = name, title, ratios, seed

    def make(self):
        import xcodec2_models as models

        config = models.make_config(1024, 12, 4096, 2048, 8, self.ratios)
        self.models, self.model = models, models.make_model(config, self.seed)
        self.original = models.make_original(self.model)

    def signal(self, n_frames):
        return self.models.make_codes(self.model.config, n_frames, self.seed + 10)

    def checkpoints(self, folder: Path) -> list[Path]:
        (folder / "hf").mkdir()
        save_file(self.model.state_dict(), folder / "hf" / "model.safetensors")
        (folder / "hf" / "config.json").write_text(json.dumps(self.model.config.to_dict()))
        torch.save(self.models.original_state(self.model), folder / "pytorch_model.bin")
        return [folder / "hf"]

    def trace(self, codes):
        # Nothing is chosen, so nothing is near to another choice.
        return Trace([codes[0]], [torch.ones(len(codes[0]))])

    def decode(self, trace, n_codebooks):
        return self.model(trace.codes[0][None])

    def check(self, codes, trace):
        apart = (self.original(codes) - self.model(codes)).abs().max().item()
        return [f"neucodec decodes to other audio, {apart:.1e} apart"] if apart > AUDIO else []


SUBJECTS = [
    Decoder("xcodec2", "X-codec2, its decoder", (2, 2, 4, 4, 5), 1100),
    # What the package computes at 24 kHz: the same decoder with another head.
    Decoder("neucodec", "NeuCodec, its decoder", (2, 2, 4, 5, 6), 1110),
]
if "NEUCODEC" not in os.environ:
    SUBJECTS = []
