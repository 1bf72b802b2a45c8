"""train_flow: text encoder and transformer together, by flow matching, on pictures, edits and pairs of references.

Two choices make four Euler steps enough without a teacher. The pairing of noise and picture is chosen: the six numbers of a picture's Look
are read from the noise (the means of its first six channels, through the normal distribution), so noise and text determine the picture, the
exact flow is straight, and there is nothing to average over. And most training times are the four of the sampler.
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


class Batches:
    def __init__(self, rng):
        self.rng, self.shards, self.prompts = rng, data.Shards(), tokenizer.Prompts()

    def latents(self, index):
        return self.shards.latents[torch.tensor(index)].float()

    def texts(self, count):
        index = self.rng.integers(len(self.shards.drawn), size=count).tolist()
        drawn = [self.shards.drawn[i] for i in index]
        x = self.latents(index)
        noise = couple(torch.randn_like(x), [look for _, look in drawn])
        return [captions.caption(self.rng, scene) for scene, _ in drawn], x, noise, [], self.shards.weights[index]

    def with_references(self, episodes, count):
        """Episodes are (text, reference, ..., target)."""
        chosen = [episodes[i] for i in self.rng.integers(len(episodes), size=count)]
        text, *index = zip(*chosen)
        *references, x = [self.latents(list(i)) for i in index]
        weights = torch.stack([self.shards.weights[list(i)] for i in index]).amax(0)
        return list(text), x, torch.randn_like(x), references, weights

    def draw(self, kind, count):
        """(texts, pictures' latents, noise, references, weights of tokens)"""
        if kind == "text":
            return self.texts(count)
        return self.with_references(self.shards.edits if kind == "edit" else self.shards.pairs, count)


def loss_of(encoder, transformer, prompts, text, x, noise, references, weights):
    """Per-sample weighted mean squared error of the velocity."""
    ids, mask = map(torch.from_numpy, prompts(text))
    t = times(len(x))
    noisy = (1 - t)[:, None, None] * x + t[:, None, None] * noise
    with torch.autocast("cpu", torch.bfloat16):
        context = model.encode_text(encoder, ids, mask)
        v = model.velocity(transformer, context, noisy, t, references)
    return (((v.float() - (noise - x)) ** 2).mean(2) * weights).sum(1) / weights.sum(1)


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
        ids, mask = map(torch.from_numpy, batches.prompts(text))
        made = model.sample(transformer, model.encode_text(encoder, ids, mask), noise, references)
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
    p.add_argument("--sheet-every", type=int, default=500)
    args = p.parse_args()
    common.setup(3)
    log = common.Log("flow")
    batches = Batches(np.random.default_rng(int(time.time()) + common.RANK))
    vae = data.load_vae()
    encoder, transformer = model.new_text_encoder(batches.prompts.pad), model.new_transformer()
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
        kind = "text" if done < TEXTS_UNTIL else CYCLE[(step * common.WORKERS + common.RANK) % len(CYCLE)]
        losses = loss_of(encoder, transformer, batches.prompts, *batches.draw(kind, BATCH[kind]))
        (losses.sum() / (BATCH["text"] * common.WORKERS)).backward()
        sums[:, list(BATCH).index(kind)] += torch.tensor([losses.sum().item(), len(losses)])
        done = common.agree((time.time() - begun) / (args.until - begun) if args.until else (step + 1) / args.steps)
        norm = optimizer.step(common.learning_rate(min(done, 1), hold=0.85))
        for average, m in zip(averages, (encoder, transformer)):
            average.update(m)
        step += 1
        spent += time.time() - start
        if step % 50 == 0:
            common.total([sums])
            text, edit, pair = (sums[0] / sums[1]).tolist()
            sums.zero_()
        if step % 100 == 0:
            batches.shards.refresh()
        if common.RANK:
            continue
        if step % 50 == 0:
            log.add(step=step, minutes=spent / 60, text=text, edit=edit, pair=pair, norm=norm, done=done)
        if step % 100 == 0 or done >= 1:
            common.save(STATE, weights=[m.state_dict() for m in (encoder, transformer, averages[0].module, averages[1].module)],
                        optimizer=optimizer.state_dict(), step=step, spent=spent)
        if step % args.sheet_every == 0 or done >= 1:
            draw_sheet(batches, averages[0].module, averages[1].module, vae, common.STATE / "flow.png")


if __name__ == "__main__":
    main()
