"""Seeded DAC and SNAC models with random weights that behave like trained ones.

Freshly made models fade out over their many layers, and their codebooks do not fit their latents, so
a wrong reader could pass on them. Here every convolution is scaled, on real input, until its output
has a healthy size, and every codebook is filled with projected residuals of real encoder outputs, so
that all entries are in use.

The Hugging Face and the original classes have the same parts under different names; the functions
here take either.
"""

import torch
from encodec_models import boundary_distance, make_signal

# Standard deviation that a convolution's output is scaled to: for most, for the last of a residual
# branch, and for the one before the final tanh.
USUAL, BRANCH, FINAL = 1.0, 0.4, 0.4
# Size of the maps of attention, over that which keeps the variance.
ATTENTION = 1.5
# Frames that codebooks are filled from, at most, unless they have more entries than that.
MAX_FRAMES = 5_000


@torch.no_grad()
def calibrate(model, sample_rate: int, hop_length: int, seed: int, weight_type: torch.dtype = torch.float32):
    """Sets all weights of `model`; they are exact in `weight_type`. Returns it in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for name, tensor in model.named_parameters():
        if name.endswith("alpha"):
            tensor.copy_(uniform(tensor, 0.5, 2.0))
        elif name.endswith("bias"):
            tensor.copy_(uniform(tensor, -0.1, 0.1))
        elif is_gain(name):
            tensor.copy_(uniform(tensor, 0.6, 1.4))
        elif tensor.dim() == 3:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        elif ".to_" in name:
            # So that attention looks at some steps more than at others, and matters.
            tensor.copy_(ATTENTION * torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5)
        elif "norm.weight" in name:
            tensor.copy_(uniform(tensor, 0.6, 1.4))
    clip = make_signal(whole(model, 40) * hop_length, 1, sample_rate, seed + 1)[None]
    latents = calibrated_run(model.encoder, clip)
    for quantizer in model.quantizer.quantizers:
        calibrated_run(quantizer.in_proj, latents)
        # What the inner space can hold comes back as it was.
        weight = folded(quantizer.in_proj)[:, :, 0]
        set_folded(quantizer.out_proj, torch.linalg.pinv(weight)[:, :, None])
    calibrated_run(model.decoder, latents)
    for _, tensor in model.named_parameters():
        tensor.copy_(tensor.to(weight_type).float())
    fill_codebooks(model, sample_rate, hop_length, seed + 2, weight_type)
    return model.eval()


def whole(model, n_frames: int) -> int:
    """At least so many frames, in whole windows where there is attention in windows."""
    window = getattr(model, "attn_window_size", None) or 1
    return -(-n_frames // window) * window


def is_gain(name: str) -> bool:
    return name.endswith(("weight_g", "parametrizations.weight.original0"))


def gain(conv):
    """The parameter whose scale is that of the weight."""
    if hasattr(conv, "parametrizations"):
        return conv.parametrizations.weight.original0
    return conv.weight_g if hasattr(conv, "weight_g") else conv.weight


def folded(conv):
    if hasattr(conv, "weight_g"):
        return torch._weight_norm(conv.weight_v, conv.weight_g, 0)
    return conv.weight


def set_folded(conv, weight):
    if hasattr(conv, "parametrizations"):
        conv.parametrizations.weight.original1.copy_(weight)
        conv.parametrizations.weight.original0.copy_(weight.flatten(1).norm(dim=1)[:, None, None])
    elif hasattr(conv, "weight_g"):
        conv.weight_v.copy_(weight)
        conv.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])
    else:
        conv.weight.copy_(weight)


def calibrated_run(module, xs):
    """Runs a module once and scales every convolution on the way."""
    convs = [m for m in module.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.ConvTranspose1d))]
    handles = []

    def scale(conv, _, ys):
        pointwise = conv.kernel_size == (1,) and conv.in_channels == conv.out_channels
        target = FINAL if conv.out_channels == 1 else BRANCH if pointwise else USUAL
        factor = target / ys.std().clamp_min(1e-6)
        gain(conv).mul_(factor)
        if conv.bias is not None:
            conv.bias.mul_(factor)
        return ys * factor

    for conv in convs:
        handles.append(conv.register_forward_hook(scale))
    ys = module(xs)
    for handle in handles:
        handle.remove()
    return ys


@torch.no_grad()
def fill_codebooks(model, sample_rate, hop_length, seed, weight_type):
    generator = torch.Generator().manual_seed(seed)
    size = model.quantizer.quantizers[0].codebook.weight.shape[0]
    strides = [getattr(quantizer, "stride", 1) for quantizer in model.quantizer.quantizers]
    # In pieces, so that a large model takes little memory.
    rows, n_frames = [], min(2 * size * max(strides), max(2 * size, MAX_FRAMES))
    while sum(latents.shape[-1] for latents in rows) < n_frames:
        n = whole(model, min(400, n_frames)) * hop_length
        rows.append(model.encoder(make_signal(n, 1, sample_rate, seed + len(rows))[None])[..., : n // hop_length])
    residual = torch.cat(rows, -1)
    residual = residual[..., : residual.shape[-1] // max(strides) * max(strides)]
    for quantizer, stride in zip(model.quantizer.quantizers, strides):
        pooled = torch.nn.functional.avg_pool1d(residual, stride, stride)
        projected = quantizer.in_proj(pooled)[0].T
        chosen = torch.randperm(projected.shape[0], generator=generator)
        # Where there are fewer than entries, one residual becomes several of them.
        spread = 0.05 if len(chosen) >= size else 0.3
        chosen = chosen.repeat(-(-size // len(chosen)))[:size]
        noise = torch.randn((size, projected.shape[1]), generator=generator)
        entries = projected[chosen] + spread * projected.std() * noise
        quantizer.codebook.weight.copy_(entries.to(weight_type).float())
        decoded, _ = quantizer.decode_latents(projected.T[None])
        residual = residual - quantizer.out_proj(decoded).repeat_interleave(stride, dim=-1)


@torch.no_grad()
def trace(model, clip):
    """Codes and margins per codebook of `clip`, `[1, n_samples]`, whose length is whole frames.

    The margin of a code is how far, at least, the residual would have to move before another entry
    were nearer, relative to the norm of the frame's latent.
    """
    latents = model.encoder(clip[None])
    residual, codes, margins = latents, [], []
    for quantizer in model.quantizer.quantizers:
        stride = getattr(quantizer, "stride", 1)
        pooled = torch.nn.functional.avg_pool1d(residual, stride, stride)
        norms = torch.nn.functional.avg_pool1d(latents.norm(dim=1, keepdim=True), stride, stride)[0, 0]
        projected = quantizer.in_proj(pooled)
        decoded, code = quantizer.decode_latents(projected)
        unit = torch.nn.functional.normalize(projected)[0].T
        entries = torch.nn.functional.normalize(quantizer.codebook.weight)
        # A step of the residual becomes one of at most `spread` times its length in the inner space.
        spread = torch.linalg.matrix_norm(folded(quantizer.in_proj)[:, :, 0], 2)
        apart = boundary_distance(unit, entries, code[0]) * projected[0].norm(dim=0)
        margins.append((apart / (spread * norms)).float())
        codes.append(code[0])
        residual = residual - quantizer.out_proj(decoded).repeat_interleave(stride, dim=-1)
    return codes, margins


@torch.no_grad()
def decode(model, codes):
    """Audio, `[1, n_samples]`, of the codes of the first codebooks."""
    latents = 0.0
    for quantizer, code in zip(model.quantizer.quantizers, codes):
        stride = getattr(quantizer, "stride", 1)
        entries = quantizer.codebook(code[None]).transpose(1, 2)
        latents = latents + quantizer.out_proj(entries).repeat_interleave(stride, dim=-1)
    return model.decoder(latents)[0]


def padded(clip, multiple: int):
    """The clip with zeros up to a whole multiple, as the packages' `preprocess` appends them."""
    return torch.nn.functional.pad(clip, (0, -clip.shape[-1] % multiple))
