"""cases: prompts, edits and pairs whose asked-for combination training never saw, with what the picture must show.

`python cases.py FOLDER` writes them for tests: prompts.json, judge.json (the judge's tables), heldout.json (all held-out combinations) and
the reference pictures as PNG.
"""
import argparse
import json
import pathlib

import numpy as np
from PIL import Image

import captions
import world
from judge import Judge

TEXTS, REFERENCES, EDITS_EACH, PAIRS = 72, 16, 3, 24


def shown(scene):
    """What the judge should find: place, and colour, kind, position, size of the only thing, or nulls."""
    thing = vars(scene.things[0]) if scene.things else dict(colour=None, kind=None, position=None, size=None)
    return dict(place=scene.place, **thing)


def build(seed=2026):
    """(texts, references, edits, pairs): texts [(prompt, expected)], references [(scene, look)], edits [(name, prompt, reference, expected)],
    pairs [(prompt, reference, reference, expected)]"""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(TEXTS):
        while True:
            scene = world.random_scene(rng, 1, held=True)
            if scene.place == world.PLACES[i % len(world.PLACES)]:
                break
        texts.append((captions.caption(rng, scene), shown(scene)))
    references = [(world.random_scene(rng, 1), world.random_look(rng)) for _ in range(REFERENCES)]
    edits = []
    for r, (scene, _) in enumerate(references):
        names = list(rng.permutation(("colour", "place", "remove", "kind", "size", "move")))
        names.sort(key=lambda n: sum(e[0] == n for e in edits))
        count = 0
        for name in names:
            for _ in range(60):  # an edit of this kind into the held-out half need not exist
                text, after = getattr(captions, "edit_" + name)(rng, scene, 0)
                if name in ("remove", "size", "move") or world.scene_held_out(after):
                    edits.append((str(name), captions.finish(rng, text), r, shown(after)))
                    count += 1
                    break
            if count == EDITS_EACH:
                break
    pairs = []
    while len(pairs) < PAIRS:
        a, b = map(int, rng.choice(REFERENCES, 2, replace=False))
        first, second = references[a][0], references[b][0]
        result = world.Scene(second.place, first.things)
        if first.place == second.place or any(p[1:3] == (a, b) for p in pairs):
            continue
        if not world.scene_held_out(result) and len(pairs) % 2:
            continue  # at least half of them held out
        pairs.append((captions.pair_text(rng, first.things[0]), a, b, shown(result)))
    return texts, references, edits, pairs


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder", type=pathlib.Path)
    args = p.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    texts, references, edits, pairs = build()
    files = [f"reference-{r:02}.png" for r in range(len(references))]
    for name, (scene, look) in zip(files, references):
        Image.fromarray(world.render(scene, look)).save(args.folder / name, optimize=True)
    cases = dict(
        texts=[dict(prompt=t, expect=e) for t, e in texts],
        references=[dict(file=f, shows=shown(s)) for f, (s, _) in zip(files, references)],
        edits=[dict(edit=n, prompt=t, references=[files[r]], expect=e) for n, t, r, e in edits],
        pairs=[dict(prompt=t, references=[files[a], files[b]], expect=e) for t, a, b, e in pairs])
    lines = ",\n".join(f'  "{k}": [\n' + ",\n".join("    " + json.dumps(c) for c in v) + "\n  ]" for k, v in cases.items())
    (args.folder / "prompts.json").write_text("{\n" + lines + "\n}\n")
    (args.folder / "judge.json").write_text(json.dumps(Judge().tables(), separators=(",", ":")) + "\n")
    held = [f"{c} {k} {p}" for c in world.COLOURS for k in world.KINDS for p in world.PLACES if world.held_out(world.Thing(k, c), p)]
    (args.folder / "heldout.json").write_text(json.dumps(held, indent=0) + "\n")
    print(len(texts), "texts,", len(edits), "edits,", len(pairs), "pairs;", len(held), "combinations held out of",
          len(world.COLOURS) * len(world.KINDS) * len(world.PLACES))


if __name__ == "__main__":
    main()
