"""Draw scenes in the style of a domain: part codes -> RGB, a batch at a time.

Legend: B images, P pixels a side of the result, S = SUPERSAMPLE · P pixels a side while drawing.

A scene at 64 px is the scene at 32 px, only sharper. So widths are given in pixels at S = 96 and scale with it, and
random numbers are drawn at sizes that do not depend on S. The grain, which comes last, is the exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipdg.benchmarks.miniatures.scenes import Scene, part_codes
from clipdg.benchmarks.miniatures.shapes import DARK, LIGHT, MAIN, NUM_ROLES, SECOND

SUPERSAMPLE = 3
TILES = 11  # a mosaic's tiles a side


class Canvas:
    """A batch of scenes under one style, with each image's own random numbers."""

    def __init__(self, scenes: Sequence[Scene], streams: Sequence[np.random.Generator], pixels: int, natural: bool):
        self.batch, self.pixels, self.natural = len(scenes), pixels, natural
        self._streams = streams
        codes = torch.from_numpy(part_codes(scenes, pixels))[:, None]
        self.codes = codes.float()  # (B, 1, S, S)
        self.mask = (codes > 0).float()  # (B, 1, S, S): the object
        self.roles = (codes % NUM_ROLES).long()  # (B, 1, S, S)
        self.palette = torch.from_numpy(np.stack([s.palette for s in scenes]))  # (B, R, 3)
        self.ground_palette = torch.from_numpy(np.stack([s.ground_palette for s in scenes]))  # (B, 2, 3)
        line = torch.linspace(0, 1, pixels)
        self.y, self.x = line.view(1, 1, -1, 1), line.view(1, 1, 1, -1)

    def width(self, pixels_at_96: float) -> int:
        """The odd width of a kernel, 3 or more, that covers ``pixels_at_96`` of 96 pixels."""
        return max(3, round(pixels_at_96 * self.pixels / 96) // 2 * 2 + 1)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw (B, *shape) between ``low`` and ``high``, for each image from its own stream."""
        drawn = np.stack([s.random(shape, dtype=np.float32) for s in self._streams])
        return torch.from_numpy(drawn * np.float32(high - low) + np.float32(low))

    def number(self, low: float, high: float) -> Tensor:
        """Draw a number for each image: (B, 1, 1, 1)."""
        return self.uniform(low, high, 1, 1, 1)

    def chance(self, probability: float) -> Tensor:
        """Draw a one, with ``probability``, or a zero for each image: (B, 1, 1, 1)."""
        return (self.number(0, 1) < probability).float()

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(np.stack([s.standard_normal(shape, dtype=np.float32) for s in self._streams]))

    def noise(self, channels: int, cells: int, mode: str = "bilinear") -> Tensor:
        """Draw ``cells`` random values a side and interpolate them: (B, channels, S, S) in [0, 1]."""
        grid = self.uniform(0, 1, channels, cells, cells)
        smooth = {} if mode == "nearest" else {"align_corners": False}
        return F.interpolate(grid, (self.pixels, self.pixels), mode=mode, **smooth)

    def vivid(self, *shape: int) -> Tensor:
        """Draw saturated, bright colours: (B, *shape, 3)."""
        return _hsv(self.uniform(0, 1, *shape), self.uniform(0.6, 1, *shape), self.uniform(0.75, 1, *shape))

    def vivid_plane(self) -> Tensor:
        """Draw a saturated, bright colour for each image: (B, 3, 1, 1)."""
        return self.vivid()[:, :, None, None]

    def pale_plane(self) -> Tensor:
        """Draw a light colour for each image: (B, 3, 1, 1)."""
        return _hsv(self.uniform(0, 1), self.uniform(0, 0.35), self.uniform(0.85, 1))[:, :, None, None]

    def jitter(self, amount: float) -> Tensor:
        """The palette with each component moved by at most ``amount``."""
        return (self.palette + self.uniform(-amount, amount, NUM_ROLES, 3)).clamp(0, 1)

    def mixed(self, palette: Tensor, probability: float) -> Tensor:
        """Replace ``palette`` by vivid colours with ``probability``; never where colours are to be natural."""
        vivid, chosen = self.vivid(NUM_ROLES), self.chance(0.0 if self.natural else probability)[:, 0]
        return palette * (1 - chosen) + vivid * chosen

    def fill(self, palette: Tensor) -> Tensor:
        """Give each pixel the colour of its role: (B, R, 3) -> (B, 3, S, S)."""
        index = self.roles.view(self.batch, 1, -1).expand(-1, 3, -1)
        return palette.transpose(1, 2).gather(2, index).view(self.batch, 3, self.pixels, self.pixels)

    def over(self, ground: Tensor, palette: Tensor) -> Tensor:
        """Draw the object in its colours over ``ground``."""
        return torch.lerp(ground.expand(-1, 3, self.pixels, self.pixels), self.fill(palette), self.mask)

    def landscape(self) -> Tensor:
        """Draw the two ground colours with a soft horizon between them: (B, 3, S, S)."""
        below = torch.sigmoid((self.y - self.number(0.35, 0.7)) * 14)  # (B, 1, S, 1)
        upper, lower = self.ground_palette[:, 0, :, None, None], self.ground_palette[:, 1, :, None, None]
        return (upper * (1 - below) + lower * below).expand(-1, -1, -1, self.pixels)

    def warp(self, image: Tensor, amount: float, cells: int, mode: str = "bilinear", noise: str = "bilinear") -> Tensor:
        """Displace ``image`` by smooth noise, or by blocks with ``noise="nearest"``. ``amount`` is in half sides."""
        line = torch.linspace(-1, 1, self.pixels)
        gy, gx = torch.meshgrid(line, line, indexing="ij")
        shift = (self.noise(2, cells, noise) * 2 - 1) * amount
        grid = torch.stack([gx + shift[:, 0], gy + shift[:, 1]], -1)
        return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)

    def blur(self, image: Tensor, pixels_at_96: float) -> Tensor:
        """Blur widely. It is done at 1/SUPERSAMPLE of the size, where a wide avg_pool2d is ten times as fast."""
        low = F.avg_pool2d(image, SUPERSAMPLE)
        kernel = max(3, round(self.width(pixels_at_96) / SUPERSAMPLE) // 2 * 2 + 1)
        size = (self.pixels, self.pixels)
        return F.interpolate(_box(_box(low, kernel), kernel), size, mode="bilinear", align_corners=False)


def _hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Turn hue, saturation and value, (...) in [0, 1] each, into RGB (..., 3)."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[..., None] * 6) % 6
    return value[..., None] * (1 - saturation[..., None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _box(image: Tensor, kernel: int) -> Tensor:
    return F.avg_pool2d(F.pad(image, (kernel // 2,) * 4, mode="replicate"), kernel, 1)


def _extreme(image: Tensor, kernel: int, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The largest or smallest value in each ``kernel`` square, found several times as fast as by max_pool2d."""
    image = F.pad(image, (kernel // 2,) * 4, mode="replicate")
    for dim in (2, 3):
        covered = 1
        while covered < kernel:  # windows of 1, 2, 4, ... pixels
            step, size = min(covered, kernel - covered), image.shape[dim]
            image = pick(image.narrow(dim, 0, size - step), image.narrow(dim, step, size - step))
            covered += step
    return image


def _edges(codes: Tensor, kernel: int) -> Tensor:
    """Mark with 1 where two parts meet within ``kernel`` pixels; 0 elsewhere."""
    return (_extreme(codes, kernel, torch.maximum) != _extreme(codes, kernel, torch.minimum)).float()


def photo(c: Canvas) -> Tensor:
    """A softly lit object with a texture and a shadow, before a textured ground."""
    palette = c.jitter(0.07)
    texture = c.noise(1, 32) * 0.22 + c.noise(1, 8) * 0.25
    height = c.blur(c.mask, 15)
    slope_x = F.pad(height[..., 1:] - height[..., :-1], (0, 1))
    slope_y = F.pad(height[..., 1:, :] - height[..., :-1, :], (0, 0, 0, 1))
    angle = c.number(0, 2 * math.pi)
    light = 1 + (slope_x * angle.cos() + slope_y * angle.sin()) * (9 * c.pixels / 96)
    object_ = c.fill(palette) * (light.clamp(0.45, 1.5) * (0.85 + texture * 0.6))
    ground = c.landscape() * (0.72 + c.noise(3, 16) * 0.3 + c.noise(1, 5) * 0.35)
    shadow = torch.roll(c.blur(c.mask, 9), (c.width(7), c.width(5)), (2, 3))
    x = _box(torch.lerp(ground * (1 - 0.4 * shadow), object_, c.mask), c.width(3))
    return (x - 0.5) * c.number(0.75, 1.15) + 0.5 + c.number(-0.1, 0.1)


def cartoon(c: Canvas) -> Tensor:
    """Flat colours, half of the time wild ones, with thick outlines on a pastel or striped ground."""
    wild = c.vivid(NUM_ROLES)
    wild[:, DARK], wild[:, LIGHT] = 0.1, 0.97
    natural = ((c.palette - 0.5) * 1.35 + 0.53).clamp(0, 1)
    chosen = c.chance(0.5)[:, 0]
    stripes = (torch.sin((c.x + c.y) * c.number(10, 40)) > 0).float() * c.chance(0.4) * 0.12
    x = c.over(c.vivid_plane() * 0.45 + 0.55 - stripes, natural * chosen + wild * (1 - chosen))
    outline = _edges(c.codes, c.width(5))
    return x * (1 - outline) + 0.06 * outline


def sketch(c: Canvas) -> Tensor:
    """Trembling pencil lines on paper, some parts hatched."""
    line = _box(_edges(c.warp(c.codes, 0.02, 10, "nearest"), c.width(3)), c.width(3))
    hatched = ((c.roles == SECOND) | (c.roles == DARK)).float() * c.chance(0.6)
    hatching = (torch.sin((c.x + 0.6 * c.y) * (c.number(14, 24) * 2 * math.pi)) > 0.3).float() * hatched
    paper = c.number(0.86, 1) + c.noise(1, 48) * 0.06 - 0.03
    ink = line * c.number(0.65, 0.95) * (0.6 + 0.4 * c.noise(1, 24)) + hatching * 0.35
    return (paper * (1 - ink.clamp(0, 0.95))).expand(-1, 3, -1, -1)


def painting(c: Canvas) -> Tensor:
    """Blocky brush strokes of uneven brightness; four in ten in wild colours."""
    palette = c.mixed(c.jitter(0.16), 0.4)
    x = c.over((c.landscape() + c.uniform(-0.2, 0.2, 3, 1, 1)).clamp(0, 1), palette)
    x = c.warp(x, 0.07, 22, "nearest", "nearest")
    x = x * (0.78 + 0.44 * c.noise(1, 20, "nearest"))
    return _box(c.warp(x, 0.03, 12), c.width(3))


def watercolor(c: Canvas) -> Tensor:
    """Pale washes that run over their outline on white paper."""
    palette = (c.palette * 0.6 + 0.38 + c.uniform(-0.1, 0.1, NUM_ROLES, 3)).clamp(0, 1)
    wash = c.warp(torch.cat([c.fill(palette) * c.mask, c.mask], 1), 0.05, 9)  # (B, 4, S, S)
    soft, strength = c.blur(wash, 5), 0.55 + 0.45 * c.noise(1, 7)
    x = 0.97 * (1 - soft[:, 3:] * strength) + soft[:, :3] * strength
    return x - 0.12 * _edges((wash[:, 3:] > 0.5).float(), c.width(3))


def sticker(c: Canvas) -> Tensor:
    """Flat natural colours with a white border on a vivid ground."""
    border = _extreme(c.mask, c.width(9), torch.maximum)
    return c.over(torch.lerp(c.vivid_plane(), torch.tensor(0.98), border), ((c.palette - 0.5) * 1.2 + 0.52).clamp(0, 1))


def chalk(c: Canvas) -> Tensor:
    """Broken light lines on a dark board."""
    line = _box(_edges(c.warp(c.codes, 0.02, 10, "nearest"), c.width(5)), c.width(3))
    boards = torch.tensor([[0.12, 0.16, 0.14], [0.2, 0.2, 0.22], [0.1, 0.2, 0.16]])
    board = boards[(c.uniform(0, 3) - 1e-6).long().clamp(min=0)][:, :, None, None]
    broken = (c.noise(1, 48) > 0.35).float()
    return board + c.noise(1, 9) * 0.1 + line * broken * (c.pale_plane() - 0.25)


def poster(c: Canvas) -> Tensor:
    """Two inks, one of them a halftone, on tinted paper."""
    light = (c.fill(c.palette).mean(1, keepdim=True) > 0.45).float()
    inks = c.vivid(3)[:, :, :, None, None]  # (B, 3, 3, 1, 1)
    frequency = c.number(14, 20) * 2 * math.pi
    dots = ((torch.sin(c.x * frequency) * torch.sin(c.y * frequency)) > 0).float() * 0.5
    printed = inks[:, 1] * 0.6 * (1 - light) + light * (inks[:, 2] * (0.6 + dots)).clamp(0, 1)
    return torch.lerp((inks[:, 0] * 0.35 + 0.6).expand_as(printed), printed, c.mask)


def silhouette(c: Canvas) -> Tensor:
    """A dark shape before a smooth light ground."""
    ground = c.pale_plane() * (1 - c.y) + (c.vivid_plane() * 0.5 + 0.45) * c.y
    return ground * (1 - c.mask) + c.number(0, 0.15) * c.mask


def neon(c: Canvas) -> Tensor:
    """Glowing lines on near black."""
    line, palette = _edges(c.codes, c.width(3)), c.vivid(NUM_ROLES)
    palette[:, 0] = palette[:, MAIN]  # lines lie half on the ground
    lit = line * c.fill(palette)
    night = c.number(0.02, 0.1) * torch.tensor([0.6, 0.5, 1.0]).view(1, 3, 1, 1)
    return night + lit * 0.9 + line * 0.15 + c.blur(lit, 9) * 1.6


def mosaic(c: Canvas) -> Tensor:
    """Irregular tiles (a Voronoi diagram of a jittered grid) with grout; half of them in wild colours."""
    cell = torch.arange(TILES, dtype=torch.float32)
    centre = torch.stack(torch.meshgrid(cell, cell, indexing="xy"))  # (2, T, T): x, y
    centre = (centre + c.uniform(0.2, 0.8, 2, TILES, TILES)) / TILES  # (B, 2, T, T)
    at = (torch.linspace(0, 1, c.pixels) * TILES).long().clamp(max=TILES - 1)  # (S,): each pixel's own cell
    nearest = torch.full((c.batch, c.pixels, c.pixels), math.inf)
    tile = torch.zeros(c.batch, c.pixels, c.pixels, dtype=torch.long)
    for dy in (-1, 0, 1):
        row = (at + dy).clamp(0, TILES - 1)
        for dx in (-1, 0, 1):
            column = (at + dx).clamp(0, TILES - 1)
            x, y = centre[:, :, row][:, :, :, column].unbind(1)  # (B, S, S) each
            distance = (x - c.x[0]).square() + (y - c.y[0]).square()
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            tile = torch.where(closer, row[:, None] * TILES + column, tile)
    shade = c.uniform(0.75, 1.15, TILES * TILES).gather(1, tile.view(c.batch, -1)).view_as(c.mask)
    joint = c.width(3)
    grout = torch.maximum(_edges(tile[:, None].float(), joint), _edges(c.roles.float(), joint)) * 0.4
    palette = c.mixed((c.palette + c.uniform(-0.2, 0.2, NUM_ROLES, 3)).clamp(0.05, 1), 0.5)
    x = c.over(c.vivid_plane() * 0.5 + 0.3, palette) * shade
    return x * (1 - grout) + grout * c.number(0.15, 0.8)


Style = Callable[[Canvas], Tensor]  # -> (B, 3, S, S), about [0, 1]
STYLES: dict[str, tuple[Style, float]] = {  # and the standard deviation of the grain
    "photo": (photo, 0.03), "cartoon": (cartoon, 0.0), "painting": (painting, 0.015), "sketch": (sketch, 0.01),
    "watercolor": (watercolor, 0.01), "sticker": (sticker, 0.0), "chalk": (chalk, 0.01), "poster": (poster, 0.0),
    "silhouette": (silhouette, 0.01), "neon": (neon, 0.01), "mosaic": (mosaic, 0.0),
}  # fmt: skip


@torch.inference_mode()
def render(
    scenes: Sequence[Scene], style: str, streams: Sequence[np.random.Generator], size: int, natural: bool = False
) -> NDArray[np.uint8]:
    """Draw scenes in one style: (B, P, P, 3). About 64 at a time is fastest, as larger batches leave the cache."""
    draw, grain = STYLES[style]
    canvas = Canvas(scenes, streams, size * SUPERSAMPLE, natural)
    x = F.avg_pool2d(draw(canvas).clamp(0, 1), SUPERSAMPLE)
    if grain:
        x = x + canvas.normal(3, size, size) * grain
    image: NDArray[np.uint8] = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(image)
