"""A target network: a slow copy of the student for temporal-difference targets."""

import copy
from dataclasses import replace
from pathlib import Path

import torch

from distillzoo.core.batch import Batch
from distillzoo.core.logits import LogitView
from distillzoo.core.models import Backbone
from distillzoo.core.objective import TargetUpdate
from distillzoo.core.transitions import Transitions


class TargetNetwork:
    """A copy of the student that follows it, w' += rate (w - w') every so many optimiser steps.

    It needs as much memory as the student's weights, and a forward pass of its own.

    References:
        arXiv:1509.06461 (a copy every so many steps) and arXiv:1509.02971 (a rate below 1 in every step).
    """

    def __init__(self, student: Backbone, update: TargetUpdate) -> None:
        self._student, self._update = student, update
        model = copy.deepcopy(student.model).eval().requires_grad_(False)
        head = model.get_output_embeddings() if student.head is not None else None
        self._copy = replace(student, model=model, head=head, compiled=None)

    def view(self, batch: Batch, table: Transitions) -> LogitView:
        """The target's logits at the batch's states."""
        return self._copy.view_of(batch, table)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the student, if it is time after this optimiser step."""
        if step % self._update.every:
            return
        for ours, theirs in zip(self._copy.model.parameters(), self._student.model.parameters(), strict=True):
            ours.lerp_(theirs, self._update.rate)

    def save(self, folder: Path) -> None:
        """Write the copy's weights."""
        self._copy.model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read the copy's weights."""
        model = self._copy.model
        saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict())
