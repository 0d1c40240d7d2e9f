"""Mimi at full size, for full.py: transformers against `moshi`, and ours in all three dialects.

The checkpoints of Kyutai and MLX have no configuration, as published. `moshi` codes whole clips and
frame by frame; it pads a last frame in another way, so only clips of whole frames are given to it.
"""

from pathlib import Path

import torch
from encodec_models import make_signal
from full import AUDIO, MARGIN, Subject, Trace
from mimi_models import decode, hub_state, kyutai_state, make_model, make_moshi, mlx_state, trace
from safetensors.torch import save_file
from transformers import MimiConfig


class Mimi(Subject):
    name, title = "mimi", "Mimi, 32 codebooks"
    lengths = [1, 2, 7, 959, 961, 1_919, 1_920, 1_921, 24_001, 480_000, 720_000]

    def make(self):
        self.model = make_model(MimiConfig(), 400)
        self.moshi = make_moshi(self.model)

    def signal(self, n_samples):
        return make_signal(n_samples, 1, 24_000, 500)

    def checkpoints(self, folder: Path) -> list[Path]:
        self.model.save_pretrained(folder / "hf")
        (folder / "kyutai").mkdir()
        (folder / "mlx").mkdir()
        save_file(kyutai_state(self.model), folder / "kyutai" / "tokenizer.safetensors")
        save_file(mlx_state(self.model), folder / "mlx" / "mimi.safetensors")
        return [folder / "hf", folder / "kyutai" / "tokenizer.safetensors", folder / "mlx" / "mimi.safetensors"]

    def trace(self, clip):
        codes, margins = trace(self.model, clip)
        return Trace(list(codes), list(margins))

    def decode(self, trace, n_codebooks):
        return decode(self.model, torch.stack(trace.codes[:n_codebooks]))

    def kept(self, n_samples, n_codebooks):
        return [1, 8, n_codebooks]

    def check(self, clip, trace):
        frame_size = self.model.config.frame_size
        if clip.shape[1] % frame_size or clip.shape[1] > 480_000:
            return []
        codes, margins = torch.stack(trace.codes), torch.stack(trace.margins)
        n_semantic = self.model.config.num_semantic_quantizers
        results = {"whole": self.moshi.encode(clip[None])[0]}
        audio = {"whole": self.moshi.decode(codes[None])[0]}
        with self.moshi.streaming(1):
            frames = clip[None].split(frame_size, -1)
            results["streamed"] = torch.cat([self.moshi.encode(frame) for frame in frames], -1)[0]
        with self.moshi.streaming(1):
            audio["streamed"] = torch.cat([self.moshi.decode(code) for code in codes[None].split(1, -1)], -1)[0]
        failures = []
        for way, theirs in results.items():
            for stack in (slice(0, n_semantic), slice(n_semantic, None)):
                unequal = theirs[stack] != codes[stack]
                before = torch.cat([torch.ones_like(unequal[:1]), (~unequal[:-1]).cumprod(0).bool()])
                loosest = max([0.0, *margins[stack][before & unequal].tolist()])
                if loosest > MARGIN:
                    failures.append(f"moshi, {way}, has other codes, margin {loosest:.1e}")
        reference = decode(self.model, codes)
        for way, theirs in audio.items():
            apart = (theirs - reference).abs().max().item()
            if apart > AUDIO * max(1.0, reference.abs().max().item()):
                failures.append(f"moshi, {way}, decodes to other audio, {apart:.1e} apart")
        return failures


SUBJECTS = [Mimi()]
