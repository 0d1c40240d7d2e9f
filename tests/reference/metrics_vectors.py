"""Writes metrics.safetensors: a short made-up voice, degraded versions, and what other packages make of them.

    signal.reference        [n_samples], i16, over 32768
    signal.NAME             [n_samples], i16, the reference degraded in one way
    RATE.METRIC.NAME        [1], f64, the score when the samples are taken to be at RATE Hz

Scores are those of PyPI pesq 0.0.4, pystoi 0.4.1 and descript-audiotools 0.7.2. Samples serve at several
rates, so that the file stays small; at 8 kHz the voice is a slow and low one.

Usage: cargo xtask vectors metrics, or python metrics_vectors.py DIRECTORY
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from audiotools import AudioSignal
from audiotools.metrics.distance import L1Loss, SISDRLoss
from audiotools.metrics.spectral import MelSpectrogramLoss, MultiScaleSTFTLoss
from pesq import pesq
from pystoi import stoi
from safetensors.numpy import save_file
from scipy.signal import butter, sosfiltfilt

RATE = 16_000
MAX_BYTES = 300_000

DAC = dict(
    n_mels=[5, 10, 20, 40, 80, 160, 320],
    window_lengths=[32, 64, 128, 256, 512, 1024, 2048],
    mel_fmin=[0] * 7,
    mel_fmax=[None] * 7,
    pow=1.0,
    mag_weight=0.0,
)
LOSSES = {
    "mel_audiotools": MelSpectrogramLoss(),
    "mel_dac": MelSpectrogramLoss(**DAC),
    "stft": MultiScaleSTFTLoss(),
    "l1": L1Loss(),
}


def voice(n_samples):
    """Syllables: pulses of a gliding pitch through two moving formants, and some hiss."""
    t = np.arange(n_samples) / RATE
    pitch = 130 + 30 * np.sin(2 * np.pi * 0.8 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    clip = np.zeros(n_samples)
    for h in range(1, 40):
        formants = (600 + 250 * np.sin(2 * np.pi * 1.3 * t), 1700 + 500 * np.cos(2 * np.pi * 1.1 * t))
        clip += sum(np.exp(-(((h * pitch - f) / 220) ** 2)) for f in formants) * np.sin(h * phase)
    hiss = np.random.default_rng(1).standard_normal(n_samples) * np.clip(np.sin(2 * np.pi * 3 * t + 3), 0, None) ** 3
    return 0.12 * clip * np.clip(np.sin(2 * np.pi * 3 * t), 0, None) * (t % 1.4 < 1.1) + 0.01 * hiss


def versions(clip):
    rng = np.random.default_rng(2)
    low_pass = butter(4, 3000, fs=RATE, output="sos")
    return {
        "noisy": clip + 0.001 * rng.standard_normal(len(clip)),
        "dull": np.clip(sosfiltfilt(low_pass, clip), -0.45, 0.45),
        "torn": clip * np.repeat(rng.random(len(clip) // 80 + 1) > 0.03, 80)[: len(clip)],
    }


def scores(reference, degraded):
    exact = lambda x: x.astype(np.float64)
    for rate in (8_000, 16_000, 44_100):
        if rate != 44_100:
            mode = "wb" if rate == RATE else "nb"
            yield rate, f"pesq_{mode}", pesq(rate, reference, degraded, mode)
        for metric in ("stoi", "estoi"):
            yield rate, metric, stoi(exact(reference), exact(degraded), rate, extended=metric == "estoi")
        signals = [AudioSignal(torch.from_numpy(x)[None, None], rate) for x in (reference, degraded)]
        for metric, loss in LOSSES.items():
            yield rate, metric, float(loss(*signals))
    samples = [torch.from_numpy(exact(x))[None, None] for x in (reference, degraded)]
    yield RATE, "si_sdr", -float(SISDRLoss()(*samples))


def main(folder):
    warnings.simplefilter("ignore")
    to_i16 = lambda x: np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16)
    clip = to_i16(voice(int(2.2 * RATE)))
    signals = {"reference": clip}
    signals |= {name: to_i16(version) for name, version in versions(clip / 32768).items()}
    tensors = {f"signal.{name}": signal for name, signal in signals.items()}
    as_float = {name: (signal / 32768).astype(np.float32) for name, signal in signals.items()}
    for name, degraded in as_float.items():
        if name != "reference":
            for rate, metric, score in scores(as_float["reference"], degraded):
                tensors[f"{rate}.{metric}.{name}"] = np.array([score], np.float64)
    path = Path(folder) / "metrics.safetensors"
    save_file(tensors, path)
    assert path.stat().st_size <= MAX_BYTES, f"{path} is too large"


if __name__ == "__main__":
    main(sys.argv[1])
