"""Smaller subsets, cut out of what a cache holds."""

import pytest
import torch

from distillzoo.core.cache.logits import CachedLogits, served
from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits
from distillzoo.core.registry import installed

LOGITS = 2 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))


def part(name, **parameters):
    return installed().get("subset", name)(**parameters)


def same(found, expected):
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.actions, expected.actions)
    torch.testing.assert_close(found.logprobs, expected.logprobs)
    torch.testing.assert_close(found.mass, expected.mass)


@pytest.mark.parametrize(
    "smaller",
    [
        part("top-p", p=0.8), part("top-p", p=0.3), part("top-p", p=0.9, k_max=3), part("top-k", k=1),
        part("min-p", p=0.5), part("epsilon", epsilon=0.2),
    ],
)  # fmt: skip
def test_what_the_cache_covers_is_as_from_the_teacher(smaller):
    view = DenseLogits(LOGITS)
    stored = part("top-p", p=0.9).select(view)
    same(served(smaller, stored, 30), smaller.select(view))


@pytest.mark.parametrize(
    "larger", [part("top-p", p=0.95), part("top-k", k=12), part("epsilon", epsilon=1e-4), part("top-k", k=64)]
)
def test_what_it_does_not_cover_is_refused(larger):
    stored = part("top-p", p=0.9).select(DenseLogits(LOGITS))
    with pytest.raises(UserError, match=r"holds too few tokens for the subset .* in \d+ of 40 states"):
        served(larger, stored, 30)


def test_a_top_k_cache_serves_a_nucleus_that_fits():
    view = DenseLogits(4 * LOGITS)
    stored = part("top-k", k=12).select(view)
    same(served(part("top-p", p=0.8), stored, 30), part("top-p", p=0.8).select(view))


def test_what_needs_the_whole_distribution_is_refused():
    stored = part("top-p", p=0.9).select(DenseLogits(LOGITS))
    with pytest.raises(UserError, match="asks for the teacher's whole distribution"):
        served(part("adaptive-top-p"), stored, 30)
    with pytest.raises(UserError, match="other tokens than the likeliest"):
        CachedLogits(stored, 30).select(torch.zeros(40, dtype=torch.long))
