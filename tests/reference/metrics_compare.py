"""Compares codec-metrics with the packages that papers use: PESQ, STOI, SI-SDR, mel and STFT distances.

    pip install -r tests/reference/requirements.txt
    cargo build --release -p codec-metrics --example judge
    python tests/reference/metrics_compare.py target/release/examples/judge [DIR_OF_CLIPS]

Clips are mono, of any rate (they are resampled to 16 kHz); without a folder, made-up voices and sounds serve.
Each is degraded in many ways: noise, low-pass, clipping, quantization, codecs (through libsndfile), delay,
dropouts, level, reverberation, and warped time. PESQ is compared at 16 kHz (wide band) and 8 kHz (narrow
band) with the time that each implementation takes; pairs of warped time, and of clips that are no speech (by
their names), apart. STOI and ESTOI at 16 kHz and 8 kHz; SI-SDR, mel and STFT distances at 16 kHz. Pairs that
either side refuses are counted. Prints a table for docs/metrics.md and exits with 1 when a difference passes
its limit.
"""

import argparse
import io
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from audiotools import AudioSignal
from audiotools.metrics.distance import L1Loss, SISDRLoss
from audiotools.metrics.spectral import MelSpectrogramLoss, MultiScaleSTFTLoss
from pesq import PesqError, pesq
from pystoi import stoi
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt

RATE = 16_000
WARPED = ("tempo", "jump")
# Starts of the names of clips that PESQ is not made for.
NO_SPEECH = ("sound", "music", "chord", "noise", "clicks")


