"""The Triton kernels in Triton's interpreter: against sums in float64, and through the view against PyTorch."""

import importlib.util
import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import distillzoo.core
from distillzoo.core import factored
from distillzoo.core import logits as logits_module
from distillzoo.core.factored import Head
from distillzoo.core.logits import FactoredLogits

TYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [20, 72]  # no multiples of a block
FLOAT32 = 2.0**-23
"""The distance of float32 numbers at 1: a sum of k products is off by at most k times this, times the sum of their
sizes."""


def load(name: str, file: str) -> ModuleType:
    """A copy of a module of the core that nobody else sees."""
    spec = importlib.util.spec_from_file_location(name, Path(factored.__file__).with_name(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def triton_modules() -> list[str]:
    """All but the compiled part, which a process can load only once."""
    return [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]


@contextmanager
def interpreting(own: dict[str, ModuleType]) -> Iterator[None]:
    """Within, these are the modules of Triton, what is imported joins them, and Triton interprets.

    It reads TRITON_INTERPRET once, while it is imported. Whatever else in this process imports it, before or after, has
    modules that compile.
    """
    others = {name: sys.modules.pop(name) for name in triton_modules()}
    sys.modules.update(own)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            yield
    finally:
        own.update({name: sys.modules.pop(name) for name in triton_modules()})
        sys.modules.update(others)


@pytest.fixture(scope="module")
def loaded() -> tuple[ModuleType, dict[str, ModuleType]]:
    """``core.kernels`` on a Triton that interprets, and that Triton."""
    pinned = sys.platform == "linux" and platform.machine() == "x86_64"  # as in pyproject.toml
    if not pinned and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton has no release for this platform")
    own: dict[str, ModuleType] = {}
    with interpreting(own):
        kernels = load("interpreted_kernels", "kernels.py")
        as_on_a_gpu()
    return kernels, own


@pytest.fixture
def interpreted(loaded: tuple[ModuleType, dict[str, ModuleType]]) -> Iterator[ModuleType]:
    kernels, own = loaded
    with interpreting(own):
        yield kernels


def as_on_a_gpu() -> None:
    """The interpreter multiplies the bits of bfloat16 as whole numbers, and cuts where a GPU rounds."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    language: Any = importlib.import_module("triton.language")
    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar != language.float32 or kind.scalar != language.bfloat16:
            return cast(self, source, kind)
        bits = torch.tensor(source.data).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, kind.scalar)

    def multiplied(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        if left.dtype.scalar == language.bfloat16:
            left, right = cast(self, left, language.float32), cast(self, right, language.float32)
        return dot(self, left, right, *rest)

    builder.cast_impl, builder.create_dot = rounded, multiplied


@pytest.fixture
def small(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels with blocks of which the few numbers here fill several."""
    blocks = {"PAIRS": 4, "PAIR_DEPTH": 16, "ROWS": 16, "COLUMNS": 16, "DEPTH_BYTES": 64, "PROGRAMS": 4}
    for name, value in blocks.items():
        monkeypatch.setattr(interpreted, name, value)
    return interpreted


@pytest.fixture(params=["small", "interpreted"], ids=["several blocks", "part of a block"])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def assert_within(found: Tensor, exact: Tensor, error: Tensor | float) -> None:
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= error).all(), (found.double() - exact).abs().max()


def matrix(rows: int, columns: int, dtype: torch.dtype, unread: int = 0) -> Tensor:
    """Random numbers; the last ``unread`` rows are no numbers."""
    values = torch.randn(rows, columns)
    values[rows - unread :] = float("nan")
    return values.to(dtype)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_pairs(kernels, dtype, width):
    hidden, weight = matrix(9, width, dtype), matrix(14, width, dtype, unread=3)
    row, action = torch.randint(9, (21,)), torch.randint(11, (21,))
    found = kernels.pair_products(hidden, weight, row, action, dtype)
    pairs = [(hidden[r].double() * weight[a].double()) for r, a in zip(row.tolist(), action.tolist(), strict=True)]
    assert found.dtype == torch.float32
    assert_within(
        found, torch.stack([p.sum() for p in pairs]), width * FLOAT32 * torch.stack([p.abs().sum() for p in pairs])
    )


def test_factors_are_rounded_to_the_type_of_the_products(kernels):
    hidden, weight = matrix(3, 20, torch.float32), matrix(5, 20, torch.float32)
    row, action = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 0, 1, 3])
    found = kernels.pair_products(hidden, weight, row, action, torch.bfloat16)
    assert torch.equal(found, kernels.pair_products(hidden.bfloat16(), weight.bfloat16(), row, action, torch.bfloat16))
    assert not torch.equal(found, kernels.pair_products(hidden, weight, row, action, torch.float32))
    factor, start = torch.randn(4), torch.tensor([0, 1])
    sums = kernels.weighted_sums(weight, action, start, factor, torch.bfloat16)
    assert torch.equal(sums, kernels.weighted_sums(weight.bfloat16(), action, start, factor, torch.bfloat16))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", TYPES)
