"""captions: what people may say about a scene, and edits of scenes with what they ask for.

A caption names everything that the picture shows, save the six numbers of its Look. What is left unsaid has one meaning: no size
word means big, no position means the centre, no place means the wooden table.
"""
from dataclasses import replace

from world import COLOURS, KINDS, PLACES, POSITIONS, Scene, Thing, random_scene, scene_held_out

KIND_WORDS = {
    "balloon": ("balloon",), "ball": ("ball",), "box": ("box", "cube"),
    "star": ("star",), "cup": ("cup", "mug"), "heart": ("heart",),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("", "", "", "big", "large")}
PLACE_WORDS = {
    "table": ("on a wooden table", "on the wooden table", "on a table", "on the table"),
    "grass": ("on the grass", "on green grass", "on grass", "on a meadow", "in a meadow"),
    "sky": ("in the sky", "in a blue sky", "in the blue sky", "among the clouds"),
    "night": ("at night", "in the night", "under the stars", "in the moonlight"),
    "brick": ("in front of a brick wall", "by a brick wall", "before a brick wall", "at the brick wall"),
    "sand": ("on the sand", "on the beach", "on sand", "at the beach"),
}
POSITION_WORDS = {
    "left": ("on the left", "on the left side", "to the left", "at the left"),
    "centre": ("", "", "", "in the middle", "in the centre", "in the center"),
    "right": ("on the right", "on the right side", "to the right", "at the right"),
}
OPENINGS = ("", "", "", "", "a picture of ", "a photo of ", "an image of ", "a drawing of ", "draw ", "there is ")


def words(rng, options):
    return options[rng.integers(len(options))]


def article(phrase, first):
    """a red ball / an orange ball / the red ball"""
    if not first:
        return "the " + phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def finish(rng, text):
    """Case and full stop as people vary them."""
    text = " ".join(text.split())
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return text + words(rng, ("", "", ".", "."))


def noun(rng, thing):
    return words(rng, KIND_WORDS[thing.kind])


def named(rng, thing, first=True):
    """"a small red ball" """
    return article(" ".join(f"{words(rng, SIZE_WORDS[thing.size])} {thing.colour} {noun(rng, thing)}".split()), first)


def caption(rng, scene):
    place = words(rng, PLACE_WORDS[scene.place])
    opening = words(rng, OPENINGS)
    if scene.place == "table" and rng.random() < 0.15:
        place = ""
    if not scene.things:
        bare = {"table": "a wooden table", "grass": "green grass", "sky": "the blue sky", "night": "the night", "brick": "a brick wall", "sand": "the beach"}
        return finish(rng, opening + words(rng, (bare[scene.place], "nothing " + (place or "on the table"), "an empty " + {"brick": "brick wall", "sand": "beach", "table": "table", "grass": "meadow"}.get(scene.place, scene.place))))
    if len(scene.things) == 1:
        thing = named(rng, scene.things[0])
        position = words(rng, POSITION_WORDS[scene.things[0].position])
        order = rng.integers(4)
        if order == 0 and place:
            return finish(rng, f"{place}{words(rng, ('', ','))} {words(rng, ('', 'there is '))}{thing} {position}")
        if order == 1:
            return finish(rng, f"{opening}{thing} {position} {place}")
        return finish(rng, f"{opening}{thing} {place} {position}")
    left, right = scene.things
    order = rng.integers(6)
    if order == 0:
        body = f"{named(rng, left)} and {named(rng, right)}"  # the first named is on the left
    elif order == 1:
        body = f"{named(rng, left)} {words(rng, ('next to', 'beside', 'to the left of'))} {named(rng, right)}"
    elif order == 2:
        body = f"{named(rng, right)} to the right of {named(rng, left)}"
    elif order == 3:
        body = f"{named(rng, right)} on the right and {named(rng, left)} on the left"
    else:
        body = f"{named(rng, left)} on the left and {named(rng, right)} on the right"
    if rng.random() < 0.2 and place:
        return finish(rng, f"{place}{words(rng, ('', ','))} {body}")
    return finish(rng, f"{opening}{body} {place}")


# --- edits: edit_X(rng, scene, i) is (instruction, scene after), say_X(rng, before, after, i) another instruction for the same; a Look stays ---

def target(rng, scene, i):
    """How an instruction points at a thing: it, the ball, the red ball."""
    thing = scene.things[i]
    if len(scene.things) == 1 and rng.random() < 0.3:
        return "it"
    return words(rng, (f"the {noun(rng, thing)}", f"the {thing.colour} {noun(rng, thing)}"))


def say_colour(rng, before, after, i):
    it, new = target(rng, before, i), after.things[i].colour
    return words(rng, (f"make {it} {new}", f"make {it} {new}", f"paint {it} {new}", f"change the colour of {it} to {new}", f"turn {it} {new}"))


