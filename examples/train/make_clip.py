"""Writes ten seconds of synthetic music and noise for the training examples: 16 kHz, mono, 16 bits."""

import math
import pathlib
import random
import struct
import sys
import wave

RATE = 16000
SECONDS = 10


def note(t, hz, start, length):
    """A plucked note with five harmonics and some vibrato."""
    age = t - start
    if not 0 <= age < length:
        return 0.0
    envelope = min(1.0, age / 0.01) * math.exp(-3 * age) * min(1.0, (length - age) / 0.02)
    phase = 2 * math.pi * hz * (age + 0.0004 * math.sin(2 * math.pi * 5 * age))
    return envelope * sum(math.sin(k * phase) / k for k in range(1, 6))


def main():
    rng = random.Random(1)
    notes = [(110 * 2 ** (rng.randrange(30) / 12), 0.25 * i, 0.6 + rng.random()) for i in range(38)]
    samples = []
    for i in range(RATE * SECONDS):
        t = i / RATE
        x = 0.22 * sum(note(t, *n) for n in notes if n[1] <= t < n[1] + 1.6)
        beat = t % 0.5
        x += 0.1 * rng.uniform(-1, 1) * math.exp(-40 * beat)
        samples.append(max(-32768, min(32767, round(20000 * x))))
    path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/train/clip/ten-seconds.wav")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    print(path)


if __name__ == "__main__":
    main()
