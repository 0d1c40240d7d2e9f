"""Writes checkpoints/: one tiny EnCodec model in every dialect in which checkpoints are published.

All of them hold the same numbers, so all of them must give the same codes. torch and transformers write
the files; the dicts around the tensors are those that audiotools, audiocraft and Lightning write.

Usage: cargo xtask vectors checkpoint, or python checkpoint_vectors.py DIRECTORY
"""

import argparse
import json
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import torch
import yaml
from encodec_models import make_model
from safetensors.torch import save_file
from transformers import EncodecConfig

CONFIG = EncodecConfig(
    audio_channels=1,
    codebook_size=32,
    hidden_size=8,
    num_filters=2,
    num_lstm_layers=1,
    pad_mode="constant",
    sampling_rate=16000,
    target_bandwidths=[30.0],
    upsampling_ratios=[4, 2],
    use_causal_conv=False,
    use_conv_shortcut=False,
    normalize=False,
    chunk_length_s=None,
    overlap=None,
)


def original_name(name: str) -> str:
    """The name that a tensor has in the original package and in audiocraft."""
    net, rest = name.split(".", 1)
    if net == "quantizer":
        return name.replace("quantizer.layers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
    rest = rest.removeprefix("layers.")
    index, layer = rest.split(".", 1)
    # The transposed convolutions of the decoder stand where no block and no LSTM does.
    transposed = net == "decoder" and index in ("3", "6") and layer.startswith("conv.")
    layer = layer.replace("conv.", "convtr.convtr." if transposed else "conv.conv.", 1) if "conv." in layer else layer
    return f"{net}.model.{index}.{layer}"


def audiocraft_config(config: EncodecConfig) -> str:
    """As OmegaConf dumps it, references unresolved."""
    tree = {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": config.use_causal_conv,
            "renormalize": False,
        },
        "seanet": {
            "dimension": config.hidden_size,
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers,
            "ratios": list(config.upsampling_ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "norm_params": {},
            "kernel_size": config.kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "dilation_base": config.dilation_growth_rate,
            "pad_mode": config.pad_mode,
            "true_skip": not config.use_conv_shortcut,
            "compress": config.compress,
            "lstm": config.num_lstm_layers,
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {"n_q": 3, "bins": config.codebook_size},
    }
    return yaml.dump(tree, default_flow_style=False, allow_unicode=True, sort_keys=False)


@torch.no_grad()
def folded(state: dict) -> dict:
    """The same weights with their norms folded in, as `remove_weight_norm` leaves them."""
    plain = {}
    for name, tensor in state.items():
        if name.endswith("weight_g"):
            direction = state[name[:-1] + "v"].double()
            norm = direction.flatten(1).norm(dim=1).reshape(tensor.shape)
            plain[name[:-2]] = (tensor.double() / norm * direction).float()
        elif not name.endswith("weight_v"):
            plain[name] = tensor
    return plain


def main(directory: Path) -> None:
    root = directory / "checkpoints"
    shutil.rmtree(root, ignore_errors=True)
    model = make_model(CONFIG, 20)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    old = OrderedDict()
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        old[name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    original = OrderedDict((original_name(name), tensor) for name, tensor in old.items())
    config = json.dumps(CONFIG.to_dict())

    def folder(name: str, with_config: bool = True) -> Path:
        path = root / name
        path.mkdir(parents=True)
        if with_config:
            (path / "config.json").write_text(config)
        return path

    save_file(state, folder("parametrized") / "model.safetensors", metadata={"format": "pt"})
    save_file(dict(old), folder("weight-norm") / "model.safetensors", metadata={"format": "pt"})
    save_file(folded(old), folder("folded") / "model.safetensors", metadata={"format": "pt"})
    model.save_pretrained(folder("sharded", with_config=False), max_shard_size="16KB")
    torch.save(state, folder("pytorch") / "pytorch_model.bin")
    torch.save(original, folder("original") / "encodec.th", _use_new_zipfile_serialization=False)
    kwargs = {"sample_rate": 16000, "rates": [4, 2], "latent_dim": None, "quantizer_dropout": False}
    torch.save({"state_dict": old, "metadata": {"kwargs": kwargs}}, folder("audiotools") / "weights.pth")
    package = {"best_state": original, "xp.cfg": audiocraft_config(CONFIG), "version": "1.0.0", "exported": True}
    torch.save(package, folder("audiocraft", with_config=False) / "compression_state_dict.bin")
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.ones(3)}}
    lightning = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": OrderedDict((f"model.{name}", tensor) for name, tensor in old.items()),
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "runs"}},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99), "params": [0]}]}],
        "lr_schedulers": [],
        "hyper_parameters": argparse.Namespace(sample_rate=16000, decay=0.99),
    }
    torch.save(lightning, folder("lightning") / "last.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
