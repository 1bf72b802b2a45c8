"""sigmas.safetensors: the real scheduler's schedules for sizes, step counts and custom sigmas."""

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu, retrieve_timesteps

from common import save

# 1040x1056 and 1056x1056 lie on either side of the jump of mu at 4300 tokens.
SIZES = [
    (64, 64), (256, 256), (512, 512), (768, 768), (1024, 1024), (1360, 768), (1040, 1056), (1056, 1056), (1440, 1440),
    (1792, 1792), (2048, 2048),
]  # fmt: skip
STEPS = [1, 2, 4, 8, 20, 50]
CUSTOM = {"a": [1.0, 0.8, 0.55, 0.2], "b": [0.9, 0.25], "c": [1.0, 0.999, 0.5, 0.01, 0.001]}


def schedule(scheduler, width: int, height: int, steps: int, sigmas=None):
    """As the pipeline does: sigmas [steps + 1] and mu."""
    mu = compute_empirical_mu(image_seq_len=(width // 16) * (height // 16), num_steps=steps)
    sigmas = np.linspace(1.0, 1 / steps, steps) if sigmas is None else sigmas
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    return scheduler.sigmas, mu


def make(scheduler: FlowMatchEulerDiscreteScheduler, out: Path) -> None:
    tensors = {}
    for width, height in SIZES:
        size = f"{width}x{height}"
        for steps in STEPS:
            tensors[f"{size}.sigmas.{steps}"], mu = schedule(scheduler, width, height, steps)
            tensors[f"{size}.mu.{steps}"] = torch.tensor([mu], dtype=torch.float32)
    for name, sigmas in CUSTOM.items():
        tensors[f"custom.{name}.in"] = torch.tensor(sigmas, dtype=torch.float32)
        for width, height in [(64, 96), (1024, 1024), (2048, 2048)]:
            tensors[f"custom.{name}.{width}x{height}"], _ = schedule(scheduler, width, height, len(sigmas), sigmas)
    save(out / "sigmas.safetensors", tensors)
