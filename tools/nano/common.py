"""common: what both training loops share: state folder, workers, log, pause, moving average, learning rate.

Training runs as several processes of one thread each, which meet once a step (gloo): on a machine that others use too, threads that
meet at every operation mostly wait for each other. Started without torchrun there is one process, of two threads."""
import copy
import csv
import datetime
import math
import os
import pathlib
import time

import torch

STATE = pathlib.Path(os.environ.get("NANO_STATE", "/var/tmp/klein-nano"))
PAUSE = pathlib.Path("/tmp/nano-pause")  # while this file exists, training sleeps


BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
WORKERS = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))


def setup(seed):
    STATE.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2 if WORKERS == 1 else 1)
    torch.manual_seed(seed)
    if WORKERS > 1:
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(hours=2))


def fast():
    """Matrices in bf16 where the processor has instructions for it; elsewhere that is slower than f32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=BF16)


def total(tensors):
    """In place, the sum over all workers."""
    if WORKERS > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        torch.distributed.all_reduce(flat)
        for t, piece in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(piece.view_as(t))


def agree(number):
    """Worker 0's number."""
    if WORKERS > 1:
        t = torch.tensor([number], dtype=torch.float64)
        torch.distributed.broadcast(t, 0)
        return t.item()
    return number


def wait_if_paused():
    while PAUSE.exists():
        time.sleep(1)


def save(path, **state):
    """Writes beside and renames: an interrupted save leaves the old state."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


class Log:
    """Rows of numbers to a CSV file that survives restarts, and to the terminal."""

    def __init__(self, name):
        self.path = STATE / f"{name}.csv"

    def add(self, **row):
        new = not self.path.exists()
        with self.path.open("a", newline="") as f:
            writer = csv.DictWriter(f, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


class Average:
    """Exponential moving average of a module's weights, with a short memory at the start."""

    def __init__(self, module, decay):
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, module):
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for a, b in zip(self.module.parameters(), module.parameters()):
            a.lerp_(b, 1 - keep)


def learning_rate(done, hold, warmup=0.02):
    """Factor at fraction `done` of the training: linear up, flat, cosine down to 1 %."""
    if done < warmup:
        return done / warmup
    if done < hold:
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, (done - hold) / (1 - hold))))
