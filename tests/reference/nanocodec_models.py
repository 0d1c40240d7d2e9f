"""Seeded models of NeMo's audio codecs with random weights that behave like trained ones.

As in dac_models: every convolution is scaled, on real input, until its output has a healthy size; the encoder's last
one so that all levels of the grids are in use.

The reference is one file of the package `nemo_toolkit` 3.0.0, whose other parts are not needed: NEMO names a folder
with the unpacked package (`pip install --no-deps --target FOLDER nemo_toolkit==3.0.0`). It needs `einops`. What that
file imports of the others is replaced by what it means for a single clip: checks of types, and base classes.
"""

import importlib.util
import io
import os
import sys
import tarfile
import types
from pathlib import Path

import torch
import yaml
from dac_models import calibrated_run, gain, is_gain
from encodec_models import make_signal


def stub(name: str, **attributes) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    # Imports of names that nothing uses.
    module.__getattr__ = lambda attribute: type(attribute, (), {"__init__": lambda self, *args, **kwargs: None})
    sys.modules[name] = module


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(os.environ["NEMO"]) / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parts = load("nemo/collections/common/parts/utils.py")
for name in (
    "nemo",
    "nemo.collections",
    "nemo.collections.asr",
    "nemo.collections.asr.modules",
    "nemo.collections.audio",
    "nemo.collections.audio.parts",
    "nemo.collections.audio.parts.utils",
    "nemo.collections.audio.parts.utils.transforms",
    "nemo.collections.common",
    "nemo.collections.common.parts",
    "nemo.core",
    "nemo.core.classes",
    "nemo.core.neural_types",
    "nemo.core.neural_types.elements",
    "nemo.core.neural_types.neural_type",
):
    stub(name)
stub("nemo.utils", logging=types.SimpleNamespace(debug=lambda *args: None))
stub("nemo.core.classes.common", typecheck=lambda *args, **kwargs: lambda function: function)
stub("nemo.core.classes.module", NeuralModule=torch.nn.Module)
sys.modules["nemo.collections.common.parts.utils"] = parts
modules = load("nemo/collections/tts/modules/audio_codec_modules.py")

# Of the encoder's output, over a standard deviation of one: so that the outer levels of the grids are in use too.
SPREAD = 2.0
TARGET = "nemo.collections.tts.modules.audio_codec_modules."


class Codec(torch.nn.Module):
    """The parts of `AudioCodecModel` that code, under their names."""

    def __init__(self, config):
        super().__init__()
        self.config = config

        def build(part):
            arguments = dict(config[part])
            return getattr(modules, arguments.pop("_target_").removeprefix(TARGET))(**arguments)

        self.audio_encoder, self.audio_decoder = build("audio_encoder"), build("audio_decoder")
        self.vector_quantizer = build("vector_quantizer")


def make_config(sample_rate, rates, levels, n_groups, encoder, decoder) -> dict:
    """`encoder` and `decoder` are a class and its other arguments."""
    dim = len(levels) * n_groups
    hop = int(torch.tensor(rates).prod())
    (encoder_class, encoder), (decoder_class, decoder) = encoder, decoder
    quantizer = dict(_target_=TARGET + "GroupFiniteScalarQuantizer", num_groups=n_groups, num_levels_per_group=levels)
    return dict(
        sample_rate=sample_rate,
        samples_per_frame=hop,
        audio_encoder=dict(_target_=TARGET + encoder_class, encoded_dim=dim, down_sample_rates=rates, **encoder),
        audio_decoder=dict(_target_=TARGET + decoder_class, input_dim=dim, up_sample_rates=rates[::-1], **decoder),
        vector_quantizer=quantizer,
    )


@torch.no_grad()
def make_model(config: dict, seed: int, weight_type=torch.float32) -> Codec:
    """A model in eval mode; its weights are exact in `weight_type`."""
    torch.manual_seed(seed)
    model = Codec(config).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("alpha"):
            tensor.copy_(0.5 + 1.5 * torch.rand_like(tensor))
        elif name.endswith("bias"):
            tensor.copy_(0.2 * torch.rand_like(tensor) - 0.1)
        elif is_gain(name):
            tensor.copy_(0.6 + 0.8 * torch.rand_like(tensor))
        else:
            tensor.copy_(torch.randn_like(tensor))
    hop = config["samples_per_frame"]
    clip = make_signal(40 * hop, 1, config["sample_rate"], seed + 1)
    latents = SPREAD * calibrated_run(Encoder(model), clip)
    for parameter in (gain(model.audio_encoder.post_conv.conv), model.audio_encoder.post_conv.conv.bias):
        parameter.mul_(SPREAD)
    calibrated_run(Decoder(model), latents)
    for tensor in model.parameters():
        tensor.copy_(tensor.to(weight_type).float())
    return model


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, clip):
        return self.model.audio_encoder(audio=clip, audio_len=lengths(clip))[0]


class Decoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, latents):
        return self.model.audio_decoder(inputs=latents, input_len=lengths(latents))[0]


def lengths(xs):
    return torch.tensor([xs.shape[-1]])


@torch.no_grad()
def trace(model: Codec, clip: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Codes and margins per codebook of `clip`, `[1, n_samples]`.

    The margin of a code is how far one of its values is from the edge between two levels, at least, relative to the
    norm of the frame's latent.
    """
    padded = torch.nn.functional.pad(clip, (0, -clip.shape[-1] % model.config["samples_per_frame"]))
    latents = Encoder(model)(padded)
    codes = model.vector_quantizer.encode(inputs=latents, input_len=lengths(latents))[:, 0].long()
    margins = []
    for grid, values in zip(model.vector_quantizer.fsqs, latents.chunk(len(codes), dim=1)):
        bounded = grid.compress(values, lengths(values))
        # The slope of the bound is at most that at its centre.
        steepest = (grid.num_levels - 1) / 2
        apart = (0.5 - (bounded - bounded.round()).abs()) / steepest
        margins.append((apart.amin(1) / latents.norm(dim=1))[0].float())
    return list(codes), margins


@torch.no_grad()
def decode(model: Codec, codes: list[torch.Tensor]) -> torch.Tensor | None:
    """Audio, `[1, n_samples]`, of the codes of the first codebooks; values of the others are zeros."""
    indices = torch.stack(codes)[:, None].int()
    grids = zip(model.vector_quantizer.fsqs, indices)
    latents = [grid.decode(indices=row[None], input_len=None) for grid, row in grids]
    absent = len(model.vector_quantizer.fsqs) - len(codes)
    latents += [torch.zeros_like(latents[0])] * absent
    return Decoder(model)(torch.cat(latents, 1)).clone()


def save(model: Codec, path: Path, weight_type=torch.float32) -> None:
    """As NeMo saves it: a tar archive with the configuration, here with parts of training, and the weights."""
    loss = {"_target_": "nemo.collections.tts.losses.audio_codec_loss.GeneratorSquaredLoss"}
    config = model.config | {"generator_loss": loss, "optim": {"lr": 2e-4, "betas": [0.8, 0.99]}, "max_epochs": None}
    state = {name: tensor.to(weight_type) if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    state["discriminator.discriminators.0.conv_post.bias"] = torch.ones(1)
    weights = io.BytesIO()
    torch.save(state, weights)
    with tarfile.open(path, "w:") as archive:
        for name, content in (("./model_config.yaml", yaml.safe_dump(config).encode()), ("./model_weights.ckpt", weights.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
