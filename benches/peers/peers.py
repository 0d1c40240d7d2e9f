"""Codecs of Python packages behind the benchmark's protocol, see `cargo xtask bench --peers`.

Usage: python peers.py PEER. A request is a line of JSON on stdin, an answer a line of JSON on stdout. Weights are
random, as the packages make them: the speed does not depend on them.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy

# What the packages print must not get between the answers.
ANSWERS, sys.stdout = sys.stdout, sys.stderr


class Peer:
    """What every peer has: the clip, and the codes of the last encoding."""

    def __init__(self, request):
        import torch

        torch.set_num_threads(request["n_threads"])
        torch.set_grad_enabled(False)
        torch.manual_seed(1)
        self.n_codebooks, self.step_samples = request["n_codebooks"], request["step_samples"]
        samples = numpy.fromfile(request["audio"], dtype="<f4")
        channels = 2 if request["subject"] == "encodec_48khz" else 1
        self.audio = torch.from_numpy(samples.reshape(-1, channels).T.copy())[None]
        self.make(request["subject"], request)
        self.codes = None

    def make(self, subject, request):
        raise ValueError(f"has no {subject}")

    def encode(self):
        raise ValueError("cannot encode")

    def decode(self):
        raise ValueError("cannot decode")

    def step(self):
        raise ValueError("has no streams")


class Transformers(Peer):
    def make(self, subject, request):
        from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

        stereo = dict(
            audio_channels=2, chunk_length_s=1.0, norm_type="time_group_norm", normalize=True, overlap=0.01,
            sampling_rate=48_000, target_bandwidths=[3.0, 6.0, 12.0, 24.0], use_causal_conv=False,
        )
        models = {
            "encodec_24khz": lambda: EncodecModel(EncodecConfig()),
            "encodec_48khz": lambda: EncodecModel(EncodecConfig(**stereo)),
            "dac_44khz": lambda: DacModel(DacConfig(sampling_rate=44_100, hidden_size=1024, n_codebooks=9)),
            "mimi": lambda: MimiModel(MimiConfig()),
        }
        if subject not in models:
            super().make(subject, request)
        self.subject, self.model = subject, models[subject]().eval()

    def encode(self):
        if self.subject.startswith("encodec"):
            # Kilobits per second of so many codebooks of ten bits.
            rate = {"encodec_24khz": 75, "encodec_48khz": 150}[self.subject]
            self.codes = self.model.encode(self.audio, bandwidth=self.n_codebooks * rate / 100)
        elif self.subject == "mimi":
            self.codes = self.model.encode(self.audio, num_quantizers=self.n_codebooks)
        else:
            self.codes = self.model.encode(self.audio, n_quantizers=self.n_codebooks)

    def decode(self):
        if self.subject.startswith("encodec"):
            last = {"last_frame_pad_length": self.codes.last_frame_pad_length} if hasattr(self.codes, "last_frame_pad_length") else {}
            self.model.decode(self.codes.audio_codes, self.codes.audio_scales, **last)
        else:
            self.model.decode(audio_codes=self.codes.audio_codes)


class Encodec(Peer):
    def make(self, subject, request):
        import encodec

        makers = {
            "encodec_24khz": (encodec.EncodecModel.encodec_model_24khz, 75),
            "encodec_48khz": (encodec.EncodecModel.encodec_model_48khz, 150),
        }
        if subject not in makers:
            super().make(subject, request)
        maker, rate = makers[subject]
        self.model = maker(pretrained=False).eval()
        self.model.set_target_bandwidth(self.n_codebooks * rate / 100)

    def encode(self):
        self.codes = self.model.encode(self.audio)

    def decode(self):
        self.model.decode(self.codes)


class Dac(Peer):
    def make(self, subject, request):
        if subject != "dac_44khz":
            super().make(subject, request)
        import dac

        self.model = dac.DAC(sample_rate=44_100, n_codebooks=9).eval()

    def encode(self):
        audio = self.model.preprocess(self.audio, 44_100)
        self.codes = self.model.encode(audio, n_quantizers=self.n_codebooks)[1]

    def decode(self):
        self.model.decode(self.model.quantizer.from_codes(self.codes)[0])


class Snac(Peer):
    def make(self, subject, request):
        if subject != "snac_24khz":
            super().make(subject, request)
        import snac

        self.model = snac.SNAC(
            sampling_rate=24_000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024,
            decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=4096, codebook_dim=8,
            vq_strides=[4, 2, 1], noise=True, depthwise=True,
        ).eval()

    def encode(self):
        self.codes = self.model.encode(self.audio)

    def decode(self):
        self.model.decode(self.codes)


class Moshi(Peer):
    def make(self, subject, request):
        if subject != "mimi":
            super().make(subject, request)
        from moshi.models import loaders

        self.model = loaders.get_mimi(None, device="cpu", num_codebooks=self.n_codebooks).eval()

    def encode(self):
        self.codes = self.model.encode(self.audio)

    def decode(self):
        self.model.decode(self.codes)

    def step(self):
        n = self.audio.shape[-1] // self.step_samples * self.step_samples
        with self.model.streaming(1):
            return steps(self.audio[..., :n].split(self.step_samples, -1), self.model.encode, self.model.decode)


class RustyMimi(Peer):
    """Kyutai's `moshi` crate behind Python."""

    def make(self, subject, request):
        if subject != "mimi":
            super().make(subject, request)
        import rustymimi
        import torch
        from moshi.models import loaders
        from safetensors.torch import save_file

        # The names are those of `moshi`, but for how attention is written there.
        state = loaders.get_mimi(None, device="cpu", num_codebooks=32).state_dict()
        renamed = {
            name.replace("in_projs.0.", "in_proj_").replace("out_projs.0.", "out_proj."): tensor.contiguous()
            for name, tensor in state.items()
        }
        path = Path(request["audio"]).with_name("kyutai.safetensors")
        save_file({name: torch.nan_to_num(tensor.float()) for name, tensor in renamed.items()}, path)
        self.path = str(path)
        self.model = rustymimi.Tokenizer(self.path, num_codebooks=self.n_codebooks)
        self.pcm = self.audio.numpy()

    def encode(self):
        self.codes = self.model.encode(self.pcm)

    def decode(self):
        self.model.decode(self.codes)

    def step(self):
        n = self.pcm.shape[-1] // self.step_samples
        pieces = numpy.split(self.pcm[..., : n * self.step_samples], n, -1)
        return steps(pieces, self.model.encode_step, self.model.decode_step)


