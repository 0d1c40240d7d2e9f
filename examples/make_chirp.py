"""Writes chirp.wav: two seconds at 16 kHz of a rising tone over a chord. Needs only Python."""

import math
import struct
import wave

RATE, SECONDS = 16_000, 2.0


def sample(t):
    sweep = math.sin(2 * math.pi * (200 * t + 475 * t * t))
    chord = sum(math.sin(2 * math.pi * hz * t) for hz in (220.0, 277.2, 329.6)) / 3
    fade = min(1.0, 50 * t, 50 * (SECONDS - t))
    return fade * (0.4 * sweep + 0.3 * chord)


samples = [round(32767 * sample(i / RATE)) for i in range(int(RATE * SECONDS))]
with wave.open("chirp.wav", "wb") as out:
    out.setparams((1, 2, RATE, 0, "NONE", ""))
    out.writeframes(struct.pack(f"<{len(samples)}h", *samples))
