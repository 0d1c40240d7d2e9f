"""Seeded WavTokenizer models with random weights that behave like trained ones.

As in mimi_models: every convolution is scaled, on real input, until its output has a healthy size, and the
codebook is filled with mixtures of real encoder outputs.

The reference is a repository, not a package: WAVTOKENIZER names a checkout of jishengpeng/WavTokenizer at
commit 5cf440d91ac420ca338f117b7003a77450d64730.
"""

import os
import sys
import types

import torch
from dac_models import calibrated_run, is_gain
from encodec_models import boundary_distance, make_signal
from mimi_models import N_FRAMES, mixtures

sys.path.insert(0, os.environ.get("WAVTOKENIZER", "WavTokenizer"))
# Imported by the reference for parts that are not used here.
for name in ("torchaudio", "torchaudio.functional", "torchaudio.functional.functional", "scipy"):
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
functional = sys.modules["torchaudio.functional.functional"]
functional._hz_to_mel = functional._mel_to_hz = None
from decoder.heads import ISTFTHead  # noqa: E402
from decoder.models import VocosBackbone  # noqa: E402
from decoder.pretrained import WavTokenizer  # noqa: E402
from encoder import EncodecModel  # noqa: E402
from encoder.modules import SEANetDecoder, SEANetEncoder  # noqa: E402
from encoder.quantization import ResidualVectorQuantizer  # noqa: E402

SAMPLE_RATE = 24_000


class Features(torch.nn.Module):
    """`EncodecFeatures` of the reference, whose sizes can be chosen."""

    def __init__(self, ratios, bins, n_filters, dimension):
        super().__init__()
        sizes = dict(n_residual_layers=1, pad_mode="reflect", lstm=2, dimension=dimension, n_filters=n_filters)
        self.encodec = EncodecModel(
            encoder=SEANetEncoder(causal=False, ratios=ratios, true_skip=False, **sizes),
            # In every checkpoint, and of no use in it.
            decoder=SEANetDecoder(causal=False, ratios=ratios, true_skip=False, **sizes),
            quantizer=ResidualVectorQuantizer(dimension=dimension, n_q=1, bins=bins, kmeans_init=False),
            target_bandwidths=[6.6],
            sample_rate=SAMPLE_RATE,
            channels=1,
        )


@torch.no_grad()
def make_model(
    ratios, n_fft, seed, bins=4096, n_filters=32, dimension=512, dim=768, hidden=2304, n_blocks=12, weight_type=torch.float32
):
    """A model in eval mode; its weights are exact in `weight_type`."""
    torch.manual_seed(seed)
    hop_length = int(torch.tensor(ratios).prod())
    backbone = VocosBackbone(dimension, dim, hidden, n_blocks, adanorm_num_embeddings=4)
    head = ISTFTHead(dim=dim, n_fft=n_fft, hop_length=hop_length, padding="same")
    model = WavTokenizer(Features(ratios, bins, n_filters, dimension), backbone, head).eval()
    for name, tensor in model.named_parameters():
        spread = 0.6 + 0.8 * torch.rand_like(tensor)
        if is_gain(name) or "norm" in name and name.endswith("weight") or name.endswith("gamma"):
            tensor.copy_(0.5 * spread if name.endswith("gamma") else spread)
        elif "lstm.weight" in name:
            tensor.mul_(1.8)
        elif name.endswith("bias") or "shift" in name:
            tensor.copy_(0.1 * torch.randn_like(tensor))
        elif tensor.dim() == 2:
            tensor.copy_(torch.randn_like(tensor) / tensor.shape[1] ** 0.5)
    clip = make_signal(40 * hop_length, 1, SAMPLE_RATE, seed + 1)[None]
    latents = calibrated_run(model.feature_extractor.encodec.encoder, clip)
    features = calibrated_run(Backbone(model.backbone), latents)
    # Magnitudes and phases of a healthy spectrum.
    outputs = model.head.out(features)
    log_magnitudes = outputs[..., : n_fft // 2 + 1]
    model.head.out.weight[: n_fft // 2 + 1] *= 0.7 / log_magnitudes.std()
    model.head.out.bias[: n_fft // 2 + 1] += 0.8
    model.head.out.weight[n_fft // 2 + 1 :] *= 2.0
    for tensor in model.parameters():
        tensor.copy_(tensor.to(weight_type).float())
    model.head.istft.window.copy_(model.head.istft.window.to(weight_type).float())
    generator = torch.Generator().manual_seed(seed + 2)
    clip = make_signal(N_FRAMES * hop_length, 1, SAMPLE_RATE, seed + 2)
    residual = model.feature_extractor.encodec.encoder(clip[None])[0].T
    codebook(model).embed.copy_(mixtures(residual, bins, generator).to(weight_type).float())
    return model


class Backbone(torch.nn.Module):
    """The backbone with the argument that all its callers give."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, xs):
        return self.backbone(xs, bandwidth_id=torch.tensor([0]))


def codebook(model):
    return model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook


@torch.no_grad()
def trace(model, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and margins, `[1, n_frames]`, of `clip`, `[1, n_samples]`, as in encodec_models."""
    latents = model.feature_extractor.encodec.encoder(clip[None])[0].T
    code = codebook(model).quantize(latents)
    margin = boundary_distance(latents, codebook(model).embed, code) / latents.norm(dim=1)
    return code[None], margin[None].float()


@torch.no_grad()
def decode(model, codes: torch.Tensor) -> torch.Tensor:
    """Audio, `[1, n_samples]`, of codes, `[1, n_frames]`."""
    features = codebook(model).embed[codes[0]].T[None]
    return model.decode(features, bandwidth_id=torch.tensor([0])).clone()