def test_weighted_sums_of_groups_some_without_a_member(kernels, dtype, width):
    sizes = [0, 3, 1, 0, 9, 4, 0]
    start = torch.tensor([0, 0, 3, 4, 4, 13, 17])  # the running sum of the sizes
    table, index, factor = matrix(8, width, dtype, unread=2), torch.randint(6, (17,)), torch.randn(17)
    found = kernels.weighted_sums(table, index, start, factor, dtype)
    exact, size = torch.zeros(7, width, dtype=torch.float64), torch.zeros(7, width, dtype=torch.float64)
    for group, (first, count) in enumerate(zip(start.tolist(), sizes, strict=True)):
        for pair in range(first, first + count):
            summand = factor[pair].double() * table[index[pair]].double()
            exact[group] += summand
            size[group] += summand.abs()
    assert found.dtype == torch.float32
    assert_within(found, exact, max(sizes) * FLOAT32 * size)


def test_a_gradient_that_is_one_number_repeated(kernels):
    table, index, start = matrix(4, 20, torch.float32), torch.tensor([0, 3, 1]), torch.tensor([0, 2])
    found = kernels.weighted_sums(table, index, start, torch.tensor(2.0).expand(3), torch.float32)
    torch.testing.assert_close(found, torch.stack([2 * (table[0] + table[3]), 2 * table[1]]))


def test_nothing_asked(kernels):
    table, none = matrix(4, 20, torch.bfloat16), torch.zeros(0, dtype=torch.long)
    assert kernels.pair_products(table, table, none, none, torch.bfloat16).shape == (0,)
    sums = kernels.weighted_sums(table, none, torch.zeros(3, dtype=torch.long), torch.zeros(0), torch.bfloat16)
    assert torch.equal(sums, torch.zeros(3, 20))
    assert kernels.weighted_sums(table, none, none, torch.zeros(0), torch.bfloat16).shape == (0, 20)
    assert kernels.logsumexp(table[:0], table, 4, None, None).shape == (0,)
    rows = torch.zeros(0)
    assert kernels.softmax_gradient(table[:0], table, 4, None, None, rows, rows, torch.bfloat16).shape == (0, 4)


def test_rows_that_lie_apart_in_memory(kernels):
    """Every second row and column of a larger matrix, and a transposed one."""
    hidden, weight = matrix(10, 40, torch.float32)[::2, ::2], matrix(20, 11, torch.float32).T
    row, action = torch.arange(10) // 2, torch.arange(10)
    found = kernels.pair_products(hidden, weight, row, action, torch.float32)
    torch.testing.assert_close(found, (hidden[row] * weight[action]).sum(1))
    found = kernels.logsumexp(hidden, weight, 11, None, None)
    torch.testing.assert_close(found, (hidden @ weight.T).logsumexp(1))


