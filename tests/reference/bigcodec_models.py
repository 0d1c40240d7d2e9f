"""Seeded BigCodec models with random weights that behave like trained ones.

As in dac_models: every convolution is scaled, on real input, until its output has a healthy size, and the codebook
is filled with projections of real encoder outputs.

The reference is a repository, not a package: BIGCODEC names a checkout of Aria-K-Alethia/BigCodec at commit
09845ab1f5bc7a3d1589c16de820ef15bc2afefe. It needs `einops`.
"""

import os
import sys

import torch
from dac_models import calibrated_run, is_gain
from encodec_models import boundary_distance, make_signal

sys.path.insert(0, os.environ.get("BIGCODEC", "BigCodec"))
from vq.codec_decoder import CodecDecoder  # noqa: E402
from vq.codec_encoder import CodecEncoder  # noqa: E402

SAMPLE_RATE = 16_000
LSTM_GAIN = 1.8
# Frames that the codebook is filled from, at least.
N_FRAMES = 600


class BigCodec:
    """The two modules of the reference, which has none around them."""

    def __init__(self, encoder: dict, decoder: dict):
        self.encoder, self.decoder = CodecEncoder(**encoder).eval(), CodecDecoder(**decoder).eval()
        self.hop_length = int(self.encoder.hop_length)

    def checkpoint(self) -> dict:
        """As the published file has it."""
        return {"CodecEnc": self.encoder.state_dict(), "generator": self.decoder.state_dict()}


@torch.no_grad()
def make_model(seed: int, encoder: dict, decoder: dict, weight_type=torch.float32) -> BigCodec:
    """A model whose weights are exact in `weight_type`."""
    torch.manual_seed(seed)
    model = BigCodec(encoder, decoder)
    named = [*model.encoder.named_parameters(), *model.decoder.named_parameters()]
    for name, tensor in named:
        if name.endswith(("alpha", "beta")):
            tensor.copy_(torch.rand_like(tensor) - 0.5)
        elif "lstm.weight" in name:
            tensor.mul_(LSTM_GAIN)
        elif name.endswith("bias") or ".bias_" in name:
            tensor.copy_(0.1 * torch.randn_like(tensor))
        elif is_gain(name):
            tensor.copy_(0.6 + 0.8 * torch.rand_like(tensor))
        elif tensor.dim() == 3:
            tensor.copy_(torch.randn_like(tensor))
    clip = make_signal(40 * model.hop_length, 1, SAMPLE_RATE, seed + 1)[None]
    latents = calibrated_run(model.encoder, clip)
    for layer in model.decoder.quantizer.layers:
        scale = layer.in_proj(latents.transpose(1, 2)).std()
        layer.in_proj.weight_g.div_(scale)
        layer.in_proj.bias.div_(scale)
        # What the inner space can hold comes back as it was.
        weight = torch.linalg.pinv(folded(layer.in_proj))
        layer.out_proj.weight_v.copy_(weight)
        layer.out_proj.weight_g.copy_(weight.norm(dim=1, keepdim=True))
    calibrated_run(model.decoder.model, latents)
    for _, tensor in named:
        tensor.copy_(tensor.to(weight_type).float())
    for module in [*model.encoder.modules(), *model.decoder.modules()]:
        if hasattr(module, "filter"):
            module.filter.copy_(module.filter.to(weight_type).float())
    generator = torch.Generator().manual_seed(seed + 2)
    n_frames = max(N_FRAMES, 2 * model.decoder.quantizer.layers[0].codebook_size // 4)
    rows = []
    while sum(map(len, rows)) < n_frames:
        clip = make_signal(400 * model.hop_length, 1, SAMPLE_RATE, seed + 2 + len(rows))
        rows.append(model.encoder(clip[None])[0].T)
    residual = torch.cat(rows)
    for layer in model.decoder.quantizer.layers:
        projected = layer.in_proj(residual)
        size = layer.codebook_size
        chosen = torch.randint(len(projected), (size,), generator=generator)
        noise = torch.randn((size, projected.shape[1]), generator=generator)
        entries = projected[chosen] + 0.2 * projected.std() * noise
        layer._codebook.weight.copy_(entries.to(weight_type).float())
        quantized, _ = layer.decode_latents(projected.T[None])
        residual = residual - layer.out_proj(quantized[0].T)
    return model


def folded(linear) -> torch.Tensor:
    return torch._weight_norm(linear.weight_v, linear.weight_g, 0)


def padded(clip: torch.Tensor, multiple: int) -> torch.Tensor:
    """The clip with zeros up to a whole multiple; inference.py adds a frame to whole ones too."""
    return torch.nn.functional.pad(clip, (0, -clip.shape[-1] % multiple))


@torch.no_grad()
def trace(model: BigCodec, clip: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Codes and margins per codebook of `clip`, `[1, n_samples]`, as in dac_models."""
    latents = model.encoder(padded(clip, model.hop_length)[None])
    public = model.decoder.quantizer(latents)[1]
    residual, codes, margins = latents[0].T, [], []
    for layer in model.decoder.quantizer.layers:
        projected = layer.in_proj(residual)
        quantized, code = layer.decode_latents(projected.T[None])
        unit = torch.nn.functional.normalize(projected)
        entries = torch.nn.functional.normalize(layer._codebook.weight)
        spread = torch.linalg.matrix_norm(folded(layer.in_proj), 2)
        apart = boundary_distance(unit, entries, code[0]) * projected.norm(dim=1)
        margins.append((apart / (spread * latents[0].norm(dim=0))).float())
        codes.append(code[0])
        residual = residual - layer.out_proj(quantized[0].T)
    assert torch.equal(public[:, 0], torch.stack(codes))
    return codes, margins


@torch.no_grad()
def decode(model: BigCodec, codes: list[torch.Tensor]) -> torch.Tensor:
    """Audio, `[1, n_samples]`, of the codes of the first codebooks."""
    layers = zip(model.decoder.quantizer.layers, codes)
    latents = sum(layer.out_proj(layer._codebook(code)) for layer, code in layers)
    return model.decoder(latents.T[None], vq=False)[0]
