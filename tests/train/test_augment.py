from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
import torch

from train.augment import EvalTransform, Transform, train_transform
from train.decode import Pixels
from train.draws import RAND_AUGMENT_STREAM, generator
from train.fill import SUBSTITUTE_STREAM
from train.loop import STEP_STREAM
from train.randaugment import RandAugment
from train.recipe import AugmentSpec
from train.stream import SHARDS_STREAM

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
PHOTO = simplejpeg.encode_jpeg(PIXELS, quality=95)
SPECS = [
    *(AugmentSpec(profile=name) for name in ("seed", "table", "light", "core", "none")),
    *(
        AugmentSpec(profile=name, engine="albumentations")
        for name in ("seed", "table", "light", "core", "none")
    ),
    AugmentSpec(profile="light", rand_augment="all"),
    AugmentSpec(profile="light", rand_augment="lesion-safe", engine="albumentations"),
]


def seen(transform: Transform, epoch: int, sample: int, copy: int) -> Pixels:
    out = np.full((transform.size, transform.size, 3), 7, dtype=np.uint8)
    transform(PHOTO, out, epoch, sample, copy)
    return out


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_copy_of_a_photo_has_its_own_repeatable_pixels(spec: AugmentSpec) -> None:
    one, other = train_transform(spec, 32, seed=3), train_transform(spec, 32, seed=3)
    first = seen(one, 1, 5, 0)
    seen(other, 0, 9, 2)  # what was drawn before does not matter
    assert np.array_equal(first, seen(other, 1, 5, 0))
    if spec.profile != "none":
        for key in ((2, 5, 0), (1, 6, 0), (1, 5, 1)):
            assert not np.array_equal(first, seen(one, *key))
        assert not np.array_equal(first, seen(train_transform(spec, 32, seed=4), 1, 5, 0))


def test_everything_random_draws_from_streams_of_its_own() -> None:
    streams = [0, STEP_STREAM, SUBSTITUTE_STREAM, SHARDS_STREAM, RAND_AUGMENT_STREAM]
    assert len(set(streams)) == len(streams)
    numbers = [generator(3, 1, sample, 1, stream).random() for sample in range(4) for stream in range(6)]
    numbers.append(np.random.Generator(np.random.Philox(key=[3, 1])).random())
    # the order of an epoch is the stream that begins at the counter 0
    numbers.remove(generator(3, 1, 0, 1, 0).random())
    assert len(set(numbers)) == len(numbers)


def test_random_augment_comes_after_the_profile() -> None:
    spec = AugmentSpec(profile="light", rand_augment="all")
    expected = seen(train_transform(AugmentSpec(profile="light"), 32, seed=3), 1, 5, 0)
    RandAugment(2, 9, False)(expected, generator(3, 1, 5, 0, RAND_AUGMENT_STREAM))
    assert np.array_equal(seen(train_transform(spec, 32, seed=3), 1, 5, 0), expected)


def test_no_transform_touches_torchs_global_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    for spec in SPECS:
        seen(train_transform(spec, 32, seed=0), 0, 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_is_the_same_for_every_key_and_fills_its_place() -> None:
    transform = EvalTransform(32)
    assert np.array_equal(seen(transform, 0, 0, 0), seen(transform, 5, 6, 7))
    assert seen(transform, 0, 0, 0).std() > 10
