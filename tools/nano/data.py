"""data: shards of pictures as normalised packed latents, with the texts that lead to them. Training starts with the first shards."""
import argparse
import itertools
import pickle

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2

import captions
import common
import model
import world
from world import Scene

FOLDER = common.STATE / "shards"
VAE = common.STATE / "vae"
SINGLES, FAMILIES, FAMILIES_OF_TWO, GRIDS = 180, 24, 5, 10  # in a shard
THING_WEIGHT = dict(small=12.0, big=5.0)  # a small one has fewer tokens and must count as much


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
    for i, thing in enumerate(scene.things):
        x0, y0, x1, y1 = (int(max(0, v) // 16) for v in world.thing_box(scene, i, look))
        w[y0 : y1 + 1, x0 : x1 + 1] = THING_WEIGHT[thing.size]
    return w.flatten()


class Episodes:
    """A shard before it is drawn: pictures as (scene, look), and what leads from some to others, as indices into them."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(1000 + seed)
        self.drawn, self.edits, self.pairs = [], [], []  # (name of the edit, thing, before, after), (first, second, asked for)
        for _ in range(SINGLES):
            self.draw(world.random_scene(self.rng, 0 if self.rng.random() < 0.02 else None), world.random_look(self.rng))
        for _ in range(FAMILIES):
            self.family()
        for _ in range(FAMILIES_OF_TWO):
            self.family_of_two()
        for _ in range(GRIDS):
            self.grid()

    def draw(self, scene, look):
        assert not world.scene_held_out(scene)
        self.drawn.append((scene, look))
        return len(self.drawn) - 1

    def other(self, name, scene, i):
        """The scene with something else changed, that is not held out; None if there is hardly one."""
        for _ in range(30):
            _, after = getattr(captions, "edit_" + name)(self.rng, scene, i)
            if not world.scene_held_out(after):
                return after

    def family(self):
        """One thing, one look: all sizes and positions, other colours, kinds and a place, and without the thing. Each two that differ in one
        thing are an edit, in both directions: a network that confuses what the text says with what the picture shows is wrong in half."""
        scene, look = world.random_scene(self.rng, 1), world.random_look(self.rng)
        here = {(s, p): self.draw(scene.with_thing(0, size=s, position=p), look) for s in world.SIZES for p in world.POSITIONS}
        before = here[scene.things[0].size, scene.things[0].position]
        for a, b in itertools.permutations(here, 2):
            if (a[0] == b[0]) != (a[1] == b[1]):
                self.edits.append(("move" if a[0] == b[0] else "size", 0, here[a], here[b]))
        nothing = self.draw(Scene(scene.place), look)
        removed = list(here.values())
        for name, count in (("colour", 2), ("kind", 2), ("place", 1)):
            scenes = {s for s in (self.other(name, scene, 0) for _ in range(count)) if s}
            same = [before] + [self.draw(s, look) for s in sorted(scenes, key=str)]
            self.edits += [(name, 0, a, b) for a, b in itertools.permutations(same, 2)]
            removed += same[1:] if name != "place" else []
        self.edits += [("remove", 0, a, nothing) for a in removed]

    def family_of_two(self):
        """Two things: each with another colour, as another kind, gone and back, and both elsewhere."""
        scene, look = world.random_scene(self.rng, 2), world.random_look(self.rng)
        before = self.draw(scene, look)
        for name, i in (("colour", 0), ("colour", 1), ("kind", 0), ("kind", 1), ("place", 0)):
            if after := self.other(name, scene, i):
                k = self.draw(after, look)
                self.edits += [(name, i, before, k), (name, i, k, before)]
        for i in range(2):
            k = self.draw(Scene(scene.place, (scene.things[1 - i],)), look)
            self.edits += [("remove", i, before, k), ("add", i, k, before)]

    def grid(self):
        """Three things in three places and the places alone; a thing sits the same everywhere, a place is lit the same whatever it holds.
        Any picture with a thing and any of another place are a pair, as they are and swapped."""
        while True:
            things = [world.random_scene(self.rng, 1).things[0] for _ in range(3)]
            places = [str(p) for p in self.rng.choice(world.PLACES, 3, replace=False)]
            if len({t.kind for t in things}) == 3 and not any(world.held_out(t, p) for t in things for p in places):
                break
        looks, lights = ([world.random_look(self.rng) for _ in range(3)] for _ in range(2))
        at = [[self.draw(Scene(p, (t,)), np.concatenate([a[:3], b[3:]])) for p, b in zip(places, lights)] for t, a in zip(things, looks)]
        at.append([self.draw(Scene(p), b) for p, b in zip(places, lights)])
        for thing, here, there, second in itertools.product(range(3), range(3), range(3), range(4)):
            if here != there and thing != second:
                self.pairs.append((at[thing][here], at[second][there], at[thing][there]))


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
        e, latents = Episodes(k), []
        for i in range(0, len(e.drawn), 30):
            pictures = np.stack([world.render(*d) for d in e.drawn[i : i + 30]])
            with common.fast():
                latents.append(encode(vae, pictures).half())
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps((e.drawn, e.edits, e.pairs, torch.cat(latents))))
        temporary.rename(path)
        print(path.name, len(e.drawn), "pictures", len(e.edits), "edits", len(e.pairs), "pairs", flush=True)


class Shards:
    """All shards that exist by now; refresh() picks up new ones."""

    def __init__(self):
        self.names, self.drawn, self.edits, self.pairs = set(), [], {}, []
        self.latents, self.weights = torch.empty(0, model.TOKENS, 128).half(), torch.empty(0, model.TOKENS)
        self.refresh()

    def refresh(self):
        parts, weighed = [self.latents], [self.weights]
        for path in sorted(p for p in FOLDER.glob("*.pkl") if p.name not in self.names):
            drawn, edits, pairs, latents = pickle.loads(path.read_bytes())
            base = len(self.drawn)
            self.names.add(path.name)
            self.drawn += drawn
            for name, thing, before, after in edits:
                self.edits.setdefault(name, []).append((thing, before + base, after + base))
            self.pairs += [(a + base, b + base, c + base) for a, b, c in pairs]
            parts.append(latents)
            weighed.append(torch.stack([weights(*d) for d in drawn]))
        self.latents, self.weights = torch.cat(parts), torch.cat(weighed)
        self.captioned = [i for i, (scene, _) in enumerate(self.drawn) if scene.things or i % 8 == 0]  # few captions of empty places


if __name__ == "__main__":
    main()
