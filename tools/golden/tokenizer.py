"""Makes tests/golden/tokenizer:  python tools/golden/tokenizer.py QWEN3_FOLDER tests/golden

QWEN3_FOLDER holds tokenizer.json and tokenizer_config.json of Qwen3 (the tokenizer/ folder of a klein checkpoint). Needs the `tiny`
model of make.py in tests/golden. The expected ids are those of the tokenizers library, templates those of transformers.
"""

import argparse
import gzip
import json
import random
import unicodedata
import zlib
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

SCALARS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]

# Each with the ids that were known before this script existed (from another implementation).
KNOWN = {
    "a cat": "64 8251",
    "A fluffy orange cat sitting on a windowsill": "32 67561 18575 8251 11699 389 264 11030 483",
    "A cat holding a sign that says hello world": "32 8251 9963 264 1841 429 2727 23811 1879",
    "  leading and trailing  ": "220 6388 323 27748 256",
    "line1\n\nline2": "1056 16 271 1056 17",
    "It's 1234 o'clock, I'LL go!": "2132 594 220 16 17 18 19 297 62410 11 358 6 4086 728 0",
    "日本語のテスト 猫": "101059 102819 15767 140592 10236 234 104",
    "café naïve e\u0301": "924 58858 94880 586 3958",
    "emoji 🐱‍👤 ok": "37523 11162 238 109 378 235 146354 5394",
    "a <|im_end|> b": "64 220 151645 293",
    "tabs\tand\r\ncrlf   x": "30993 52477 319 66 2381 69 256 856",
    "don't—stop…  «ok»  x=3.14": "15007 944 2293 9495 1940 220 12486 562 12992 220 856 28 18 13 16 19",
}

LANGUAGES = """A red balloon on a wooden table, soft morning light, 35mm photograph.
Ein roter Ballon auf einem Holztisch, weiches Licht; Größe, Straße, Übermaß, ÄÖÜ.
Un ballon rouge sur une table en bois : « l'été », cœur, Noël, où ça ? À l'œuvre !
Un globo rojo sobre una mesa de madera, ¿mañana? ¡Sí, señor!
Um balão vermelho sobre uma mesa de madeira, coração, à noite, não.
Un palloncino rosso su un tavolo di legno, perché l'acqua è così.
Czerwony balon na drewnianym stole, zażółć gęślą jaźń.
Červený balón na dřevěném stole, příliš žluťoučký kůň.
Piros léggömb egy fa asztalon, árvíztűrő tükörfúrógép.
Un balon roșu pe o masă de lemn, țară, știință.
Ahşap masada kırmızı bir balon, İSTANBUL, ığdır, şöğüç.
Quả bóng bay màu đỏ trên bàn gỗ, tiếng Việt, Nguyễn.
Rauður blöðrubelgur á tréborði, þorn, eð, Æ.
Punane õhupall puulaual, Ööülikool. Sarkans balons uz koka galda, ģīķļņ.
Красный воздушный шар на деревянном столе, ёлка, Йод, подъезд.
Червона повітряна куля на дерев'яному столі, їжак, ґанок.
Црвени балон на дрвеном столу, ђак, љубав, њива, џеп.
Ένα κόκκινο μπαλόνι σε ξύλινο τραπέζι, Ελληνικά, ᾳ ᾤ Ὀδυσσεύς.
Կարմիր փուչիկ փայտե սեղանի վրա: Հայերեն։
წითელი ბუშტი ხის მაგიდაზე, ქართული, ᲥᲐᲠᲗᲣᲚᲘ.
בלון אדום על שולחן עץ, עִבְרִית, שָׁלוֹם.
بالون أحمر على طاولة خشبية، العَرَبِيَّة، ١٢٣٤.
بادکنک قرمز روی میز چوبی، فارسی، ۱۲۳۴، می‌خواهم.
لکڑی کی میز پر سرخ غبارہ، اردو، ٹھنڈا۔
लकड़ी की मेज पर लाल गुब्बारा, हिन्दी, क्षत्रिय, १२३४।
কাঠের টেবিলে একটি লাল বেলুন, বাংলা, য়, ১২৩।
ਲੱਕੜ ਦੇ ਮੇਜ਼ ਉੱਤੇ ਲਾਲ ਗੁਬਾਰਾ, ਪੰਜਾਬੀ, ਸ਼।
લાકડાના ટેબલ પર લાલ ફુગ્ગો, ગુજરાતી.
ମେଜ ଉପରେ ଏକ ନାଲି ବେଲୁନ, ଓଡ଼ିଆ।
மர மேசையில் சிவப்பு பலூன், தமிழ், கொடுக்க, ஸ்ரீ.
చెక్క బల్లపై ఎర్ర బెలూన్, తెలుగు, క్షమించు.
ಮರದ ಮೇಜಿನ ಮೇಲೆ ಕೆಂಪು ಬಲೂನ್, ಕನ್ನಡ, ಕೊಡು.
മരമേശയിൽ ഒരു ചുവന്ന ബലൂൺ, മലയാളം, കൊണ്ട്.
ලී මේසයක් මත රතු බැලුනයක්, සිංහල, ක්‍රීඩා.
ลูกโป่งสีแดงบนโต๊ะไม้ ภาษาไทย น้ำ ๑๒๓
ປູມເປົ້າສີແດງຢູ່ເທິງໂຕະໄມ້ ພາສາລາວ ໑໒໓
သစ်သားစားပွဲပေါ်မှ ဘောလုံးနီ၊ မြန်မာဘာသာ။
ប៉េងប៉ោងក្រហមនៅលើតុឈើ ភាសាខ្មែរ
ཤིང་གི་ཅོག་ཙེའི་སྟེང་དུ་སྦུག་དམར་པོ། བོད་སྐད།
Модон ширээн дээрх улаан бөмбөлөг. ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ᠃
木桌上的红色气球，柔和的光线。「你好，世界！」一二三。
木桌上的紅色氣球，繁體中文，臺灣、香港。
木のテーブルの上の赤い風船。カタカナ、ひらがな、漢字、が゙ ｶﾞﾀｶﾅ ゝゞ々〆。
나무 탁자 위의 빨간 풍선, 한국어, 각 갂 힣, ㄱㄴㄷ.
በእንጨት ጠረጴዛ ላይ ቀይ ፊኛ፣ አማርኛ።
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ꮳꮃꭹ. ᐃᓄᒃᑎᑐᑦ. ߒߞߏ. ⵜⴰⵎⴰⵣⵉⵖⵜ. ꦗꦮ. ᮞᮥᮔ᮪ᮓ. ᜊᜌ᜔ᜊᜌᜒᜈ᜔.
𐌰𐌱𐌲 𐎀𐎁 𐤀𐤁 𒀀𒁀 𓀀𓁀 𐓏𐓘 𞤀𞤣 𖬌𖬰 𝕬𝖇𝒸 𝟘𝟙 𠀀𠮷 𪛖 🀄 𐍈""".split("\n")

