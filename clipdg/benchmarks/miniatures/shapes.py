"""The shapes of the objects: each class is a list of polygons, each with a role. Proportions are random.

Coordinates lie in the box [-1, 1], x to the right and y down. Later parts cover earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (V, 2)
Uniform = Callable[[float, float], float]  # (low, high) -> a random number between them
Parts = list[tuple[Points, int]]  # polygons and their roles, from back to front

# A part is coloured by its role. 0 is the ground behind the object.
MAIN, SECOND, ACCENT, DARK, LIGHT = 1, 2, 3, 4, 5
NUM_ROLES = 8  # the code of a part is its number times this, plus its role


def ellipse(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, start: float = 0.0, stop: float = 1.0
) -> Points:
    """An ellipse turned by ``turn`` radians, or its arc from ``start`` to ``stop``, as fractions of the round."""
    angle = (
        np.linspace(0, 2 * np.pi, 24, endpoint=False)
        if (start, stop) == (0.0, 1.0)
        else np.linspace(start, stop, 16) * 2 * np.pi
    )
    u, v = rx * np.cos(angle), ry * np.sin(angle)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([x + c * u - s * v, y + s * u + c * v], 1)


def dome(x: float, y: float, rx: float, ry: float) -> Points:
    """The upper half of an ellipse."""
    return ellipse(x, y, rx, ry, 0.0, 0.5, 1.0)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, float)


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """A straight stroke."""
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return np.array([[x0 + nx, y0 + ny], [x1 + nx, y1 + ny], [x1 - nx, y1 - ny], [x0 - nx, y0 - ny]])


def ring(x: float, y: float, radius: float, width: float, start: float = 0.0, stop: float = 1.0) -> Points:
    """A round stroke of ``width`` within ``radius``."""
    angle = np.linspace(start, stop, 24) * 2 * np.pi
    direction = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([(x, y) + radius * direction, ((x, y) + (radius - width) * direction)[::-1]])


def apple(u: Uniform) -> Parts:
    a, b = u(0.55, 0.66), u(0.08, 0.18)
    body = np.concatenate([ellipse(-b, 0.15, a, 0.68, 0, 0.25, 0.78), ellipse(b, 0.15, a, 0.68, 0, 0.72, 1.25)])
    return [
        (body, MAIN),
        (bar(0, -0.4, u(0.02, 0.15), -0.85, 0.12), DARK),
        (ellipse(0.32, -0.72, 0.28, 0.12, u(-0.7, -0.2)), SECOND),
    ]


def fish(u: Uniform) -> Parts:
    h, t = u(0.34, 0.48), u(0.3, 0.45)
    return [
        (polygon((0.35, 0), (0.95, -t), (0.8, 0), (0.95, t)), SECOND),
        (polygon((-0.25, -h * 0.7), (0.15, -h - u(0.15, 0.3)), (0.35, -h * 0.5)), SECOND),
        (ellipse(-0.15, 0, 0.7, h), MAIN),
        (ellipse(-0.1, 0.1, 0.2, 0.1, 0.5), ACCENT),
        (ellipse(-0.55, -0.1, 0.1, 0.1), LIGHT),
        (ellipse(-0.56, -0.1, 0.05, 0.05), DARK),
    ]


def tree(u: Uniform) -> Parts:
    w, r = u(0.12, 0.17), u(0.36, 0.44)
    return [
        (rectangle(-w, 0.1, w, 0.95), SECOND),
        (ellipse(-0.33, -0.12, r, r * 0.9), MAIN),
        (ellipse(0.33, -0.12, r, r * 0.9), MAIN),
        (ellipse(0, -0.5, r * 1.1, r), MAIN),
        (ellipse(0, -0.1, 0.42, 0.3), MAIN),
    ]


def house(u: Uniform) -> Parts:
    w, y, d = u(0.6, 0.72), u(-0.2, -0.05), u(-0.3, 0.3)
    window = (d + 0.22, d + 0.5) if d < 0 else (d - 0.5, d - 0.22)
    return [
        (rectangle(-w, y, w, 0.85), MAIN),
        (polygon((-w - 0.18, y), (0, y - u(0.6, 0.75)), (w + 0.18, y)), SECOND),
        (rectangle(d - 0.13, 0.3, d + 0.13, 0.85), DARK),
        (rectangle(window[0], 0.1, window[1], 0.4), LIGHT),
    ]


def car(u: Uniform) -> Parts:
    h, a = u(0.3, 0.38), u(0.4, 0.5)
    return [
        (polygon((-0.55, 0), (-0.3, -h - 0.1), (0.3, -h - 0.1), (a + 0.12, 0)), MAIN),
        (polygon((-0.42, 0), (-0.26, -h), (-0.03, -h), (-0.03, 0)), LIGHT),
        (polygon((0.06, 0), (0.06, -h), (0.25, -h), (a, 0)), LIGHT),
        (rectangle(-0.95, 0, 0.95, 0.4), MAIN),
        (ellipse(-0.52, 0.42, 0.22, 0.22), DARK),
        (ellipse(0.52, 0.42, 0.22, 0.22), DARK),
        (ellipse(-0.52, 0.42, 0.09, 0.09), LIGHT),
        (ellipse(0.52, 0.42, 0.09, 0.09), LIGHT),
        (ellipse(0.88, 0.12, 0.08, 0.08), ACCENT),
    ]


def cat(u: Uniform) -> Parts:
    r, e = u(0.6, 0.68), u(0.85, 0.98)
    return [
        (polygon((-r, -0.15), (-0.56, -e), (-0.08, -0.45)), MAIN),
        (polygon((r, -0.15), (0.56, -e), (0.08, -0.45)), MAIN),
        (ellipse(0, 0.12, r, 0.58), MAIN),
        (ellipse(-0.25, 0, 0.12, 0.14), ACCENT),
        (ellipse(0.25, 0, 0.12, 0.14), ACCENT),
        (ellipse(-0.25, 0, 0.05, 0.11), DARK),
        (ellipse(0.25, 0, 0.05, 0.11), DARK),
        (polygon((-0.09, 0.22), (0.09, 0.22), (0, 0.33)), SECOND),
        (bar(0.25, 0.33, 0.9, 0.25, 0.04), DARK),
        (bar(-0.25, 0.33, -0.9, 0.25, 0.04), DARK),
        (bar(0.25, 0.4, 0.88, 0.48, 0.04), DARK),
        (bar(-0.25, 0.4, -0.88, 0.48, 0.04), DARK),
    ]


def bird(u: Uniform) -> Parts:
    return [
        (polygon((0.35, 0.0), (0.98, u(-0.25, -0.05)), (0.9, 0.25)), SECOND),
        (bar(-0.1, 0.4, -0.12, 0.85, 0.07), ACCENT),
        (bar(0.1, 0.4, 0.1, 0.85, 0.07), ACCENT),
        (ellipse(0.05, 0.08, 0.55, u(0.36, 0.44), -0.2), MAIN),
        (ellipse(-0.42, -0.38, 0.3, 0.28), MAIN),
        (polygon((-0.66, -0.46), (-1.0, -0.32), (-0.66, -0.25)), ACCENT),
        (ellipse(0.15, 0.05, 0.33, 0.18, u(0.1, 0.5)), SECOND),
        (ellipse(-0.48, -0.44, 0.06, 0.06), DARK),
    ]


def flower(u: Uniform) -> Parts:
    num_petals, phase = int(u(5, 7.99)), u(0, 6)
    parts = [
        (bar(0, -0.1, u(-0.1, 0.1), 0.98, 0.09), SECOND),
        (ellipse(0.25, 0.6, 0.26, 0.1, -0.5), SECOND),
        (ellipse(-0.25, 0.7, 0.26, 0.1, 0.5), SECOND),
    ]
    for i in range(num_petals):
        t = phase + 2 * math.pi * i / num_petals
        parts.append((ellipse(0.34 * math.cos(t), -0.38 + 0.34 * math.sin(t), 0.27, 0.17, t), MAIN))
    return [*parts, (ellipse(0, -0.38, 0.19, 0.19), ACCENT)]


def boat(u: Uniform) -> Parts:
    m = u(-0.15, 0.05)
    return [
        (bar(m, 0.35, m, -0.92, 0.08), DARK),
        (polygon((m + 0.07, -0.85), (m + 0.07, 0.22), (m + u(0.6, 0.8), 0.22)), MAIN),
        (polygon((m - 0.07, -0.6), (m - 0.07, 0.22), (m - u(0.4, 0.6), 0.22)), ACCENT),
        (polygon((-0.9, 0.35), (0.9, 0.35), (0.6, 0.8), (-0.6, 0.8)), SECOND),
    ]


def mug(u: Uniform) -> Parts:
    w, h = u(0.42, 0.52), u(0.6, 0.72)
    return [
        (ring(w, 0.05, u(0.36, 0.44), 0.15, -0.25, 0.25), MAIN),
        (polygon((-w, -h), (w, -h), (w * 0.92, h), (-w * 0.92, h)), MAIN),
        (ellipse(0, -h, w, 0.15), LIGHT),
        (ellipse(0, -h + 0.02, w * 0.8, 0.09), SECOND),
        (rectangle(-w * 0.95, 0.05, w * 0.95, 0.25), ACCENT),
    ]


def umbrella(u: Uniform) -> Parts:
    h = u(0.65, 0.8)
    return [
        (bar(0, 0, 0, 0.75, 0.08), DARK),
        (ring(-0.16, 0.72, 0.2, 0.08, 0, 0.5), DARK),
        (dome(0, 0.05, 0.92, h), MAIN),
        (dome(0, 0.05, 0.44, h), ACCENT),
        (dome(0, 0.05, 0.12, h), MAIN),
        (bar(0, -h, 0, -h + 0.03, 0.07), DARK),
    ]


def butterfly(u: Uniform) -> Parts:
    a, t = u(0.4, 0.5), u(0.5, 0.8)
    parts: Parts = []
    for s in (-1, 1):
        parts += [
            (ellipse(s * 0.5, -0.35, a, 0.36, -s * t), MAIN),
            (ellipse(s * 0.4, 0.4, a * 0.75, 0.3, s * t), SECOND),
            (ellipse(s * 0.55, -0.38, 0.15, 0.13), ACCENT),
            (ellipse(s * 0.42, 0.42, 0.1, 0.1), ACCENT),
            (bar(s * 0.03, -0.5, s * 0.25, -0.95, 0.05), DARK),
        ]
    return [*parts, (ellipse(0, 0, 0.09, 0.58), DARK)]


def mushroom(u: Uniform) -> Parts:
    w, h = u(0.17, 0.25), u(0.6, 0.75)
    return [
        (polygon((-w, 0), (w, 0), (w * 1.35, 0.85), (-w * 1.35, 0.85)), LIGHT),
        (dome(0, 0.12, u(0.75, 0.9), h), MAIN),
        (ellipse(-0.35, -0.12, 0.13, 0.11), SECOND),
        (ellipse(0.3, -0.18, 0.15, 0.12), SECOND),
        (ellipse(-0.02, -0.38, 0.12, 0.09), SECOND),
    ]


def guitar(u: Uniform) -> Parts:
    a = u(0.38, 0.45)
    return [
        (rectangle(-0.07, -0.75, 0.07, 0.2), SECOND),
        (rectangle(-0.14, -0.99, 0.14, -0.72), DARK),
        (ellipse(0, 0.18, a * 0.78, 0.26), MAIN),
        (ellipse(0, 0.6, a, 0.36), MAIN),
        (ellipse(0, 0.28, 0.14, 0.14), DARK),
        (rectangle(-0.16, 0.66, 0.16, 0.74), DARK),
    ]


def airplane(u: Uniform) -> Parts:
    s = u(0.15, 0.4)
    parts: Parts = []
    for side in (-1, 1):
        wing = ((0.08, -0.2), (0.95, 0.1 + s), (0.95, 0.28 + s), (0.08, 0.2))
        parts.append((polygon(*((side * x, y) for x, y in wing)), SECOND))
    for side in (-1, 1):
        tail = ((0.0, 0.55), (0.4, 0.85), (0.4, 0.97), (0.0, 0.85))
        parts.append((polygon(*((side * x, y) for x, y in tail)), ACCENT))
    return [*parts, (ellipse(0, 0, 0.14, 0.95), MAIN), (ellipse(0, -0.65, 0.09, 0.1), DARK)]


def cactus(u: Uniform) -> Parts:
    w, left, right = u(0.17, 0.22), u(-0.1, 0.2), u(-0.2, 0.1)
    return [
        (rectangle(-0.72, left - 0.42, -0.5, left + 0.2), MAIN),
        (rectangle(-0.72, left, -0.1, left + 0.22), MAIN),
        (rectangle(0.5, right - 0.42, 0.72, right + 0.2), MAIN),
        (rectangle(0.1, right, 0.72, right + 0.22), MAIN),
        (np.concatenate([dome(0, -0.72, w, w), [[w, 0.6], [-w, 0.6]]]), MAIN),
        (polygon((-0.4, 0.5), (0.4, 0.5), (0.28, 0.95), (-0.28, 0.95)), SECOND),
        (ellipse(0, -0.9, 0.1, 0.09), ACCENT),
    ]


def chair(u: Uniform) -> Parts:
    w, y = u(0.4, 0.5), u(0.05, 0.2)
    return [
        (rectangle(-w, -0.95, -w + 0.13, 0.95), SECOND),
        (rectangle(-w, -0.95, -w + 0.25, y), MAIN),
        (rectangle(-w, y, w + 0.1, y + 0.2), MAIN),
        (rectangle(w - 0.08, y + 0.2, w + 0.08, 0.95), SECOND),
        (rectangle(-w + 0.3, y + 0.2, -w + 0.4, 0.75), SECOND),
    ]


def clock(u: Uniform) -> Parts:
    r, a, b = u(0.72, 0.82), u(0, 6.28), u(0, 6.28)
    return [
        (ellipse(-0.45, 0.8, 0.14, 0.2, 0.5), SECOND),
        (ellipse(0.45, 0.8, 0.14, 0.2, -0.5), SECOND),
        (ellipse(-0.5, -0.72, 0.24, 0.15, -0.7), SECOND),
        (ellipse(0.5, -0.72, 0.24, 0.15, 0.7), SECOND),
        (ellipse(0, 0, r, r), MAIN),
        (ellipse(0, 0, r - 0.16, r - 0.16), LIGHT),
        (bar(0, 0, 0.5 * math.cos(a), 0.5 * math.sin(a), 0.07), DARK),
        (bar(0, 0, 0.32 * math.cos(b), 0.32 * math.sin(b), 0.09), ACCENT),
    ]


def key(u: Uniform) -> Parts:
    return [
        (ring(-0.55, 0, u(0.34, 0.4), 0.16), MAIN),
        (rectangle(-0.22, -0.08, 0.95, 0.08), MAIN),
        (rectangle(0.6, 0.05, 0.72, u(0.25, 0.36)), MAIN),
        (rectangle(0.8, 0.05, 0.93, u(0.25, 0.4)), MAIN),
    ]


def snail(u: Uniform) -> Parts:
    r = u(0.52, 0.58)
    return [
        (polygon((-0.95, 0.7), (-0.75, 0.4), (0.5, 0.45), (0.98, 0.75)), SECOND),
        (ellipse(-0.72, 0.3, 0.2, 0.3), SECOND),
        (bar(-0.78, 0.1, -0.92, -0.3, 0.06), SECOND),
        (bar(-0.66, 0.1, -0.6, -0.32, 0.06), SECOND),
        (ellipse(0.15, 0.02, r, r - 0.02), MAIN),
        (ring(0.15, 0.05, 0.4, 0.1, 0, 0.85), ACCENT),
        (ring(0.15, 0.05, 0.2, 0.1, 0.2, 1.1), ACCENT),
    ]


@dataclass(frozen=True)
class Kind:
    """A class: its shape, and the colours and surroundings that are natural for it, by their names in scenes.py."""

    parts: Callable[[Uniform], Parts]
    mains: tuple[str, ...]
    second: str
    accent: str
    grounds: tuple[str, ...]


KINDS = {
    "apple": Kind(apple, ("red", "green", "red"), "green", "green", ("table", "leaves")),
    "fish": Kind(fish, ("orange", "gray", "blue"), "orange", "yellow", ("water",)),
    "tree": Kind(tree, ("green",), "brown", "red", ("sky", "grass")),
    "house": Kind(house, ("white", "brown", "yellow"), "red", "blue", ("sky", "grass")),
    "car": Kind(car, ("red", "blue", "gray", "black"), "gray", "yellow", ("road",)),
    "cat": Kind(cat, ("gray", "orange", "black"), "pink", "green", ("room",)),
    "bird": Kind(bird, ("blue", "brown", "gray"), "brown", "orange", ("sky", "leaves")),
    "flower": Kind(flower, ("pink", "purple", "yellow", "white"), "green", "orange", ("grass", "leaves")),
    "boat": Kind(boat, ("white",), "brown", "red", ("water", "sky")),
    "mug": Kind(mug, ("white", "blue", "yellow"), "brown", "red", ("table", "room")),
    "umbrella": Kind(umbrella, ("red", "purple", "black"), "gray", "pink", ("road", "sand")),
    "butterfly": Kind(butterfly, ("orange", "yellow", "blue"), "yellow", "white", ("leaves", "grass")),
    "mushroom": Kind(mushroom, ("red", "brown"), "white", "white", ("grass", "leaves")),
    "guitar": Kind(guitar, ("brown", "orange"), "black", "yellow", ("room",)),
    "airplane": Kind(airplane, ("white", "gray"), "gray", "red", ("sky",)),
    "cactus": Kind(cactus, ("green",), "orange", "pink", ("sand",)),
    "chair": Kind(chair, ("brown", "gray"), "brown", "brown", ("room",)),
    "clock": Kind(clock, ("red", "gray", "yellow"), "gray", "red", ("table", "room")),
    "key": Kind(key, ("yellow", "gray"), "gray", "gray", ("table",)),
    "snail": Kind(snail, ("brown", "orange"), "yellow", "brown", ("leaves", "grass")),
}  # fmt: skip
