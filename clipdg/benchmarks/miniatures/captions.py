"""Captions as the web has them: short, varied, and now and then wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipdg.benchmarks.miniatures.scenes import Scene
from clipdg.text.prompts import with_article

# The words for each style that pre-training shows. The domains that are for evaluation only are never named.
STYLE_WORDS = {
    "photo": ("photo", "picture", "photograph", "snapshot"),
    "cartoon": ("cartoon", "comic", "clip art"),
    "sketch": ("sketch", "line drawing", "pencil drawing"),
    "painting": ("painting", "oil painting", "artwork"),
    "watercolor": ("watercolor", "watercolor painting"),
    "sticker": ("sticker", "decal"),
    "chalk": ("chalk drawing", "blackboard drawing"),
    "poster": ("poster", "print"),
}
GROUND_WORDS = {
    "table": "on a table", "leaves": "among leaves", "water": "in the water", "sky": "against the sky",
    "grass": "on the grass", "road": "on the road", "room": "in a room", "sand": "on the sand",
    "snow": "in the snow", "night": "at night",
}  # fmt: skip
NATURAL_COLOURS = ("photo", "painting", "sticker", "watercolor")  # styles whose captions may name the colour
NATURAL_GROUNDS = ("photo", "painting")  # styles whose captions may name the surroundings
EMPTY = ("my favourite picture", "image of the day", "untitled", "new upload")
WRONG, NO_CLASS = 0.03, 0.03  # how often a caption names a random class, or none


def caption(scene: Scene, style: str, rng: np.random.Generator, kinds: Sequence[str]) -> str:
    """Make a caption for a scene drawn in ``style``. A wrong one names one of ``kinds``."""
    kind, chance = scene.kind, rng.random()
    if chance < WRONG:
        kind = kinds[int(rng.integers(len(kinds)))]
    elif chance < WRONG + NO_CLASS:
        return EMPTY[rng.integers(len(EMPTY))]
    words = STYLE_WORDS[style]
    style_word = words[rng.integers(len(words))]
    adjectives = []
    if rng.random() < 0.35 and scene.size:
        adjectives.append(scene.size)
    if style in NATURAL_COLOURS and rng.random() < 0.45:
        adjectives.append(scene.colour)
    noun = " ".join([*adjectives, kind])
    forms = (
        f"{with_article(style_word)} of {with_article(noun)}",
        f"{with_article(style_word)} of the {noun}",
        f"{with_article(style_word)} of {with_article(noun)}",  # twice as often as the others
        with_article(noun),
        f"the {noun}, {style_word}",
        f"{noun} {style_word}",
        noun,
        f"a nice {style_word} of {with_article(noun)}",
        f"my {noun}",
        f"this is {with_article(noun)}",
    )
    text = forms[rng.integers(len(forms))]
    if style in NATURAL_GROUNDS and rng.random() < 0.45:
        text += " " + GROUND_WORDS[scene.ground]
    if scene.position and rng.random() < 0.25:
        text += " on the " + scene.position
    return text
