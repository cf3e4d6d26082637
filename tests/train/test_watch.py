from __future__ import annotations

import torch

from train.watch import DAMPED, SEEN, HeadWatch

ROWS = torch.tensor([0, 0, 0, 1, 2, 2])  # species of each row


def watch() -> HeadWatch:
    return HeadWatch(ROWS, ignorance=torch.tensor([1.0, 0.0, 0.7]))


def train(heads: HeadWatch, species: int, loss: float, steps: int) -> None:
    for _ in range(steps):
        heads.update(torch.tensor([species, species]), torch.tensor([loss, loss]), torch.ones(2))


def test_a_head_that_gets_worse_than_ignorance_is_damped_alone() -> None:
    heads = watch()
    train(heads, 0, 0.2, SEEN)
    train(heads, 2, 0.3, SEEN)
    assert heads.damped() == []
    train(heads, 0, 9.0, 5)
    assert heads.damped() == [0]
    gradient = torch.ones(6, 4)
    heads.damp(gradient)
    assert torch.allclose(gradient[:, 0], torch.tensor([DAMPED] * 3 + [1.0] * 3))
    assert torch.allclose(heads.norms(torch.ones(6, 4)), torch.tensor([12.0, 4.0, 8.0]).sqrt())


def test_a_head_that_came_back_learns_at_full_speed_again() -> None:
    heads = watch()
    train(heads, 0, 0.2, SEEN)
    train(heads, 0, 9.0, 5)
    train(heads, 0, 0.2, 60)
    assert heads.damped() == []


def test_twice_a_tiny_loss_is_no_divergence_and_neither_is_a_bad_start() -> None:
    heads = watch()
    train(heads, 2, 0.01, SEEN)
    train(heads, 2, 0.3, 30)  # thirty times the best, but better than guessing
    train(heads, 0, 50.0, SEEN)  # has never been better
    assert heads.damped() == []


def test_a_species_that_is_absent_from_a_batch_stays_as_it_is() -> None:
    heads = watch()
    train(heads, 0, 0.5, 3)
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    train(heads, 2, 0.1, 3)
    for name, value in heads.state_dict().items():
        assert value[0] == before[name][0], name


def test_a_state_that_was_saved_goes_on_as_if_it_had_not_been() -> None:
    heads, other = watch(), watch()
    train(heads, 0, 0.2, SEEN)
    other.load_state_dict({name: value.clone() for name, value in heads.state_dict().items()})
    for one in (heads, other):
        train(one, 0, 9.0, 3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(heads.state_dict().values(), other.state_dict().values(), strict=True)
    )
