"""The plans of `train.draws` carried out on the device, for a whole batch at once.

The worker has decoded, cropped and resized (`train.fused.apply_crop`). The rest is tensor code without a loop
over images and without a value that the host would have to wait for: every step runs for every image, with
numbers that change nothing where a plan does without it. Levels stay whole numbers in float32, cut off or
rounded where the CPU path does so.

Shapes: B images, S pixels a side, K columns of a plan's row.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from train.draws import COLUMNS, CORNERS, ORDERS, SHADOWS
from train.fused import HUE_CIRCLE, LUMA

HUE = 3  # its place in the orders
TAPS = 7  # of the widest blur


def augment(images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [B, S, S, 3] and float32 [B, K] on one device -> uint8 [B, S, S, 3].

    `generator` (of that device) gives the noise: seed it for every batch.
    """
    plan = _Columns(rows)
    levels = _turn(images.permute(0, 3, 1, 2).float(), plan)
    levels = _jitter(levels, plan)
    levels = _linear(levels, plan["gain"], plan["offset"])
    levels = _blur(levels, plan)
    levels = _noise(levels, plan, generator)
    levels = _iso_noise(levels, plan, generator)
    for number in range(SHADOWS[1]):
        levels = _shade(levels, plan, number)
    levels = torch.where(plan["grey"] > 0, _luma(levels).round(), levels)
    return levels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


class _Columns:
    """Columns of the rows by name, each [B, 1, 1, 1] to meet images [B, 3, S, S]."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[:, COLUMNS.index(name), None, None, None]


def _turn(levels: Tensor, plan: _Columns) -> Tensor:
    """Flip, then rotate about the centre; corners mirror the image about its outermost pixels."""
    middle = (levels.shape[-1] - 1) / 2
    place = torch.arange(levels.shape[-1], device=levels.device) - middle
    x, y = place[None, None, :, None], place[None, :, None, None]
    angle = torch.deg2rad(plan["angle"])
    mirrored = 1 - 2 * plan["flip"]
    across = mirrored * (angle.cos() * x - angle.sin() * y)
    down = angle.sin() * x + angle.cos() * y
    # with aligned corners, -1 and 1 are the centres of the outermost pixels
    grid = torch.cat([across, down], dim=3) / max(middle, 0.5)
    return F.grid_sample(levels, grid, "bilinear", "reflection", align_corners=True).round()


def _jitter(levels: Tensor, plan: _Columns) -> Tensor:
    """Up to three linear steps, the hue, the other linear steps, in each image's own order."""
    kinds, before = (table[plan["order"].long().flatten()] for table in _orders(levels.device))
    for first in (True, False):
        for step in range(HUE):
            active = (before > step) == first
            levels = _linear_step(levels, plan, torch.where(active, kinds[:, step], -1))
        if first:
            levels = _shift_hue(levels, plan["hue"])
    return levels