PROMPTS = """masterpiece, best quality, (red balloon:1.2), [wooden] table, --ar 16:9 --v 6
A sign that says "KLEIN 4B — fast!" in neon letters; 50% off @ $9.99/each #sale
f(x) = x^2 + 3x - 5; while (i < 10) { i++; } // done
    def main():\n\treturn {"a": [1, 2, 3]}\n\n\nprint(main())
https://example.com/a/b?c=d&e=%20f#g mail@example.org C:\\dir\\file.txt /usr/bin/env
1,234,567.89 + 0x1F - 1e-6 = ½ ¾ ² ³ ₁ Ⅷ ⅻ ① ⑳ ㊿ ㉈ 〇 一 𝟝 ௧ ༡ ፩ 𐡘 𞣇
Mr. O'Neill's dog said: 'It's ours', we'd've known; y'all'll see — rock'n'roll 'twas
"“‘’”" '`´ʼ’ don’t it’s I’ll
snake_case camelCase PascalCase SCREAMING_CASE kebab-case x1y2z3 3D 4K 8bit
Ａｌｌ　ｆｕｌｌ　ｗｉｄｔｈ　１２３！？ ﬁ ﬂ ﬀ ﬆ ﷺ ㎏ ℃ Å Ω K
← ↑ → ↓ ∀x∈ℝ: ∃y ≥ x ∧ ∑ᵢ √2 ≈ 1.414 ∞ ±½ ≠ ≮ ≯ ∄
€ £ ¥ ₹ ₿ © ® ™ § ¶ † ‡ • ‰ ′ ″ ‹› «»
a.b.c...d,,e;;f!!g??h::i--j__k==l**m//n\\\\o||p&&q@@r##s$$t%%u^^v~~w``x
{{{[[[(((<<<>>>)))]]]}}} <<|>> <| |> <|im_ |im_end|> <think <//think>""".split("\n")

EMOJI = """😀😃😄 👍🏽👍🏿 👩‍👩‍👧‍👦 👨🏻‍🚀 🏳️‍🌈 🏴‍☠️ 🇩🇪🇫🇷🇯🇵 🏴󠁧󠁢󠁳󠁣󠁴󠁿 1️⃣ #️⃣ *️⃣ ❤️‍🔥 ☺︎ ☺️ ⌚ 🫠🫡🫨 🧑‍🤝‍🧑 🐈‍⬛ ⛹🏾‍♀️ 🕴🏼""".split(" ")