def say_place(rng, before, after, i):
    if after.place == "night" and rng.random() < 0.5:
        return words(rng, ("turn day into night", "make it night", "change day to night"))
    where = words(rng, PLACE_WORDS[after.place])
    it = "it" if len(before.things) == 1 and rng.random() < 0.5 else words(rng, ("everything", "them")) if len(before.things) == 2 else target(rng, before, i)
    return words(rng, (f"put {it} {where}", f"put {it} {where}", f"move {it} {where}", f"show {it} {where}"))


def say_remove(rng, before, _, i):
    it = target(rng, before, i)
    return words(rng, (f"remove {it}", f"remove {it}", f"delete {it}", f"take {it} away"))


def say_kind(rng, before, after, i):
    it, what = target(rng, before, i), article(noun(rng, after.things[i]), True)
    return words(rng, (f"replace {it} with {what}", f"turn {it} into {what}", f"change {it} to {what}"))


def say_size(rng, before, after, i):
    it, new = target(rng, before, i), after.things[i].size
    return words(rng, (f"make {it} {new}", f"make {it} {'smaller' if new == 'small' else 'bigger'}"))


def say_move(rng, before, after, i):
    side = {"left": "to the left", "centre": "to the middle", "right": "to the right"}[after.things[i].position]
    return words(rng, (f"move {target(rng, before, i)} {side}", f"put {target(rng, before, i)} {side}"))


def say_add(rng, _, after, i):
    """Thing i of the scene after is the new one."""
    return f"add {named(rng, after.things[i])} on the {after.things[i].position}"


def edit_colour(rng, scene, i):
    after = scene.with_thing(i, colour=words(rng, [c for c in COLOURS if c != scene.things[i].colour]))
    return say_colour(rng, scene, after, i), after


def edit_place(rng, scene, i):
    after = replace(scene, place=words(rng, [p for p in PLACES if p != scene.place]))
    return say_place(rng, scene, after, i), after


def edit_remove(rng, scene, i):
    after = replace(scene, things=tuple(t for k, t in enumerate(scene.things) if k != i))
    return say_remove(rng, scene, after, i), after


def edit_kind(rng, scene, i):
    after = scene.with_thing(i, kind=words(rng, [k for k in KINDS if k not in [t.kind for t in scene.things]]))
    return say_kind(rng, scene, after, i), after


def edit_size(rng, scene, i):
    after = scene.with_thing(i, size="small" if scene.things[i].size == "big" else "big")
    return say_size(rng, scene, after, i), after


def edit_move(rng, scene, i):
    after = scene.with_thing(i, position=words(rng, [p for p in POSITIONS if p != scene.things[i].position]))
    return say_move(rng, scene, after, i), after


def edit_add(rng, scene, _):
    there = scene.things[0]
    side = "right" if there.position == "left" else "left"
    new = random_scene(rng, 1).things[0]
    new = replace(new, position=side, kind=words(rng, [k for k in KINDS if k != there.kind]))
    after = replace(scene, things=(there, new) if side == "right" else (new, there))
    return say_add(rng, scene, after, after.things.index(new)), after


def instruction(rng, name, before, after, i):
    return finish(rng, globals()["say_" + name](rng, before, after, i))


ONE = (edit_colour, edit_colour, edit_colour, edit_place, edit_place, edit_place, edit_remove, edit_kind, edit_kind, edit_size, edit_move, edit_move)
TWO = (edit_colour, edit_colour, edit_place, edit_remove, edit_remove, edit_kind)


def random_edit(rng):
    """(name of the edit, instruction, before, after), of which neither scene is held out."""
    while True:
        before = random_scene(rng, 2 if rng.random() < 0.25 else 1)
        if len(before.things) == 1 and before.things[0].position != "centre" and rng.random() < 0.12:
            edit = edit_add
        else:
            edit = words(rng, ONE if len(before.things) == 1 else TWO)
        text, after = edit(rng, before, int(rng.integers(len(before.things))))
        if not scene_held_out(after):
            return edit.__name__[5:], finish(rng, text), before, after


# --- two references: the thing of the first in the place of the second -------------------------------------------------------

def pair_text(rng, thing):
    what = words(rng, ("object", "thing", "object", noun(rng, thing)))
    return finish(rng, words(rng, (
        f"the {what} of the first image in the place of the second",
        f"put the {what} of the first image in the place of the second",
        f"put the {what} of the first image into the second image",
        f"the {what} from image 1 in the place of image 2",
        f"put the {what} from image 1 into image 2",
    )))


def random_pair(rng):
    """(instruction, first scene, second scene, scene asked for). The second picture often holds a thing of its own, which goes."""
    while True:
        first, second = random_scene(rng, 1), random_scene(rng, int(rng.random() < 0.7))
        result = Scene(second.place, first.things)
        if first.place != second.place and not scene_held_out(result):
            return pair_text(rng, first.things[0]), first, second, result


if __name__ == "__main__":
    import numpy as np

    rng = np.random.default_rng(0)
    for _ in range(30):
        print(caption(rng, random_scene(rng)))
    for _ in range(30):
        print(*random_edit(rng)[:2], sep=": ")
    for _ in range(5):
        print(random_pair(rng)[0])
