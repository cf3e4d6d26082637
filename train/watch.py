"""The loss of each species' disease head, followed step by step; a head that diverges is damped.

A head diverges when its running loss is twice the best that it has been and worse than knowing nothing.
Its own gradient is then scaled down, and nobody else's, until it has come back. All of it is a few tensor
operations a step on the device, and part of a checkpoint, so that a continued run damps the same heads.
Legend: S species, R rows of all disease heads, B photos.
"""

from __future__ import annotations

import torch

RUNNING = 0.9  # share of the running mean that a step of a species leaves
SEEN = 20  # steps with photos of a species before its running loss says something
DIVERGED, RECOVERED = 2.0, 1.25  # running loss over the best running loss
DAMPED = 0.1  # scale of the gradient of a head that diverges


class HeadWatch:
    """State of all heads: `running`, `best` (losses), `seen` (steps), `scale` (of the gradient): each [S]."""

    def __init__(self, species_of_row: torch.Tensor, ignorance: torch.Tensor) -> None:
        """`species_of_row` int64 [R]; `ignorance` float32 [S]: the loss of equal guesses."""
        self._species_of_row, self._ignorance = species_of_row, ignorance
        self.running = torch.zeros_like(ignorance)
        self.best = torch.full_like(ignorance, torch.inf)
        self.seen = torch.zeros_like(ignorance)
        self.scale = torch.ones_like(ignorance)

    @torch.no_grad()
    def update(self, species: torch.Tensor, losses: torch.Tensor, weights: torch.Tensor) -> None:
        """Count the losses of a batch: species int64 [B], losses and weights float32 [B]."""
        weight = torch.zeros_like(self.running).index_add_(0, species, weights)
        total = torch.zeros_like(self.running).index_add_(0, species, losses * weights)
        self.count(total, weight)

    @torch.no_grad()
    def count(self, total: torch.Tensor, weight: torch.Tensor) -> None:
        """The same from sums over the batch: `total` of weight x loss and `weight`, float32 [S]."""
        present = (weight > 0) & total.isfinite()  # a step that is not finite is not taken
        mean = total / weight.clamp_min(1e-12)
        blended = torch.where(self.seen > 0, torch.lerp(mean, self.running, RUNNING), mean)
        self.running = torch.where(present, blended, self.running)
        self.seen += present
        settled = self.seen >= SEEN
        self.best = torch.where(settled & present, torch.minimum(self.best, self.running), self.best)
        diverges = settled & (self.running > DIVERGED * self.best) & (self.running > self._ignorance)
        recovered = self.running < RECOVERED * self.best
        self.scale = torch.where(diverges, DAMPED, torch.where(recovered, 1.0, self.scale))

    @torch.no_grad()
    def damp(self, gradient: torch.Tensor) -> None:
        """Scale the rows of heads that diverge, in place: [R, ...]."""
        by_row = self.scale[self._species_of_row]
        gradient.mul_(by_row.view(-1, *(1,) * (gradient.ndim - 1)))

    @torch.no_grad()
    def norms(self, gradient: torch.Tensor) -> torch.Tensor:
        """Norm of the gradient of each head, [S], from that of all rows, [R, ...]."""
        squares = gradient.float().square().reshape(len(gradient), -1).sum(1)
        return torch.zeros_like(self.running).index_add_(0, self._species_of_row, squares).sqrt()

    def damped(self) -> list[int]:
        """Species whose head is damped now; waits for the device."""
        return (self.scale < 1).nonzero().squeeze(1).tolist()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"running": self.running, "best": self.best, "seen": self.seen, "scale": self.scale}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.running.device))
