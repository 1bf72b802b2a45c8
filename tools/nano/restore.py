"""restore: a state folder from the shipped checkpoint, so that training can go on from it (train_flow.py --refine), here or on another machine.

The autoencoder and the tokenizer stay as they are; data.py must run again; the optimizer starts anew.
"""
import shutil

import torch
from diffusers import Flux2Transformer2DModel
from transformers import Qwen3ForCausalLM

import common
import data
import export
import tokenizer


def main():
    folder = export.ROOT / "weights" / "nano"
    common.STATE.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "tokenizer", tokenizer.FOLDER, dirs_exist_ok=True)
    shutil.copytree(folder / "vae", data.VAE, dirs_exist_ok=True)
    encoder = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32).state_dict()
    transformer = Flux2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).state_dict()
    common.save(common.STATE / "flow.pt", weights=[encoder, transformer, encoder, transformer], optimizer=None, step=0, spent=0.0)


if __name__ == "__main__":
    main()
