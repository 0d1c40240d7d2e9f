"""SNAC with noise that can be made again: the numbers of codec-kernels' `gaussian` by the same formulas."""

import numpy as np
import torch
from snac.layers import NoiseBlock

# As in nets/dacnet.rs.
SEED = 0x534E_4143
GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)


def splitmix(x):
    with np.errstate(over="ignore"):
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> np.uint64(31))


def gaussian(seed: int, n: int) -> torch.Tensor:
    with np.errstate(over="ignore"):
        places = splitmix(np.array(seed, dtype=np.uint64)) + np.arange(n, dtype=np.uint64)
    radius = ((splitmix(places) >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    angle = (splitmix(places ^ GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).float()


def with_our_noise(model):
    """Gives every noise block of the decoder its own seed, in order."""

    def forward(block, x):
        return x + gaussian(block.seed, x.shape[-1]) * block.linear(x)

    blocks = [module for module in model.modules() if isinstance(module, NoiseBlock)]
    for block_idx, block in enumerate(blocks):
        block.seed = SEED + block_idx
        block.forward = forward.__get__(block)
    return model
