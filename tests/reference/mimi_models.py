"""Seeded Mimi models with random weights that behave like trained ones, in every dialect.

A freshly made `MimiModel` has empty codebooks, and layer scales that keep its transformers out of the
result, so a wrong reader could pass on it. Here every convolution is scaled, on real input, until its
output has a healthy size, the branches of the transformers weigh as much as what they are added to, and
every codebook is filled with mixtures of residuals of real encoder outputs, so that all entries matter.
"""

import os

import torch
from encodec_models import boundary_distance, make_signal
from transformers import MimiConfig, MimiModel

# Frames of which codebooks are made.
N_FRAMES = 400
# Of the spread of the residuals, in the entries.
SHARE = 0.5

@torch.no_grad()
def make_model(config: MimiConfig, seed: int, weight_type: torch.dtype = torch.float32) -> MimiModel:
    """A model in eval mode; its weights are exact in `weight_type`."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like):
        return torch.randn(like.shape, generator=generator)

    model = MimiModel(config).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("_layer_scale.scale"):
            tensor.copy_(0.4 + 0.1 * noise(tensor))
        elif "layernorm.weight" in name:
            tensor.copy_(1 + 0.2 * noise(tensor))
        elif name.endswith("bias"):
            tensor.copy_(0.1 * noise(tensor))
        else:
            # Spread so that the sum over all inputs has the size of one.
            tensor.copy_(noise(tensor) / tensor[0].numel() ** 0.5)
        if ".self_attn.q_proj" in name or ".self_attn.k_proj" in name:
            # Attention that has a choice to make.
            tensor.mul_(1.5)
    n = 40 * config.frame_size
    clip = make_signal(n, config.audio_channels, config.sampling_rate, seed + 1)[None]
    handles = scale_convolutions(model)
    latents = model.encoder(clip).latents
    for stack in stacks(model):
        # What the inner space can hold comes back as it was, and the stacks share the work.
        stack.output_proj.weight.copy_(torch.linalg.pinv(stack.input_proj.weight[:, :, 0])[:, :, None])
    model.decoder(latents)
    for handle in handles:
        handle.remove()
    for tensor in model.parameters():
        tensor.copy_(tensor.to(weight_type).float())
    fill_codebooks(model, seed + 2, weight_type)
    return model


def stacks(model: MimiModel):
    quantizer = model.quantizer
    return [quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer]


def scale_convolutions(model: MimiModel):
    """Scales every convolution of the networks when it runs for the first time."""

    def scale(conv, _, ys):
        residual = conv.kernel_size == (1,)
        target = 0.3 if conv.out_channels == 1 else 0.5 if residual else 1.0
        factor = target / ys.std().clamp_min(1e-6)
        conv.weight.mul_(factor)
        if conv.bias is not None:
            conv.bias.mul_(factor)
        return ys * factor

    convs = (torch.nn.Conv1d, torch.nn.ConvTranspose1d)
    modules = [*model.encoder.modules(), *model.decoder.modules()]
    return [m.register_forward_hook(scale) for m in modules if isinstance(m, convs)]


@torch.no_grad()
def fill_codebooks(model: MimiModel, seed: int, weight_type: torch.dtype) -> None:
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    clip = make_signal(N_FRAMES * config.frame_size, config.audio_channels, config.sampling_rate, seed)
    latents = model.encoder(clip[None]).latents
    for stack in stacks(model):
        residual = stack.input_proj(latents)[0].T
        for layer in stack.layers:
            codebook = layer.codebook
            entries = mixtures(residual, config.codebook_size, generator)
            # Sums over what each entry stood for, as training leaves them; a few were never used.
            usage = (0.5 + 4 * torch.rand(config.codebook_size, generator=generator)).to(weight_type).float()
            usage[::97] = 0.0
            sums = (entries * usage.clamp_min(1e-5)[:, None]).to(weight_type).float()
            codebook.cluster_usage.copy_(usage)
            codebook.embed_sum.copy_(sums)
            codebook._embed = None
            residual = residual - codebook.embed[codebook.quantize(residual)]


def mixtures(residual: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Entries like the rows of `residual`, but mixtures of all of them: a frame that were an entry would leave
    nothing for the codebooks after, whose entries would then be alike."""
    centred = residual - residual.mean(0)
    weights = torch.randn((n, len(residual)), generator=generator) / len(residual) ** 0.5
    return residual.mean(0) + SHARE * weights @ centred


