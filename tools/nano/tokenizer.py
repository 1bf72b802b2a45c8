"""tokenizer: a byte-level BPE in Qwen3's tokenizer.json format, learnt from the captions; Qwen3's added tokens follow the learnt ones.

The template is the part of Qwen3's that a single user message needs; what it makes of one is the same text.
"""
import json

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import captions
import common
import world

LENGTH = 40  # tokens of a prompt with its template, padding included
LEARNT = 1000  # at most
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
           "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
         "<tool_response>", "</tool_response>", "<think>", "</think>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
FOLDER = common.STATE / "tokenizer"


def corpus(n=6000):
    rng = np.random.default_rng(5)
    for _ in range(n):
        yield captions.caption(rng, world.random_scene(rng))
        yield captions.random_edit(rng)[1]
        yield captions.random_pair(rng)[0]
    for _ in range(n):
        yield from ("user\n", "assistant\n", "\n\n")


def main():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=LEARNT, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_tokens([AddedToken(t, special=t in SPECIAL, normalized=False) for t in SPECIAL + PLAIN])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2], padding_side="right", model_max_length=4096,
                                   clean_up_tokenization_spaces=False, chat_template=TEMPLATE)
    fast.save_pretrained(FOLDER)
    path = FOLDER / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.update(tokenizer_class="Qwen2Tokenizer", add_bos_token=False, add_prefix_space=False, errors="replace", split_special_tokens=False)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    print(len(fast), "tokens")


class Prompts:
    """Texts to ids and mask [n, LENGTH], exactly as the pipelines do it."""

    def __init__(self, folder=FOLDER):
        self.fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.pad = self.fast.token_to_id(SPECIAL[0])

    def ids(self, text):
        return self.fast.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n").ids

    def __call__(self, texts):
        ids = np.full((len(texts), LENGTH), self.pad, np.int64)
        mask = np.zeros((len(texts), LENGTH), np.int64)
        for i, text in enumerate(texts):
            row = self.ids(text)[:LENGTH]
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask


if __name__ == "__main__":
    main()
