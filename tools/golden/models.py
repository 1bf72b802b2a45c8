"""The small shape-faithful models: real diffusers and transformers classes, filled by recipe, written by save_pretrained."""

import math
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

import bpe
import weights
from weights import matrix

diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXT_OUTPUTS = (1, 2, 3)  # residual stream after that many layers; 9, 18, 27 in klein

SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
VAE = {
    "block_out_channels": (32, 64, 128, 128),
    "latent_channels": 32,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
}


def fan_in(gain: float, fade: int = 0):
    return lambda shape: matrix(gain / math.sqrt(math.prod(shape[1:])), fade)


def constant(base: float, scale: float):
    return lambda shape: (base, scale, 0)


# Gains keep every residual stream near rms 1..2, attention far from uniform (q and k norm weights 1..2) and all biases at work.
TRANSFORMER_RULES = [
    ("*.norm_q.weight", constant(1.5, 0.5)),
    ("*.norm_k.weight", constant(1.5, 0.5)),
    ("*.norm_added_[qk].weight", constant(1.5, 0.5)),
    ("*modulation*.linear.weight", fan_in(0.8)),
    ("norm_out.linear.weight", fan_in(0.8)),
    # The fast half of the sinusoids fades out, so that the model changes smoothly with t, as a trained one does.
    ("time_guidance_embed.*.linear_1.weight", fan_in(1.5, fade=128)),
    ("time_guidance_embed.*.linear_2.weight", fan_in(1.8)),
    ("*.to_out*.weight", fan_in(1.5)),
    ("*.to_add_out.weight", fan_in(1.5)),
    ("*.linear_out.weight", fan_in(1.5)),
    ("*.weight", fan_in(1.0)),
]
TEXT_RULES = [
    ("*embed_tokens.weight", lambda shape: matrix(0.7)),
    ("*.q_norm.weight", constant(1.5, 0.5)),
    ("*.k_norm.weight", constant(1.5, 0.5)),
    ("*norm.weight", constant(1.0, 0.5)),
    ("*.weight", fan_in(1.0)),
]
VAE_RULES = [
    ("bn.running_mean", constant(0.0, 0.5)),
    ("bn.running_var", constant(1.525, 1.475)),  # down to 0.06, so that eps 1e-4 is seen
    ("*norm*.weight", constant(1.0, 0.5)),
    ("*norm*.bias", constant(0.0, 0.3)),
    ("*.bias", constant(0.0, 0.2)),
    ("*.to_[qk].weight", fan_in(1.4)),
    ("*.conv2.weight", fan_in(0.8)),
    ("decoder.conv_out.weight", fan_in(0.5)),
    ("*.weight", fan_in(1.3)),
]


def transformer() -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=128,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=3 * 64,
        timestep_guidance_channels=256,
        mlp_ratio=3.0,
        axes_dims_rope=(32, 32, 32, 32),
        rope_theta=2000,
        eps=1e-6,
        guidance_embeds=False,
    )


def text_encoder(pad: int, eos: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            max_position_embeddings=40960,
            vocab_size=640,  # more rows than the tokenizer has ids, as in Qwen3
            tie_word_embeddings=True,
            attention_bias=False,
            bos_token_id=pad,
            eos_token_id=eos,
        )
    )


def vae(**changes) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **{**VAE, **changes}
    )


def make_tiny(folder: Path) -> None:
    """A whole model in the official folder layout: distilled klein in miniature."""
    with torch.no_grad():
        ids = bpe.write(folder / "tokenizer")
        tokenizer = Qwen2TokenizerFast.from_pretrained(folder / "tokenizer")
        used = {}
        parts = {
            "transformer": (transformer(), TRANSFORMER_RULES),
            "text_encoder": (text_encoder(tokenizer.pad_token_id, tokenizer.eos_token_id), TEXT_RULES),
            "vae": (vae(), VAE_RULES),
        }
        assert ids <= parts["text_encoder"][0].config.vocab_size
        for model, rules in parts.values():
            weights.fill(model, rules, used)
        pipe = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
            tokenizer=tokenizer,
            is_distilled=True,
            **{part: model for part, (model, _) in parts.items()},
        )
        pipe.save_pretrained(folder)
        # In two shards with an index, as the official text encoders are.
        (folder / "text_encoder/model.safetensors").unlink()
        pipe.text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="800KB")
        bpe.write(folder / "tokenizer")  # over what save_pretrained wrote: the files of the official folders
        for extra in ("chat_template.jinja", "special_tokens_map.json"):
            (folder / "tokenizer" / extra).unlink(missing_ok=True)
    bpe.write_json(
        folder / "klein.json",
        {
            "text_outputs": list(TEXT_OUTPUTS),
            "text_length": 512,
            "default_width": 64,
            "default_height": 64,
            "default_steps": 4,
            "default_guidance": 1.0,
            "toy": True,
        },
    )
    weights.write_list(folder, used)


def make_small_decoder(folder: Path) -> None:
    """Only a vae/, whose decoder is narrower than its encoder, as in FLUX.2-small-decoder."""
    with torch.no_grad():
        model = vae(decoder_block_out_channels=(32, 64, 96, 96))
        used = {}
        weights.fill(model, VAE_RULES, used)
        model.save_pretrained(folder / "vae")
    weights.write_list(folder, used)


def load(folder: Path, dtype=torch.float32, **changes) -> Flux2KleinPipeline:
    pipe = Flux2KleinPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_vae(folder: Path, dtype=torch.float32) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2.from_pretrained(folder, subfolder="vae", dtype=dtype, local_files_only=True)
