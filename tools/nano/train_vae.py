"""train_vae: the autoencoder of the demo checkpoint. Random crops first, whole pictures at the end; L1, edges, and a little KL."""
import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from PIL import Image

import common
import world
from optimizer import Both

CONFIG = dict(block_out_channels=(32, 32, 64, 96), layers_per_block=1, norm_num_groups=8, latent_channels=32, sample_size=world.SIZE)
KL = 3e-4
STATE = common.STATE / "vae.pt"


def new_vae():
    """Starts as a well-conditioned linear autoencoder: residual branches add nothing yet, the other layers keep the size of what passes
    through, and the posterior is narrow. Colours then reach the decoder from the first steps on."""
    vae = AutoencoderKLFlux2(**CONFIG)
    for name, p in vae.named_parameters():
        if name.endswith("conv2.weight") or name.endswith("to_out.0.weight"):
            torch.nn.init.zeros_(p)
        elif p.ndim >= 2 and "resnets" not in name or "shortcut.weight" in name:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
        elif p.ndim == 1 and name.endswith("bias"):
            torch.nn.init.zeros_(p)
    with torch.no_grad():
        vae.quant_conv.bias[CONFIG["latent_channels"] :] = -4.0  # log variance
    return vae


def render_pool(n, seed):
    rng = np.random.default_rng(seed)
    return np.stack([world.render(world.random_scene(rng), world.random_look(rng)) for _ in range(n)])


def batch_of(pool, rng, crop, count):
    """float [count, 3, crop, crop] in [-1, 1]"""
    out = []
    for _ in range(count):
        y, x = rng.integers(0, world.SIZE - crop + 1, 2)
        out.append(pool[rng.integers(len(pool)), y : y + crop, x : x + crop])
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def losses(vae, x):
    with common.fast():
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x)))
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return F.l1_loss(y, x), edge, kl


@torch.no_grad()
def measure(vae, pool, path):
    """PSNR of whole pictures through mean latents, and a sheet to look at."""
    x = torch.from_numpy(pool[:16]).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    sheet = torch.cat([torch.cat(list(t[:8]), 2) for t in (x, y)], 1)
    Image.fromarray(((sheet.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(path)
    return -10 * torch.log10(((x - y) ** 2).mean() / 4).item()


@torch.no_grad()
def set_statistics(vae, pool):
    """The BatchNorm statistics of the 128 packed channels. Variances are of *sampled* latents: what the encoder does not use (pure posterior
    noise, variance 1) then stays small after normalisation instead of being blown up to unit size for the transformer to learn."""
    packed = []
    for i in range(0, len(pool), 32):
        x = torch.from_numpy(pool[i : i + 32]).permute(0, 3, 1, 2).float() / 127.5 - 1
        packed.append(F.pixel_unshuffle(vae.encode(x).latent_dist.sample(), 2).permute(0, 2, 3, 1).reshape(-1, 128))
    packed = torch.cat(packed)
    vae.bn.running_mean.copy_(packed.mean(0))
    vae.bn.running_var.copy_(packed.var(0))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--minutes", type=float, default=0, help="stop after so much time instead (0: by steps)")
    args = p.parse_args()
    common.setup(1)
    log = common.Log("vae")
    pool = render_pool(1500, seed=common.RANK)
    rng = np.random.default_rng(int(time.time()) + common.RANK)
    vae = new_vae()
    average = common.Average(vae, 0.998)
    optimizer = Both([vae], lambda name, p: p.ndim >= 2 and "conv_in" not in name and "conv_out" not in name, lr=3e-3, adam_lr=2e-3)
    step, spent = 0, 0.0
    if state := common.load(STATE):
        vae.load_state_dict(state["vae"]), average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, average.steps = state["step"], state["spent"], state["step"]
    done = 0.0
    while done < 1:
        common.wait_if_paused()
        start = time.time()
        crop, count = (64, 8) if done < 0.75 else (world.SIZE, 4)
        l1, edge, kl = losses(vae, batch_of(pool, rng, crop, count))
        ((l1 + 0.5 * edge + KL * kl) / common.WORKERS).backward()
        optimizer.step(common.learning_rate(done, hold=0.4))
        average.update(vae)
        step += 1
        spent += time.time() - start
        done = common.agree(spent / 60 / args.minutes if args.minutes else step / args.steps)
        if common.RANK:
            continue
        if step % 50 == 0:
            log.add(step=step, minutes=spent / 60, l1=l1.item(), edge=edge.item(), kl=kl.item())
        if step % 300 == 0 or done >= 1:
            print("psnr", measure(average.module, pool, common.STATE / "vae.png"))
            common.save(STATE, vae=vae.state_dict(), average=average.module.state_dict(), optimizer=optimizer.state_dict(), step=step, spent=spent)
    if common.RANK:
        return
    set_statistics(average.module, pool[:1024])
    average.module.save_pretrained(common.STATE / "vae")
    print("psnr", measure(average.module, render_pool(16, seed=2), common.STATE / "vae.png"))


if __name__ == "__main__":
    main()