def scalars_of(pattern: str) -> list[int]:
    """Code points that the library's regular expressions put into a class."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return [c for c in SCALARS if not split.pre_tokenize_str(chr(c))]


def ranges(scalars: list[int]) -> list[list[int]]:
    out = []
    for c in scalars:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def strings(added: list[str], spaces: list[int], marks: list[int], numbers: list[int]) -> list[str]:
    r = random.Random(2024)
    out = ["", *KNOWN, *LANGUAGES, *PROMPTS, *EMOJI, "".join(EMOJI)]

    # Every white space character alone, doubled, before a word, before a symbol, around a newline, at the end.
    for c in map(chr, spaces):
        out += [f"a{c}b{c}{c}c{c}!{c}{c}1", f"{c}\n{c}{c}x{c}\r{c}", f"{c}{c}{c}"]
    out += ["".join(map(chr, spaces)), "x" + "".join(map(chr, spaces)) + "y"]
    # Line ends: all sequences of three out of these, between words.
    for a in ("\n", "\r", " ", "\t"):
        for b in ("\n", "\r\n", "  "):
            for c in ("\n", "\r", " ", ".\n"):
                out.append(f"a{a}{b}{c}b{c}{b}{a}")
    # Controls, joiners, directions, byte order mark, variation selectors, private use, noncharacters, tags.
    out += [f"a{chr(c)}b {chr(c)}{chr(c)} '{chr(c)}s" for c in range(32)]
    out += ["".join(map(chr, range(0x7F, 0xA1)))]
    for c in "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff\ufe0f\ufff9\ufffc\ufffd\ufffe\uffff":
        out.append(f"{c}a{c}b {c} 1{c}")
    out += ["\ue000\uf8ff\U000f0000\U0010ffff", "\U0001fffe \U000e0041\U000e007f \U000e0100", "\u0378\u0e3d\U00050000 unassigned"]

    # Contractions: all cases, followed by a letter or not, and what folds to s.
    for short in ("s", "t", "re", "ve", "m", "ll", "d", "ſ", "K", "rE", "lL", "x", "l", "r", ""):
        for s in sorted({short, short.upper(), short.capitalize()}):
            out.append(f"it'{s} '{s}x '{s}'{s} ''{s} 1'{s} é'{s}\u0301 ’{s}")

    # Normalisation: decomposed words, reordering, Hangul, singletons, exclusions, marks that the library's tables lack.
    for text in LANGUAGES:
        out += [unicodedata.normalize("NFD", text), unicodedata.normalize("NFKD", text)[::-1]]
    out += ["\u1112\u1161\u11ab\u1100\u1173\u11af", "\u1100\u1161\u11a7\u1100\u1161\u11a8\u11a8", "가\u11a8 각\u11a8 \u1161\u11a8 \uac00\u11c3"]
    out += ["\u212b\u2126\u212a\u2000\u2001\u2329\u232a\u037e\u0387\u1fef\u0374\uf900\U0002f800\ufa30", "\u0958\u09dc\u0f43\u2adc\ufb1d\ufb4e\U0001d15e\u0344\u0340\u0341"]
    out += ["a\u0323\u0307 a\u0307\u0323 q\u0307\u0323 \u0307\u0323 a\u0327\u0301\u0345", "=\u0338 <\u0338 >\u0338 </think>\u0338 <|im_end|>\u0301"]
    out += ["e" + "\u0301\u0316" * 40 + "x", "e\u0301" * 50, "\u09c7\u09be \u0b47\u0b3e \u0bc6\u0bbe \u0cc6\u0cc2\u0cd5 \u0dd9\u0dcf\u0dca \u1025\u102e"]
    out += ["\U00011131\U00011127 \U00011347\U0001133e \U000114b9\U000114ba \U000115b8\U000115af \U00011935\U00011930 \U00011938\u0301"]
    for i in range(0, len(marks), 50):
        out.append("".join(f"a\u0345{chr(c)}\u0334" for c in marks[i : i + 50 : 3]))

    # Numbers of every script (split one by one), next to letters.
    for i in range(0, len(numbers), 60):
        out.append("".join(chr(c) for c in numbers[i : i + 60]) + "a" + chr(numbers[i]) + " " + chr(numbers[i]))

    # Long runs.
    out += [s * n for s in ("a", "A", " ", "\n", "-", "=", "0", "é", "中", "の", "한", "😀", "<", "'", "\u0301", "ab", "hello ", " \n", "....") for n in (2, 3, 17, 64, 200)]
    out += [" " * n + "x" for n in range(2, 20)] + ["\n" * n + " x" for n in range(1, 8)] + ["antidisestablishmentarianism" * 8, "Donaudampfschifffahrtsgesellschaft"]

    # Added tokens: alone, glued, with spaces and letters around, cut short, repeated.
    for token in added:
        out += [f"a{token}b", f" {token} \n{token}{token}x", token[:-1], token[1:], token + token[:-1] + "'s"]
    out += ["".join(added), "<think>\n\n</think>\n\nok", "<|im_start|>system\nhi<|im_end|>\n", "<<|im_end|>>", "<|im_<|im_end|>end|>", "<|IM_END|>"]

    # Random code points: by category, then mixtures of everything.
    categories = {}
    for c in SCALARS:
        categories.setdefault(unicodedata.category(chr(c)), []).append(c)
    for name in sorted(categories):
        for _ in range(4):
            out.append("".join(chr(r.choice(categories[name])) + r.choice(["", "", " ", "a", "1", "\n"]) for _ in range(12)))
    names = sorted(categories)
    for _ in range(150):
        parts = []
        for _ in range(r.randint(2, 14)):
            match r.randrange(6):
                case 0:
                    parts.append(chr(r.choice(categories[r.choice(names)])))
                case 1:
                    parts.append(chr(r.choice(spaces)) * r.randint(1, 3))
                case 2:
                    parts.append("".join(chr(r.randrange(32, 127)) for _ in range(r.randint(1, 6))))
                case 3:
                    parts.append(r.choice(added))
                case 4:
                    parts.append(r.choice(r.choice(LANGUAGES).split(" ")))
                case 5:
                    parts.append(chr(r.choice(marks)))
        out.append("".join(parts))
    return list(dict.fromkeys(out))


def nfc_sums() -> list[int]:
    """Per 4096 code points the CRC-32 of a text in which each meets marks of low and high class and a composition."""
    nfc = normalizers.NFC().normalize_str
    sums = []
    for start in range(0, 0x110000, 0x1000):
        block = [c for c in range(start, start + 0x1000) if not 0xD800 <= c < 0xE000]
        sums.append(zlib.crc32("".join(nfc(f"x\u0345{chr(c)}\u0334e\u0301{chr(c)}\u0301\n") for c in block).encode()))
    return sums


def write(path: Path, value) -> None:
    """One element per line: compact, and a change shows as a line."""
    lines = ",\n".join(json.dumps(v, separators=(",", ":")) for v in value)
    path.write_text(f"[\n{lines}\n]\n")
    print(f"{path.name}: {len(value)} entries, {path.stat().st_size} bytes")


def make(source: Path, golden: Path) -> None:
    out = golden / "tokenizer"
    out.mkdir(exist_ok=True)

    document = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    minified = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    (out / "qwen3_tokenizer.json.gz").write_bytes(gzip.compress(minified, 9, mtime=0))

    qwen3 = Tokenizer.from_file(str(source / "tokenizer.json"))
    tiny = Tokenizer.from_file(str(golden / "models/tiny/tokenizer/tokenizer.json"))
    for text, ids in KNOWN.items():
        assert qwen3.encode(text).ids == list(map(int, ids.split())), text
    classes = {"letters": scalars_of(r"\p{L}"), "numbers": scalars_of(r"\p{N}"), "spaces": scalars_of(r"\s")}
    added = [t["content"] for t in document["added_tokens"]]
    texts = strings(added, classes["spaces"], scalars_of(r"\p{M}"), classes["numbers"])
    write(out / "qwen3_strings.json", [[text, qwen3.encode(text).ids] for text in texts])
    short = [text for text in texts if len(text) < 60][::3]
    write(out / "tiny_strings.json", [[text, tiny.encode(text).ids] for text in short])
    write(out / "unicode.json", [*([name, ranges(c)] for name, c in classes.items()), ["nfc", nfc_sums()]])

    hf = AutoTokenizer.from_pretrained(source)
    prompts = []
    for text in ["", *KNOWN, LANGUAGES[0], "\nnewline first", "ends with newline\n", "</think> inside <|im_start|>", "neon signs, " * 300]:
        chat = hf.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        whole = len(hf(chat)["input_ids"])
        for length in (1, 8, 16, 40, 512):
            row = hf(chat, padding="max_length", truncation=True, max_length=length)
            real = sum(row["attention_mask"])
            assert len(row["input_ids"]) == length and set(row["input_ids"][real:]) <= {151643}
            prompts.append([text, length, real, whole, row["input_ids"][:real]])
    write(out / "prompts.json", prompts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qwen3", type=Path, help="folder with Qwen3's tokenizer.json and tokenizer_config.json")
    parser.add_argument("out", type=Path, help="tests/golden in the repository")
    arguments = parser.parse_args()
    make(arguments.qwen3, arguments.out)
