"""The EnCodec models at full size, for full.py: transformers, and the original package where it has the model.

Each is read as a Hugging Face directory, and those of the original package also as a torch file, in both of
its containers.
"""

from pathlib import Path

import encodec
import torch
from encodec_models import decode, make_model, make_signal, trace
from full import MARGIN, Subject, Trace
from transformers import EncodecConfig

CONFIGS = {
    "24khz": dict(),
    "48khz": dict(
        audio_channels=2,
        chunk_length_s=1.0,
        norm_type="time_group_norm",
        normalize=True,
        overlap=0.01,
        sampling_rate=48_000,
        target_bandwidths=[3.0, 6.0, 12.0, 24.0],
        use_causal_conv=False,
    ),
    "32khz": dict(
        codebook_size=2048,
        num_filters=64,
        sampling_rate=32_000,
        target_bandwidths=[2.2],
        upsampling_ratios=[8, 5, 4, 4],
        use_causal_conv=False,
        use_conv_shortcut=False,
    ),
    "16khz": dict(
        codebook_size=2048,
        num_filters=64,
        pad_mode="constant",
        sampling_rate=16_000,
        target_bandwidths=[2.2],
        use_causal_conv=False,
        use_conv_shortcut=False,
    ),
}
TITLES = {
    "24khz": "EnCodec 24 kHz, 32 codebooks",
    "48khz": "EnCodec 48 kHz stereo, 16 codebooks",
    "32khz": "EnCodec 32 kHz (MusicGen), 4 codebooks",
    "16khz": "EnCodec 16 kHz (AudioGen), 4 codebooks",
}
LENGTHS = {
    "24khz": [1, 2, 7, 319, 320, 321, 2_239, 2_240, 24_000, 100_001, 720_000],
    # 47,600 and 95,200 end with segments of 149 frames and of one, 95,300 with a segment of 320 decoded
    # samples, all of which the one before it has too.
    "48khz": [1, 2, 7, 319, 320, 321, 47_520, 47_600, 48_000, 95_200, 95_300, 250_001, 1_440_000],
    "32khz": [1, 2, 7, 639, 640, 641, 32_000, 100_001, 960_000],
    "16khz": [1, 2, 7, 319, 320, 321, 16_000, 50_001, 480_000],
}
ORIGINALS = {"24khz": encodec.EncodecModel.encodec_model_24khz, "48khz": encodec.EncodecModel.encodec_model_48khz}


class Encodec(Subject):
    def __init__(self, config_name: str, seed: int):
        self.config_name, self.seed = config_name, seed
        self.name, self.title, self.lengths = f"encodec_{config_name}", TITLES[config_name], LENGTHS[config_name]

    def make(self):
        self.config = EncodecConfig(**CONFIGS[self.config_name])
        self.model = make_model(self.config, 100 + self.seed)
        self.original = make_original(self.model, self.config_name) if self.config_name in ORIGINALS else None

    def signal(self, n_samples):
        return make_signal(n_samples, self.config.audio_channels, self.config.sampling_rate, 200 + self.seed)

    def checkpoints(self, folder: Path) -> list[Path]:
        self.model.save_pretrained(folder / "hf")
        paths = [folder / "hf"]
        if self.original is not None:
            for kind, zipped in [("zip", True), ("legacy", False)]:
                paths.append(folder / f"{self.name}_{kind}.th")
                torch.save(self.original.state_dict(), paths[-1], _use_new_zipfile_serialization=zipped)
        return paths

    def trace(self, clip):
        segments = trace(self.model, clip)
        length = self.config.chunk_length
        if length and segments[-2:-1] and segments[-2][0].shape[1] < length // self.config.hop_length:
            # Documented deviation: our stream ends with the segment that is not whole.
            segments.pop()
        result = Trace(
            list(torch.cat([codes for codes, _, _ in segments], 1)),
            list(torch.cat([margins for _, margins, _ in segments], 1)),
            torch.cat([scale.flatten() for _, _, scale in segments]) if self.config.normalize else None,
        )
        result.segments = segments
        return result

    def decode(self, trace, n_codebooks):
        config, last = self.config, trace.segments[-1][0].shape[1]
        if len(trace.segments) > 1 and last * config.hop_length < config.chunk_length - config.chunk_stride:
            # The reference cannot join a last segment that ends before the one before it.
            return None
        return decode(self.model, trace.segments, n_codebooks)

    def kept(self, n_samples, n_codebooks):
        return [k for k in range(1, n_codebooks + 1) if k == n_codebooks or k & (k - 1) == 0]

    def check(self, clip, trace):
        """The two references agree, so that what agrees with one agrees with the other."""
        if self.original is None:
            return []
        self.original.set_target_bandwidth(self.original.target_bandwidths[-1])
        frames = self.original.encode(clip[None])[: len(trace.segments)]
        for (codes, margins, _), (theirs, _) in zip(trace.segments, frames, strict=True):
            unequal = codes != theirs[0]
            before = torch.cat([torch.ones_like(unequal[:1]), (~unequal[:-1]).cumprod(0).bool()])
            if (margins[before & unequal] > MARGIN).any():
                return ["the references differ"]
        return []


@torch.no_grad()
def make_original(model, name: str) -> encodec.EncodecModel:
    """The original package's model with the weights of `model`."""
    original = ORIGINALS[name](pretrained=False)
    state = {}
    for key in original.state_dict():
        new = key.replace(".model.", ".layers.").replace("quantizer.vq.", "quantizer.").replace("_codebook", "codebook")
        new = new.replace("convtr.convtr.", "conv.").replace("convtr.norm.", "norm.")
        new = new.replace("conv.conv.", "conv.").replace("conv.norm.", "norm.")
        new = new.replace("weight_g", "parametrizations.weight.original0")
        new = new.replace("weight_v", "parametrizations.weight.original1")
        state[key] = model.state_dict()[new]
    original.load_state_dict(state)
    return original.eval()


SUBJECTS = [Encodec(name, seed) for seed, name in enumerate(CONFIGS)]