def synthetic_clips():
    """Six voices (pulses through moving formants), chords, a noise and clicks, 4 s each."""
    time_axis = np.arange(4 * RATE) / RATE
    clips = {}
    for voice in range(6):
        rng = np.random.default_rng(voice)
        pitch = 90 + 30 * voice + 25 * np.sin(2 * np.pi * (0.5 + 0.1 * voice) * time_axis)
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        clip = np.zeros_like(time_axis)
        formants = [600 + 250 * np.sin(2 * np.pi * (1.1 + 0.2 * voice) * time_axis), 1700 + 500 * np.cos(7 * time_axis), 3000]
        for h in range(1, 40):
            gain = sum(np.exp(-(((h * pitch - f) / 250) ** 2)) for f in formants) + 0.02 / h
            clip += np.where(h * pitch < 7000, gain, 0) * np.sin(h * phase)
        syllables = np.clip(np.sin(2 * np.pi * 2.7 * time_axis + voice), 0, None) * (time_axis % 1.6 < 1.2)
        hiss = sosfilt(butter(4, 3500, "high", fs=RATE, output="sos"), rng.standard_normal(len(time_axis)))
        fricatives = np.clip(np.sin(2 * np.pi * 2.7 * time_axis + voice + 3), 0, None) ** 4
        clips[f"voice-{voice}"] = clip * syllables * 0.1 + 0.02 * hiss * fricatives * (time_axis % 1.6 < 1.3)
    chord = sum(np.sin(2 * np.pi * f * time_axis) for f in (220, 277, 330, 440, 1318)) * 0.1
    clips["chord"] = chord * np.exp(-(time_axis % 0.8) * 3)
    clips["noise"] = 0.1 * np.random.default_rng(9).standard_normal(len(time_axis))
    clicks = np.zeros_like(time_axis)
    clicks[:: RATE // 7] = 0.8
    clips["clicks"] = clicks
    return clips


def read_clips(folder, limit):
    clips = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3"):
            audio, rate = soundfile.read(path, always_2d=True)
            audio = audio.mean(1)
            divisor = math.gcd(rate, RATE)
            clips[path.stem] = resample_poly(audio, RATE // divisor, rate // divisor) if rate != RATE else audio
    names = sorted(clips)
    # Evenly over the folder.
    chosen = [names[i * len(names) // limit] for i in range(limit)] if limit < len(names) else names
    return {name: clips[name][: 10 * RATE] for name in chosen}


def through_codec(container, subtype, rate, **options):
    """Encodes and decodes with libsndfile; the length of the result is that of the input."""

    def run(x, rng):
        divisor = math.gcd(rate, RATE)
        audio = resample_poly(x, rate // divisor, RATE // divisor)
        buffer = io.BytesIO()
        soundfile.write(buffer, np.clip(audio, -1, 1), rate, format=container, subtype=subtype, **options)
        buffer.seek(0)
        decoded, decoded_rate = soundfile.read(buffer)
        divisor = math.gcd(decoded_rate, RATE)
        decoded = resample_poly(decoded, RATE // divisor, decoded_rate // divisor)
        return np.pad(decoded, (0, max(0, len(x) - len(decoded))))[: len(x)]

    return run


def noise(snr):
    return lambda x, rng: x + rng.standard_normal(len(x)) * np.sqrt(np.mean(x**2) / 10 ** (snr / 10))


def pink(snr):
    def run(x, rng):
        spectrum = np.fft.rfft(rng.standard_normal(len(x)))
        n = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), len(x))
        return x + n * np.sqrt(np.mean(x**2) / np.mean(n**2) / 10 ** (snr / 10))

    return run


def filtered(order, edge, kind):
    sos = butter(order, edge, kind, fs=RATE, output="sos")
    return lambda x, rng: sosfilt(sos, x)


def delayed(milliseconds):
    n = round(abs(milliseconds) * RATE / 1000)
    if milliseconds >= 0:
        return lambda x, rng: np.pad(x, (n, 0))[: len(x)]
    return lambda x, rng: np.pad(x[n:], (0, n))


def dropouts(milliseconds, fraction):
    def run(x, rng):
        n = round(milliseconds * RATE / 1000)
        kept = np.repeat(rng.random(len(x) // n + 1) >= fraction, n)[: len(x)]
        return x * kept

    return run


def reverberant(x, rng):
    response = rng.standard_normal(RATE // 3) * np.exp(-np.arange(RATE // 3) / (0.06 * RATE))
    response[0] = 6
    return fftconvolve(x, response / np.linalg.norm(response))[: len(x)]


def quantized(bits):
    return lambda x, rng: np.round(x * 2 ** (bits - 1)) / 2 ** (bits - 1)


def tempo(factor):
    return lambda x, rng: np.interp(np.arange(len(x)) * factor, np.arange(len(x)), x, right=0)


def jump(milliseconds):
    def run(x, rng):
        n = round(abs(milliseconds) * RATE / 1000)
        half = len(x) // 2
        if milliseconds > 0:
            return np.concatenate([x[:half], np.zeros(n), x[half:]])[: len(x)]
        return np.concatenate([x[:half], x[half + n :], np.zeros(n)])

    return run


DEGRADATIONS = {
    "identical": lambda x, rng: x,
    **{f"noise {snr} dB": noise(snr) for snr in (40, 25, 15, 5, -5)},
    **{f"pink {snr} dB": pink(snr) for snr in (30, 10, 0)},
    **{f"low-pass {edge} Hz": filtered(6, edge, "low") for edge in (6000, 3400, 1500)},
    "high-pass 300 Hz": filtered(4, 300, "high"),
    "band-pass": filtered(4, (300, 3400), "band"),
    **{f"clip {p}": (lambda p: lambda x, rng: np.clip(x, -p * np.abs(x).max(), p * np.abs(x).max()))(p) for p in (0.5, 0.1)},
    **{f"{bits} bits": quantized(bits) for bits in (12, 8, 6)},
    "mu-law 8 kHz": through_codec("WAV", "ULAW", 8000),
    "mu-law": through_codec("WAV", "ULAW", RATE),
    "GSM 6.10": through_codec("WAV", "GSM610", 8000),
    "IMA ADPCM": through_codec("WAV", "IMA_ADPCM", RATE),
    "G.721": through_codec("AU", "G721_32", 8000),
    **{f"MP3 {q}": through_codec("MP3", "MPEG_LAYER_III", RATE, compression_level=q) for q in (0.0, 0.7, 0.99)},
    **{f"Vorbis {q}": through_codec("OGG", "VORBIS", RATE, compression_level=q) for q in (0.2, 0.8, 1.0)},
    **{f"Opus {q}": through_codec("OGG", "OPUS", RATE, compression_level=q) for q in (0.8, 0.97, 1.0)},
    **{f"delay {ms} ms": delayed(ms) for ms in (-50, -3.3, 0.25, 10, 100, 300)},
    **{f"dropouts {ms} ms": dropouts(ms, 0.1) for ms in (5, 20, 80)},
    "gain -30 dB": lambda x, rng: x * 10 ** (-30 / 20),
    "inverted, +6 dB": lambda x, rng: -2 * x,
    "reverberation": reverberant,
    **{f"tempo {factor}": tempo(factor) for factor in (1.005, 0.98)},
    **{f"jump {ms} ms": jump(ms) for ms in (30, -30)},
}


class Judge:
    """Our implementation: one process, one line per judgement."""

    def __init__(self, binary, folder):
        self.folder = Path(folder)
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, metric, rate, reference, degraded):
        """The score, or None, and the seconds that it took."""
        for name, samples in (("reference", reference), ("degraded", degraded)):
            samples.astype("<f4").tofile(self.folder / name)
        print(metric, rate, self.folder / "reference", self.folder / "degraded", file=self.process.stdin, flush=True)
        score, second = self.process.stdout.readline().split(maxsplit=1)
        return (None, 0.0) if score == "-" else (float(score), float(second))


def reference_pesq(rate, reference, degraded):
    start = time.perf_counter()
    try:
        score = pesq(rate, reference, degraded, "wb" if rate == RATE else "nb")
    except (PesqError, ValueError):
        return None, 0.0
    seconds = time.perf_counter() - start
    return (score, seconds) if math.isfinite(score) else (None, 0.0)


def reference_stoi(rate, reference, degraded, extended):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = lambda: stoi(reference.astype(np.float64), degraded.astype(np.float64), rate, extended=extended)
        score = run()
        if extended and abs(score - run()) > 1e-6:
            # It adds random numbers, which decide where a band is digitally silent: their mean counts.
            score = np.mean([run() for _ in range(20)])
    return None if score == 1e-5 else score


def exact_si_sdr(reference, degraded):
    """Le Roux et al. 2019, equation 5, in f64, without the terms that keep a loss finite."""
    r, d = (x.astype(np.float64) - x.astype(np.float64).mean() for x in (reference, degraded))
    target = (r @ d) / (r @ r) * r
    with np.errstate(divide="ignore"):
        return 10 * np.log10((target @ target) / ((d - target) @ (d - target)))


def double_stft(signals):
    """The STFT distance of audiotools in f64: its own code, with a window that is not rounded to f32."""
    rounded = AudioSignal.__dict__["get_window"]
    AudioSignal.get_window = staticmethod(lambda kind, length, device: torch.hann_window(length, dtype=torch.float64))
    try:
        loss = MultiScaleSTFTLoss()(*(AudioSignal(torch.from_numpy(x.astype(np.float64))[None, None], RATE) for x in signals))
    finally:
        AudioSignal.get_window = rounded
    assert loss.dtype == torch.float64
    return float(loss)


class Comparison:
    """Differences by row of the table."""

    def __init__(self):
        self.rows = defaultdict(list)
        self.refused = defaultdict(lambda: [0, 0, 0])
        self.seconds = defaultdict(lambda: [0.0, 0.0])

    def add(self, row, pair, ours, theirs):
        if ours is None or theirs is None:
            both, only_ours, only_theirs = self.refused[row]
            mine, their = ours is None, theirs is None
            self.refused[row] = [both + (mine and their), only_ours + (mine and not their), only_theirs + (their and not mine)]
        else:
            self.rows[row].append((abs(ours - theirs), pair, ours, theirs))

    def print(self, limits):
        passed = True
        order = [row for row in limits if row in self.rows] + sorted(row for row in self.rows if row not in limits)
        print("| metric | pairs | largest difference | mean | 99 % below | refused by both, by us, by them |")
        print("| --- | --- | --- | --- | --- | --- |")
        for row in order:
            found = self.rows[row]
            differences = np.sort([difference for difference, *_ in found])
            at_99 = differences[max(0, math.ceil(0.99 * len(differences)) - 1)]
            counts = ", ".join(map(str, self.refused[row]))
            print(f"| {row} | {len(found)} | {differences[-1]:.1e} | {differences.mean():.1e} | {at_99:.1e} | {counts} |")
            worst, quantile = limits.get(row, (math.inf, math.inf))
            passed &= bool(differences[-1] <= worst and at_99 <= quantile)
        print("\nfurthest apart:")
        for row in order:
            found = self.rows[row]
            for difference, pair, ours, theirs in sorted(found, reverse=True)[:3]:
                print(f"  {row}: {pair}: ours {ours:.6f}, theirs {theirs:.6f}, difference {difference:.1e}")
        print()
        for row, (ours, theirs) in self.seconds.items():
            print(f"{row}: {ours:.2f} s, the C package {theirs:.2f} s: {theirs / ours:.2f} times as fast")
        return passed


# Largest difference, and that of 99 % of the pairs.
LIMITS = {
    "PESQ-WB": (0.05, 0.01),
    "PESQ-NB": (0.05, 0.01),
    "STOI": (1e-6, 1e-6),
    "ESTOI": (1e-3, 1e-3),
    "SI-SDR": (1e-4, 1e-4),
    "SI-SDR, audiotools": (1e-4, 1e-4),
    "mel, audiotools defaults": (1e-4, 1e-4),
    "mel, DAC": (1e-4, 1e-4),
    # What f32 leaves of the logarithms of bins that are nearly empty.
    "STFT": (2e-4, 2e-4),
    "STFT, audiotools in f64": (1e-4, 1e-4),
    "L1": (1e-4, 1e-4),
}


def compare_pair(name, degradation, reference, degraded, judge, table):
    pair = f"{name}, {degradation}"
    apart = ", warped time" if degradation.startswith(WARPED) else ", not speech" if name.startswith(NO_SPEECH) else ""
    at_8k = [resample_poly(x, 1, 2).astype(np.float32) for x in (reference, degraded)]
    for rate, metric, row, signals in ((RATE, "pesq_wb", "PESQ-WB", (reference, degraded)), (8000, "pesq_nb", "PESQ-NB", at_8k)):
        theirs, their_seconds = reference_pesq(rate, *signals)
        ours, seconds = judge(metric, rate, *signals)
        table.add(row + apart, pair, ours, theirs)
        if ours is not None and theirs is not None:
            table.seconds[row][0] += seconds
            table.seconds[row][1] += their_seconds
    for rate, signals in ((RATE, (reference, degraded)), (8000, at_8k)):
        for metric, row, extended in (("stoi", "STOI", False), ("estoi", "ESTOI", True)):
            table.add(row, f"{pair}, {rate} Hz", judge(metric, rate, *signals)[0], reference_stoi(rate, *signals, extended))
    exact = exact_si_sdr(reference, degraded)
    ours = judge("si_sdr", RATE, reference, degraded)[0]
    # Ours stops at 100 dB either way; f32 holds no more.
    if abs(exact) < 100:
        table.add("SI-SDR", pair, ours, exact)
    signals = [AudioSignal(torch.from_numpy(x)[None, None], RATE) for x in (reference, degraded)]
    if -30 < exact < 60:
        # Beyond, the 1e-8 that the loss adds to the ratio counts, and the rounding of f32.
        double = [torch.from_numpy(x.astype(np.float64))[None, None] for x in (reference, degraded)]
        table.add("SI-SDR, audiotools", pair, ours, -float(SISDRLoss()(*double)))
    dac = dict(n_mels=[5, 10, 20, 40, 80, 160, 320], window_lengths=[32, 64, 128, 256, 512, 1024, 2048])
    dac |= dict(mel_fmin=[0] * 7, mel_fmax=[None] * 7, pow=1.0, clamp_eps=1e-5, mag_weight=0.0)
    for metric, row, loss in (
        ("mel_audiotools", "mel, audiotools defaults", MelSpectrogramLoss()),
        ("mel_dac", "mel, DAC", MelSpectrogramLoss(**dac)),
        ("stft", "STFT", MultiScaleSTFTLoss()),
        ("l1", "L1", L1Loss()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = float(loss(*signals))
        table.add(row, pair, judge(metric, RATE, reference, degraded)[0], theirs)
    table.add("STFT, audiotools in f64", pair, judge("stft", RATE, reference, degraded)[0], double_stft((reference, degraded)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", help="the example `judge` of codec-metrics")
    parser.add_argument("clips", nargs="?", help="folder of clips; made-up ones without it")
    parser.add_argument("--pairs", help="writes every pair to this CSV file")
    parser.add_argument("--limit", type=int, default=10, help="clips taken from the folder, evenly")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = read_clips(args.clips, args.limit) if args.clips else synthetic_clips()
    table = Comparison()
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(args.judge, folder)
        for number, (name, clip) in enumerate(clips.items()):
            for index, (degradation, degrade) in enumerate(DEGRADATIONS.items()):
                degraded = degrade(clip, np.random.default_rng([number, index]))
                signals = [x.astype(np.float32) for x in (clip, degraded)]
                if all(np.ptp(x) > 0 for x in signals):
                    compare_pair(name, degradation, *signals, judge, table)
            print(f"{name} done", file=sys.stderr)
    if args.pairs:
        with open(args.pairs, "w") as file:
            print("row,clip,degradation,ours,theirs", file=file)
            for row, found in table.rows.items():
                for _, pair, ours, theirs in found:
                    print(f'"{row}",{pair.replace(", ", ",", 1).replace(", ", " at ")},{ours},{theirs}', file=file)
    sys.exit(0 if table.print(LIMITS) else 1)


if __name__ == "__main__":
    main()
