"""Times forward and backward of encoder and decoder here and in PyTorch, in turns, on the same threads.

    cargo build --release -p codec-train --example speed
    python tests/reference/train_speed.py [--threads 2] [--batch 4] [--seconds 1] [--rounds 5] [--only codec-16khz]

Prints the milliseconds of the fastest round of each, and their ratio.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time
import tomllib

import torch
from lapped_models import Lapped
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

ROOT = pathlib.Path(__file__).resolve().parents[2]


def models():
    """Name, our configuration, and the reference's networks."""
    config = {"model_type": "encodec", "sampling_rate": 24000, "num_filters": 32, "hidden_size": 128}
    reference = EncodecModel(EncodecConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    yield "encodec_24khz", config, reference.encoder, reference.decoder
    config = {
        "model_type": "dac",
        "sampling_rate": 16000,
        "encoder_hidden_size": 32,
        "decoder_hidden_size": 512,
        "downsampling_ratios": [2, 4, 5, 8],
        "upsampling_ratios": [8, 5, 4, 2],
        "hidden_size": 512,
        "n_codebooks": 12,
    }
    reference = DacModel(DacConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    yield "dac, half as wide", config, reference.encoder, reference.decoder
    config = tomllib.loads((ROOT / "models/codec-16khz/train.toml").read_text())["model"]["config"]
    reference = Lapped(config)
    yield "codec-16khz", config, lambda clips: reference.encode(clips[:, 0]), reference.synthesize


def theirs(encoder, decoder, rate, args):
    x = torch.sin(torch.arange(args.batch * int(rate * args.seconds)) * 0.05).view(args.batch, 1, -1)
    begin = time.perf_counter()
    decoder(encoder(x)).square().mean().backward()
    return 1e3 * (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="the name of one model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    env = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
    for name, config, encoder, decoder in models():
        if args.only not in (None, name):
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(config, file)
            file.flush()
            command = [target / "release/examples/speed", file.name, str(args.batch), str(args.seconds), "5"]
            ours, reference = [], []
            for _ in range(args.rounds):
                out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
                ours.append(float(out.split()[0]))
                reference += [theirs(encoder, decoder, config["sampling_rate"], args) for _ in range(5)]
        ratio = min(reference) / min(ours)
        print(f"{name}: ours {min(ours):.0f} ms, PyTorch {min(reference):.0f} ms, {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
