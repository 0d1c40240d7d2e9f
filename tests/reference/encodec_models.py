"""Seeded EnCodec models with random weights that behave like trained ones.

A freshly made `EncodecModel` has empty codebooks and weight norms that cancel out, so a wrong
reader could pass on it. Here gains, norms and biases are random, and every codebook is filled with
residuals of real encoder outputs, so that all entries are in use.
"""

import torch
from transformers import EncodecConfig, EncodecModel

GAIN = 1.8


def make_signal(n_samples: int, channels: int, sample_rate: int, seed: int) -> torch.Tensor:
    """Chirps, a beat and noise, `[channels, n_samples]`, in [-1, 1]; ends in quiet."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(n_samples, dtype=torch.float64) / sample_rate
    rows = []
    for _ in range(channels):
        start, slope, beat, phase = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        chirp = torch.sin(6.2831853 * ((0.01 + 0.05 * start) * sample_rate * t + 0.02 * slope * sample_rate * t * t))
        swell = 0.5 + 0.5 * torch.sin(6.2831853 * (1 + 5 * beat) * t + phase)
        noise = torch.randn(n_samples, generator=generator, dtype=torch.float64)
        rows.append(0.4 * swell * chirp + 0.1 * (1 - swell) * noise + 0.01 * noise)
    return torch.stack(rows).clamp(-1, 1).float()


@torch.no_grad()
def make_model(config: EncodecConfig, seed: int, weight_type: torch.dtype = torch.float32) -> EncodecModel:
    """A model in eval mode; its weights are exact in `weight_type`."""
    torch.manual_seed(seed)
    model = EncodecModel(config).eval()
    for name, tensor in model.named_parameters():
        spread = 0.6 + 0.8 * torch.rand_like(tensor)
        if name.endswith("original0"):
            # PyTorch's own initialization lets the signal fade out over so many layers.
            tensor.mul_(GAIN * spread)
        elif ".norm." in name:
            tensor.copy_(spread if name.endswith("weight") else 0.2 * torch.randn_like(tensor))
        elif "lstm.weight" in name:
            tensor.mul_(GAIN)
        elif "bias" in name:
            tensor.mul_(0.3)
        tensor.copy_(tensor.to(weight_type).float())
    fill_codebooks(model, seed + 1, weight_type)
    return model


@torch.no_grad()
def fill_codebooks(model: EncodecModel, seed: int, weight_type: torch.dtype) -> None:
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    n_frames = 4 * config.codebook_size
    length = config.chunk_length or n_frames * config.hop_length
    rows, n_rows = [], 0
    while n_rows < n_frames:
        clip = make_signal(length, config.audio_channels, config.sampling_rate, seed + n_rows)[None]
        if config.normalize:
            clip = clip / clip.mean(1, keepdim=True).pow(2).mean(-1, keepdim=True).sqrt()
        rows.append(model.encoder(clip)[0].T)
        n_rows += rows[-1].shape[0]
    residual = torch.cat(rows)
    for layer in model.quantizer.layers:
        chosen = torch.randperm(residual.shape[0], generator=generator)[: config.codebook_size]
        entries = residual[chosen]
        # Equal rows of quiet passages are told apart by a little noise.
        entries = entries + 0.05 * residual.std() * torch.randn(entries.shape, generator=generator)
        layer.codebook.embed.copy_(entries.to(weight_type).float())
        residual = residual - layer.decode(layer.encode(residual.T[None]))[0].T


@torch.no_grad()
def trace(model: EncodecModel, clip: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Codes, margins and scale of each segment of `clip`, `[channels, n_samples]`.

    Codes are `[n_codebooks, n_frames]`. The margin of a code is how far the residual would have to
    move before another entry were nearer, relative to the norm of the frame's latent.
    """
    config = model.config
    length = config.chunk_length or clip.shape[-1]
    stride = config.chunk_stride or clip.shape[-1]
    segments = []
    for start in range(0, clip.shape[-1], stride):
        segment = clip[None, :, start : start + length]
        scale = None
        if config.normalize:
            scale = segment.mean(1, keepdim=True).pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
            segment = segment / scale
        latents = model.encoder(segment)[0].T
        residual, codes, margins = latents, [], []
        for layer in model.quantizer.layers:
            code = layer.encode(residual.T[None])[0]
            margins.append(boundary_distance(residual, layer.codebook.embed, code) / latents.norm(dim=1))
            residual = residual - layer.codebook.embed[code]
            codes.append(code)
        segments.append((torch.stack(codes), torch.stack(margins).float(), scale))
    return segments


def boundary_distance(xs: torch.Tensor, entries: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Distance of each row to the nearest plane behind which another entry is nearer."""
    xs, entries = xs.double(), entries.double()
    rows = []
    for x, code in zip(xs.split(256), codes.split(256)):
        distances = torch.cdist(x, entries).pow(2)
        gaps = distances - distances.gather(1, code[:, None])
        apart = torch.cdist(entries[code], entries)
        planes = gaps / (2 * apart.clamp_min(1e-30))
        planes.scatter_(1, code[:, None], float("inf"))
        rows.append(planes.amin(1))
    return torch.cat(rows)


@torch.no_grad()
def decode(model: EncodecModel, segments, n_codebooks: int) -> torch.Tensor:
    """The reference decoding of traced segments, `[channels, n_samples]`."""
    decoded = [model._decode_frame(codes[None, :n_codebooks], scale) for codes, _, scale in segments]
    if model.config.chunk_length is None:
        return decoded[0][0]
    return model._linear_overlap_add(decoded, model.config.chunk_stride)[0]
