"""The painter's tools: planes, pictures and colours, and how one is laid over another.

Planes are (size, size) and pictures (size, size, 3) RGB arrays of uint8, points are (..., 2) arrays
of x and y. Widths and radii are shares of the picture's side, so that a drawing looks the same at
every size.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]
Plane = NDArray[np.uint8]
Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

SUBPIXEL = 4  # fractional bits of the coordinates handed to OpenCV


# --- Colours -----------------------------------------------------------------------------------


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from a hue in degrees and a saturation and value of 0 to 1."""
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    red, green, blue = (np.clip(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB), 0, 1) * 255).ravel()
    return int(red), int(green), int(blue)


def ramp(*colours: Colour) -> Picture:
    """A (256, 1, 3) table that runs evenly through the colours."""
    places = np.linspace(0, 255, len(colours))
    channels = [np.interp(np.arange(256), places, channel) for channel in zip(*colours, strict=True)]
    return np.stack(channels, -1)[:, None].astype(np.uint8)


# --- Planes ------------------------------------------------------------------------------------


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.rint(points * (1 << SUBPIXEL)).astype(np.int32)


def filled(shapes: Points, size: int) -> Plane:
    """The union of closed outlines (n, points, 2) in pixels."""
    plane = np.zeros((size, size), np.uint8)
    for shape in _fixed(shapes):  # one by one: together, overlaps would count as holes
        cv2.fillPoly(plane, [shape], 255, cv2.LINE_AA, SUBPIXEL)
    return plane


def strokes(lines: Points, size: int, width: float) -> Plane:
    """Lines (n, points, 2) in pixels; `width` is a share of the picture's side."""
    plane = np.zeros((size, size), np.uint8)
    thickness = max(1, round(width * size))
    cv2.polylines(plane, list(_fixed(lines)), False, 255, thickness, cv2.LINE_AA, SUBPIXEL)
    return plane


def cloud(rng: Generator, size: int, rows: int, columns: int = 0) -> Plane:
    """Smooth noise with a mean of 128, as many cells across as asked for."""
    cells = rng.integers(0, 256, (rows, columns or rows), np.uint8)
    return np.asarray(cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def blurred(plane: Plane, radius: float) -> Plane:
    """The plane blurred; `radius` is a share of its side."""
    side = 2 * round(radius * len(plane)) + 1
    return np.asarray(cv2.blur(cv2.blur(plane, (side, side)), (side, side)), np.uint8)


def scaled(plane: Plane, share: float) -> Plane:
    return np.asarray(cv2.convertScaleAbs(plane, alpha=share), np.uint8)


def mixed(first: Plane, share: float, second: Plane) -> Plane:
    return np.asarray(cv2.addWeighted(first, share, second, 1 - share, 0), np.uint8)


def above(plane: Plane, level: float, steepness: float) -> Plane:
    """0 below the level and 255 above it, with a soft step between."""
    table = np.clip((np.arange(256) - level) * steepness, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(plane, table), np.uint8)


def _dimmed(picture: Picture, share: Plane) -> Picture:
    return np.asarray(cv2.multiply(picture, cv2.merge([share] * 3), scale=1 / 255), np.uint8)


def blend(over: Picture, under: Picture, alpha: Plane) -> Picture:
    return np.asarray(cv2.add(_dimmed(over, alpha), _dimmed(under, 255 - alpha)), np.uint8)


def paint(canvas: Picture, colour: Colour, alpha: Plane) -> Picture:
    coat = cv2.merge([scaled(alpha, channel / 255) for channel in colour])
    return np.asarray(cv2.add(_dimmed(canvas, 255 - alpha), coat), np.uint8)
