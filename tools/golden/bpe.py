"""A small Qwen3-style tokenizer: byte-level BPE of our own, Qwen3's regex, special tokens and (in effect) chat template."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
ADDED = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip
# What Qwen3's own template gives for one user message without thinking.
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
CORPUS = """
user assistant think
a red balloon on a wooden table, a blue ball in the grass, a green box under the sky at night
a photograph of a small fox sitting in deep snow, holding a sign that says hello world in the winter light
an oil painting of an old lighthouse by the sea, with waves, rocks and a sailing boat, in the style of the romantics
make the balloon green and put it on the table; remove the star, keep the background, turn day into night
the object of the first image in the place of the second image, with the colours of the third, soft shadows
a close portrait of an old man with a white beard, warm light, shallow depth of field, detailed skin
a city street in the rain with neon signs, reflections on the wet road, people walking under umbrellas
it's a cat, isn't it? they're dancing, we've seen it, I'll go and he'd stay
the quick brown fox jumps over the lazy dog while seventeen wizards quietly judge a boxing match
wide angle view of mountains at sunrise, a winding river, a bridge, a village with wooden houses
"""


def train(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary (bytes in GPT-2 order, then merges in order) and merges, `size` entries in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CORPUS, "think\n\n\n" * 4], trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    # GPT-2's order of the byte characters: those that stand for themselves first.
    alphabet.sort(key=lambda c: (ord(c) >= 256, ord(c)))
    vocab = {token: i for i, token in enumerate(alphabet + [a + b for a, b in merges])}
    assert len(vocab) == size
    return vocab, merges


def pre_tokenizer():
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def write(folder: Path, size: int = 580) -> int:
    """Writes the files of an official tokenizer folder; returns the number of ids."""
    vocab, merges = train(size)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ADDED])

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {str(size + i): t for i, t in enumerate(SPECIAL + ADDED)}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            i: {
                "content": t,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": t in SPECIAL,
            }
            for i, t in added.items()
        },
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "added_tokens.json", {t: int(i) for i, t in added.items()})
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return size + len(SPECIAL) + len(ADDED)


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