def exact_logits(
    hidden: Tensor, weight: Tensor, size: int, bias: Tensor | None, holes: Tensor | None
) -> tuple[Tensor, float]:
    """z in float64, and how far off a z summed in float32 may be."""
    z = torch.einsum("nd,vd->nv", hidden.double(), weight[:size].double())
    sizes = torch.einsum("nd,vd->nv", hidden.double().abs(), weight[:size].double().abs())
    if bias is not None:
        z, sizes = z + bias[:size].double(), sizes + bias[:size].double().abs()
    for hole in [] if holes is None else holes.tolist():
        z[:, hole] = float("-inf")
    return z, (hidden.shape[1] + 1) * FLOAT32 * float(sizes.max())


HEADS = {
    "plain": (72, 37, False, None),
    "bias": (20, 37, True, None),
    "holes": (32, 37, False, [0, 17, 36]),
    "bias and a tile of holes": (20, 40, True, [5, *range(16, 32)]),
    "one token": (16, 1, False, None),
}
"""Width, number of tokens, bias, holes."""


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", TYPES)
def test_logsumexp_and_its_gradient(kernels, dtype, head):
    width, size, biased, gaps = HEADS[head]
    hidden, weight = matrix(19, width, dtype), matrix(size + 3, width, dtype, unread=3)
    bias = matrix(size + 3, 1, dtype, unread=3)[:, 0] if biased else None
    holes = None if gaps is None else torch.tensor(gaps)
    z, error = exact_logits(hidden, weight, size, bias, holes)

    found = kernels.logsumexp(hidden, weight, size, bias, holes)
    assert found.dtype == torch.float32
    exact = z.logsumexp(1)
    # besides the logits, the terms of the sum (exp and two roundings each) and the result
    assert_within(found, exact, error + 8 * FLOAT32 * (1 + exact.abs()))

    grad = torch.randn(19)
    found = kernels.softmax_gradient(hidden, weight, size, bias, holes, exact.float(), grad, dtype)
    assert found.dtype == dtype
    exact = grad[:, None].double() * (z - exact[:, None]).exp()
    smallest = torch.finfo(dtype).smallest_normal  # below it float16 keeps fewer digits
    relative = torch.finfo(dtype).eps / 2 + 2 * error + 8 * FLOAT32 * (1 + float(z[z.isfinite()].abs().max()))
    assert_within(found, exact, relative * exact.abs() + smallest * torch.finfo(dtype).eps)
    if holes is not None:
        assert found[:, holes].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_ten_thousand(kernels, dtype):
    """One large product a row, exact in both types: 128 * 80 = 10240."""
    hidden = torch.zeros(4, 20)
    hidden[:, 0] = torch.tensor([80.0, -80.0, 80.0, 0.0])
    weight = torch.zeros(37, 20)
    weight[:, 0] = torch.tensor([-128.0, 128.0]).repeat(19)[:37]  # the largest is not in the first column
    weight[2:, 0] = -128.0
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    found = kernels.logsumexp(hidden, weight, 37, None, None)
    # one token of 37 at 10240; 36 of them at 10240; as the first; all 37 at 0
    expected = torch.tensor([10240.0, 10240.0 + math.log(36), 10240.0, math.log(37)])
    torch.testing.assert_close(found, expected, rtol=2 * FLOAT32, atol=1e-6)
    gradient = kernels.softmax_gradient(hidden, weight, 37, None, None, found, torch.ones(4), dtype)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 1] == 1
    assert gradient[0].sum() == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy
