#!/bin/sh
# Makes the encoded vectors beside this script from a synthetic signal, with ffmpeg, lame, oggenc
# and opusenc. The tests need none of these programs: they read what is committed.
# Run it in an empty folder and copy the results. Measured with ffmpeg 5.1, lame 3.100,
# vorbis-tools 1.4.2, opus-tools 0.2, libopus 1.3.1.
set -eu
# 0.3 s, two channels: a chirp from 300 to 2000 Hz and a tone of 440 Hz.
SIGNAL='aevalsrc=0.4*sin(2*PI*(300*t+2833*t*t))|0.3*sin(2*PI*440*t):d=0.3:s'
RATE=44100
make() {
    out=$1
    shift
    ffmpeg -v error -y -f lavfi -i "$SIGNAL=$RATE" -fflags +bitexact -flags:a +bitexact -map_metadata -1 "$@" "$out"
}
make chirp.wav -c:a pcm_s16le
make chirp.flac -c:a flac -sample_fmt s16
make chirp-ogg.flac.ogg -c:a flac -sample_fmt s16 -f ogg
make chirp.m4a -c:a aac -b:a 128k -aac_pns 0
make chirp-faststart.m4a -c:a aac -b:a 128k -aac_pns 0 -movflags +faststart
make chirp.aac -c:a aac -b:a 128k -aac_pns 0
make chirp-alac.m4a -c:a alac -sample_fmt s16p
make chirp.caf -c:a alac -sample_fmt s16p
make chirp.aiff -c:a pcm_s16be
make chirp.mka -c:a libvorbis -q:a 1
make chirp-ima.wav -c:a adpcm_ima_wav
lame --quiet -b 128 --resample 44.1 chirp.wav chirp.mp3
oggenc --quiet -q 4 -s 1 chirp.wav -o chirp.ogg
# Opus at its own rate, so that no resampler takes part.
RATE=48000
make chirp.webm -c:a libopus -b:a 96k
make chirp-surround.opus -ac 6 -c:a libopus -b:a 128k -mapping_family 1
make chirp48.wav -c:a pcm_s16le
opusenc --quiet --bitrate 96 --serial 1 chirp48.wav chirp.opus
opusenc --quiet --bitrate 96 --serial 2 chirp48.wav second.opus
cat chirp.opus second.opus > chirp-chained.opus
