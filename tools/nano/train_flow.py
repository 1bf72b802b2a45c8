"""train_flow: text encoder and transformer together, by flow matching, on pictures, edits and pairs of references.

Two choices make four Euler steps enough without a teacher. The pairing of noise and picture is chosen: the six numbers of a picture's Look
are read from the noise (the means of its first six channels, through the normal distribution), so noise and text determine the picture, the
exact flow is straight, and there is nothing to average over. And most training times are the four of the sampler.

With --refine the network learns on its own path: see own_path.
"""
import argparse
import math
import time

import numpy as np
import torch
from PIL import Image

import captions
import common
import data
import model
import tokenizer
import world
from optimizer import Both

STATE = common.STATE / "flow.pt"
# Each worker's step is one batch of one kind: texts only at first, then this cycle. With two workers one does texts and pairs in turn, the other edits.
BATCH = dict(text=10, edit=7, pair=5)
CYCLE, TEXTS_UNTIL = ("text", "edit", "pair", "edit"), 0.3
SOFT_CYCLE = ("pair", "edit", "text", "edit", "pair", "edit", "pair", "edit")  # with --soft; its length and own_path's three steps have no common period
EDITS = dict(colour=1.2, kind=1.4, size=1.3, move=1.3, remove=1.1, place=0.9, add=0.3)  # how often, relatively
SOFT = dict(cup=3.0, small=1.5, night=1.5)  # with --soft: how much more often pictures of these are asked for
AT_SIGMAS = 0.8  # fraction of times that are one of the sampler's


def couple(noise, looks):
    """Noise [b, 64, 128] whose first channels' means say `looks` [b, LOOKS]; its distribution stays normal."""
    wanted = torch.special.ndtri((torch.from_numpy(np.stack(looks)).double().clamp(-0.998, 0.998) + 1) / 2).float()
    have = noise[:, :, : world.LOOKS].sum(1) / math.sqrt(noise.shape[1])
    noise[:, :, : world.LOOKS] += ((wanted - have) / math.sqrt(noise.shape[1]))[:, None]
    return noise


def times(count):
    """Most at the sampler's noise levels, the rest from its shifted distribution."""
    levels = torch.tensor(model.sigmas()[:-1])
    s = torch.rand(count)
    shift = levels[1] / (1 - levels[1]) / 3  # e^mu: levels[1] is the shifted 3/4
    anywhere = shift * s / (1 + (shift - 1) * s)
    return torch.where(torch.rand(count) < AT_SIGMAS, levels[torch.randint(len(levels), (count,))], anywhere)


def often(scene):
    """How often a picture is asked for, with --soft, relatively."""
    words = {scene.place, *(word for t in scene.things for word in (t.kind, t.size))}
    return math.prod(factor for word, factor in SOFT.items() if word in words)


class Batches:
    def __init__(self, rng, soft=False):
        self.rng, self.shards, self.prompts, self.soft, self.odds = rng, data.Shards(), tokenizer.Prompts(), soft, np.empty(0)

    def some(self, options, picture, count):
        """`count` of the options; with --soft some more often, by the picture that each leads to."""
        if len(self.odds) < len(self.shards.drawn):
            self.odds = np.array([often(scene) if self.soft else 1.0 for scene, _ in self.shards.drawn])
        odds = self.odds[[picture(o) for o in options]]
        return [options[i] for i in self.rng.choice(len(options), count, p=odds / odds.sum())]

    def latents(self, index):
        return self.shards.latents[torch.tensor(index)].float()

    def texts(self, count):
        index = self.some(self.shards.captioned, lambda i: i, count)
        drawn = [self.shards.drawn[i] for i in index]
        x = self.latents(index)
        noise = couple(torch.randn_like(x), [look for _, look in drawn])
        return [captions.caption(self.rng, scene) for scene, _ in drawn], x, noise, [], self.shards.weights[index]

    def edits(self, count):
        odds = np.array([EDITS[name] for name in self.shards.edits])
        for name in self.rng.choice(list(self.shards.edits), size=count, p=odds / odds.sum()):
            [(thing, before, after)] = self.some(self.shards.edits[name], lambda e: e[2], 1)
            yield captions.instruction(self.rng, name, self.shards.drawn[before][0], self.shards.drawn[after][0], thing), before, after

    def pairs(self, count):
        for first, second, both in self.some(self.shards.pairs, lambda p: p[2], count):
            yield captions.pair_text(self.rng, self.shards.drawn[first][0].things[0]), first, second, both

    def with_references(self, episodes):
        """Episodes are (text, reference, ..., target)."""
        text, *index = zip(*episodes)
        *references, x = [self.latents(list(i)) for i in index]
        weights = torch.stack([self.shards.weights[list(i)] for i in index]).amax(0)
        return list(text), x, torch.randn_like(x), references, weights

    def draw(self, kind, count):
        """(texts, pictures' latents, noise, references, weights of tokens)"""
        if kind == "text":
            return self.texts(count)
        return self.with_references(self.edits(count) if kind == "edit" else self.pairs(count))


def context_of(encoder, prompts, text):
    return model.encode_text(encoder, *map(torch.from_numpy, prompts(text)))


def weighted(error, weights):
    """Per-sample weighted mean of squared errors of the velocity."""
    return ((error.float() ** 2).mean(2) * weights).sum(1) / weights.sum(1)


def straight_path(_, encoder, transformer, prompts, text, x, noise, references, weights):
    """Losses at one time of the exact flow."""
    t = times(len(x))
    noisy = (1 - t)[:, None, None] * x + t[:, None, None] * noise
    v = model.velocity(transformer, context_of(encoder, prompts, text), noisy, t, references)
    return weighted(v - (noise - x), weights)


