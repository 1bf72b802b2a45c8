"""model: the three networks' sizes, and how training calls them. Exactly what the engine does at inference:
text padded to LENGTH with the padding visible, hidden states without the final norm, ids (0,h,w,0) (0,0,0,l) (10+10k,h,w,0)."""
import math

import torch
from diffusers import Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

import tokenizer

TEXT_OUTPUTS = (1, 2, 3)
TEXT_WIDTH = 128
VOCABULARY = 640  # rows of the embedding; the tokenizer uses fewer
STEPS = 4
GRID = 8  # tokens a side of a 128 x 128 picture
TOKENS = GRID * GRID


def new_transformer():
    """Starts as the map v = x (the noise passes through, which is most of a velocity) with all blocks switched off by their gates."""
    transformer = Flux2Transformer2DModel(
        in_channels=128, num_layers=2, num_single_layers=2, attention_head_dim=128, num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH * len(TEXT_OUTPUTS), timestep_guidance_channels=256, mlp_ratio=3.0,
        axes_dims_rope=(32, 32, 32, 32), rope_theta=2000, eps=1e-6, guidance_embeds=False)
    for name, p in transformer.named_parameters():
        if "modulation" in name or name.startswith("norm_out"):
            torch.nn.init.zeros_(p)
    torch.nn.init.orthogonal_(transformer.x_embedder.weight)
    with torch.no_grad():
        width, channels = transformer.x_embedder.weight.shape
        transformer.proj_out.weight.copy_(transformer.x_embedder.weight.T * (channels / width) ** 0.5)
    return transformer


def new_text_encoder(pad):
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=TEXT_WIDTH, intermediate_size=384, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        head_dim=128, rms_norm_eps=1e-6, rope_theta=1_000_000, tie_word_embeddings=True, max_position_embeddings=4096, attention_bias=False,
        pad_token_id=pad, eos_token_id=pad + 2, bos_token_id=pad))


def encode_text(encoder, ids, mask):
    """[b, LENGTH] ids and mask -> [b, LENGTH, outputs * width]"""
    states = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[k] for k in TEXT_OUTPUTS], -1)


def grid_ids(t):
    h, w = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    zero = torch.zeros(TOKENS, dtype=torch.long)
    return torch.stack([zero + t, h.flatten(), w.flatten(), zero], 1)


def text_ids():
    ids = torch.zeros(tokenizer.LENGTH, 4, dtype=torch.long)
    ids[:, 3] = torch.arange(tokenizer.LENGTH)
    return ids


def velocity(transformer, context, x, t, references=()):
    """x [b, 64, 128] at times t [b]; references: list of [b, 64, 128]. Returns noise - data, [b, 64, 128]."""
    ids = torch.cat([grid_ids(0)] + [grid_ids(10 + 10 * k) for k in range(len(references))])
    out = transformer(hidden_states=torch.cat([x, *references], 1), encoder_hidden_states=context, timestep=t, img_ids=ids, txt_ids=text_ids(),
                      return_dict=False)[0]
    return out[:, :TOKENS]


def sigmas(steps=STEPS, tokens=TOKENS):
    """The sampler's noise levels, steps + 1 of them, 0 last (the official empirical mu)."""
    m200, m10 = 0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333
    a = (m200 - m10) / 190
    mu = a * steps + m200 - 200 * a
    return [math.exp(mu) / (math.exp(mu) + i / (steps - i)) for i in range(steps)] + [0.0]


@torch.no_grad()
def sample(transformer, context, noise, references=(), steps=STEPS):
    x, levels = noise, sigmas(steps)
    for now, then in zip(levels, levels[1:]):
        x = x + (then - now) * velocity(transformer, context, x, torch.full((len(x),), now), references).float()
    return x
