"""Seeded SpeechTokenizer models with random weights that behave like trained ones.

As in dac_models: every convolution is scaled, on real input, until its output has a healthy size, and
every codebook is filled with mixtures of residuals of real encoder outputs, so that all entries matter.
"""

import sys
import types

import torch
from dac_models import calibrated_run, is_gain
from encodec_models import boundary_distance, make_signal
from mimi_models import N_FRAMES, mixtures

# The package's front page imports its trainer, which needs a framework for training.
sys.modules.setdefault("speechtokenizer.trainer", types.ModuleType("trainer"))
sys.modules["speechtokenizer.trainer"].SpeechTokenizerTrainer = None
from speechtokenizer.model import SpeechTokenizer  # noqa: E402

PUBLISHED = dict(
    sample_rate=16_000,
    n_filters=64,
    strides=[8, 5, 4, 2],
    dimension=1024,
    semantic_dimension=768,
    bidirectional=True,
    dilation_base=2,
    residual_kernel_size=3,
    n_residual_layers=1,
    lstm_layers=2,
    activation="ELU",
    codebook_size=1024,
    n_q=8,
)


@torch.no_grad()
def make_model(config: dict, seed: int, weight_type: torch.dtype = torch.float32) -> SpeechTokenizer:
    """A model in eval mode; its weights are exact in `weight_type`."""
    torch.manual_seed(seed)
    model = SpeechTokenizer(config).eval()
    for name, tensor in model.named_parameters():
        spread = 0.6 + 0.8 * torch.rand_like(tensor)
        if name.endswith("alpha"):
            tensor.copy_(spread)
        elif is_gain(name):
            tensor.copy_(spread)
        elif "lstm.weight" in name:
            tensor.mul_(1.8)
        elif name.endswith("bias"):
            tensor.mul_(0.3)
    clip = make_signal(40 * int(model.downsample_rate), 1, config["sample_rate"], seed + 1)[None]
    calibrated_run(model.decoder, calibrated_run(model.encoder, clip))
    for tensor in model.parameters():
        tensor.copy_(tensor.to(weight_type).float())
    fill_codebooks(model, config, seed + 2, weight_type)
    return model


@torch.no_grad()
def fill_codebooks(model: SpeechTokenizer, config: dict, seed: int, weight_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    clip = make_signal(N_FRAMES * int(model.downsample_rate), 1, config["sample_rate"], seed)
    residual = model.encoder(clip[None])[0].T
    for layer in model.quantizer.vq.layers:
        codebook = layer._codebook
        entries = mixtures(residual, config["codebook_size"], generator)
        codebook.embed.copy_(entries.to(weight_type).float())
        codebook.inited.fill_(1)
        residual = residual - codebook.embed[codebook.quantize(residual)]


@torch.no_grad()
def trace(model: SpeechTokenizer, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and margins, `[n_codebooks, n_frames]`, of `clip`, `[1, n_samples]`, as in encodec_models."""
    latents = model.encoder(clip[None])[0].T
    residual, codes, margins = latents, [], []
    for layer in model.quantizer.vq.layers:
        codebook = layer._codebook
        code = codebook.quantize(residual)
        margins.append(boundary_distance(residual, codebook.embed, code) / latents.norm(dim=1))
        residual = residual - codebook.embed[code]
        codes.append(code)
    return torch.stack(codes), torch.stack(margins).float()


@torch.no_grad()
def decode(model: SpeechTokenizer, codes: torch.Tensor) -> torch.Tensor:
    """Audio, `[1, n_samples]`, of the codes of the first codebooks."""
    return model.decode(codes[:, None])[0]