def own_path(step, encoder, transformer, prompts, text, x, noise, references, weights):
    """Losses at two of the sampler's steps, where the sampler itself would be. On the exact flow a later step need only look at the picture that
    shimmers through the noise; here it sees the sampler's own guess, which may be wrong, and must go by the text and the references. At the
    first step there is nothing else to go by: it is trained as often as the others together. The picture is determined, so it is the target everywhere."""
    levels, later = model.sigmas(), 1 + step % (model.STEPS - 1)
    context = context_of(encoder, prompts, text)
    v = model.velocity(transformer, context, noise, torch.full((len(x),), levels[0]), references)
    first, z = v - (noise - x), noise
    for k in range(later):
        z = z + (levels[k + 1] - levels[k]) * v.detach().float()
        with torch.set_grad_enabled(k + 1 == later):
            v = model.velocity(transformer, context, z, torch.full((len(x),), levels[k + 1]), references)
    return (weighted(first, weights) + weighted(v - (z - x) / levels[later], weights)) / 2


@torch.no_grad()
def draw_sheet(batches, encoder, transformer, vae, path):
    """Rows: four steps from text | wanted; the same for edits (reference, made, wanted) and pairs."""
    rng, kept = np.random.default_rng(7), batches.rng
    batches.rng = rng
    torch_state = torch.get_rng_state()
    torch.manual_seed(7)
    rows = []
    for kind in ("text", "text", "edit", "pair"):
        text, x, noise, references, _ = batches.draw(kind, 8)
        made = model.sample(transformer, context_of(encoder, batches.prompts, text), noise, references)
        rows += [np.concatenate(list(data.decode(vae, z)), 1) for z in (*references, made, x)]
        print(*text, sep=" | ")
    Image.fromarray(np.concatenate(rows, 0)).save(path)
    torch.set_rng_state(torch_state)
    batches.rng = kept


def is_matrix(name, p):
    """Muon's share: the blocks' matrices."""
    return p.ndim == 2 and ("blocks." in name or "layers." in name)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=8000)
    p.add_argument("--until", type=float, default=0, help="end at this Unix time instead, learning rate included")
    p.add_argument("--refine", action="store_true", help="go on from what restore.py made: the sampler's own path, half the learning rate, all kinds from the start")
    p.add_argument("--only", default="", help="train only parameters whose names begin with one of these (between commas); the others keep every bit")
    p.add_argument("--soft", action="store_true", help="ask more often for what comes out soft")
    p.add_argument("--rate", type=float, help="factor of the learning rates")
    p.add_argument("--sheet-every", type=int, default=500)
    args = p.parse_args()
    common.setup(3)
    log = common.Log("refine" if args.refine else "flow")
    loss_of, texts_until, rate, hold = (own_path, 0, 0.5, 0.3) if args.refine else (straight_path, TEXTS_UNTIL, 1.0, 0.85)
    cycle = SOFT_CYCLE if args.soft else CYCLE
    batches = Batches(np.random.default_rng(int(time.time()) + common.RANK), args.soft)
    vae = data.load_vae()
    encoder, transformer = model.new_text_encoder(batches.prompts.pad), model.new_transformer()
    for m in (encoder, transformer):
        for name, parameter in m.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(args.only.split(","))))
    averages = [common.Average(m, 0.996) for m in (encoder, transformer)]
    optimizer = Both([encoder, transformer], is_matrix, lr=2e-3, adam_lr=1e-3)
    torch.manual_seed(int(time.time()) + common.RANK)
    step, spent = 0, 0.0
    if state := common.load(STATE):
        for m, s in zip((encoder, transformer, averages[0].module, averages[1].module), state["weights"]):
            m.load_state_dict(s)
        if state["optimizer"]:
            optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
        averages[0].steps = averages[1].steps = step
    begun, done = time.time() - spent, 0.0
    sums = torch.zeros(2, len(BATCH))  # losses and samples by kind since the last row of the log
    while done < 1:
        common.wait_if_paused()
        start = time.time()
        kind = "text" if done < texts_until else cycle[(step * common.WORKERS + common.RANK) % len(cycle)]
        with common.fast():
            losses = loss_of(step, encoder, transformer, batches.prompts, *batches.draw(kind, BATCH[kind]))
        (losses.sum() / (BATCH["text"] * common.WORKERS)).backward()
        sums[:, list(BATCH).index(kind)] += torch.tensor([losses.sum().item(), len(losses)])
        done = common.agree((time.time() - begun) / (args.until - begun) if args.until else (step + 1) / args.steps)
        norm = optimizer.step((args.rate or rate) * common.learning_rate(min(done, 1), hold))
        for average, m in zip(averages, (encoder, transformer)):
            average.update(m)
        step += 1
        spent += time.time() - start
        if step % 20 == 0:
            common.total([sums])
            text, edit, pair = (sums[0] / sums[1]).tolist()
            sums.zero_()
            batches.shards.refresh()
        if common.RANK:
            continue
        if step % 20 == 0:
            log.add(step=step, minutes=spent / 60, text=text, edit=edit, pair=pair, norm=norm, done=done)
        if step % 60 == 0 or done >= 1:
            common.save(STATE, weights=[m.state_dict() for m in (encoder, transformer, averages[0].module, averages[1].module)],
                        optimizer=optimizer.state_dict(), step=step, spent=spent)
        if step % args.sheet_every == 0 or done >= 1:
            draw_sheet(batches, averages[0].module, averages[1].module, vae, common.STATE / "flow.png")


if __name__ == "__main__":
    main()
