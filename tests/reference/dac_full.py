"""The DAC models at full size, for full.py: transformers against the original package, and ours.

The 16 kbit/s model exists in the original package only.
"""

import warnings
from pathlib import Path

import torch
from dac_models import calibrate, decode, padded, trace
from encodec_models import make_signal
from full import MARGIN, Subject, Trace
from transformers import DacConfig, DacModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import dac


class Dac(Subject):
    def __init__(self, name, title, seed, sample_rate, rates, n_codebooks, longest, latent_dim=None):
        self.name, self.title, self.seed, self.sample_rate, self.n_codebooks = name, title, seed, sample_rate, n_codebooks
        self.rates, self.latent_dim = rates, latent_dim
        self.hop = 512 if rates[-1] * rates[-2] == 64 else 320
        self.lengths = [1, 2, 7, self.hop - 1, self.hop, self.hop + 1, 20 * self.hop, sample_rate + 1, longest]

    def make(self):
        torch.manual_seed(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.original = dac.DAC(
                encoder_rates=self.rates,
                decoder_rates=self.rates[::-1],
                latent_dim=self.latent_dim,
                n_codebooks=self.n_codebooks,
                sample_rate=self.sample_rate,
            )
        calibrate(self.original, self.sample_rate, self.hop, self.seed)
        self.modern = None
        if self.latent_dim is None:
            config = DacConfig(
                downsampling_ratios=self.rates, n_codebooks=self.n_codebooks, sampling_rate=self.sample_rate
            )
            self.modern = DacModel(config).eval()
            # Not folded, which would round.
            self.modern.apply_weight_norm()
            weights = self.original.state_dict()
            names = {name: original_name(name, len(self.rates)) for name in self.modern.state_dict()}
            self.modern.load_state_dict({modern: weights[original] for modern, original in names.items()})

    def signal(self, n_samples):
        return make_signal(n_samples, 1, self.sample_rate, self.seed + 100)

    def checkpoints(self, folder: Path) -> list[Path]:
        self.original.save(folder / "weights.pth", package=False)
        if self.modern is None:
            return [folder / "weights.pth"]
        self.modern.save_pretrained(folder / "hf")
        return [folder / "weights.pth", folder / "hf"]

    def trace(self, clip):
        return Trace(*trace(self.original, padded(clip, self.hop)))

    def decode(self, trace, n_codebooks):
        return decode(self.original, trace.codes[:n_codebooks])

    def kept(self, n_samples, n_codebooks):
        return [n_codebooks] if n_samples > 2 * self.sample_rate else [1, n_codebooks]

    def check(self, clip, trace):
        clip = padded(clip, self.hop)[None]
        if clip.shape[-1] > 2 * self.sample_rate:
            return []
        failures = []
        references = {"dac": self.original.encode(clip)[1][0]}
        if self.modern is not None:
            references["transformers"] = self.modern.encode(clip).audio_codes[0]
        for name, codes in references.items():
            unequal = codes != torch.stack(trace.codes)
            before = torch.cat([torch.ones_like(unequal[:1]), (~unequal[:-1]).cumprod(0).bool()])
            if (torch.stack(trace.margins)[before & unequal] > MARGIN).any():
                failures.append(f"{name} has other codes")
        return failures


def original_name(name: str, n_rates: int) -> str:
    """The original package's name of a tensor of Hugging Face."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    parts = name.split(".")
    if parts[0] == "quantizer":
        return name
    row = "block" if parts[0] == "encoder" else "model"
    units = {"snake1": "0", "conv1": "1", "snake2": "2", "conv2": "3"}
    if parts[1] != "block":
        place = {"conv1": 0, "snake1": n_rates + 1, "conv2": n_rates + 2}[parts[1]]
        return ".".join([parts[0], row, str(place), *parts[2:]])
    order = ["res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"]
    if parts[0] == "decoder":
        order = ["snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"]
    head = [parts[0], row, str(int(parts[2]) + 1), "block", str(order.index(parts[3]))]
    if parts[3].startswith("res_unit"):
        return ".".join([*head, "block", units[parts[4]], *parts[5:]])
    return ".".join([*head, *parts[4:]])


SUBJECTS = [
    Dac("dac_16khz", "DAC 16 kHz, 12 codebooks", 300, 16_000, [2, 4, 5, 8], 12, 480_000),
    Dac("dac_24khz", "DAC 24 kHz, 32 codebooks", 310, 24_000, [2, 4, 5, 8], 32, 720_000),
    Dac("dac_44khz", "DAC 44.1 kHz, 9 codebooks", 320, 44_100, [2, 4, 8, 8], 9, 1_323_000),
    Dac("dac_44khz_16kbps", "DAC 44.1 kHz, 16 kbit/s, 18 codebooks", 330, 44_100, [2, 4, 8, 8], 18, 1_323_000, 128),
]
