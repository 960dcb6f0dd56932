"""Rows of data become token ids, the same ones by hand; a bad row is named with its file, line and key."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import tempfile

import numpy as np
import pytest
import tiny
from pydantic import ValidationError

from penstock.services import data, data_read
from penstock.services.chat import ChatError
from penstock.services.data import DataError, open_pairs, open_prompts
from penstock.services.data_config import Columns, DataSection, SourceSection

ROWS = [{"prompt": f"{i}+{i}=", "answer": 2 * i, "tags": ["sum"], "note": None} for i in range(12)]


@pytest.fixture(scope="module")
def plain():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def chat():
    return tiny.tokenizer(chat=True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("local data must not touch the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def section(path, columns=None, source=None, **changes):
    one = SourceSection(path=str(path), columns=Columns(**(columns or {})), **(source or {}))
    return DataSection(sources={"sums": one}, **changes)


def prompts(path, tokenizer, cache, **changes):
    return open_prompts(section(path, **changes), tokenizer, cache)["sums"]


def pairs(path, tokenizer, cache, **changes):
    return open_pairs(section(path, **changes), tokenizer, cache)["sums"]


def test_a_plain_prompt_becomes_its_characters(file, plain, tmp_path):
    source = prompts(file, plain, tmp_path / "cache")
    row = source[3]
    assert len(source) == 12
    assert row.tokens.dtype == np.int32
    assert row.tokens.tolist() == tiny.ids_of("3+3=")
    assert (row.source, row.row, row.text) == ("sums", 3, "3+3=")
    assert row.columns == {"answer": 6, "tags": ["sum"], "note": None}


def test_every_row_comes_out_as_it_lies_there(file, plain, tmp_path):
    source = prompts(file, plain, tmp_path)
    assert [source[i].text for i in range(len(source))] == [row["prompt"] for row in ROWS]


def test_parquet_gives_the_same_rows(file, plain, tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "sums.parquet")
    one, two = prompts(file, plain, tmp_path / "a"), prompts(tmp_path / "sums.parquet", plain, tmp_path / "b")
    for i in range(12):
        assert one[i].tokens.tolist() == two[i].tokens.tolist()
        assert one[i].columns == two[i].columns


def test_a_saved_dataset_and_a_folder_of_files_are_read(plain, tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.jsonl", ROWS[:5])
    write(tmp_path / "folder" / "b.jsonl", ROWS[5:])
    for path in (tmp_path / "saved", tmp_path / "folder"):
        source = prompts(path, plain, tmp_path / "cache")
        assert [source[i].text for i in range(len(source))] == [row["prompt"] for row in ROWS]


def test_a_hub_dataset_is_asked_for_by_its_name_subset_split_and_revision(monkeypatch, plain, tmp_path):
    import datasets

    asked = []

    def load(path, subset, **rest):
        asked.append((path, subset, rest["split"], rest["revision"]))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = {"subset": "main", "split": "test", "revision": "abc", "limit": 4}
    assert len(prompts("openai/gsm8k", plain, tmp_path, source=source)) == 4
    assert asked == [("openai/gsm8k", "main", "test", "abc")]


def test_a_chat_template_is_applied_when_there_is_one_and_rewards_keep_the_datas_prompt(file, chat, tmp_path):
    row = prompts(file, chat, tmp_path)[3]
    assert row.text == "<u>3+3=\n<a>"
    assert row.tokens.tolist() == tiny.ids_of("<u>3+3=\n<a>")
    assert row.columns["prompt"] == "3+3="


def test_a_chat_template_can_be_refused_or_demanded(file, chat, plain, tmp_path):
    assert prompts(file, chat, tmp_path, chat_template="never")[3].text == "3+3="
    with pytest.raises(ChatError, match=r"set model\.chat_template"):
        prompts(file, plain, tmp_path, chat_template="always")


def test_a_system_message_comes_first_unless_the_row_has_its_own(tmp_path, chat):
    own = [{"role": "system", "content": "x"}, {"role": "user", "content": "1"}]
    path = write(tmp_path / "d.jsonl", [{"prompt": [{"role": "user", "content": "1"}]}, {"prompt": own}])
    source = prompts(path, chat, tmp_path, system="add")
    assert source[0].text == "<s>add\n<u>1\n<a>"
    assert source[1].text == "<s>x\n<u>1\n<a>"
    assert source[1].columns["prompt"] == own


def test_a_system_column_wins_over_the_sections_text(tmp_path, chat):
    path = write(tmp_path / "d.jsonl", [{"prompt": "1", "s": "row"}])
    assert prompts(path, chat, tmp_path, columns={"system": "s"}, system="all")[0].text == "<s>row\n<u>1\n<a>"


def test_a_system_message_without_a_template_is_refused(file, plain, tmp_path):
    with pytest.raises(ChatError, match=r"data\.system needs a chat template"):
        prompts(file, plain, tmp_path, system="add")


def test_messages_need_a_template(tmp_path, plain):
    path = write(tmp_path / "d.jsonl", [{"prompt": [{"role": "user", "content": "1"}]}])
    with pytest.raises(DataError, match=r"d\.jsonl line 1 \(row 0\): the prompt is a list of messages"):
        prompts(path, plain, tmp_path)


def test_template_arguments_reach_the_template(file, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}{% if loud %}?{% endif %}"
    assert prompts(file, tokenizer, tmp_path, template_args={"loud": True})[3].text == "3+3=?"


def test_only_the_columns_kept_reach_the_rewards(file, plain, tmp_path):
    assert prompts(file, plain, tmp_path, source={"keep": ("answer",)})[3].columns == {"answer": 6}


def test_a_tokenizer_that_begins_texts_begins_plain_prompts_but_no_rendered_ones(file, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[bos] $A", special_tokens=[("[bos]", tiny.BOS)]
    )
    assert prompts(file, tokenizer, tmp_path)[3].tokens.tolist() == [tiny.BOS, *tiny.ids_of("3+3=")]
    tokenizer.chat_template = tiny.TEMPLATE
    assert prompts(file, tokenizer, tmp_path)[3].tokens.tolist() == tiny.ids_of("<u>3+3=\n<a>")


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_is_prompt_and_response_with_its_end(tmp_path, plain):
    path = write(tmp_path / "d.jsonl", [{"q": "1+1=", "a": "2"}])
    row = pairs(path, plain, tmp_path, columns={"prompt": "q", "response": "a"})[0]
    assert row.prompt.tolist() == tiny.ids_of("1+1=")
    assert row.response.tolist() == [*tiny.ids_of("2"), tiny.EOS]


def test_a_templated_pair_ends_at_its_first_end_and_not_behind_it(tmp_path, chat):
    path = write(tmp_path / "d.jsonl", [{"q": "1+1=", "a": "2"}])
    row = pairs(path, chat, tmp_path, columns={"prompt": "q", "response": "a"})[0]
    assert row.prompt.tolist() == tiny.ids_of("<u>1+1=\n<a>")
    assert row.response.tolist() == [*tiny.ids_of("2"), tiny.EOS]


def test_a_prompt_for_fine_tuning_is_the_prompt_that_generation_will_see(file, chat, tmp_path):
    with_text = [row | {"answer": str(row["answer"])} for row in ROWS]
    other = write(tmp_path / "d.jsonl", with_text)
    for_rl, for_sft = prompts(file, chat, tmp_path), pairs(other, chat, tmp_path, columns={"response": "answer"})
    for i in range(12):
        assert for_rl[i].tokens.tolist() == for_sft[i].prompt.tolist()


def test_the_last_message_of_a_conversation_is_the_answer(tmp_path, chat):
    turns = [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    path = write(tmp_path / "d.jsonl", [{"m": [{"role": r, "content": c} for r, c in turns]}])
    row = pairs(path, chat, tmp_path, columns={"messages": "m"})[0]
    before = [*tiny.ids_of("<u>1\n<a>2"), tiny.EOS, *tiny.ids_of("\n<u>3\n<a>")]
    assert row.prompt.tolist() == before
    assert row.response.tolist() == [*tiny.ids_of("4"), tiny.EOS]
    with pytest.raises(DataError, match="ends with the assistant's answer"):
        prompts(path, chat, tmp_path, columns={"messages": "m"})


def test_a_conversation_without_an_answer_is_refused_for_fine_tuning(tmp_path, chat):
    path = write(tmp_path / "d.jsonl", [{"m": [{"role": "user", "content": "1"}]}])
    with pytest.raises(DataError, match="no answer to imitate"):
        pairs(path, chat, tmp_path, columns={"messages": "m"})


def test_a_template_that_rewrites_its_prompt_is_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% if add_generation_prompt %}a{% else %}b{% endif %}"
    path = write(tmp_path / "d.jsonl", [{"prompt": "1", "a": "2"}])
    with pytest.raises(DataError, match="does not write a conversation as its prompt followed by the answer"):
        pairs(path, tokenizer, tmp_path, columns={"response": "a"})


def test_fine_tuning_without_a_column_of_answers_is_refused(file, plain, tmp_path):
    with pytest.raises(DataError, match="fine-tuning needs the column of the answers; it has prompt, answer"):
        pairs(file, plain, tmp_path)


# --- too long -------------------------------------------------------------------------------------


def test_long_prompts_are_an_error_that_says_how_long(file, plain, tmp_path):
    with pytest.raises(DataError, match=r"sums\.jsonl line 11 \(row 10\): the prompt has 6 tokens, .* allows 5"):
        prompts(file, plain, tmp_path, max_prompt_tokens=5)


def test_long_prompts_can_be_left_out_and_counted(file, plain, tmp_path):
    source = prompts(file, plain, tmp_path, max_prompt_tokens=5, too_long="drop")
    assert (len(source), source.dropped) == (10, 2)
    assert source[9].text == "9+9="


def test_a_row_keeps_its_number_when_others_are_left_out(tmp_path, plain):
    path = write(tmp_path / "d.jsonl", [{"prompt": "1111"}, {"prompt": "2"}])
    source = prompts(path, plain, tmp_path, max_prompt_tokens=2, too_long="drop")
    assert (source[0].row, source[0].text) == (1, "2")


def test_leaving_out_everything_is_an_error(file, plain, tmp_path):
    with pytest.raises(DataError, match="all 12 prompts are longer than max_prompt_tokens = 1"):
        prompts(file, plain, tmp_path, max_prompt_tokens=1, too_long="drop")


# --- bad data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "1"}\n\n{"promt": "2"}\n', r"line 3 \(row 1\): 'prompt' is missing or null; .*mean 'promt'\?"),
        ('{"prompt": "1"}\n{"prompt": "2"\n', r"line 2 is not JSON: Expecting ',' delimiter"),
        ('{"prompt": "1"}\n{"prompt": 2}\n', r"line 2: 'prompt' is a number, but a string in line 1; use one type"),
        ('{"prompt": 1}\n', r"line 1 \(row 0\): the prompt: expected a string or a list of messages, found int"),
        ('{"prompt": ""}\n', r"line 1 \(row 0\): the prompt is empty"),
        ('["prompt"]\n', r"line 1: expected a JSON object, found list"),
        ("\n", r"has no rows"),
        ("", r"has no rows"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, plain, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=rf"source 'sums'.*bad\.jsonl.*{message}|bad\.jsonl.*{message}"):
        prompts(tmp_path / "bad.jsonl", plain, tmp_path / "cache")


def test_numbers_that_are_strings_stay_strings(tmp_path, plain):
    path = write(tmp_path / "d.jsonl", [{"prompt": "1", "a": "007"}, {"prompt": "2", "a": "8"}])
    assert prompts(path, plain, tmp_path)[0].columns == {"a": "007"}
    mixed = write(tmp_path / "m.jsonl", [{"prompt": "1", "a": "007"}, {"prompt": "2", "a": 8}])
    with pytest.raises(DataError, match=r"m\.jsonl line 2: 'a' is a number, but a string in line 1"):
        prompts(mixed, plain, tmp_path)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": None}, "message 0: 'content' must be a string, found NoneType"),
        ({"content": "1"}, "message 0: 'role' must be a string, found NoneType"),
    ],
)
def test_a_bad_message_is_named(tmp_path, chat, message, text):
    path = write(tmp_path / "d.jsonl", [{"prompt": [message]}])
    with pytest.raises(DataError, match=text):
        prompts(path, chat, tmp_path)


def test_a_column_that_is_not_there_names_the_nearest(file, plain, tmp_path):
    with pytest.raises(DataError, match=r"has no column 'prmpt'; it has prompt, .*; did you mean 'prompt'\?"):
        prompts(file, plain, tmp_path, columns={"prompt": "prmpt"})


def test_a_file_that_is_not_there_names_the_nearest(file, plain, tmp_path):
    with pytest.raises(DataError, match=r"there is no .*sum\.jsonl'; did you mean 'sums\.jsonl'\?"):
        prompts(tmp_path / "sum.jsonl", plain, tmp_path)


def test_a_file_of_another_kind_is_refused_with_the_kinds_allowed(tmp_path, plain):
    (tmp_path / "d.csv").write_text("prompt\n1\n")
    with pytest.raises(DataError, match=r"allowed are files ending in \.jsonl, \.ndjson, \.parquet"):
        prompts(tmp_path / "d.csv", plain, tmp_path)


def test_a_split_of_a_saved_dataset_is_chosen_by_name(plain, tmp_path):
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    assert len(prompts(tmp_path / "splits", plain, tmp_path)) == 12
    assert len(prompts(tmp_path / "splits", plain, tmp_path, source={"split": "test"})) == 2
    with pytest.raises(DataError, match=r"has no split 'tset'; it has train, test; did you mean 'test'\?"):
        prompts(tmp_path / "splits", plain, tmp_path, source={"split": "tset"})


# --- the cache ------------------------------------------------------------------------------------


def test_a_second_opening_does_not_tokenise_again(file, plain, tmp_path, monkeypatch):
    first = prompts(file, plain, tmp_path / "cache")[5]

    def refuse(*args, **kwargs):
        raise AssertionError("tokenised twice")

    monkeypatch.setattr(data.PromptSource, "_tokenise", refuse)
    second = prompts(file, plain, tmp_path / "cache")[5]
    assert first.tokens.tolist() == second.tokens.tolist()
    with pytest.raises(AssertionError, match="tokenised twice"):
        prompts(file, plain, tmp_path / "cache", max_prompt_tokens=8)


def test_a_changed_file_or_tokenizer_is_tokenised_anew(file, plain, chat, tmp_path):
    assert prompts(file, plain, tmp_path / "cache")[0].text == "0+0="
    assert prompts(file, chat, tmp_path / "cache")[0].tokens.tolist() == tiny.ids_of("<u>0+0=\n<a>")
    write(file, [{"prompt": "9"}])
    assert prompts(file, plain, tmp_path / "cache")[0].tokens.tolist() == tiny.ids_of("9")


# --- mixtures and checks --------------------------------------------------------------------------


def test_a_mixture_is_opened_by_name_with_its_weights(file, plain, tmp_path):
    other = write(tmp_path / "more.jsonl", [{"prompt": "9"}])
    sources = {"sums": SourceSection(path=str(file), weight=3), "more": SourceSection(path=str(other))}
    opened = open_prompts(DataSection(sources=sources), plain, tmp_path)
    assert {name: (len(s), s.weight) for name, s in opened.items()} == {"sums": (12, 3.0), "more": (1, 1.0)}


def test_problems_are_found_together_without_a_tokenizer(file, tmp_path):
    sources = {
        "good": SourceSection(path=str(file)),
        "gone": SourceSection(path=str(tmp_path / "gone.jsonl")),
        "column": SourceSection(path=str(file), columns=Columns(prompt="promt"), keep=("anser",)),
        "hub": SourceSection(path="openai/gsm8k", columns=Columns(prompt="question")),
    }
    found = dict(data_read.problems(DataSection(sources=sources)))
    assert list(found) == ["sources.gone.path", "sources.column.columns.prompt", "sources.column.keep.0"]
    assert found["sources.column.keep.0"].endswith("did you mean 'answer'?")
    assert [key for key, _ in data_read.problems(section(file), responses=True)] == ["sources.sums.columns.response"]


def test_columns_are_read_cheaply_from_every_kind_of_local_file(file, tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "sums.parquet")
    table.save_to_disk(tmp_path / "saved")
    for path in (file, tmp_path / "sums.parquet", tmp_path / "saved"):
        assert data_read.columns_of("x", SourceSection(path=str(path))) == ["prompt", "answer", "tags", "note"]


def test_paths_become_absolute_and_hub_ids_stay(tmp_path):
    sources = {"a": SourceSection(path="d/x.jsonl"), "b": SourceSection(path="openai/gsm8k")}
    (tmp_path / "d").mkdir()
    located = DataSection(sources=sources).located(tmp_path)
    assert located.sources["a"].path == str(tmp_path / "d" / "x.jsonl")
    assert located.sources["b"].path == "openai/gsm8k"


@pytest.mark.parametrize("name", ["openai/gsm8k", "my sums", "", "_sums", "größe"])
def test_a_source_whose_name_fits_no_metric_is_refused_with_one_that_does(name):
    with pytest.raises(ValidationError, match="give the source a plain name: sources: "):
        DataSection(sources={name: SourceSection(path="a.jsonl")})


@pytest.fixture
def open_folder():
    """One that everybody may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        pathlib.Path(name).chmod(0o755)
        yield pathlib.Path(name)


