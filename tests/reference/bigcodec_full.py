"""BigCodec at full size, for full.py: its repository's code, and ours. Needs a checkout, see bigcodec_models."""

import os
from pathlib import Path

import torch
from encodec_models import make_signal
from full import Subject, Trace


class BigCodec(Subject):
    name, title = "bigcodec", "BigCodec"
    lengths = [1, 2, 7, 199, 200, 201, 4_000, 16_001, 480_000]

    def make(self):
        import bigcodec_models as models

        self.models = models
        self.model = models.make_model(900, {}, {})

    def signal(self, n_samples):
        return make_signal(n_samples, 1, 16_000, 1000)

    def checkpoints(self, folder: Path) -> list[Path]:
        torch.save(self.model.checkpoint(), folder / "bigcodec.pt")
        return [folder / "bigcodec.pt"]

    def trace(self, clip):
        return Trace(*self.models.trace(self.model, clip))

    def decode(self, trace, n_codebooks):
        return self.models.decode(self.model, trace.codes[:n_codebooks])


SUBJECTS = [BigCodec()] if "BIGCODEC" in os.environ else []
