"""Drawing of scenes with Pillow: plain shapes, so that no font or download is needed."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .classes import COLOURS
from .layout import SIZE, PlacedObject, Scene

_ZOOM = 4
"""Shapes are drawn this many times as large and scaled down, which smooths their edges."""

Point = tuple[float, float]
_Painter = Callable[[ImageDraw.ImageDraw, Callable[[float, float], Point], int], None]


def draw_scene(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of SIZE × SIZE pixels."""
    large = Image.new("RGB", (SIZE * _ZOOM, SIZE * _ZOOM), scene.background)
    for placed in scene.objects:
        colour = Image.new("RGB", large.size, COLOURS[placed.kind.colour])
        large.paste(colour, mask=_mask(placed))
    return large.resize((SIZE, SIZE), Image.Resampling.BOX)


def scene_pixels(scene: Scene) -> np.ndarray:
    """Return the scene as uint8 [SIZE, SIZE, 3]."""
    return np.asarray(draw_scene(scene))


def scene_png(scene: Scene) -> bytes:
    """Return the scene as the bytes of a PNG file."""
    file = io.BytesIO()
    draw_scene(scene).save(file, "PNG")
    return file.getvalue()


def _mask(placed: PlacedObject) -> Image.Image:
    """Return an image that is 255 where the object is, at the large size."""
    mask = Image.new("L", (SIZE * _ZOOM, SIZE * _ZOOM), 0)

    def at(x: float, y: float) -> Point:
        """Map a point of the unit square to pixels of the mask."""
        return (placed.left + x * placed.side) * _ZOOM, (placed.top + y * placed.side) * _ZOOM

    _PAINTERS[placed.kind.shape](ImageDraw.Draw(mask), at, 255)
    return mask


def _ellipse(draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], fill: int, inset: float = 0.0) -> None:
    draw.ellipse([at(inset, inset), at(1 - inset, 1 - inset)], fill=fill)


def _ring(draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], fill: int) -> None:
    _ellipse(draw, at, fill)
    _ellipse(draw, at, 0, 0.28)


def _crescent(draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], fill: int) -> None:
    _ellipse(draw, at, fill)
    draw.ellipse([at(0.35, -0.05), at(1.25, 0.85)], fill=0)


def _polygon(*points: Point) -> _Painter:
    def paint(draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], fill: int) -> None:
        draw.polygon([at(x, y) for x, y in points], fill=fill)

    return paint


def _star_points() -> list[Point]:
    radii = [0.5, 0.2] * 5
    angles = [math.pi * (place / 5 - 0.5) for place in range(10)]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


_THIRD = 0.34
_CROSS = [(_THIRD, 0), (1 - _THIRD, 0), (1 - _THIRD, _THIRD), (1, _THIRD), (1, 1 - _THIRD), (1 - _THIRD, 1 - _THIRD)]
_CROSS += [(1 - _THIRD, 1), (_THIRD, 1), (_THIRD, 1 - _THIRD), (0, 1 - _THIRD), (0, _THIRD), (_THIRD, _THIRD)]

_PAINTERS: dict[str, _Painter] = {
    "circle": _ellipse,
    "square": _polygon((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)),
    "triangle": _polygon((0.5, 0), (1, 1), (0, 1)),
    "star": _polygon(*_star_points()),
    "cross": _polygon(*_CROSS),
    "ring": _ring,
    "diamond": _polygon((0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)),
    "crescent": _crescent,
}
