"""A pretended GPU: tensors in main memory that carry a device's name, to find what a real GPU would refuse.

A real GPU refuses operations on tensors of two devices, which nothing that runs without one would notice. What makes or
moves a tensor gives it a name here, results are where their arguments are, and an operation on tensors of several
devices is noted. Numbers without dimensions, and indices in main memory, may be mixed with a GPU's tensors; so may
tensors of which it is not known where they were made.
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers.training_args
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import TrainingArguments

from distillzoo.core import factored, world

ROOT: Final = Path(__file__).parents[1]
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")

MAKERS: Final = {
    "arange", "as_tensor", "empty", "eye", "frombuffer", "from_numpy", "full", "linspace", "ones", "rand", "randint",
    "randn", "randperm", "scalar_tensor", "sparse_coo_tensor", "sparse_csr_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros",
}  # fmt: skip
"""Functions whose tensors are in main memory unless they are told otherwise, or made of a GPU's."""

MOVERS: Final = {
    "to", "cpu", "copy_", "type_as", "__set__", "backward", "is_set_to", "_has_compatible_shallow_copy_type",
}  # fmt: skip
"""Functions that may have tensors of two devices."""

INDEXERS: Final = {"__getitem__", "__setitem__", "index", "index_put", "index_put_"}
"""Functions of a GPU's tensor that take indices in main memory."""


def place(tensor: Tensor) -> str | None:
    return getattr(tensor, "_place", None)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for one in value for tensor in tensors_in(one)]


def kind(device: Any) -> str:
    return "cuda" if isinstance(device, int) else torch.device(device).type


def names_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda"))


class PretendedGPU(TorchFunctionMode):
    """While it is on, ``mixed`` counts the places of this repository that mix devices."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, arguments, options = getattr(func, "__name__", ""), list(args), dict(kwargs or {})
        if func == Tensor.device.__get__:
            real = func(*args)
            return real if real.type == "meta" else CPU if place(args[0]) == "cpu" else GPU
        if func == Tensor.is_cuda.__get__:
            return place(args[0]) != "cpu"
        if name == "pin_memory":
            return args[0]
        given = tensors_in([args, options])
        target = options.get("device")
        if target is not None and kind(target) not in ("cpu", "cuda"):  # meta, while a model is made
            return func(*arguments, **options)
        if target is not None:
            options["device"] = CPU
        if name == "to":
            for i, value in enumerate(arguments[1:], 1):
                if names_device(value):
                    target, arguments[i] = value, CPU
                elif isinstance(value, Tensor):
                    target = value.device
        elif name == "cpu":
            target = CPU
        if name == "mm" and options.pop("out_dtype", None) is not None:  # there is none on a CPU
            arguments = [factor.float() for factor in arguments]
        self._look(name, args, given)
        result = func(*arguments, **options)
        made = name in MAKERS and not any(isinstance(value, Tensor) for value in args)
        if target is not None:
            where = kind(target)
        elif made:
            where = "cpu"
        else:
            known = {place(tensor) for tensor in given} - {None}
            where = "cuda" if "cuda" in known else "cpu" if known else None
        moved = name in ("to", "cpu") and where != place(args[0])
        if moved and result is args[0]:
            result = result.clone() if result.requires_grad else result.detach().clone()
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        for tensor in [] if in_place or where is None else tensors_in(result):
            tensor._place = where  # type: ignore[attr-defined]
        return result

    def _look(self, name: str, args: Any, given: list[Tensor]) -> None:
        if name == "numpy" and place(given[0]) == "cuda":
            self._note(name)
        if len({place(tensor) for tensor in given if tensor.dim()} - {None}) < 2 or name in MOVERS:
            return
        if name not in INDEXERS or place(args[0]) != "cuda":
            self._note(name)

    def _note(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
        ours = [frame for frame in frames if frame.filename != __file__]
        self.mixed[f"{name} in {ours[-1].filename.removeprefix(str(ROOT))}:{ours[-1].lineno}"] += 1


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch, transformers, accelerate and this program believe that there is a GPU."""
    asked, kept, fork, move = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.random.fork_rng, nn.Module.to

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        targets = [value for value in (*args, kwargs.get("device")) if names_device(value)]
        there = [CPU if names_device(value) else value for value in args]
        move(module, *there, **{name: CPU if name == "device" else value for name, value in kwargs.items()})
        for target in targets:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor._place = kind(target)  # type: ignore[attr-defined, union-attr]
        return module

    for one in (torch, torch.amp):
        monkeypatch.setattr(one, "autocast", _Autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cuda": asked("cpu"))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: kept("cpu"))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=None, **options: fork([]))
    facts: dict[str, Any] = {
        "mem_get_info": (40 << 30, 80 << 30), "memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": 1,
        "reset_peak_memory_stats": None, "get_device_name": "pretended GPU", "is_bf16_supported": True,
        "synchronize": None, "get_device_capability": (9, 0),
    }  # fmt: skip
    for fact, value in facts.items():
        monkeypatch.setattr(torch.cuda, fact, lambda *_, value=value, **__: value)
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(factored, "_kernels_on", lambda device: None)  # the kernels have tests of their own
    monkeypatch.setattr(world, "pick_device", lambda name: GPU)
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: GPU))
    monkeypatch.setattr(Accelerator, "device", property(lambda self: GPU))
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda *_, **__: True)
