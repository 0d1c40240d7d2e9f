"""Compares SoundStream (Lyra v2) with the TFLite reference: codes, audio and PESQ.

    cargo build --release -p codec-nn --example raw
    python tests/reference/soundstream_compare.py target/release/examples/raw DIR_OF_TFLITE CLIP...

Clips are 16 kHz mono. For every clip and each of Lyra's rates the reference runs as Lyra runs it (XNNPACK,
one thread, frame by frame); prints, per stage, how many codes are equal, and how far the other codes'
best two distances lie apart; the largest difference of the waveforms decoded from the same codes; and
PESQ-WB of both after taking off the measured delay. Exits with 1 when mean PESQ differs by more than 0.05.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from ai_edge_litert.interpreter import Interpreter
from pesq import pesq

SAMPLE_RATE, HOP, N_STAGES = 16_000, 320, 46
RATES = {3.2: 16, 6.0: 30, 9.2: 46}
MAX_PESQ_DIFFERENCE = 0.05


class Reference:
    """The TFLite models; a fresh interpreter per clip, as their state lives inside."""

    def __init__(self, folder):
        self.folder = Path(folder)
        quantizer = self._open("quantizer.tflite")
        self._encode = quantizer.get_signature_runner("encode")
        self._decode = quantizer.get_signature_runner("decode")

    def _open(self, name):
        interpreter = Interpreter(str(self.folder / name), num_threads=1)
        interpreter.allocate_tensors()
        return interpreter

    def _run(self, name, frames):
        interpreter = self._open(name)
        given = interpreter.get_input_details()[0]
        made = interpreter.get_output_details()[0]["index"]
        outputs = []
        for frame in frames:
            interpreter.set_tensor(given["index"], frame.reshape(given["shape"]))
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(made).reshape(-1).copy())
        return np.array(outputs)

    def latents(self, audio):
        """[n_frames, dim]"""
        return self._run("soundstream_encoder.tflite", audio.reshape(-1, HOP))

    def codes(self, latents, n_codebooks):
        """[n_frames, n_codebooks]"""
        stages = np.int32(n_codebooks)
        run = lambda x: self._encode(input_frames=x[None, None], num_quantizers=stages)["output_0"]
        return np.array([run(x).reshape(-1)[:n_codebooks] for x in latents])

    def decode(self, codes):
        """[n_samples]"""
        missing = N_STAGES - codes.shape[1]
        padded = np.pad(codes, ((0, 0), (0, missing)), constant_values=-1).astype(np.int32)
        run = lambda row: self._decode(encoding_indices=row.reshape(N_STAGES, 1, 1))["output_0"]
        return self._run("lyragan.tflite", np.array([run(row).reshape(-1) for row in padded])).reshape(-1)

    def codebooks(self):
        """[n_stages, size, dim]"""
        size = 16
        table = np.full((N_STAGES, size, N_STAGES), -1, np.int32)
        sums = []
        for stage in range(N_STAGES):
            # A stage alone is no valid prefix, but the graph masks each by itself.
            for code in range(size):
                table[stage, code, stage] = code
                row = table[stage, code].reshape(N_STAGES, 1, 1)
                sums.append(self._decode(encoding_indices=row)["output_0"].reshape(-1))
        return np.array(sums).reshape(N_STAGES, size, -1)


class Ours:
    """The example `raw`."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder

    def _run(self, task, n_codebooks, data, dtype):
        command = [self.binary, task, self.folder, str(n_codebooks)]
        done = subprocess.run(command, input=data.tobytes(), capture_output=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stderr.decode())
        return np.frombuffer(done.stdout, dtype)

    def encode(self, audio, n_codebooks):
        return self._run("encode", n_codebooks, audio, np.uint32).reshape(-1, n_codebooks).astype(np.int64)

    def decode(self, codes):
        return self._run("decode", codes.shape[1], codes.astype(np.uint32), np.float32)


def delay(audio, decoded, reach=800):
    """Samples by which `decoded` lags, by cross-correlation."""
    n = 1 << (len(audio) + reach).bit_length() + 1
    spectrum = np.fft.rfft(decoded, n) * np.conj(np.fft.rfft(audio, n))
    correlation = np.roll(np.fft.irfft(spectrum, n), reach)[: 2 * reach + 1]
    return int(np.argmax(correlation)) - reach


