"""From rows to tokens: templates, truncation, the end token, column names, messages."""

import json

import pytest

from distillzoo.core.config import DataSource
from distillzoo.core.data import Encoder, Truncation, end_token, hold_out, load_rows
from distillzoo.core.errors import UserError
from tests.tiny import word_tokenizer

ROW = {"instruction": "w5 w6", "input": "", "output": ["w7 w8"]}


def encoder(chat: bool = True, **limits) -> Encoder:
    tokenizer = word_tokenizer(chat=chat)
    return Encoder(tokenizer, end_token(tokenizer), DataSource(**{"max_length": 40, "max_prompt_length": 20, **limits}))


def test_a_chat_template_writes_the_prompt_and_the_end_token_closes_the_answer():
    coder = encoder()
    (row,) = coder.encode([ROW], Truncation())
    assert coder.tokenizer.decode(row.prompt) == "<bos> w0 w5 w6 w1"
    assert coder.tokenizer.decode(row.references[0].tokens) == "w7 w8 <eos>"
    assert row.references[0].ended


def test_the_end_token_is_what_the_chat_template_writes_after_an_answer():
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<turn>")
    assert end_token(tokenizer) == tokenizer.convert_tokens_to_ids("<turn>")
    tokenizer.chat_template = None
    assert end_token(tokenizer) == tokenizer.eos_token_id


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = word_tokenizer(chat=False)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        end_token(tokenizer)


def test_without_a_chat_template_it_is_the_alpaca_template():
    plain = encoder(chat=False).prompt_text(ROW)
    assert plain.endswith("### Instruction:\nw5 w6\n\n### Response:\n")
    assert "### Input" not in plain
    both = encoder(chat=False).prompt_text({**ROW, "input": "w9"})
    assert "### Input:\nw9\n\n### Response:\n" in both
    assert "further context" in both


def test_asking_for_a_chat_template_that_is_not_there():
    with pytest.raises(UserError, match="no chat template"):
        encoder(chat=False, template="chat").prompt_text(ROW)


def test_truncation_keeps_the_prompts_end_and_counts():
    counts = Truncation()
    coder = encoder(max_prompt_length=3, max_length=5)
    (row,) = coder.encode([{**ROW, "output": ["w7 w8 w9 w3"]}], counts)
    assert coder.tokenizer.decode(row.prompt) == "w5 w6 w1"
    assert coder.tokenizer.decode(row.references[0].tokens) == "w7 w8"
    assert not row.references[0].ended, "a cut answer is truncated, not terminal"
    assert (counts.prompts, counts.answers, counts.rows) == (1, 1, 1)


def test_what_fits_is_not_cut():
    counts = Truncation()
    encoder(max_prompt_length=5, max_length=8).encode([ROW], counts)
    assert (counts.prompts, counts.answers) == (0, 0)


def test_messages_and_other_column_names(registry, tmp_path):
    path = tmp_path / "d.jsonl"
    messages = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w7"}]
    path.write_text(json.dumps({"messages": messages}) + "\n\n" + json.dumps({"q": "w5", "a": "w7"}) + "\n")
    data = DataSource(columns={"instruction": "q", "output": "a"})
    rows, suite = load_rows(str(path), data, registry, "train")
    assert suite is None
    assert [row["output"] for row in rows] == [["w7"], ["w7"]]
    first, second = encoder().encode(rows, Truncation())
    assert first.prompt == second.prompt


def test_a_column_that_is_not_there_is_an_error(registry, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"instruction": "w5", "context": "w6", "output": "w7"}\n')
    with pytest.raises(UserError, match=r"data\.columns\.input is 'contxt', which is no column\..*'context'"):
        load_rows(str(tmp_path / "d.jsonl"), DataSource(columns={"input": "contxt"}), registry, "train")


def test_a_suite_is_data_by_name_and_split(registry):
    rows, suite = load_rows("micro:test", DataSource(), registry, "train")
    assert suite is not None
    assert len(rows) == 500
    assert suite.right(rows[0], rows[0]["output"][0])
    assert not suite.right(rows[0], rows[1]["output"][0])


def test_a_data_set_that_is_not_there_is_explained(registry):
    with pytest.raises(UserError, match="neither a file nor a data set"):
        load_rows("nobody/nothing", DataSource(), registry, "train")


def test_holding_out_is_disjoint_and_seeded():
    rows = [{"i": i} for i in range(100)]
    train, valid = hold_out(rows, 1)
    assert (len(train), len(valid)) == (95, 5)
    assert not {r["i"] for r in train} & {r["i"] for r in valid}
    assert hold_out(rows, 1) == (train, valid) != hold_out(rows, 2)