class LiteRt(Peer):
    """Lyra's networks as published, on XNNPACK, frame by frame as Lyra runs them."""

    def make(self, subject, request):
        if subject != "lyra-v2":
            super().make(subject, request)
        from ai_edge_litert.interpreter import Interpreter

        folder = Path(request["model"])

        def network(name):
            network = Interpreter(str(folder / f"{name}.tflite"), num_threads=request["n_threads"])
            network.allocate_tensors()
            return network

        self.encoder, self.decoder = network("soundstream_encoder"), network("lyragan")
        quantizer = network("quantizer")
        self.quantize, self.dequantize = (quantizer.get_signature_runner(name) for name in ("encode", "decode"))

    def run(self, network, values):
        network.set_tensor(network.get_input_details()[0]["index"], values)
        network.invoke()
        return network.get_tensor(network.get_output_details()[0]["index"])

    def frames(self):
        details = self.encoder.get_input_details()[0]
        samples = self.audio.numpy().reshape(-1)
        return samples.reshape((-1, *details["shape"]))

    def encode_frame(self, frame):
        latents = self.run(self.encoder, frame)
        return self.quantize(input_frames=latents.reshape(1, 1, -1), num_quantizers=numpy.int32(self.n_codebooks))["output_0"]

    def decode_frame(self, codes):
        latents = self.dequantize(encoding_indices=codes)["output_0"]
        return self.run(self.decoder, latents.reshape(self.decoder.get_input_details()[0]["shape"]))

    def encode(self):
        self.codes = [self.encode_frame(frame) for frame in self.frames()]

    def decode(self):
        for codes in self.codes:
            self.decode_frame(codes)


def steps(pieces, encode, decode):
    """Seconds of encoding and decoding each piece, in turns."""
    seconds = []
    for piece in pieces:
        began = time.perf_counter()
        codes = encode(piece)
        coded = time.perf_counter()
        decode(codes)
        seconds += [coded - began, time.perf_counter() - coded]
    return seconds


PEERS = {
    "transformers": Transformers,
    "encodec": Encodec,
    "dac": Dac,
    "snac": Snac,
    "moshi": Moshi,
    "rustymimi": RustyMimi,
    "litert": LiteRt,
}


def main():
    kind, peer = PEERS[sys.argv[1]], None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"seconds": []}
        try:
            began = time.perf_counter()
            if request["do"] == "load":
                peer = kind(request)
                result = None
            else:
                result = getattr(peer, request["do"])()
            answer["seconds"] = result or [time.perf_counter() - began]
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        # Kilobytes on Linux.
        answer["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