def sixteen_bits(audio):
    """As a WAV file would hold it."""
    return np.clip(np.round(audio * 32768), -32768, 32767).astype(np.int16)


def quality(audio, decoded, lag):
    decoded = np.roll(decoded, -lag)[: len(audio)]
    return pesq(SAMPLE_RATE, sixteen_bits(audio), sixteen_bits(decoded), "wb")


def margins(latents, codes, codebooks, where):
    """How far apart the two best distances lie, relative to the best, at the places `where`."""
    found = []
    for frame, stage in zip(*np.nonzero(where)):
        residual = latents[frame].astype(np.float64)
        for earlier in range(stage):
            residual = residual - codebooks[earlier, codes[frame, earlier]]
        distances = np.sort(((residual - codebooks[stage]) ** 2).sum(1))
        found.append((distances[1] - distances[0]) / distances[0])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("clips", nargs="+")
    options = parser.parse_args()
    reference, ours = Reference(options.model), Ours(options.binary, options.model)
    codebooks = reference.codebooks()

    equal, n_frames, worst_wave, all_margins, delays = np.zeros(N_STAGES, int), 0, 0.0, [], []
    scores = {rate: [] for rate in RATES}
    for path in options.clips:
        audio, rate = soundfile.read(path, dtype="float32")
        assert rate == SAMPLE_RATE and audio.ndim == 1, f"{path}: {rate} Hz, {audio.ndim} dimensions"
        padded = np.pad(audio, (0, -len(audio) % HOP))
        latents = reference.latents(padded)
        theirs, mine = reference.codes(latents, N_STAGES), ours.encode(audio, N_STAGES)
        assert theirs.shape == mine.shape, f"{path}: {theirs.shape} codes against {mine.shape}"
        equal += (theirs == mine).sum(0)
        n_frames += len(theirs)
        # Only the first difference of a frame says something: later stages code another residual.
        first = (theirs != mine) & (np.cumsum(theirs != mine, 1) == 1)
        all_margins += margins(latents, theirs, codebooks, first)

        line = []
        for kbps, n_codebooks in RATES.items():
            prefix = ours.encode(audio, n_codebooks)
            assert (prefix == mine[:, :n_codebooks]).all(), "a prefix of the codebooks gave other codes"
            decoded_theirs = reference.decode(theirs[:, :n_codebooks])
            same = ours.decode(theirs[:, :n_codebooks])
            worst_wave = max(worst_wave, np.abs(same - decoded_theirs).max())
            decoded_mine = ours.decode(mine[:, :n_codebooks])
            lag = delay(audio, decoded_theirs)
            delays.append(lag)
            pair = quality(audio, decoded_theirs, lag), quality(audio, decoded_mine, lag)
            scores[kbps].append(pair)
            line.append(f"{kbps} kbit/s {pair[0]:.3f} {pair[1]:.3f} (lag {lag})")
        print(f"{Path(path).name}: {len(theirs)} frames, {(theirs != mine).sum()} codes differ; "
              f"PESQ-WB reference, ours: {'; '.join(line)}", flush=True)

    print(f"\n{len(options.clips)} clips, {n_frames} frames, delay {np.median(delays):.0f} samples (median)")
    print("equal codes, percent, stage by stage:")
    for start in range(0, N_STAGES, 8):
        row = equal[start : start + 8] / n_frames
        print(f"{start:3}: " + " ".join(f"{share:9.4%}" for share in row))
    if all_margins:
        print(f"frames with a difference: {len(all_margins)}; margin of the first one in each: "
              f"median {np.median(all_margins):.3g}, largest {np.max(all_margins):.3g}")
    print(f"waveforms from the same codes differ by at most {worst_wave:.3g} of full scale")
    print("kbit/s: mean PESQ-WB reference, ours, difference")
    failed = False
    for kbps, pairs in scores.items():
        theirs, mine = np.mean(pairs, 0)
        failed |= abs(theirs - mine) > MAX_PESQ_DIFFERENCE
        print(f"{kbps:4}: {theirs:.4f} {mine:.4f} {mine - theirs:+.4f}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
