"""MixUp and CutMix on the device; every mixed photo has two (species, disease) labels.

Each label is trained in its own species' head, which no dense label mixer can say.
Legend: B photos, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from train.recipe import MixSpec


@dataclass(frozen=True)
class Targets:
    """Labels a with weight `lam` and, for a mixed batch, b with weight 1 - lam: all [B]."""

    species: torch.Tensor
    disease: torch.Tensor
    lam: float = 1.0
    species_b: torch.Tensor | None = None
    disease_b: torch.Tensor | None = None

    def __getitem__(self, part: slice) -> Targets:
        """The labels of some of the photos."""
        first = (self.species[part], self.disease[part], self.lam)
        if self.species_b is None or self.disease_b is None:
            return Targets(*first)
        return Targets(*first, self.species_b[part], self.disease_b[part])

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """(species, disease, weight) of each label."""
        first = (self.species, self.disease, self.lam)
        if self.species_b is None or self.disease_b is None:
            return [first]
        return [first, (self.species_b, self.disease_b, 1 - self.lam)]


def mix(
    images: torch.Tensor,
    species: torch.Tensor,
    disease: torch.Tensor,
    spec: MixSpec,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, Targets]:
    """Mix a batch with itself in another order, or leave it as it is (1 - `spec.probability`).

    images float [B, 3, H, W]. Draws from `generator` alone, so a batch's mix is a function of its key.
    """
    if len(images) < 2 or generator.random() >= spec.probability:
        return images, Targets(species, disease)
    cut = generator.random() < 0.5
    alpha = spec.cutmix_alpha if cut else spec.mixup_alpha
    lam = float(generator.beta(alpha, alpha))
    other = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    if cut:
        top, bottom, left, right = cut_box(images.shape[2], images.shape[3], lam, generator)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
        # the box is clipped at the border: the label goes by the area that was really pasted
        lam = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        mixed = torch.lerp(images[other], images, lam)
    return mixed, Targets(species, disease, lam, species[other], disease[other])


def cut_box(height: int, width: int, lam: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box of area 1 - lam around a uniform centre, clipped."""
    share = (1 - lam) ** 0.5
    half_height, half_width = round(height * share) // 2, round(width * share) // 2
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return (
        max(y - half_height, 0),
        min(y + half_height, height),
        max(x - half_width, 0),
        min(x + half_width, width),
    )