def test_a_row_without_any_token_and_one_that_overflowed(kernels):
    """As PyTorch: a sum of nothing is -inf, one with inf is inf, and what is no number stays none."""
    hidden, weight = matrix(3, 20, torch.float32), matrix(37, 20, torch.float32)
    assert kernels.logsumexp(hidden, weight, 37, None, torch.arange(37)).eq(float("-inf")).all()
    bias = torch.zeros(37)
    bias[20] = float("inf")
    assert kernels.logsumexp(hidden, weight, 37, bias, None).eq(float("inf")).all()
    hidden[1, 3] = float("nan")
    assert kernels.logsumexp(hidden, weight, 37, None, None).isnan().tolist() == [False, True, False]


N, D, V = 7, 20, 37
ACTIONS = torch.tensor([[0, 3, 36], [1, 2, 0], [4, 4, 9], [5, 0, 0], [10, 9, 8], [7, 7, 7], [2, 36, 1]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0]]).bool()

OPERATIONS = {
    "gather": lambda view: view.gather(ACTIONS.to(view.device)),
    "gather masked": lambda view: view.gather(ACTIONS.to(view.device), MASK.to(view.device)),
    "gather nothing": lambda view: view.gather(ACTIONS.to(view.device), torch.zeros_like(MASK).to(view.device)),
    "logsumexp": lambda view: view.logsumexp(),
    "logsumexp of rows": lambda view: view.logsumexp(torch.tensor([4, 0, 4], device=view.device)),
    "logsumexp of no rows": lambda view: view.logsumexp(torch.tensor([], dtype=torch.long, device=view.device)),
}


def value_and_gradients(name: str, dtype: torch.dtype, device: str = "cpu", frozen: bool = False) -> list[Tensor]:
    """Of a view with a bias, two holes and three rows without a token; the same numbers at each call."""
    generator = torch.Generator().manual_seed(5)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    hidden, weight, bias = make(N, D), make(V + 3, D), make(V + 3)
    weight[V:], bias[V:] = float("nan"), float("nan")
    leaves = [t.to(device, dtype).requires_grad_(t is hidden or not frozen) for t in (hidden, weight, bias)]
    head = Head(leaves[1], leaves[2], V, torch.tensor([11, 30], device=device))
    value = OPERATIONS[name](FactoredLogits(leaves[0], head))
    # different gradients for different results
    loss = (value * torch.linspace(0.5, 2.0, value.numel(), device=device).view(value.shape)).sum()
    grads = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return [t.detach().cpu() for t in (value, *grads)]


