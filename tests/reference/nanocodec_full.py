"""NanoCodec at full size, for full.py: the networks of NeMo, and ours. Needs a folder with them, see nanocodec_models.

A padding of the reference's encoder must not be longer than what it repeats only where it reflects; these replicate.
"""

import os
from pathlib import Path

from encodec_models import make_signal
from full import Subject, Trace

ENCODER = ("HiFiGANEncoder", dict(base_channels=24, activation="lrelu", pad_mode="replicate"))
DECODER = (
    "CausalHiFiGANDecoder",
    dict(
        base_channels=864,
        activation="half_snake",
        output_activation="clamp",
        pad_mode="zeros",
        n_groups_equal_to_out_channels=True,
    ),
)


class NanoCodec(Subject):
    def __init__(self, name, title, rates, levels, n_groups, hop, seed):
        self.name, self.title, self.sizes, self.seed = name, title, (rates, levels, n_groups), seed
        self.lengths = [1, 2, 7, hop - 1, hop, hop + 1, 20 * hop, 661_500]

    def make(self):
        import nanocodec_models as models

        self.models = models
        self.model = models.make_model(models.make_config(22_050, *self.sizes, ENCODER, DECODER), self.seed)

    def signal(self, n_samples):
        return make_signal(n_samples, 1, 22_050, self.seed + 100)

    def checkpoints(self, folder: Path) -> list[Path]:
        self.models.save(self.model, folder / "codec.nemo")
        return [folder / "codec.nemo"]

    def trace(self, clip):
        return Trace(*self.models.trace(self.model, clip))

    def decode(self, trace, n_codebooks):
        return self.models.decode(self.model, trace.codes[:n_codebooks])


SUBJECTS = [
    NanoCodec("nanocodec_8x2016", "NanoCodec 21.5 Hz, 8 codebooks", [2, 2, 4, 8, 8], [8, 7, 6, 6], 8, 1024, 1200),
    NanoCodec("nanocodec_13x2016", "NanoCodec 12.5 Hz, 13 codebooks", [2, 3, 6, 7, 7], [8, 7, 6, 6], 13, 1764, 1210),
    NanoCodec("nanocodec_4x4032", "NanoCodec 12.5 Hz, 4 codebooks", [2, 3, 6, 7, 7], [9, 8, 8, 7], 4, 1764, 1220),
]
if "NEMO" not in os.environ:
    SUBJECTS = []
