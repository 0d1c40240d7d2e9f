"""Writes metrics.safetensors: a short made-up voice, degraded versions, and what other packages make of them.

    signal.reference        [n_samples], i16, over 32768
    signal.NAME             [n_samples], i16, the reference degraded in one way
    RATE.METRIC.NAME        [1], f64, the score when the samples are taken to be at RATE Hz

Scores are those of PyPI pesq 0.0.4, pystoi 0.4.1, descript-audiotools 0.7.2 and pyloudnorm; SNR, log-spectral
and mel-cepstral distances follow their definitions here, with the STFT of torch and the filters of librosa.
Samples serve at several rates, so that the file stays small; at 8 kHz the voice is a slow and low one.

Usage: cargo xtask vectors metrics, or python metrics_vectors.py DIRECTORY
"""

import sys
import warnings
from pathlib import Path

import librosa
import numpy as np
import pyloudnorm
import torch
from audiotools import AudioSignal
from audiotools.metrics.distance import L1Loss, SISDRLoss
from audiotools.metrics.spectral import MelSpectrogramLoss, MultiScaleSTFTLoss
from pesq import pesq
from pystoi import stoi
from safetensors.numpy import save_file
from scipy.fft import dct
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


def power(samples, window_length):
    """[n_bins, n_frames]"""
    window = torch.hann_window(window_length, dtype=torch.float64)
    stft = torch.stft(torch.from_numpy(samples), window_length, window_length // 4, window=window, return_complex=True)
    return stft.abs().numpy() ** 2


def log_spectral_distance(reference, degraded):
    levels = [10 * np.log10(np.maximum(power(x, 2048), 1e-7)) for x in (reference, degraded)]
    return np.sqrt(((levels[0] - levels[1]) ** 2).mean(0)).mean()


def mel_cepstral_distance(reference, degraded, rate):
    window_length = 2 ** round(np.log2(0.032 * rate))
    filters = librosa.filters.mel(sr=rate, n_fft=window_length, n_mels=80, fmax=min(8000, rate / 2), dtype=np.float64)
    logs = [np.log(np.maximum(filters @ power(x, window_length), 1e-10)) for x in (reference, degraded)]
    # scipy's type II has a factor of two, and is not divided by the number of bands.
    difference = dct(logs[0] - logs[1], axis=0)[1:25] / (2 * 80)
    return (10 / np.log(10) * np.sqrt(2 * (difference**2).sum(0))).mean()


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
        pair = exact(reference), exact(degraded)
        yield rate, "lsd", log_spectral_distance(*pair)
        yield rate, "mcd", mel_cepstral_distance(*pair, rate)
        meter = pyloudnorm.Meter(rate)
        yield rate, "loudness_change", meter.integrated_loudness(pair[1]) - meter.integrated_loudness(pair[0])
    yield RATE, "snr", 10 * np.log10((pair[0] ** 2).sum() / ((pair[0] - pair[1]) ** 2).sum())
    samples = [torch.from_numpy(x)[None, None] for x in pair]
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
