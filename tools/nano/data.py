"""data: shards of pictures as normalised packed latents, with the texts that lead to them. Training starts with the first shards."""
import argparse
import pickle

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2

import captions
import common
import model
import world

FOLDER = common.STATE / "shards"
VAE = common.STATE / "vae"
SINGLES, EDITS, PAIRS = 300, 150, 100  # episodes in a shard
THING_WEIGHT = 5.0


def load_vae():
    return AutoencoderKLFlux2.from_pretrained(VAE, torch_dtype=torch.float32).eval().requires_grad_(False)


def scale(vae):
    """mean and deviation [128] of the packed channels"""
    return vae.bn.running_mean, torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)


@torch.no_grad()
def encode(vae, pictures):
    """uint8 [n, 128, 128, 3] -> normalised packed latents [n, 64, 128]"""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = F.pixel_unshuffle(vae.encode(x).latent_dist.mode(), 2).flatten(2).transpose(1, 2)
    mean, deviation = scale(vae)
    return (z - mean) / deviation


@torch.no_grad()
def decode(vae, latents):
    """[n, 64, 128] -> uint8 [n, 128, 128, 3]"""
    mean, deviation = scale(vae)
    side = int(latents.shape[1] ** 0.5)
    z = (latents * deviation + mean).transpose(1, 2).unflatten(2, (side, side))
    y = vae.decode(F.pixel_shuffle(z, 2)).sample
    return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def weights(scene, look):
    """[64] how much each token counts in the loss: things are small, and what they are is decided by few tokens."""
    w = torch.ones(model.GRID, model.GRID)
    for i in range(len(scene.things)):
        x0, y0, x1, y1 = (int(max(0, v) // 16) for v in world.thing_box(scene, i, look))
        w[y0 : y1 + 1, x0 : x1 + 1] = THING_WEIGHT
    return w.flatten()


def episodes(seed):
    """(pictures to draw as (scene, look), singles, edits, pairs); the last three hold indices into the first."""
    rng = np.random.default_rng(1000 + seed)
    drawn, edits, pairs = [], [], []

    def draw(scene, look):
        drawn.append((scene, look))
        return len(drawn) - 1

    for _ in range(SINGLES):
        draw(world.random_scene(rng, 0 if rng.random() < 0.02 else None), world.random_look(rng))
    for _ in range(EDITS):
        _, text, before, after = captions.random_edit(rng)
        look = world.random_look(rng)
        edits.append((text, draw(before, look), draw(after, look)))
    for _ in range(PAIRS):
        text, first, second, result = captions.random_pair(rng)
        a, b = world.random_look(rng), world.random_look(rng)
        both = np.concatenate([a[:3], b[3:]])  # the thing sits as in the first, the place and its light are the second's
        pairs.append((text, draw(first, a), draw(second, b), draw(result, both)))
    return drawn, edits, pairs


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--shards", type=int, default=24)
    args = p.parse_args()
    common.setup(2)
    FOLDER.mkdir(exist_ok=True)
    vae = load_vae()
    for k in range(common.RANK, args.shards, common.WORKERS):
        path = FOLDER / f"{k:03}.pkl"
        if path.exists():
            continue
        common.wait_if_paused()
        drawn, edits, pairs = episodes(k)
        latents = []
        for i in range(0, len(drawn), 30):
            pictures = np.stack([world.render(*d) for d in drawn[i : i + 30]])
            with torch.autocast("cpu", torch.bfloat16):
                latents.append(encode(vae, pictures).half())
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps((drawn, edits, pairs, torch.cat(latents))))
        temporary.rename(path)
        print(path.name, len(drawn), flush=True)


class Shards:
    """All shards that exist by now; refresh() picks up new ones."""

    def __init__(self):
        self.names, self.drawn, self.edits, self.pairs = set(), [], [], []
        self.latents, self.weights = torch.empty(0, model.TOKENS, 128).half(), torch.empty(0, model.TOKENS)
        self.refresh()

    def refresh(self):
        parts, weighed = [self.latents], [self.weights]
        for path in sorted(FOLDER.glob("*.pkl")):
            if path.name in self.names:
                continue
            drawn, edits, pairs, latents = pickle.loads(path.read_bytes())
            base = len(self.drawn)
            self.names.add(path.name)
            self.drawn += drawn
            self.edits += [(t, a + base, b + base) for t, a, b in edits]
            self.pairs += [(t, a + base, b + base, c + base) for t, a, b, c in pairs]
            parts.append(latents)
            weighed.append(torch.stack([weights(*d) for d in drawn]))
        self.latents, self.weights = torch.cat(parts), torch.cat(weighed)


if __name__ == "__main__":
    main()