@cache
def _orders(device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of ORDERS: its linear steps as they come [24, 3], how many of them precede the hue [24]."""
    linear = [[step for step in order if step != HUE] for order in ORDERS]
    turns = [order.index(HUE) for order in ORDERS]
    return torch.tensor(linear, device=device), torch.tensor(turns, device=device)


def _linear_step(levels: Tensor, plan: _Columns, kind: Tensor) -> Tensor:
    """Brightness (0), contrast (1), saturation (2) or nothing (-1), [B]."""
    kind, luma = kind[:, None, None, None], _luma(levels)
    one = torch.ones_like(plan["contrast"])
    gain = torch.where(kind == 0, plan["brightness"], torch.where(kind == 1, plan["contrast"], one))
    offset = (kind == 1) * (1 - gain) * luma.mean(dim=(2, 3), keepdim=True)
    factor = plan["saturation"]
    mixed = (factor * levels + (1 - factor) * luma).round().clamp(0, 255)
    return torch.where(kind == 2, mixed, _linear(levels, gain, offset))


def _linear(levels: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return (gain * levels + offset).floor().clamp(0, 255)


def _luma(levels: Tensor) -> Tensor:
    red, green, blue = levels.split(1, dim=1)
    luma: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return luma


def _shift_hue(levels: Tensor, hue: Tensor) -> Tensor:
    """As in train.fused: the channel before on the circle and the one after it decide which way a channel
    goes, least and most how far."""
    least, most = levels.amin(dim=1, keepdim=True), levels.amax(dim=1, keepdim=True)
    middle = levels.sum(dim=1, keepdim=True) - least - most
    way = torch.sign(levels.roll(1, dims=1) - levels.roll(-1, dims=1))
    far = (HUE_CIRCLE * hue).floor() / (HUE_CIRCLE / 6) * (most - least)
    return torch.minimum(torch.maximum(2 * levels - middle + way * far, least), most).round()


def _blur(levels: Tensor, plan: _Columns) -> Tensor:
    """Separable, each image with its own Gaussian; without a blur, a single weight of 1."""
    reach = TAPS // 2
    place = torch.arange(-reach, reach + 1, device=levels.device)
    size = plan["blur_size"].clamp(min=1)
    sigma = torch.where(plan["blur_size"] > 0, plan["blur_sigma"], torch.ones_like(size))
    weights = torch.exp(-0.5 * (place / sigma) ** 2) * (2 * place.abs() < size)  # [B, 1, 1, TAPS]
    taps = (weights / weights.sum(dim=3, keepdim=True)).split(1, dim=3)
    side, nothing = levels.shape[-1], torch.zeros((), device=levels.device)
    wide = F.pad(levels, (reach, reach, 0, 0), "reflect")
    levels = sum((tap * wide[..., k : k + side] for k, tap in enumerate(taps)), nothing)
    high = F.pad(levels, (0, 0, reach, reach), "reflect")
    return sum((tap * high[..., k : k + side, :] for k, tap in enumerate(taps)), nothing).round()


def _noise(levels: Tensor, plan: _Columns, generator: torch.Generator) -> Tensor:
    normal = torch.randn(levels.shape, generator=generator, device=levels.device)
    return (levels + (plan["noise_std"] * normal).trunc()).clamp(0, 255)


def _iso_noise(levels: Tensor, plan: _Columns, generator: torch.Generator) -> Tensor:
    """See train.fused._iso_noise."""
    intensity = plan["iso_intensity"]
    lightness = (levels.amax(dim=1, keepdim=True) + levels.amin(dim=1, keepdim=True)) / 510
    spread = lightness.std(dim=(2, 3), keepdim=True, correction=0)
    specks = torch.poisson((intensity * spread).expand_as(lightness).contiguous(), generator=generator)
    lighter = lightness + intensity * specks * (1 - lightness)
    room = 1 - (2 * lightness - 1).abs()
    scale = torch.where(room > 0, (1 - (2 * lighter - 1).abs()) / room, torch.zeros_like(room))
    moved = (255 * lighter + (levels - 255 * lightness) * scale).round().clamp(0, 255)
    return torch.where(specks > 0, moved, levels)


def _shade(levels: Tensor, plan: _Columns, number: int) -> Tensor:
    name = f"shadow{number}_"
    x, y = ([plan[f"{name}{axis}{corner}"][:, 0] for corner in range(CORNERS)] for axis in "xy")
    dark = inside(x, y, levels.shape[-1])[:, None]
    return torch.where(dark, ((1 - plan[f"{name}intensity"]) * levels).floor(), levels)


def inside(x: list[Tensor], y: list[Tensor], size: int) -> Tensor:
    """Pixels inside polygons (even-odd) or on their sides: n corners, each [B, 1, 1] -> bool [B, S, S]."""
    place = torch.arange(size, device=x[0].device)
    across, down = place[None, None, :], place[None, :, None]
    odd = on_side = torch.zeros((len(x[0]), size, size), dtype=torch.bool, device=x[0].device)
    for here in range(len(x)):
        run, rise = x[here - 1] - x[here], y[here - 1] - y[here]
        right, below = across - x[here], down - y[here]
        # twice the area between side and pixel: its sign tells the pixel's half plane
        area = run * below - rise * right
        odd = odd ^ (((below < 0) != (below < rise)) & (area.sign() == rise.sign()))
        longer = torch.maximum(run.abs(), rise.abs())
        along = run * right + rise * below
        near = (2 * area.abs() <= longer) & (along >= 0) & (along <= run**2 + rise**2)
        on_side = on_side | near
    return odd | on_side
