"""A depth-pruned copy of a model, for users without a smaller sibling of their teacher."""

import copy
import re
from typing import Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from distillzoo.core.errors import UserError

SPEC: Final = re.compile(r"prune:layers=(\d+)")


def pruned_layers(model: str) -> int | None:
    """N of ``prune:layers=N``, None for another model.

    Raises:
        UserError: the text begins with ``prune`` and is not of that form.
    """
    if not model.startswith("prune"):
        return None
    match = SPEC.fullmatch(model)
    if match is None:
        raise UserError(f"'{model}' should read prune:layers=N, for example prune:layers=10.")
    return int(match[1])


def kept_layers(total: int, keep: int) -> list[int]:
    """Evenly spaced layer numbers, the first and the last among them.

    Raises:
        UserError: fewer than two layers, or more than there are, are asked for.
    """
    if not 2 <= keep <= total:
        raise UserError(f"prune:layers={keep}: the teacher has {total} layers, so N should be from 2 to {total}.")
    return [round(i * (total - 1) / (keep - 1)) for i in range(keep)]


@torch.no_grad()
def prune(model: PreTrainedModel, keep: int) -> PreTrainedModel:
    """A new model with ``keep`` of the layers and all other weights, on the CPU in float32."""
    total = int(model.config.num_hidden_layers)
    layers = kept_layers(total, keep)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = keep
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == total:  # settings a layer, such as layer_types
            setattr(config, name, [value[i] for i in layers])
    path = _stack(model, total)
    pruned = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    place = {old: new for new, old in enumerate(layers)}
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(f"{path}."):
            state[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{path}.").partition(".")
        if int(number) in place:
            state[f"{path}.{place[int(number)]}.{rest}"] = tensor
    pruned.load_state_dict(state)
    pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned


def _stack(model: PreTrainedModel, total: int) -> str:
    found: list[str] = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total]
    if len(found) != 1:
        raise UserError(f"The layers of {type(model).__name__} were not found ({len(found)} candidates): no pruning.")
    return found[0]
