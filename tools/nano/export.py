"""export: the trained parts as a checkpoint folder in the official diffusers layout, bf16, with klein.json and the card's numbers."""
import argparse
import json
import pathlib
import shutil

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import common
import data
import model
import tokenizer
import world

ROOT = pathlib.Path(__file__).resolve().parents[2]
KLEIN = dict(toy=True, license="Apache-2.0", text_outputs=list(model.TEXT_OUTPUTS), text_length=tokenizer.LENGTH, default_width=world.SIZE, default_height=world.SIZE,
             default_steps=model.STEPS, default_guidance=1.0)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def trained():
    """The moving averages of text encoder and transformer."""
    state = common.load(common.STATE / "flow.pt")
    encoder, transformer = model.new_text_encoder(tokenizer.Prompts().pad), model.new_transformer()
    encoder.load_state_dict(state["weights"][2])
    transformer.load_state_dict(state["weights"][3])
    return encoder.eval(), transformer.eval()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder", nargs="?", default=ROOT / "weights" / "nano", type=pathlib.Path)
    args = p.parse_args()
    encoder, transformer = trained()
    for part, name in ((encoder, "text_encoder"), (transformer, "transformer"), (data.load_vae(), "vae")):
        shutil.rmtree(args.folder / name, ignore_errors=True)
        part.to(torch.bfloat16).save_pretrained(args.folder / name)
    shutil.copytree(tokenizer.FOLDER, args.folder / "tokenizer", dirs_exist_ok=True)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
                                    ).save_pretrained(args.folder / "scheduler")
    write_json(args.folder / "klein.json", KLEIN)
    write_json(args.folder / "model_index.json", {
        "_class_name": "Flux2KleinPipeline", "_diffusers_version": "0.42.1", "is_distilled": True,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"], "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"]})
    print(sum(f.stat().st_size for f in args.folder.rglob("*") if f.is_file()) / 1e6, "MB")


if __name__ == "__main__":
    main()