@torch.no_grad()
def trace(model: MimiModel, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and margins, `[n_codebooks, n_frames]`, of `clip`, `[channels, n_samples]`.

    The margin of a code is how far, at least, the latent would have to move before another entry were
    nearer, relative to its norm.
    """
    latents = model.encoder(clip[None]).latents
    norms = latents[0].norm(dim=0)
    codes, margins = [], []
    for stack in stacks(model):
        residual = stack.input_proj(latents)[0].T
        # A step of the latent becomes one of at most `spread` times its length in the inner space.
        spread = torch.linalg.matrix_norm(stack.input_proj.weight[:, :, 0], 2)
        for layer in stack.layers:
            code = layer.codebook.quantize(residual)
            margins.append(boundary_distance(residual, layer.codebook.embed, code) / (spread * norms))
            residual = residual - layer.codebook.embed[code]
            codes.append(code)
    return torch.stack(codes), torch.stack(margins).float()


@torch.no_grad()
def decode(model: MimiModel, codes: torch.Tensor) -> torch.Tensor:
    """Audio, `[channels, n_samples]`, of the codes of the first codebooks."""
    return model.decode(codes[None]).audio_values[0]


def hub_state(model: MimiModel) -> dict[str, torch.Tensor]:
    """The tensors under the names of a published Hugging Face checkpoint."""
    state = {}
    for name, tensor in model.state_dict().items():
        for part in ("encoder", "decoder"):
            name = name.replace(f"{part}.{part}_seanet.", f"{part}.")
            name = name.replace(f"{part}.{part}_transformer.", f"{part}_transformer.")
        name = name.replace("encoder.downsample.", "downsample.").replace("decoder.upsample.", "upsample.")
        state[name] = tensor.contiguous()
    return state


def kyutai_state(model: MimiModel) -> dict[str, torch.Tensor]:
    """The tensors as `moshi` has them: one input per attention, with neighbouring channels paired."""
    parts = [
        ("semantic_residual_vector_quantizer.layers.", "rvq_first.vq.layers."),
        ("acoustic_residual_vector_quantizer.layers.", "rvq_rest.vq.layers."),
        ("semantic_residual_vector_quantizer.", "rvq_first."),
        ("acoustic_residual_vector_quantizer.", "rvq_rest."),
        ("codebook.initialized", "_codebook._initialized"),
        ("codebook.embed_sum", "_codebook.embedding_sum"),
        ("codebook.cluster_usage", "_codebook.cluster_usage"),
        ("_transformer.layers.", "_transformer.transformer.layers."),
        ("mlp.fc1", "linear1"),
        ("mlp.fc2", "linear2"),
        ("input_layernorm", "norm1"),
        ("post_attention_layernorm", "norm2"),
        ("self_attn_layer_scale", "layer_scale_1"),
        ("mlp_layer_scale", "layer_scale_2"),
        ("self_attn.o_proj", "self_attn.out_proj"),
        ("downsample.conv.", "downsample.conv.conv.conv."),
        ("upsample.conv.", "upsample.convtr.convtr.convtr."),
    ]
    hub, state = hub_state(model), {}
    for name, tensor in hub.items():
        if name.startswith(("encoder.layers.", "decoder.layers.")):
            net, place, rest = name.split(".", 2)[0], int(name.split(".")[2]), name.split(".", 3)[3]
            transposed = net == "decoder" and place % 3 == 2 and place < last_place(hub)
            rest = rest.replace("conv.", "convtr.convtr." if transposed else "conv.conv.")
            state[f"{net}.model.{place}.{rest}"] = tensor
            continue
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            continue
        new = name
        for ours, theirs in parts:
            new = new.replace(ours, theirs)
        if name.endswith(".v_proj.weight"):
            q, k = (hub[name.replace("v_proj", other)] for other in ("q_proj", "k_proj"))
            dim = model.config.head_dim
            q, k = (w.reshape(-1, 2, dim // 2, w.shape[1]).transpose(1, 2).reshape(w.shape) for w in (q, k))
            new, tensor = new.replace("v_proj.weight", "in_proj_weight"), torch.cat([q, k, tensor])
        state[new] = tensor.contiguous()
    return state


def mlx_state(model: MimiModel) -> dict[str, torch.Tensor]:
    """The tensors as `moshi_mlx` has them: other names, and channels last in convolutions."""
    state = {}
    last = last_place(hub_state(model))
    for name, tensor in kyutai_state(model).items():
        name = ".".join(part.removeprefix("_") for part in name.split("."))
        name = name.replace("in_proj_weight", "in_proj.weight")
        name = name.replace(".linear1.", ".gating.linear1.").replace(".linear2.", ".gating.linear2.")
        if name.startswith(("encoder.model.", "decoder.model.")):
            net, _, place, rest = name.split(".", 3)
            place = int(place)
            if place in (0, last):
                name = f"{net}.{'init' if place == 0 else 'final'}_conv1d.{rest}"
            else:
                stage, part = divmod(place - 1, 3)
                rest = rest.replace("block.1.", "block.0.").replace("block.3.", "block.1.")
                kinds = {0: "residuals.0", 2: "downsample"} if net == "encoder" else {1: "upsample", 2: "residuals.0"}
                name = f"{net}.layers.{stage}.{kinds[part]}.{rest}"
        if name.endswith(".convtr.weight"):
            tensor = tensor.permute(1, 2, 0)
        elif name.endswith((".conv.weight", ".input_proj.weight", ".output_proj.weight")):
            tensor = tensor.transpose(-1, -2)
        state[name] = tensor.contiguous()
    return state


def last_place(hub: dict[str, torch.Tensor]) -> int:
    return max(int(name.split(".")[2]) for name in hub if name.startswith("encoder.layers."))


def make_moshi(model: MimiModel):
    """The model of `moshi` with the weights of `model`.

    Its streams hold as many steps as attention sees but take two at a time, which push out what the first of
    them should still see. Here they hold one more, so that streams are what whole clips are.
    """
    os.environ["NO_TORCH_COMPILE"] = "1"
    from moshi.models.compression import MimiModel as Moshi
    from moshi.modules import SEANetDecoder, SEANetEncoder, transformer
    from moshi.quantization import SplitResidualVectorQuantizer

    config = model.config
    seanet = dict(
        channels=config.audio_channels,
        dimension=config.hidden_size,
        causal=True,
        n_filters=config.num_filters,
        n_residual_layers=1,
        activation="ELU",
        compress=config.compress,
        dilation_base=config.dilation_growth_rate,
        disable_norm_outer_blocks=0,
        kernel_size=config.kernel_size,
        residual_kernel_size=config.residual_kernel_size,
        last_kernel_size=config.last_kernel_size,
        norm="none",
        pad_mode="constant",
        ratios=config.upsampling_ratios,
        true_skip=True,
    )

    def projected():
        return transformer.ProjectedTransformer(
            device="cpu",
            d_model=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_layers=config.num_hidden_layers,
            causal=True,
            layer_scale=0.01,
            context=config.sliding_window,
            conv_layout=True,
            max_period=10000,
            gating="none",
            norm="layer_norm",
            positional_embedding="rope",
            dim_feedforward=config.intermediate_size,
            input_dimension=config.hidden_size,
            output_dimensions=[config.hidden_size],
        )

    quantizer = SplitResidualVectorQuantizer(
        dimension=config.codebook_dim,
        n_q=config.num_quantizers,
        bins=config.codebook_size,
        input_dimension=config.hidden_size,
        output_dimension=config.hidden_size,
    )
    moshi = Moshi(
        SEANetEncoder(**seanet),
        SEANetDecoder(**seanet),
        quantizer,
        channels=config.audio_channels,
        sample_rate=config.sampling_rate,
        frame_rate=config.sampling_rate / config.frame_size,
        encoder_frame_rate=2 * config.sampling_rate / config.frame_size,
        causal=True,
        resample_method="conv",
        encoder_transformer=projected(),
        decoder_transformer=projected(),
    ).eval()
    for module in moshi.modules():
        if isinstance(module, transformer.StreamingMultiheadAttention):
            module.init_stream = module._init_streaming_state
            module._init_streaming_state = lambda batch, module=module: with_room(module, batch)
    moshi.load_state_dict({name: tensor.clone() for name, tensor in kyutai_state(model).items()})
    return moshi


def with_room(attention, batch: int):
    """The state of a stream whose attention holds one step more than it sees."""
    attention.context += 1
    state = attention.init_stream(batch)
    attention.context -= 1
    return state
