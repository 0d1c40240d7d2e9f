"""Writes lm_*.safetensors: tiny seeded language models over codes, and what they predict.

lm_encodec holds EnCodec's own language model under its names in the package (PyPI encodec, LMModel), the
arguments that its weights do not show as the metadata entry `config`, and

    vector.codes            [n_codebooks, n_frames], u8
    vector.streamed         [n_codebooks, n_frames], f32, natural logarithm of each code's probability, read
                            frame by frame with the states handed on, as its entropy coder does
    vector.whole            the same, read at once
    vector.last             [n_codebooks, card], f32, of every code in the last frame

lm_musicgen holds a decoder of transformers (MusicgenForCausalLM) without its cross-attention, its
configuration as `config`, and

    vector.codes            [n_codebooks, n_frames], u8, a prompt
    vector.greedy           [n_codebooks, n_frames], u8, generated from nothing, the likeliest code each time
    vector.continued        [n_codebooks, n_frames], u8, the prompt and what follows it
    vector.logits           [n_steps, n_codebooks * vocab_size], f32, read behind the start step from the prompt
                            in its delay pattern

Usage: cargo xtask vectors lm, or python lm_vectors.py DIRECTORY
"""

import json
import sys
from pathlib import Path

import torch
from encodec.model import LMModel
from safetensors.torch import save_file
from transformers import MusicgenForCausalLM
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

MAX_BYTES = 300_000


def randomize(model: torch.nn.Module, spread: float) -> None:
    """Gives every parameter values that matter: biases and gains start as zeros and ones."""
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(std=spread * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))


def save(path: Path, tensors: dict, config: dict) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    size = path.stat().st_size
    assert size <= MAX_BYTES, f"{path.name} has {size} bytes"
    print(f"{path.name}: {size} bytes")


@torch.no_grad()
def encodec(out: Path) -> None:
    torch.manual_seed(11)
    arguments = {"num_heads": 8, "past_context": 40}
    n_q, card, n_frames = 4, 40, 500
    model = LMModel(n_q=n_q, card=card, dim=32, num_layers=2, **arguments).eval()
    randomize(model, 1.5)
    codes = torch.randint(card, (1, n_q, n_frames))
    # What is read is the frame before, as one more than its codes; 0 is none.
    inputs = torch.cat([torch.zeros(1, n_q, 1, dtype=torch.long), 1 + codes[:, :, :-1]], dim=2)

    def of_codes(probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities.log().gather(1, codes[:, None])[0, 0]

    whole = of_codes(model(inputs)[0])
    states, offset, pieces = None, 0, []
    for frame in inputs.split(1, dim=2):
        probabilities, states, offset = model(frame, states, offset)
        pieces.append(probabilities)
    probabilities = torch.cat(pieces, dim=3)
    streamed = of_codes(probabilities)
    print("encodec: streamed and whole differ by", (streamed - whole).abs().max().item())
    tensors = dict(model.state_dict())
    tensors |= {
        "vector.codes": codes[0].to(torch.uint8),
        "vector.streamed": streamed,
        "vector.whole": whole,
        "vector.last": probabilities[0, :, :, -1].log().T,
    }
    save(out / "lm_encodec.safetensors", tensors, arguments)


@torch.no_grad()
def musicgen(out: Path) -> None:
    torch.manual_seed(12)
    size, n_codebooks, n_new = 48, 4, 40
    config = MusicgenDecoderConfig(
        vocab_size=size,
        max_position_embeddings=256,
        num_hidden_layers=3,
        ffn_dim=64,
        num_attention_heads=4,
        hidden_size=32,
        num_codebooks=n_codebooks,
        layerdrop=0.0,
        dropout=0.0,
        pad_token_id=size,
        bos_token_id=size,
        eos_token_id=None,
    )
    model = MusicgenForCausalLM(config).eval()
    # So far apart that the likeliest codes do not repeat themselves soon.
    randomize(model, 3.0)

    def generate(ids: torch.Tensor, n_frames: int) -> torch.Tensor:
        """The likeliest codes of `n_frames` frames in all.

        The loop is that of the reference's `generate`, which for the decoder alone loses its input in 5.23.0.
        """
        # A start step, and the delays of the codebooks behind the first.
        max_length = n_frames + n_codebooks
        ids, mask = model.build_delay_pattern_mask(ids, pad_token_id=size, max_length=max_length)
        while ids.shape[1] < max_length:
            ids = model.apply_delay_pattern_mask(ids, mask)
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        ids = model.apply_delay_pattern_mask(ids, mask)
        return ids[ids != size].reshape(n_codebooks, n_frames)

    start = torch.full((n_codebooks, 1), size)
    greedy = generate(start, n_new)
    prompt = torch.randint(size, (n_codebooks, 15))
    continued = generate(torch.cat([start, prompt], dim=1), n_new)
    assert (continued[:, :15] == prompt).all()
    n_different = [len(codes.unique()) for codes in (greedy, continued[:, 15:])]
    assert min(n_different) > 8, n_different
    # The steps of the prompt in its delay pattern, behind the start step.
    steps = torch.full((n_codebooks, 15 + n_codebooks), size)
    for k in range(n_codebooks):
        steps[k, 1 + k : 16 + k] = prompt[k]
    logits = model(steps).logits.permute(1, 0, 2).reshape(steps.shape[1], -1)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".encoder_attn" not in name}
    tensors |= {
        "vector.codes": prompt.to(torch.uint8),
        "vector.greedy": greedy.to(torch.uint8),
        "vector.continued": continued.to(torch.uint8),
        "vector.logits": logits,
    }
    save(out / "lm_musicgen.safetensors", tensors, config.to_dict())


if __name__ == "__main__":
    encodec(Path(sys.argv[1]))
    musicgen(Path(sys.argv[1]))
