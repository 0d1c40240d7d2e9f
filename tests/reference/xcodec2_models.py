"""Seeded decoders of X-codec2 and NeuCodec with random weights that behave like trained ones.

Every matrix and convolution keeps about the size of what it reads; the head makes magnitudes and phases of a
healthy spectrum. Only decoders are made: the encoders hold a speech model of 600 million weights.

References: the decoder of transformers, and that of PyPI `neucodec`, whose tensors have the names of the published
checkpoints. NEUCODEC names a folder with the latter's package (`pip install --no-deps --target FOLDER
neucodec==0.0.6`); it needs `vector_quantize_pytorch`, `einx` and `frozendict`, and for rotary positions `torchtune`, in whose place
stands a class of a few lines.
"""

import os
import sys
import types

import torch
from transformers import Xcodec2Config
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Decoder, Xcodec2Quantizer

N_LEVELS = 4


class Decoder(torch.nn.Module):
    """The parts of `Xcodec2Model` that decode, under their names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.quantizer = Xcodec2Quantizer(config)
        self.acoustic_decoder = Xcodec2Decoder(config)

    def forward(self, codes):
        """Audio, `[1, n_samples]`, of codes, `[1, n_frames]`."""
        return self.acoustic_decoder(self.quantizer.from_codes(codes[..., None]))[0]


def make_config(hidden, n_layers, intermediate, latent_dim, n_values, ratios, n_heads=16) -> Xcodec2Config:
    hop_length = int(torch.tensor(ratios).prod())
    semantic = dict(model_type="wav2vec2-bert", hidden_size=latent_dim - hidden, num_hidden_layers=1)
    return Xcodec2Config(
        hidden_size=hidden,
        num_hidden_layers=n_layers,
        intermediate_size=intermediate,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=hidden // n_heads,
        quantization_dim=latent_dim,
        quantization_levels=[N_LEVELS] * n_values,
        downsampling_ratios=ratios,
        sampling_rate=50 * hop_length,
        semantic_model_config=semantic,
        attn_implementation="eager",
    )


@torch.no_grad()
def make_model(config: Xcodec2Config, seed: int, weight_type=torch.float32) -> Decoder:
    """A model in eval mode; its weights are exact in `weight_type`."""
    torch.manual_seed(seed)
    model = Decoder(config).eval()
    for name, tensor in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            tensor.copy_(0.6 + 0.8 * torch.rand_like(tensor))
        elif name.endswith("bias"):
            tensor.copy_(0.1 * torch.randn_like(tensor))
        else:
            # Attention looks at some steps more than at others.
            gain = 1.5 if "q_proj" in name or "k_proj" in name else 0.5 if "o_proj" in name or "fc2" in name else 1.0
            tensor.copy_(gain * torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
    # Magnitudes that add up to audio of a healthy size, and phases of all kinds.
    head, n_bins = model.acoustic_decoder.head.linear, config.n_fft // 2 + 1
    head.weight[:n_bins] *= 0.7
    head.weight[n_bins:] *= 2.0
    for tensor in model.parameters():
        tensor.copy_(tensor.to(weight_type).float())
    codes = make_codes(config, 50, seed + 1)
    head.bias[:n_bins] += torch.log(0.3 / model(codes).std()).to(weight_type).float()
    head.bias.copy_(head.bias.to(weight_type).float())
    return model


def make_codes(config, n_frames: int, seed: int) -> torch.Tensor:
    """`[1, n_frames]`"""
    generator = torch.Generator().manual_seed(seed)
    size = N_LEVELS ** len(config.quantization_levels)
    return torch.randint(size, (1, n_frames), generator=generator)


def original_state(model: Decoder) -> dict[str, torch.Tensor]:
    """The weights under the names of the published checkpoints, with the window that these hold."""
    starts = {
        "quantizer.": "generator.quantizer.",
        "acoustic_decoder.fc.": "fc_post_a.",
        "acoustic_decoder.head.linear.": "generator.head.out.",
        "acoustic_decoder.norm.": "generator.backbone.final_layer_norm.",
        "acoustic_decoder.layers.": "generator.backbone.transformers.",
        "acoustic_decoder.": "generator.backbone.",
    }
    parts = {
        ".input_layernorm.": ".att_norm.",
        ".post_attention_layernorm.": ".ffn_norm.",
        ".self_attn.o_proj.": ".att.c_proj.",
        ".self_attn.q_proj.": ".att.c_attn.",
    }
    state, theirs = model.state_dict(), {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
        start = next(start for start in starts if name.startswith(start))
        name = starts[start] + name[len(start) :]
        for part, other in parts.items():
            name = name.replace(part, other)
        theirs[name] = tensor.clone()
    theirs["generator.head.istft.window"] = torch.hann_window(model.config.n_fft)
    return theirs


class Rotary(torch.nn.Module):
    """What torchtune's class does: turns pairs of neighbours by the place in dimension 1."""

    def __init__(self, dim, base=10_000):
        super().__init__()
        self.rates = base ** (-torch.arange(0, dim, 2) / dim)

    def forward(self, xs):
        angles = torch.arange(xs.shape[1])[:, None, None] * self.rates
        pairs = torch.view_as_complex(xs.reshape(*xs.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class Original(torch.nn.Module):
    """The parts of the package's `NeuCodec` that decode, under their names."""

    def __init__(self, config):
        super().__init__()
        sys.path.insert(0, os.environ["NEUCODEC"])
        torchtune = types.ModuleType("torchtune.modules")
        torchtune.RotaryPositionalEmbeddings = Rotary
        sys.modules.setdefault("torchtune", types.ModuleType("torchtune"))
        sys.modules.setdefault("torchtune.modules", torchtune)
        # Without the package's own head, which imports what encoders need.
        package = types.ModuleType("neucodec")
        package.__path__ = [os.path.join(os.environ["NEUCODEC"], "neucodec")]
        sys.modules.setdefault("neucodec", package)
        from neucodec.codec_decoder_vocos import CodecDecoderVocos, ResidualFSQ

        hidden, n_heads = config.hidden_size, config.num_attention_heads
        sizes = dict(depth=config.num_hidden_layers, heads=n_heads, pos_meb_dim=hidden // n_heads)
        latent_dim, levels = config.quantization_dim, list(config.quantization_levels)
        self.generator = CodecDecoderVocos(hidden, hop_length=config.hop_length, vq_dim=latent_dim, **sizes)
        if levels != [N_LEVELS] * 8:
            self.generator.quantizer = ResidualFSQ(dim=latent_dim, levels=levels, num_quantizers=1)
        self.fc_post_a = torch.nn.Linear(latent_dim, hidden)

    def forward(self, codes):
        latents = self.generator.quantizer.get_output_from_indices(codes[..., None])
        return self.generator(self.fc_post_a(latents), vq=False)[0][0]


@torch.no_grad()
def make_original(model: Decoder) -> Original:
    original = Original(model.config).eval()
    missing, unexpected = original.load_state_dict(original_state(model), strict=False)
    assert not unexpected and not [name for name in missing if "quantizer" not in name], (missing, unexpected)
    return original
