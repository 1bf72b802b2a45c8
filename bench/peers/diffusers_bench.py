"""Times diffusers on a CPU in bf16, stage by stage, for comparison with `klein bench`:

    python bench/peers/diffusers_bench.py --model DIR --size 256x256 --steps 4 --threads 2 --runs 3
    python bench/peers/diffusers_bench.py --config klein-4b --size 256x256 --steps 4

--model takes a folder in the official layout (a real one or one by `klein make-random`), --config builds random weights of that
shape in memory. Prints one JSON line per stage: seconds of each run, their median; the last line is the whole image (sum of the
medians) with the peak resident memory. Parts are loaded one after another, so that only one of the big ones (8 GB each for 4B)
is in memory. Loading is not timed. What is timed is the pipeline's own code, untouched: its text encoder runs all layers and
the output logits too. Packages: tools/golden/requirements.txt.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

CONFIGS = {
    "klein-4b": {
        "blocks": (5, 20),
        "heads": 24,
        "text": (2560, 9728, 36, 32, 8),  # width, MLP width, layers, heads, key/value heads
        "outputs": (9, 18, 27),
        "vae": (128, 256, 512, 512),
    },
    "klein-9b": {
        "blocks": (8, 24),
        "heads": 32,
        "text": (4096, 12288, 36, 32, 8),
        "outputs": (9, 18, 27),
        "vae": (128, 256, 512, 512),
    },
    "tiny": {
        "blocks": (2, 3),
        "heads": 2,
        "text": (64, 96, 5, 4, 2),
        "outputs": (1, 2, 3),
        "vae": (32, 64, 128, 128),
    },
}
SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
TEXT_LENGTH = 512


class Ids:
    """Stands for the tokenizer, whose time does not matter: always the same 30 tokens and padding."""

    def apply_chat_template(self, *_args, **_kwargs):
        return ""

    def __call__(self, *_args, **_kwargs):
        mask = torch.zeros(1, TEXT_LENGTH, dtype=torch.long)
        mask[:, :30] = 1
        return {"input_ids": torch.arange(TEXT_LENGTH)[None] % 500 * mask, "attention_mask": mask}


def text_encoder(config):
    width, mlp, layers, heads, kv_heads = config["text"]
    return Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            vocab_size=151936,
            tie_word_embeddings=True,
        )
    )


def transformer(config):
    double, single = config["blocks"]
    return Flux2Transformer2DModel(
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=config["heads"],
        joint_attention_dim=3 * config["text"][0],
        guidance_embeds=False,
    )


def vae(config):
    return AutoencoderKLFlux2(block_out_channels=config["vae"])


PARTS = {
    "text_encoder": (Qwen3ForCausalLM, text_encoder),
    "transformer": (Flux2Transformer2DModel, transformer),
    "vae": (AutoencoderKLFlux2, vae),
}


def load(args, part: str):
    """That part of the model in bf16: from the folder, or with the random weights of its constructor."""
    cls, make = PARTS[part]
    if args.model:
        model = cls.from_pretrained(args.model, subfolder=part, dtype=torch.bfloat16, local_files_only=True)
    else:
        torch.set_default_dtype(torch.bfloat16)
        model = make(CONFIGS[args.config])
        torch.set_default_dtype(torch.float32)
    assert model.dtype == torch.bfloat16
    return model.eval()


def timed(args, stage: str, run):
    """Calls run() args.warmup + args.runs times; prints the stage's line; returns (last result, median seconds)."""
    seconds = []
    for i in range(args.warmup + args.runs):
        start = time.perf_counter()
        result = run()
        if i >= args.warmup:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(json.dumps({"stage": stage, "median": round(median, 4), "seconds": [round(s, 4) for s in seconds]}), flush=True)
    return result, median


@torch.no_grad()
def bench(args) -> None:
    width, height = map(int, args.size.split("x"))
    outputs = CONFIGS[args.config]["outputs"]
    if args.model and (args.model / "klein.json").exists():
        outputs = tuple(json.loads((args.model / "klein.json").read_text())["text_outputs"])

    model = load(args, "text_encoder")
    embeds, text = timed(
        args,
        "text",
        lambda: Flux2KleinPipeline._get_qwen3_prompt_embeds(model, Ids(), "a prompt", hidden_states_layers=outputs),
    )
    del model

    decoder = load(args, "vae")
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=decoder,
        text_encoder=None,
        tokenizer=None,
        transformer=load(args, "transformer"),
        is_distilled=True,
    )
    pipe.set_progress_bar_config(disable=True)
    latents, denoise = timed(
        args,
        "denoise",
        lambda: pipe(
            prompt_embeds=embeds,
            width=width,
            height=height,
            num_inference_steps=args.steps,
            guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent",
        ).images,
    )
    processor = pipe.image_processor
    del pipe
    _, decode = timed(args, "decode", lambda: processor.postprocess(decoder.decode(latents, return_dict=False)[0]))
    print(
        json.dumps(
            {
                "stage": "image",
                "median": round(text + denoise + decode, 4),
                "size": args.size,
                "steps": args.steps,
                "model": str(args.model or args.config),
                "dtype": "bfloat16",
                "threads": torch.get_num_threads(),
                "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder in the official layout")
    parser.add_argument("--config", choices=CONFIGS, default="klein-4b", help="random weights of that shape, without --model")
    parser.add_argument("--size", default="256x256", help="WIDTHxHEIGHT (default: 256x256)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="runs before the timed ones")
    args = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    bench(args)


if __name__ == "__main__":
    main()
