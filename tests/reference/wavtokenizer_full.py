"""WavTokenizer at full size, for full.py: its repository's code, and ours. Needs a checkout, see wavtokenizer_models."""

import os
from pathlib import Path

import torch
from encodec_models import make_signal
from full import Subject, Trace


class WavTokenizer(Subject):
    def __init__(self, name, title, ratios, n_fft, seed):
        self.name, self.title, self.ratios, self.n_fft, self.seed = name, title, ratios, n_fft, seed
        hop = ratios[0] * ratios[1] * ratios[2] * ratios[3]
        self.lengths = [1, 2, 7, hop - 1, hop, hop + 1, 20 * hop, 24_001, 720_000]

    def make(self):
        import wavtokenizer_models as models

        self.models = models
        self.model = models.make_model(self.ratios, self.n_fft, self.seed)

    def signal(self, n_samples):
        return make_signal(n_samples, 1, 24_000, self.seed + 100)

    def checkpoints(self, folder: Path) -> list[Path]:
        # As Lightning writes it, with what training has beside the model.
        others = {"melspec_loss.mel_spec.spectrogram.window": torch.ones(4), "dac.x.weight": torch.ones(2)}
        checkpoint = {"state_dict": self.model.state_dict() | others, "epoch": 1, "global_step": 2}
        torch.save(checkpoint, folder / "wavtokenizer.ckpt")
        return [folder / "wavtokenizer.ckpt"]

    def trace(self, clip):
        codes, margins = self.models.trace(self.model, clip)
        return Trace(list(codes), list(margins))

    def decode(self, trace, n_codebooks):
        return self.models.decode(self.model, torch.stack(trace.codes[:n_codebooks]))


SUBJECTS = [
    WavTokenizer("wavtokenizer_320", "WavTokenizer, 75 Hz", [8, 5, 4, 2], 1280, 800),
    WavTokenizer("wavtokenizer_600", "WavTokenizer, 40 Hz", [6, 5, 5, 4], 2400, 810),
]
if "WAVTOKENIZER" not in os.environ:
    SUBJECTS = []
