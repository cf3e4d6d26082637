"""The core work in OpenCV, the fastest usual way, for the loaders that leave the photo to the user."""

from __future__ import annotations

import math
import random
from typing import Any

import cv2
import numpy as np

from benchmarks.rival_loaders.job import CROP_RATIO, CROP_SCALE

TRIES = 10


def core(jpeg: bytes, size: int) -> Any:
    """uint8 [size, size, 3]; draws from Python's own generator."""
    image: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    left, top, wide, high = random_crop(width, height)
    image = cv2.resize(image[top : top + high, left : left + wide], (size, size))
    return cv2.flip(image, 1) if random.random() < 0.5 else image


def random_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a RandomResizedCrop, drawn as torchvision and albumentations do."""
    low, high = map(math.log, CROP_RATIO)
    for _ in range(TRIES):
        area = width * height * random.uniform(*CROP_SCALE)
        ratio = math.exp(random.uniform(low, high))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if across <= width and down <= height:
            return random.randint(0, width - across), random.randint(0, height - down), across, down
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side
