"""Fewer samples of the shipped models' data, for statements that need no more of them."""

from itertools import islice
from unittest import mock

import numpy as np

from models import glyphs, stdlib_lm
from models.training import top1

_TESTED, _BATCHES = 400, 4  # images of 2000, in batches of 100; windows of text: 16 of 186


def glyph_calibration():
    """A quarter of the calibration data, in two feeds: `image` [16, 1, 32, 32]."""
    images = next(glyphs.calibration())["image"]
    for half in np.split(images, 2):
        yield {"image": half}


def glyph_accuracy(run):
    """Top-1 on the first held-back images."""
    with np.load(glyphs.DATA) as data:
        labels = data["test_labels"][:_TESTED]
    return top1(run, glyphs.test_feeds()[:_BATCHES], labels)


def bits_per_byte(run):
    """Of the first windows of held-back text."""
    few = list(islice(stdlib_lm.test_windows(), _BATCHES))
    with mock.patch.object(stdlib_lm, "test_windows", return_value=few):
        return stdlib_lm.bits_per_byte(run)
