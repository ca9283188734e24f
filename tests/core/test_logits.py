"""Dense and factored views: same values, same gradients, no [N, V] tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distillzoo.core import logits as logits_module
from distillzoo.core.factored import Head
from distillzoo.core.logits import DenseLogits, FactoredLogits, LogitView

N, D, V = 7, 5, 11


@pytest.fixture
def parts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "hidden": make(N, D).requires_grad_(),
        "weight": make(V + 3, D).requires_grad_(),  # three rows belong to no token
        "bias": make(V + 3).requires_grad_(),
    }


def dense(parts: dict[str, Tensor], holes: Tensor | None = None, bias: bool = True) -> DenseLogits:
    z = parts["hidden"] @ parts["weight"].T
    return DenseLogits(z + parts["bias"] if bias else z, V, holes)


def factored(parts: dict[str, Tensor], holes: Tensor | None = None, bias: bool = True) -> FactoredLogits:
    return FactoredLogits(parts["hidden"], Head(parts["weight"], parts["bias"] if bias else None, V, holes))


ACTIONS = torch.tensor([[0, 3, 10], [1, 2, 0], [4, 4, 9], [5, 0, 0], [10, 9, 8], [7, 7, 7], [2, 6, 1]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]]).bool()


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


OPERATIONS = {
    "gather": lambda view: view.gather(ACTIONS).square().sum(1),
    "gather masked": lambda view: view.gather(ACTIONS, MASK).square().sum(1),
    "logsumexp": lambda view: view.logsumexp(),
    "logsumexp of rows": lambda view: view.logsumexp(torch.tensor([4, 0, 4])).square(),
    "rowwise": lambda view: view.rowwise(entropy),
    "max": lambda view: view.max(),
    "select": lambda view: view.select(ACTIONS[:, 0]),
}


@pytest.mark.parametrize("block", [1, 2 * V, 10**6], ids=["row by row", "two rows", "one block"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_dense_and_factored_agree_in_value_and_gradient(parts, name, bias, block, monkeypatch):
    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(logits_module, "PART_ELEMENTS", 3 * V)  # of the seven rows: parts of 3, 3 and 1
    weights = torch.linspace(0.5, 2.0, 3 if name == "logsumexp of rows" else N, dtype=torch.float64)
    leaves = [parts["hidden"], parts["weight"], *([parts["bias"]] if bias else [])]
    results = []
    for view in (dense(parts, bias=bias), factored(parts, bias=bias)):
        value = OPERATIONS[name](view)
        results.append((value.detach(), torch.autograd.grad((value * weights).sum(), leaves)))
    (expected, expected_grads), (found, found_grads) = results
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for grad, wanted in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradcheck(parts, name):
    assert torch.autograd.gradcheck(
        lambda h, w, b: OPERATIONS[name](factored({"hidden": h, "weight": w, "bias": b})), tuple(parts.values())
    )


def direct(parts: dict[str, Tensor]) -> FactoredLogits:
    return FactoredLogits(parts["hidden"], Head(parts["weight"], parts["bias"], V, sparse_gradient=True))


@pytest.mark.parametrize("there", [None, torch.ones(V + 3, D, dtype=torch.float64)], ids=["no gradient yet", "added"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_cheap_gradient_of_the_weight_is_the_gradient(parts, name, there):
    """Also of a weight that is the embedding too: ``hidden`` depends on it."""
    found = []
    for make in (factored, direct):
        leaves = {k: v.detach().clone().requires_grad_() for k, v in parts.items()}
        leaves["weight"].grad = None if there is None else there.clone()
        OPERATIONS[name](make(leaves | {"hidden": leaves["hidden"] + leaves["weight"][:N]})).sum().backward()
        found.append({k: v.grad.to_dense() for k, v in leaves.items() if v.grad is not None})
    for k, wanted in found[0].items():
        torch.testing.assert_close(found[1][k], wanted, rtol=1e-12, atol=1e-12)


def test_over_the_whole_vocabulary_it_is_added_to_the_one_that_is_there(parts):
    before = parts["weight"].grad = torch.zeros_like(parts["weight"])
    hidden = parts["hidden"] * 1
    hidden.register_hook(lambda grad: passed.append(before.abs().sum().item()))
    passed: list[float] = []
    view = direct(parts | {"hidden": hidden})
    (view.logsumexp().sum() + view.rowwise(entropy).sum()).backward()
    assert parts["weight"].grad is before
    assert passed == [before.abs().sum().item()], "it is whole before the body's backward pass begins"
    assert passed[0] > 0


def test_a_hook_on_the_weight_sees_its_gradient(parts):
    seen: list[Tensor] = []
    parts["weight"].register_hook(seen.append)
    direct(parts).logsumexp().sum().backward()
    torch.testing.assert_close(seen[0], parts["weight"].grad)


@pytest.mark.parametrize("make", [dense, factored])
def test_columns_without_a_token_are_never_picked(parts, make):
    with torch.no_grad():
        parts["weight"][4] *= 100  # a hole with huge logits
        parts["weight"][V:] *= 100
    view: LogitView = make(parts, torch.tensor([4]))
    full = (parts["hidden"] @ parts["weight"].T + parts["bias"]).detach()[:, :V]
    full[:, 4] = float("-inf")
    torch.testing.assert_close(view.logsumexp().detach(), full.logsumexp(1))
    assert view.argmax().tolist() == full.argmax(1).tolist()
    assert not (view.top(V - 1, torch.arange(N))[1] == 4).any()
    view.logsumexp().sum().backward()
    assert parts["weight"].grad is not None
    assert parts["weight"].grad[4].eq(0).all()
    assert parts["weight"].grad[V:].eq(0).all()


def test_a_frozen_head_gets_no_gradient_and_costs_none(parts):
    parts["weight"].requires_grad_(False)
    parts["bias"].requires_grad_(False)
    view = factored(parts)
    (view.logsumexp() + view.rowwise(entropy) + view.gather(ACTIONS, MASK).sum(1)).sum().backward()
    assert parts["weight"].grad is None
    assert parts["hidden"].grad is not None


def test_rowwise_gives_the_other_view_in_the_same_chunks(parts, monkeypatch):
    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", 2 * V)
    other = dense({k: v.detach() * 2 for k, v in parts.items()})
    both = lambda z, t: (z.softmax(1) * t).sum(1)  # noqa: E731
    expected = both(dense(parts).logits, other.logits)
    torch.testing.assert_close(factored(parts).rowwise(both, other), expected)
    torch.testing.assert_close(dense(parts).rowwise(both, other), expected)


def test_top_breaks_ties_by_the_lower_id_also_at_its_edge():
    view = DenseLogits(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]]))
    for k in range(1, 7):
        _, tokens = view.top(k, torch.arange(2))
        assert tokens[0].tolist() == [1, 2, 3, 4, 0, 5][:k]
        assert tokens[1].tolist() == [0, 1, 2, 3, 4, 5][:k]


@given(
    size=st.integers(1, 60),
    k=st.integers(1, 60),
    levels=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    none=st.booleans(),
)
def test_top_is_the_beginning_of_a_stable_sort(size, k, levels, seed, none):
    """Few levels of logits, as bfloat16 has them: most edges are tied, also at -inf."""
    logits = torch.randint(levels, (8, size), generator=torch.Generator().manual_seed(seed)).float()
    if none:
        logits[logits == 0] = float("-inf")
    values, order = logits.sort(dim=1, descending=True, stable=True)
    found, tokens = DenseLogits(logits).top(k, torch.arange(8))
    assert torch.equal(found, values[:, :k])
    assert torch.equal(tokens, order[:, :k])


def test_no_rows_at_all(parts):
    empty = {**parts, "hidden": parts["hidden"][:0]}
    for view in (dense(empty), factored(empty)):
        assert view.logsumexp().shape == (0,)
        assert view.argmax().shape == (0,)
        assert view.rowwise(entropy).shape == (0,)
        assert view.gather(ACTIONS[:0]).shape == (0, 3)


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out._nnz() if out.layout == torch.sparse_csr else out.numel())
        return out


def test_nothing_of_shape_n_by_v_is_ever_built(monkeypatch):
    n, d, v = 64, 4, 512
    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", 4 * v)
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    actions = torch.randint(v, (n, 6))
    with _Largest() as largest:
        view = FactoredLogits(hidden, Head(weight, None, v))
        (view.logsumexp() + view.gather(actions).sum(1) + view.rowwise(entropy) + view.max()).sum().backward()
    assert largest.numbers < n * v // 4


def test_a_function_of_rows_gets_no_more_than_a_part(parts, monkeypatch):
    monkeypatch.setattr(logits_module, "PART_ELEMENTS", 2 * V)
    seen: list[int] = []
    factored(parts).rowwise(lambda z: seen.append(len(z)) or entropy(z)).sum().backward()
    assert seen == 2 * [2, 2, 2, 1], "in the forward pass and in the backward one"


def test_two_views_share_what_a_reduction_may_hold(parts, monkeypatch):
    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", 6 * V)
    asked: list[int] = []
    other = dense(parts)
    block = other.block
    monkeypatch.setattr(other, "block", lambda rows: asked.append(len(rows)) or block(rows))
    with torch.no_grad():
        factored(parts).rowwise(lambda mine, theirs: (mine * theirs).sum(1), other)
    assert asked == [3, 3, 1]


def test_bfloat16_inputs_sum_in_float32():
    hidden, weight = torch.randn(6, 32), torch.randn(400, 32)
    exact = DenseLogits(hidden.bfloat16().double() @ weight.bfloat16().double().T)
    view = FactoredLogits(hidden.bfloat16(), Head(weight.bfloat16(), None, 400))
    assert view.logsumexp().dtype == torch.float32
    torch.testing.assert_close(view.logsumexp(), exact.logsumexp().float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_all_operations_see_the_same_logits(autocast):
    """Were the logits of logsumexp rounded and those of gather not, a log-probability could be positive."""
    hidden, weight = torch.randn(50, 32) * 3, torch.randn(400, 32)
    if not autocast:
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        view = FactoredLogits(hidden, Head(weight, None, 400))
        values, tokens = view.top(5, torch.arange(50))
        torch.testing.assert_close(view.gather(tokens), values, rtol=1e-5, atol=1e-4)
        assert (view.logsumexp() - view.max() > -1e-4).all()


@pytest.mark.parametrize("block", [2 * V, 10**6], ids=["two rows", "one block"])
def test_a_teachers_sums_come_with_its_first_look_at_one_product(parts, block, monkeypatch):
    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(logits_module, "PART_ELEMENTS", 3 * V)
    teacher = {name: part.detach() for name, part in parts.items()}
    apart, products = factored(teacher), []
    product = Head.logits
    monkeypatch.setattr(Head, "logits", lambda head, hidden: products.append(len(hidden)) or product(head, hidden))
    view = factored(teacher)
    values, tokens = view.top(4, torch.arange(N))
    assert sum(products) == N
    assert torch.equal(view.logsumexp(), apart.logsumexp())
    assert sum(products) == N, "nothing is multiplied again"
    some = torch.tensor([5, 2])
    assert torch.equal(view.top(4, some)[1], tokens[some])
    assert torch.allclose(factored(teacher).top(4, some)[0], values[some]), "of some rows first, without their sums"


def test_a_students_sums_keep_their_gradient_after_a_look_at_its_tokens(parts):
    view = factored(parts)
    view.top(4, torch.arange(N))
    assert view.logsumexp().requires_grad


def test_a_second_backward_pass_gives_the_same_gradient(parts):
    leaves = list(parts.values())
    total = factored(parts).logsumexp().square().sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, leaves)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_a_gpu_as_on_the_cpu(parts, name, dtype):
    leaves = {k: v.detach().to(dtype) for k, v in parts.items()}
    with torch.device("cuda"):
        there = {k: v.cuda().requires_grad_() for k, v in leaves.items()}
        view = FactoredLogits(there["hidden"], Head(there["weight"], there["bias"], V))
        global ACTIONS, MASK
        kept, ACTIONS, MASK = (ACTIONS, MASK), ACTIONS.cuda(), MASK.cuda()
        try:
            found = OPERATIONS[name](view)
        finally:
            ACTIONS, MASK = kept
        found.sum().backward()
    expected = OPERATIONS[name](dense({k: v.double().requires_grad_() for k, v in leaves.items()}))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(there["hidden"].grad).all()
