"""Compose what an image shows before a style is chosen: the object, its pose, its colours and what is behind it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipdg.benchmarks.miniatures.shapes import ACCENT, DARK, KINDS, LIGHT, MAIN, NUM_ROLES, SECOND, Parts

COLOURS = {
    "red": (205, 45, 40), "green": (60, 150, 60), "blue": (50, 90, 200), "yellow": (235, 205, 50),
    "orange": (235, 135, 40), "brown": (125, 80, 45), "gray": (135, 135, 140), "white": (235, 235, 230),
    "black": (35, 35, 40), "pink": (235, 130, 170), "purple": (130, 70, 170),
}  # fmt: skip

# The upper and the lower colour of what is behind the object.
GROUNDS = {
    "table": ((176, 130, 85), (150, 105, 65)), "leaves": ((50, 95, 45), (85, 130, 60)),
    "water": ((40, 110, 160), (70, 150, 185)), "sky": ((140, 190, 235), (205, 225, 245)),
    "grass": ((150, 195, 225), (80, 145, 60)), "road": ((165, 170, 175), (95, 95, 100)),
    "room": ((215, 200, 180), (165, 135, 110)), "sand": ((190, 215, 235), (220, 190, 135)),
    "snow": ((200, 215, 230), (240, 243, 248)), "night": ((20, 25, 55), (45, 50, 80)),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One object in its pose, and the words a caption may use for it."""

    kind: str
    parts: Parts  # in the image's box [-1, 1]
    palette: NDArray[np.float32]  # (NUM_ROLES, 3) in [0, 1]
    ground_palette: NDArray[np.float32]  # (2, 3) in [0, 1]
    colour: str
    ground: str
    size: str  # "small", "large" or ""
    position: str  # "left", "right" or ""


def stream(*words: int | str) -> np.random.Generator:
    """A generator of random numbers for a tuple of words: no other tuple has them, and every machine has the same."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:16]))


def compose(kind: str, rng: np.random.Generator, typical: float) -> Scene:
    """Compose a random scene. Colours and ground are each natural for the class with probability ``typical``."""
    u = rng.uniform
    shape = KINDS[kind]
    parts = shape.parts(u)

    scale, turn = u(0.62, 0.95), u(-0.3, 0.3)
    room = 1 - 0.85 * scale  # how far the object may move from the centre
    x, y = u(-room, room), u(-room, room)
    flip = -1 if rng.random() < 0.5 else 1
    aspect, shear = u(0.87, 1.13), u(-0.15, 0.15)
    c, s = math.cos(turn), math.sin(turn)
    pose = scale * np.array([[c, -s], [s, c]]) @ np.array([[flip * aspect, shear], [0, 1 / aspect]])

    names, grounds = list(COLOURS), list(GROUNDS)
    if rng.random() < typical:
        colour, second, accent = shape.mains[rng.integers(len(shape.mains))], shape.second, shape.accent
    else:
        colour, second, accent = (names[i] for i in rng.integers(len(names), size=3))
    near = shape.grounds if rng.random() < typical else grounds
    ground = near[rng.integers(len(near))]
    palette = np.zeros((NUM_ROLES, 3), np.float32)
    palette[[MAIN, SECOND, ACCENT]] = [COLOURS[colour], COLOURS[second], COLOURS[accent]]
    palette[[DARK, LIGHT]] = [(45, 38, 35), (232, 236, 238)]

    return Scene(
        kind=kind,
        parts=[(points @ pose.T + (x, y), role) for points, role in parts],
        palette=palette / np.float32(255),
        ground_palette=np.array(GROUNDS[ground], np.float32) / np.float32(255),
        colour=colour,
        ground=ground,
        size="small" if scale < 0.7 else "large" if scale > 0.9 else "",
        position="left" if x < -0.25 else "right" if x > 0.25 else "",
    )


def part_codes(scenes: Sequence[Scene], pixels: int) -> NDArray[np.uint8]:
    """Draw the parts: (B, S, S) of a part's number, from 1 on, times NUM_ROLES plus its role; 0 is the ground."""
    codes = np.zeros((len(scenes), pixels, pixels), np.uint8)
    for i, scene in enumerate(scenes):
        image = Image.new("L", (pixels, pixels))
        draw = ImageDraw.Draw(image)
        for number, (points, role) in enumerate(scene.parts, start=1):
            draw.polygon(((points + 1) * (pixels / 2)).ravel().tolist(), fill=number * NUM_ROLES + role)
        codes[i] = np.asarray(image)
    return codes
