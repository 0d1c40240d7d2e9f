"""The `lapped` family in PyTorch, from its formulas, and seeded tiny models of it.

There is no package to compare with: the family is this project's own. What stands here shares no line with the
Rust code and computes transforms in f64 from their definition.
"""

import math

import torch
from torch import nn
from torch.nn import functional

ROOT_FLOOR = 1e-3
SQUARE_FLOOR = 1e-2


def basis(hop_length: int, wave) -> torch.Tensor:
    """`[hop_length, 2 * hop_length]`: the windowed waves of a lapped transform."""
    n = torch.arange(2 * hop_length, dtype=torch.float64)
    k = torch.arange(hop_length, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi / (2 * hop_length) * (n + 0.5))
    angles = math.pi / hop_length * (n + 0.5 + hop_length / 2) * (k + 0.5)
    return (math.sqrt(2 / hop_length) * window * wave(angles)).float()


class Block(nn.Module):
    """A causal ConvNeXt block on `[batch, time, dim]`."""

    def __init__(self, dim: int, hidden: int, kernel: int):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, xs):
        ys = functional.pad(xs.transpose(1, 2), (self.dwconv.kernel_size[0] - 1, 0))
        ys = self.norm(self.dwconv(ys).transpose(1, 2))
        return xs + self.gamma * self.pwconv2(functional.gelu(self.pwconv1(ys)))


class Head(nn.Linear):
    def __init__(self, dim: int, n_out: int):
        super().__init__(dim, n_out)
        self.scale = nn.Parameter(torch.ones(n_out))

    def forward(self, xs):
        return self.scale * super().forward(xs)


class Net(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_blocks: int, dim: int, hidden: int, kernel: int):
        super().__init__()
        self.embed = nn.Linear(n_in, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(Block(dim, hidden, kernel) for _ in range(n_blocks))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = Head(dim, n_out)
        self.shortcut = nn.Linear(n_in, n_out, bias=False)

    def forward(self, xs):
        ys = self.norm(self.embed(xs))
        for block in self.blocks:
            ys = block(ys)
        return self.head(self.final_norm(ys)) + self.shortcut(xs)


class Stage(nn.Module):
    def __init__(self, size: int, dim: int):
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(size, dim))


class Lapped(nn.Module):
    """Takes the fields of `config.json`."""

    def __init__(self, config: dict):
        super().__init__()
        self.hop_length = hop = config["hop_length"]
        self.beam = config.get("beam", 1)
        latent_dim = config["latent_dim"]
        self.encoder = Net(2 * hop, latent_dim, **config["encoder"])
        self.decoder = Net(latent_dim, hop, **config["decoder"])
        stages = (Stage(config["codebook_size"], latent_dim) for _ in range(config["n_codebooks"]))
        self.quantizer = nn.ModuleList(stages)
        self.cosines, self.sines = basis(hop, torch.cos), basis(hop, torch.sin)

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """`[batch, n_frames, latent_dim]` of `[batch, n_samples]`."""
        hop = self.hop_length
        n_samples = clips.shape[1]
        n_frames = -(-n_samples // hop)
        padded = functional.pad(clips, (0, (n_frames + 1) * hop - n_samples))
        frames = padded.unfold(1, 2 * hop, hop)
        spectra = torch.cat([frames @ self.cosines.T, frames @ self.sines.T], dim=2)
        return self.encoder(spectra / (spectra.square() + ROOT_FLOOR**2) ** 0.25)

    def synthesize(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, n_samples]` of `[batch, n_frames, latent_dim]`."""
        ys = self.decoder(latents)
        spectra = ys * (ys.square() + SQUARE_FLOOR**2).sqrt()
        head, tail = (spectra @ self.cosines).split(self.hop_length, dim=2)
        return (head + functional.pad(tail[:, :-1], (0, 0, 1, 0))).flatten(1)

    @torch.no_grad()
    def latents(self, clip: torch.Tensor) -> torch.Tensor:
        """`[n_frames, latent_dim]` of `[n_samples]`."""
        return self.encode(clip[None])[0]

    @torch.no_grad()
    def quantize(self, latents: torch.Tensor, n_codebooks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes `[n_codebooks, n_frames]` of the best of `beam` paths, and margins of the same shape.

        A frame's margin is the least distance, over all stages, between the last path that is kept and the first
        that is not, and at the end between the best two: over the norm of the latent.
        """
        latents = latents.double()
        residuals = latents[:, None]
        codes = torch.zeros(len(latents), 1, 0, dtype=torch.long)
        margin = torch.full((len(latents),), math.inf, dtype=torch.float64)
        for stage_idx, stage in enumerate(self.quantizer[:n_codebooks]):
            entries = stage.codebook.double()
            extended = residuals[:, :, None] - entries
            squares = extended.square().sum(dim=3).flatten(1)
            is_last = stage_idx + 1 == n_codebooks
            width = min(self.beam, squares.shape[1])
            ordered, order = squares.sort(dim=1)
            cut = 1 if is_last else width
            if cut < squares.shape[1]:
                margin = torch.minimum(margin, ordered[:, cut] - ordered[:, cut - 1])
            chosen = order[:, :width]
            path, code = chosen // len(entries), chosen % len(entries)
            frames = torch.arange(len(latents))[:, None]
            residuals = extended[frames, path, code]
            codes = torch.cat([codes[frames, path], code[..., None]], dim=2)
        margin = margin / latents.square().sum(dim=1)
        return codes[:, 0].T.contiguous(), margin.expand(n_codebooks, -1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """`[n_samples]` of `[n_codebooks, n_frames]`."""
        latents = sum(stage.codebook[row] for stage, row in zip(self.quantizer, codes))
        return self.synthesize(latents[None])[0]


@torch.no_grad()
def make_model(config: dict, seed: int, weight_type=torch.float32) -> Lapped:
    """A model in eval mode whose latents use its codebooks; its weights are exact in `weight_type`."""
    from encodec_models import make_signal

    torch.manual_seed(seed)
    model = Lapped(config).eval()
    for name, tensor in model.named_parameters():
        if name.endswith(("bias", "scale")):
            tensor.copy_(0.1 * torch.randn_like(tensor))
        elif "norm" in name or name.endswith("gamma"):
            tensor.copy_(0.6 + 0.8 * torch.rand_like(tensor))
        elif tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
    for tensor in model.parameters():
        tensor.copy_(tensor.to(weight_type).float())
    clip = make_signal(400 * model.hop_length, 1, config["sampling_rate"], seed)[0]
    residual = model.latents(clip)
    for stage in model.quantizer:
        # Entries near residuals, so that all are used and no two are alike.
        chosen = residual[torch.randperm(len(residual))[: len(stage.codebook)]]
        noise = torch.randn_like(chosen) * residual.std(dim=0)
        stage.codebook.copy_((0.9 * chosen + 0.1 * noise).to(weight_type).float())
        distances = torch.cdist(residual, stage.codebook)
        residual = residual - stage.codebook[distances.argmin(dim=1)]
    return model
