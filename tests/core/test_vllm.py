"""Sampling with vLLM, against a stand-in that has the few names used of it."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distillzoo.core.config import resolve
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import Decoding
from distillzoo.core.generation import Generator
from distillzoo.core.registry import Registry
from distillzoo.core.trajectories import Completion
from distillzoo.core.vllm import VllmSampler
from distillzoo.core.world import World
from tests.tiny import Tiny, tiny_model

PROMPTS = [[1, 5], [1, 6, 7, 8], [1, 5]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """A module ``vllm`` whose engine answers with a prompt's length, the last digit of the seed, and a stop or none."""
    made: list[SimpleNamespace] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            made.append(SimpleNamespace(engine=settings))

        def generate(self, prompts: list[dict[str, list[int]]], settings: list[Any], use_tqdm: bool) -> list[Any]:
            made[-1].settings = settings
            answers = []
            for prompt, s in zip(prompts, settings, strict=True):
                tokens = [len(prompt["prompt_token_ids"]), s.seed % 10 + 10, 2 if s.seed % 2 else 9][: s.max_tokens]
                answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens))]))
            return answers

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace, __spec__=1))
    return made


def sampler(**changes: Any) -> VllmSampler:
    settings = {"revision": None, "trust_remote_code": False, "dtype": "bfloat16", "memory": 0.5, "stops": [2],
                "suppressed": [30, 31], "max_new_tokens": 3}  # fmt: skip
    return VllmSampler(model="some/teacher", **{**settings, **changes})


def test_the_decoding_is_handed_on_and_nothing_else_applies(calls):
    sampler()(PROMPTS, Decoding(0.7, 0.9), seed=1)
    (call,) = calls
    assert call.engine["model"] == "some/teacher"
    assert call.engine["max_model_len"] == 4 + 3
    assert call.engine["gpu_memory_utilization"] == 0.5
    for s in call.settings:
        assert (s.temperature, s.top_p, s.max_tokens, s.stop_token_ids) == (0.7, 0.9, 3, [2])
        assert s.logit_bias == {30: -100.0, 31: -100.0}
        assert s.ignore_eos


def test_each_prompt_has_a_seed_of_its_own_and_the_call_decides_all(calls):
    first = sampler()(PROMPTS, Decoding(), seed=1)
    assert sampler()(PROMPTS, Decoding(), seed=1) == first
    sampler()(PROMPTS, Decoding(), seed=2)
    seeds = [[s.seed for s in call.settings] for call in calls]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6, "equal prompts and another seed included"


def test_answers_come_in_order_and_say_whether_they_ended(calls):
    found = sampler()(PROMPTS, Decoding(), seed=1)
    assert [c.tokens[0] for c in found] == [2, 4, 2]
    assert all(c.ended == (c.tokens[-1] == 2) and c.logprobs is None for c in found)
    assert {c.ended for c in sampler()([[1]] * 20, Decoding(), seed=0)} == {True, False}
    assert sampler(max_new_tokens=1, stops=[7])([[1]], Decoding(), seed=0) == [Completion([1], False)]


@pytest.fixture
def world(registry: Registry, tiny: Tiny):
    def make(trajectories: str = "teacher") -> World:
        flags = {
            "teacher": {"model": str(tiny.teacher)}, "student": {"model": str(tiny.student)},
            "data": {"train": str(tiny.data)}, "sampler": "vllm", "device": "cpu",
            "trajectories": {"name": trajectories},
        }  # fmt: skip
        return World(resolve(registry, algo="kd", flags=flags), registry)

    return make


def test_without_vllm_the_run_is_refused(world):
    with pytest.raises(UserError, match=r"not installed: pip install 'distillzoo\[vllm\]', or use transformers"):
        world()


@pytest.mark.usefixtures("calls")
def test_a_student_that_samples_as_it_learns_is_refused(world):
    with pytest.raises(UserError, match="the source student samples from the student as it learns"):
        world("student")


@pytest.mark.usefixtures("calls")
def test_a_machine_without_a_gpu_is_refused(world):
    with pytest.raises(UserError, match="needs a CUDA device, and this run is on cpu"):
        world()


def test_it_takes_the_settings_of_the_ordinary_sampler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20, 80))
    teacher = SimpleNamespace(model="hub/name", revision="main", trust_remote_code=True)
    part = SimpleNamespace(config=SimpleNamespace(teacher=teacher), dtype=torch.bfloat16, device="cuda")
    like = Generator(tiny_model(), stops=[2, 3], pad=2, suppressed=[9], max_new_tokens=6, batch_size=4)
    found = World._vllm(part, like)
    assert (found.stops, found.suppressed, found.max_new_tokens) == ([2, 3], [9], 6)
    assert (found.revision, found.trust_remote_code, found.dtype) == ("main", True, "bfloat16")
    assert found.memory == pytest.approx(0.225)
