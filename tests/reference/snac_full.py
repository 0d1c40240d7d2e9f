"""The SNAC models at full size, for full.py: the package, with our noise in place of PyTorch's."""

import json
import math
from pathlib import Path

import torch
from dac_models import calibrate, decode, padded, trace
from encodec_models import make_signal
from full import MARGIN, Subject, Trace
from snac import SNAC
from snac_models import with_our_noise

SMALL = dict(
    sampling_rate=24_000,
    encoder_dim=48,
    encoder_rates=[2, 4, 8, 8],
    decoder_dim=1024,
    decoder_rates=[8, 8, 4, 2],
    attn_window_size=None,
    vq_strides=[4, 2, 1],
)
LARGE = dict(encoder_rates=[2, 3, 8, 8], decoder_rates=[8, 8, 3, 2], vq_strides=[8, 4, 2, 1])


class Snac(Subject):
    def __init__(self, name, title, seed, config, longest):
        self.name, self.title, self.seed, self.config = name, title, seed, config
        self.sample_rate, self.hop = config["sampling_rate"], math.prod(config["encoder_rates"])
        self.block = self.hop * math.lcm(config["vq_strides"][0], config.get("attn_window_size", 32) or 1)
        self.lengths = [1, 2, 7, self.hop, self.block - 1, self.block, self.block + 1, self.sample_rate + 1, longest]

    def make(self):
        torch.manual_seed(self.seed)
        self.model = with_our_noise(SNAC(**self.config))
        calibrate(self.model, self.sample_rate, self.hop, self.seed)

    def signal(self, n_samples):
        return make_signal(n_samples, 1, self.sample_rate, self.seed + 100)

    def checkpoints(self, folder: Path) -> list[Path]:
        (folder / "hub").mkdir()
        torch.save(self.model.state_dict(), folder / "hub" / "pytorch_model.bin")
        (folder / "hub" / "config.json").write_text(json.dumps(self.config))
        return [folder / "hub"]

    def trace(self, clip):
        return Trace(*trace(self.model, padded(clip, self.block)))

    def decode(self, trace, n_codebooks):
        return decode(self.model, trace.codes[:n_codebooks])

    def stride(self, codebook_idx):
        return self.config["vq_strides"][codebook_idx]

    def kept(self, n_samples, n_codebooks):
        return [n_codebooks] if n_samples > 2 * self.sample_rate else [1, n_codebooks]

    def check(self, clip, trace):
        """The traced codes are those of the public `encode`."""
        if clip.shape[-1] > 2 * self.sample_rate:
            return []
        public = self.model.encode(clip[None])
        pairs = zip(trace.codes, public, trace.margins, strict=True)
        if any((margins[ours != theirs[0]] > MARGIN).any() for ours, theirs, margins in pairs):
            return ["the package has other codes"]
        return []


SUBJECTS = [
    Snac("snac_24khz", "SNAC 24 kHz, 3 codebooks", 400, SMALL, 720_000),
    Snac("snac_32khz", "SNAC 32 kHz, 4 codebooks", 410, LARGE | dict(sampling_rate=32_000), 960_000),
    Snac("snac_44khz", "SNAC 44.1 kHz, 4 codebooks", 420, LARGE | dict(sampling_rate=44_100), 1_323_000),
]