def test_a_file_that_may_not_be_read_is_named(open_folder):
    file = write(open_folder / "sums.jsonl", ROWS)
    file.chmod(0)
    with somebody_else(), pytest.raises(DataError, match=r"'sums': .*sums\.jsonl cannot be read: Permission denied"):
        data_read.columns_of("sums", SourceSection(path=str(file)))


def test_a_folder_that_may_not_be_entered_is_named(open_folder):
    (open_folder / "closed").mkdir(mode=0)
    source = SourceSection(path=str(open_folder / "closed" / "x.jsonl"))
    with somebody_else(), pytest.raises(DataError, match=r"closed/x\.jsonl' cannot be read: Permission denied"):
        data_read.columns_of("sums", source)


@contextlib.contextmanager
def somebody_else():
    """Root may read everything: for a moment this process is nobody."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_the_first_prompt_that_is_longer_is_told_with_how_many_there_are(tmp_path, plain):
    (tmp_path / "long.jsonl").write_text("".join(f'{{"prompt": "{"1" * n}"}}\n' for n in (2, 5, 3, 7)))
    source = prompts(tmp_path / "long.jsonl", plain, tmp_path / "cache")
    assert source.first_longer(7) is None
    assert source.first_longer(6) == f"{tmp_path}/long.jsonl line 4 (row 3): the prompt has 7"
    assert source.first_longer(4) == f"{tmp_path}/long.jsonl line 2 (row 1), the first of 2: the prompt has 5"


def test_a_byte_order_mark_is_no_mistake(tmp_path, plain):
    (tmp_path / "marked.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "12", "answer": "3"}\n')
    row = prompts(tmp_path / "marked.jsonl", plain, tmp_path / "cache")[0]
    assert (row.text, row.columns) == ("12", {"answer": "3"})