def assert_equal_up_to_rounding(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Values are float32 and differ in the order of sums; gradients are rounded to ``dtype`` two or three times."""
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype
        tolerance = 1e-5 if index == 0 else max(1e-5, 2 * torch.finfo(dtype).eps)
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


@pytest.fixture
def with_kernels(small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Whatever is computed in this context is the kernels' or fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("computed by PyTorch")

    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", 3 * V)  # three chunks of rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factored, "_kernels", lambda *_: small)
        for name in ("_sampled_product", "_chunked_product", "_logits", "embedding_bag", "_parts"):
            patch.setattr(factored, name, refuse)
        yield patch


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_view_gives_what_it_gives_without_kernels(with_kernels, name, dtype):
    found = value_and_gradients(name, dtype)
    with_kernels.undo()
    assert_equal_up_to_rounding(found, value_and_gradients(name, dtype), dtype)


@pytest.mark.parametrize("name", ["gather masked", "logsumexp"])
def test_under_autocast(with_kernels, name):
    """float32 weights and products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(name, torch.float32)
    with_kernels.undo()
    with torch.autocast("cpu", torch.bfloat16):
        expected = value_and_gradients(name, torch.float32)
    assert not torch.equal(expected[0], value_and_gradients(name, torch.float32)[0])
    assert_equal_up_to_rounding(found, [t.float() for t in expected], torch.bfloat16)


@pytest.mark.parametrize("name", ["gather masked", "logsumexp"])
def test_a_frozen_head(with_kernels, name):
    found = value_and_gradients(name, torch.float32, frozen=True)
    with_kernels.undo()
    assert_equal_up_to_rounding(found, value_and_gradients(name, torch.float32, frozen=True), torch.float32)


def test_no_logits_of_all_rows_are_built(with_kernels):
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.is_floating_point():
                self.numbers = max(self.numbers, out.numel())
            return out

    hidden, weight = torch.randn(24, 2, requires_grad=True), torch.randn(V, 2, requires_grad=True)
    with Largest() as largest:
        view = FactoredLogits(hidden, Head(weight, None, V))
        (view.logsumexp().sum() + view.gather(torch.randint(V, (24, 2))).sum()).backward()
    assert largest.numbers < 24 * V // 2


class OnGpu(Tensor):
    is_cuda = True  # type: ignore[assignment]


def test_kernels_are_for_types_of_32_bits_at_most_on_a_gpu(monkeypatch):
    there = ModuleType("kernels")
    monkeypatch.setattr(factored, "_kernels_on", lambda device: there)
    narrow = [torch.zeros(2, dtype=dtype).as_subclass(OnGpu) for dtype in TYPES]
    double = torch.zeros(2, dtype=torch.float64).as_subclass(OnGpu)
    for dtype in TYPES:
        assert factored._kernels(dtype, *narrow, None) is there
        assert factored._kernels(dtype, narrow[0], double) is None
        assert factored._kernels(dtype, narrow[0], torch.zeros(2)) is None
    assert factored._kernels(torch.float64, narrow[0]) is None


def test_kernels_are_used_where_a_first_product_runs(interpreted, monkeypatch):
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(distillzoo.core, "kernels", interpreted, raising=False)
    asked = factored._kernels_on.__wrapped__  # without what it remembers
    cpu = torch.device("cpu")
    assert asked(cpu) is interpreted
    capability = (7, 5)
    assert asked(cpu) is None

    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    capability = (9, 0)
    monkeypatch.setattr(interpreted, "pair_products", no_compiler)
    assert asked(cpu) is None


def test_without_triton_there_are_no_kernels_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises
    monkeypatch.delitem(sys.modules, "distillzoo.core.kernels", raising=False)
    monkeypatch.delattr(distillzoo.core, "kernels", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    alone = load("factored_alone", "factored.py")  # does not need it at its start either
    assert "distillzoo.core.kernels" not in sys.modules
    assert alone._kernels_on(torch.device("cpu")) is None


def test_the_interpreter_is_gone_after_a_test(loaded):
    before, told = {name: sys.modules[name] for name in triton_modules()}, os.environ.get("TRITON_INTERPRET")
    with interpreting(loaded[1]):
        assert type(loaded[0]._tile) is sys.modules["triton.runtime.interpreter"].InterpretedFunction
    assert {name: sys.modules[name] for name in triton_modules()} == before
    assert not set(before.values()) & set(loaded[1].values())
    assert os.environ.get("TRITON_INTERPRET") == told
    assert "interpreted_kernels" not in sys.modules


@pytest.mark.filterwarnings("ignore:.*TF32.*:UserWarning")  # of torch 2.9, about the setting's name
def test_tf32_is_on_for_the_product_alone():
    seen = []

    class Factor(torch.Tensor):
        def __matmul__(self, other):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return other

    before = torch.backends.cuda.matmul.allow_tf32
    factored._in_tf32(torch.ones(2, 2).as_subclass(Factor), torch.ones(2, 2))
    assert seen == [True]
    assert torch.backends.cuda.matmul.allow_tf32 is before


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_on_a_gpu_as_without_kernels(name, dtype, monkeypatch):
    assert factored._kernels(dtype, torch.zeros(1, device="cuda", dtype=dtype)) is not None
    found = value_and_gradients(name, dtype, "cuda")
    monkeypatch.setattr(factored, "_kernels", lambda *_: None)
    assert_equal_up_to_rounding(found, value_and_gradients(name, dtype, "cuda"), dtype)
    assert_equal_up_to_rounding(found, value_and_gradients(name, dtype, "cpu"), dtype)
