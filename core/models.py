"""Loading a teacher and a student, and finding the linear head of each."""

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from distillzoo.core.batch import Batch
from distillzoo.core.config import ModelSource
from distillzoo.core.data import end_token
from distillzoo.core.errors import UserError
from distillzoo.core.factored import Head
from distillzoo.core.logits import DenseLogits, FactoredLogits, LogitView
from distillzoo.core.packing import Packed, packed
from distillzoo.core.prune import prune, pruned_layers
from distillzoo.core.registry import Registry
from distillzoo.core.transitions import Transitions

log = logging.getLogger(__name__)

PROBE_TOKENS: Final = 8


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that teacher and student share.

    Attributes:
        size: one more than the largest shared id; columns beyond belong to no token.
        holes: ids below ``size`` that no token has.
    """

    size: int
    holes: Tensor | None

    def narrowed(self, size: int) -> "Vocabulary":
        """The first ``size`` columns."""
        return Vocabulary(size, None if self.holes is None else self.holes[self.holes < size])


@dataclass(frozen=True)
class Backbone:
    """A causal language model as a body and a head.

    Attributes:
        model: the whole model.
        head: its output layer, if the logits are just that layer on the last hidden state; else none, and views of
            this model are dense.
        vocabulary: the columns in use.
        packs: whether sequences may share a row, told apart by their positions.
        sparse_gradient: whether a gather's gradient for the head's weight is sparse; see ``Head``.
        compiled: what stands for the body (or the whole model, without a linear head) where it was compiled.
    """

    model: PreTrainedModel
    head: nn.Linear | None
    vocabulary: Vocabulary
    packs: bool = False
    sparse_gradient: bool = False
    compiled: Callable[..., Any] | None = None

    def view(self, hidden: Tensor) -> LogitView:
        """Logits of ``hidden``, ``[N, D]`` for a model with a linear head, ``[N, V']`` logits for another."""
        holes = None if self.vocabulary.holes is None else self.vocabulary.holes.to(hidden.device)
        if self.head is None:
            return DenseLogits(hidden, self.vocabulary.size, holes)
        head = Head(self.head.weight, self.head.bias, self.vocabulary.size, holes, self.sparse_gradient)
        return FactoredLogits(hidden, head)

    def states(self, input_ids: Tensor, attention_mask: Tensor, sequence: Tensor, position: Tensor) -> Tensor:
        """Last hidden states (or logits, without a linear head) of the asked positions, ``[N, D]``.

        Positions count real tokens only, so the padding side makes no difference.
        """
        rows = self._packed(input_ids, attention_mask) if self.packs else None
        if rows is None:
            return self._last(self.inputs(input_ids, attention_mask))[sequence, position]
        found = self._last({"input_ids": rows.input_ids, "position_ids": rows.position_ids})
        return found.flatten(0, 1)[rows.slot[sequence, position]]

    def _packed(self, input_ids: Tensor, attention_mask: Tensor) -> Packed | None:
        config = self.model.config.get_text_config()
        longest_row = getattr(config, "max_position_embeddings", None) or input_ids.shape[1]
        return packed(input_ids, attention_mask, config.hidden_size, longest_row)

    def _last(self, inputs: dict[str, Any]) -> Tensor:
        """Last hidden states (or logits, without a linear head), ``[B, T, D]``."""
        found = (self.compiled or self._body)(**inputs, use_cache=False)
        return found.logits if self.head is None else found.last_hidden_state  # type: ignore[no-any-return]

    @property
    def _body(self) -> nn.Module:
        return self.model if self.head is None else self.model.base_model  # type: ignore[no-any-return]

    def compile(self) -> "Backbone":
        """The same with a body that torch.compile translates at its first passes, for all lengths.

        Generation stays as it is: it grows a cache token by token, which would be compiled again and again.
        """
        return replace(self, compiled=torch.compile(self._body, dynamic=True))

    def view_of(self, batch: Batch, table: Transitions) -> LogitView:
        """Logits at the states of a batch."""
        return self.view(self.states(batch.input_ids, batch.attention_mask, table.sequence, table.position))

    def narrowed(self, size: int) -> "Backbone":
        """The same model on its first ``size`` columns."""
        return replace(self, vocabulary=self.vocabulary.narrowed(size))

    def inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """What the model takes for some tokens, or for the last of those that the mask covers, with their positions."""
        found: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "position_ids" in self.arguments:
            found["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return found

    @property
    def arguments(self) -> Iterable[str]:
        """Names of what the model's forward takes."""
        return inspect.signature(self.model.forward).parameters

    def columns_without_token(self) -> list[int]:
        """Ids that the model could pick and no tokenizer has."""
        holes = [] if self.vocabulary.holes is None else self.vocabulary.holes.tolist()
        return [*holes, *range(self.vocabulary.size, self.model.get_output_embeddings().weight.shape[0])]


def load_tokenizer(source: ModelSource, registry: Registry) -> Any:
    """The tokenizer that belongs to a model.

    Raises:
        UserError: there is none, or it has no end-of-sequence token.
    """
    where = _locate(source.model, registry)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where.path,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            **({"gguf_file": where.gguf} if where.gguf else {}),
        )
    except Exception as error:  # a broken file raises anything, from SafetensorError to a bare Exception
        raise _unloadable("tokenizer", source, error) from None
    end_token(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks come from lengths, so the two may be one
    return tokenizer


def load_model(source: ModelSource, registry: Registry, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A causal language model from a hub id, a folder, a GGUF file or a suite.

    Raises:
        UserError: it cannot be found or loaded.
    """
    where = _locate(source.model, registry)
    extra = {"gguf_file": where.gguf} if where.gguf else {"use_safetensors": True}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            where.path,
            dtype=dtype,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            **extra,
        )
    except Exception as error:  # a broken file raises anything, from SafetensorError to a bare Exception
        raise _unloadable("model", source, error) from None
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise UserError(
            f"The weights of '{source.model}' lack {len(absent)} tensors of its architecture, for example {absent[0]}; "
            f"they would be random. Is it a causal language model, and the whole of it?"
        )
    return model.to(device)


def load_student(
    source: ModelSource, registry: Registry, teacher: ModelSource, device: torch.device
) -> PreTrainedModel:
    """The student in float32, from a source of its own or pruned from the teacher (``prune:layers=N``)."""
    layers = pruned_layers(source.model)
    if layers is None:
        return load_model(source, registry, torch.float32, device)
    return prune(load_model(teacher, registry, torch.float32, torch.device("cpu")), layers).to(device)


def backbone(model: PreTrainedModel, vocabulary: Vocabulary, name: str) -> Backbone:
    """Split a model into body and head, by trying it: a few tokens must give the same logits both ways.

    Soft-capping, scaling or any other function between head and logits shows here; such a model works on dense logits,
    and a warning says so.
    """
    head = model.get_output_embeddings()
    rows = head.weight.shape[0]
    if rows < vocabulary.size:  # a token was added to the tokenizer and not to the model
        vocabulary = vocabulary.narrowed(rows)
    if isinstance(head, nn.Linear) and _head_explains(model, head):
        return _packing(Backbone(model, head, vocabulary))
    log.warning(
        "The %s's logits are not a plain linear layer on the last hidden state (soft-capping or another head): "
        "it works on dense logits, which needs memory for all of them.",
        name,
    )
    return _packing(Backbone(model, None, vocabulary))


@torch.no_grad()
def _packing(found: Backbone) -> Backbone:
    """The same, packing where sequences that share a row give the states that they give alone.

    Not all models take their positions as the borders of sequences: states that run on, and some attention kernels, do
    not. Those compute their padding.
    """
    if "position_ids" not in found.arguments:
        return found
    model, device = found.model, found.model.device
    ids = torch.arange(1, 2 * PROBE_TOKENS, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    border = PROBE_TOKENS
    positions = torch.tensor([[*range(border), *range(border - 1)]], device=device)
    others = torch.cat([ids[:, :border].flip(1), ids[:, border:]], 1)
    with _in_eval_mode(model):
        together, beside_others = (found._last({"input_ids": row, "position_ids": positions}) for row in (ids, others))
        alone = found._last({"input_ids": ids[:, border:]})
    # what a sequence gives may not depend in the least on its neighbour, whatever the data type
    apart = torch.equal(together[:, border:], beside_others[:, border:])
    low = together.dtype in (torch.bfloat16, torch.float16)
    distance = (together[:, border:].float() - alone.float()).abs().max()
    packs = apart and bool(distance <= (2e-2 if low else 1e-4) * alone.float().abs().max())
    if not packs:
        log.info(
            "%s doesn't take positions as the borders of sequences: it computes its padding.", type(model).__name__
        )
    return replace(found, packs=packs)


@torch.no_grad()
def _head_explains(model: PreTrainedModel, head: nn.Linear) -> bool:
    ids = torch.arange(1, 1 + PROBE_TOKENS, device=model.device)[None] % head.weight.shape[0]
    with _in_eval_mode(model):
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        logits = model(input_ids=ids, use_cache=False).logits
    if hidden is None or hidden.shape[-1] != head.weight.shape[1]:
        return False
    plain = head(hidden)
    tolerance = 1e-4 if logits.dtype == torch.float32 else 5e-3
    return plain.shape == logits.shape and bool(
        (plain.float() - logits.float()).abs().max() <= tolerance * logits.float().abs().max()
    )


def products_in(dtype: torch.dtype | None, model: PreTrainedModel) -> torch.autocast:
    """Have the matrix products of float32 weights run in a shorter data type; off where the weights have it already.

    It is off too for None and for float32, also inside another's autocast.
    """
    shorter = dtype is not None and dtype.itemsize < model.dtype.itemsize
    return torch.autocast(model.device.type, dtype if shorter else torch.bfloat16, enabled=shorter)


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def shared_vocabulary(teacher: Any, student: Any) -> Vocabulary:
    """The ids on which two tokenizers agree.

    Both must map every ordinary token to the same id. Added tokens that only one of them has are left out.

    Raises:
        UserError: the tokenizers differ; the message gives the first tokens that do.
    """
    first, second = teacher.get_vocab(), student.get_vocab()
    if first == second:
        return _vocabulary(first.values())
    extra = set(map(str, teacher.added_tokens_decoder.values())) | set(map(str, student.added_tokens_decoder.values()))
    differing = [t for t in {**first, **second} if first.get(t) != second.get(t)]
    conflicts = [t for t in differing if (t in first and t in second) or t not in extra]
    taken = {first[t] for t in differing if t in first} & {second[t] for t in differing if t in second}
    if conflicts or taken:
        shown = ", ".join(f"{t!r} (teacher {first.get(t)}, student {second.get(t)})" for t in sorted(differing)[:3])
        raise UserError(
            f"Teacher and student have different tokenizers ({len(first)} and {len(second)} tokens; {len(differing)} "
            f"differ, for example {shown}). Distillation on tokens needs one vocabulary: choose a student of the "
            f"teacher's family, or prune:layers=N."
        )
    log.warning("Added tokens that only one tokenizer has are left out of both models: %s.", ", ".join(differing))
    return _vocabulary(i for t, i in first.items() if second.get(t) == i)


def _vocabulary(ids: Iterable[int]) -> Vocabulary:
    known = torch.tensor(sorted(set(ids)))
    size = int(known[-1]) + 1
    holes = torch.ones(size, dtype=torch.bool)
    holes[known] = False
    return Vocabulary(size, holes.nonzero()[:, 0] if bool(holes.any()) else None)


def stop_tokens(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Tokens that end generation: the answer's end, the tokenizer's and the model's own."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    own = own if isinstance(own, list) else [own]
    return sorted({end_token(tokenizer), *(t for t in (*own, tokenizer.eos_token_id) if t is not None)})


def fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes, types and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over the vocabulary and the chat template."""
    text = f"{sorted(tokenizer.get_vocab().items())}{tokenizer.chat_template}"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Place:
    path: str
    gguf: str | None = None


def _locate(model: str, registry: Registry) -> _Place:
    """Where ``from_pretrained`` finds a model; for a suite's name the caller's role has been filled in before."""
    name, _, role = model.partition(":")
    if name in registry.names("suite"):
        suite = registry.get("suite", name)()
        if role not in {"", "teacher", "student"}:
            raise UserError(f"'{model}': a suite has a teacher and a student, as in {name}:student.")
        return _Place(str(suite.student if role == "student" else suite.teacher))
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        if path.exists():
            return _Place(str(path.parent), path.name)
        owner_and_repo, _, file = model.rpartition("/")
        if owner_and_repo.count("/") != 1 or owner_and_repo.startswith((".", "/", "~")):
            raise UserError(f"There is no file '{model}'.")
        return _Place(owner_and_repo, file)
    if path.is_dir():
        return _Place(str(path))
    if path.exists():
        raise UserError(f"'{model}' is a file; a model is a folder, a .gguf file, a hub id or a suite.")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"There is no folder '{model}'.")
    return _Place(model)


def _unloadable(what: str, source: ModelSource, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    known = "a hub id, a local folder, a GGUF file, or the name of a suite such as micro"
    return UserError(f"The {what} of '{source.model}' cannot be loaded: {reason[:400]} (a model is {known})")
