"""The micro world: its generator and its checker agree, its splits are disjoint, its models load."""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from distillzoo.zoo.micro import SPLITS, STUDENT, TEACHER, examples, is_right
from distillzoo.zoo.micro.grammar import Facts
from distillzoo.zoo.micro.procedure import INGREDIENTS
from distillzoo.zoo.micro.task import Task
from distillzoo.zoo.micro.train import right_share
from distillzoo.zoo.micro.world import TASKS, answer, instruction, understand, vocabulary

SEEDS = st.integers(0, 2**32)
KINDS = st.sampled_from(TASKS)
WORDS = vocabulary()
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _problem(task: Task, seed: int) -> tuple[Facts, str, str]:
    rng = Random(seed)
    facts = task.draw(rng)
    return facts, instruction(task, facts, rng), answer(task, facts, rng)


def _sentences(text: str) -> list[str]:
    return [f"{part.strip()} ." for part in text.split(" .") if part.strip()]


@QUICK
@given(KINDS, SEEDS)
def test_every_generated_answer_is_right(task: Task, seed: int) -> None:
    facts, asked, answered = _problem(task, seed)
    assert is_right(asked, answered)
    assert understand(asked) == (task, facts)


@QUICK
@given(KINDS, KINDS, SEEDS, SEEDS)
def test_an_answer_to_another_combination_is_wrong(task: Task, other: Task, seed: int, other_seed: int) -> None:
    facts, asked, _ = _problem(task, seed)
    other_facts, _, answered = _problem(other, other_seed)
    assume(task is not other or task.key(facts) != other.key(other_facts))
    assert not is_right(asked, answered)


@QUICK
@given(KINDS, SEEDS)
def test_an_answer_with_one_fact_changed_is_wrong(task: Task, seed: int) -> None:
    rng = Random(seed)
    facts, donor = task.draw(rng), task.draw(rng)
    name = rng.choice(sorted(facts))
    changed = {**facts, name: donor[name]}
    assume(task.key(changed) != task.key(facts))
    assert not is_right(instruction(task, facts, rng), answer(task, changed, rng))


@QUICK
@given(KINDS, SEEDS)
def test_a_word_too_many_or_too_few_is_wrong(task: Task, seed: int) -> None:
    _, asked, answered = _problem(task, seed)
    rng = Random(seed)
    words = answered.split()
    place = rng.randrange(len(words))
    assert not is_right(asked, " ".join([*words, "."]))
    assert not is_right(asked, " ".join(words[:-1]))
    assert not is_right(asked, " ".join([*words[:place], "which", *words[place:]]))


@QUICK
@given(KINDS, SEEDS)
def test_a_dropped_or_doubled_sentence_is_wrong(task: Task, seed: int) -> None:
    _, asked, answered = _problem(task, seed)
    sentences = _sentences(answered)
    place = Random(seed).randrange(len(sentences))
    assert not is_right(asked, " ".join(sentences[:place] + sentences[place + 1 :]))
    assert not is_right(asked, " ".join(sentences[: place + 1] + sentences[place:]))


@QUICK
@given(SEEDS)
def test_two_swapped_ingredients_are_wrong(seed: int) -> None:
    _, asked, answered = _problem(TASKS[1], seed)
    words = answered.split()
    places = [index for index, word in enumerate(words) if word in INGREDIENTS]
    one, other = Random(seed).sample(places, 2)
    words[one], words[other] = words[other], words[one]
    assert not is_right(asked, " ".join(words))


@QUICK
@given(SEEDS, st.sampled_from([-1, 1, 7]))
def test_a_wrong_number_is_wrong(seed: int, change: int) -> None:
    _, asked, answered = _problem(TASKS[2], seed)
    words = answered.split()
    place = Random(seed).choice([index for index, word in enumerate(words) if word.isdigit()])
    words[place] = str(int(words[place]) + change)
    assert not is_right(asked, " ".join(words))


@QUICK
@given(KINDS, SEEDS)
def test_a_foreign_word_in_place_of_a_fact_is_wrong(task: Task, seed: int) -> None:
    facts, asked, answered = _problem(task, seed)
    rng = Random(seed)
    words = answered.split()
    meant = [index for index, word in enumerate(words) if word in facts.values()]
    assume(meant)
    words[rng.choice(meant)] = rng.choice([word for word in WORDS if word not in words])
    assert not is_right(asked, " ".join(words))


def test_a_foreign_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="not an instruction"):
        is_right("what is the capital of france ?", "paris .")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split"):
        examples("dev")


def test_splits_are_disjoint_and_of_the_stated_size() -> None:
    keys = {}
    for split, prompts, references in zip(SPLITS, (3000, 300, 500), (1, 4, 4), strict=True):
        rows = examples(split)
        keys[split] = {(task.name, task.key(facts)) for task, facts in (understand(r["instruction"]) for r in rows)}
        assert len(rows) == len(keys[split]) == prompts
        assert {row["task"] for row in rows} == {task.name for task in TASKS}
        assert all(len(set(row["output"])) == references and row["input"] == "" for row in rows)
        assert all(is_right(row["instruction"], text) for row in rows for text in row["output"])
    assert not keys["train"] & keys["valid"]
    assert not keys["train"] & keys["test"]
    assert not keys["valid"] & keys["test"]


def test_examples_are_the_same_in_another_process() -> None:
    code = "from distillzoo.zoo.micro import examples; print(repr(examples('test')))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == repr(examples("test"))


def test_import_needs_the_standard_library_only() -> None:
    code = "import sys, distillzoo.zoo.micro; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


@pytest.mark.parametrize(("folder", "most"), [(TEACHER, 2_000_000), (STUDENT, 120_000)])
def test_models_load_and_are_as_small_as_stated(folder: Path, most: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() <= most
    assert model.dtype == torch.bfloat16
    assert len(tokenizer) == model.config.vocab_size
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.unk_token_id not in tokenizer(WORDS, is_split_into_words=True)["input_ids"]


def test_chats_fit_the_context_and_decode_to_the_same_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    for row in examples("test")[:60]:
        asked: list[dict[str, str]] = [{"role": "user", "content": row["instruction"]}]
        chat = [*asked, {"role": "assistant", "content": row["output"][0]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(chat)["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert len(whole) < 128
        assert whole[0] == tokenizer.bos_token_id
        assert whole[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True) == row["output"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "least", "most"), [(TEACHER, 0.96, 1.0), (STUDENT, 0.55, 0.85)])
def test_sampled_answers_are_right_as_often_as_stated(folder: Path, least: float, most: float) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert least <= right_share(model, AutoTokenizer.from_pretrained(folder), "test", 1.0, prompts=300)["all"] <= most
