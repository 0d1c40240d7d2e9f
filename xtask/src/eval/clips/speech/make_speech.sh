#!/usr/bin/env bash
# Makes the speech among the built-in clips of `cargo xtask eval` again: espeak-ng, 16 kHz, 16 bit, FLAC.
# Needs espeak-ng (the clips were made by 1.51), ffmpeg and flac.
set -euo pipefail
cd "$(dirname "$0")"

say() { # NAME VOICE SPEED PITCH TEXT
  espeak-ng -v "$2" -s "$3" -p "$4" -w "$1.raw.wav" "$5"
  ffmpeg -v error -y -i "$1.raw.wav" -ar 16000 -ac 1 -t 2.6 -sample_fmt s16 -bitexact "$1.wav"
  flac -s -f -8 --no-padding --no-seektable -o "$1.flac" "$1.wav"
  rm "$1.raw.wav" "$1.wav"
}

say speech-1 en-gb 165 45 "The seventh ship sailed past the old stone bridge."
say speech-2 en-us+f3 170 60 "Every codec keeps a few things and forgets the rest."
say speech-3 de 160 40 "Zwölf flinke Hunde jagen über das weiche Gras."
say speech-4 fr+f2 160 55 "Le petit train bleu traverse la vallée sans bruit."
