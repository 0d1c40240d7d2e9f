"""SpeechTokenizer at full size, for full.py: the package `speechtokenizer`, and ours."""

import json
from pathlib import Path

import torch
from encodec_models import make_signal
from full import Subject, Trace
from speechtokenizer_models import PUBLISHED, decode, make_model, trace


class SpeechTokenizer(Subject):
    name, title = "speechtokenizer", "SpeechTokenizer, 8 codebooks"
    lengths = [1, 2, 7, 319, 320, 321, 6_400, 16_001, 480_000]

    def make(self):
        self.model = make_model(PUBLISHED, 600)

    def signal(self, n_samples):
        return make_signal(n_samples, 1, 16_000, 700)

    def checkpoints(self, folder: Path) -> list[Path]:
        paths = [folder / "configured", folder / "alone"]
        for path in paths:
            path.mkdir()
            torch.save(self.model.state_dict(), path / "SpeechTokenizer.pt")
        (paths[0] / "config.json").write_text(json.dumps(PUBLISHED))
        return paths

    def trace(self, clip):
        codes, margins = trace(self.model, clip)
        return Trace(list(codes), list(margins))

    def decode(self, trace, n_codebooks):
        return decode(self.model, torch.stack(trace.codes[:n_codebooks]))

    def check(self, clip, trace):
        same = torch.equal(self.model.encode(clip[None])[:, 0], torch.stack(trace.codes))
        return [] if same else ["the package has other codes"]


SUBJECTS = [SpeechTokenizer()]
