"""The inspector's data and its API, on a run made by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import inspected
import pytest
import tiny
from fastapi import FastAPI
from fastapi.testclient import TestClient

from penstock.services.dashboard.answers import NotRecorded, Span, excerpt, spans_of
from penstock.services.dashboard.archived import FROM_VALUES, WHITENED
from penstock.services.dashboard.inspector import Inspector, inspector_router
from penstock.services.dashboard.sampled import NO_TOKENS
from penstock.services.rundir import RunDir
from penstock.services.samples import ACTION, COUNTS, OLDER_KV, SpanRecord
from penstock.services.versions import Version


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return inspected.run_dir(tmp_path)


@pytest.fixture
def client(run: RunDir) -> TestClient:
    app = FastAPI()
    app.include_router(inspector_router(run), prefix="/api")
    return TestClient(app)


# --- steps and answers ------------------------------------------------------------------------------


def test_the_newest_steps_are_listed_unless_others_are_asked_for(run: RunDir) -> None:
    look = Inspector(run)
    newest = look.steps("samples", limit=2)
    assert (newest.total, newest.first, newest.last, newest.offset) == (3, 4, 12, 1)
    assert [entry.step for entry in newest.steps] == [8, 12]
    assert [entry.step for entry in look.steps("samples", near=5, limit=1).steps] == [4]
    assert [entry.step for entry in look.steps("samples", offset=1, limit=1).steps] == [8]


def test_steps_that_come_later_are_seen(run: RunDir) -> None:
    look = Inspector(run)
    assert look.steps("samples").last == 12
    run.write_samples(Version(1, 16), [inspected.sample()])
    assert look.steps("samples").last == 16


def test_a_step_that_two_lineages_made_is_listed_twice_and_the_newest_is_shown(run: RunDir) -> None:
    run.write_samples(Version(2, 8), [inspected.sample(), inspected.sample(), inspected.sample()])
    look = Inspector(run)
    assert [(e.step, e.lineage) for e in look.steps("samples").steps] == [(4, 0), (8, 0), (8, 2), (12, 0)]
    assert look.answers("samples", 8, None).total == 3
    assert look.answers("samples", 8, 0).total == 2


def test_answers_are_told_in_short(run: RunDir) -> None:
    found = Inspector(run).answers("samples", 12, None)
    first, second = found.answers
    assert (first.prompt_index, first.member, first.reward, first.tokens) == (40, 3, 1.0, 9)
    assert first.token_by_token and not second.token_by_token
    assert second.unscored == "it hung"
    assert first.answer == "42 <b>bold</b> é = 7[eos]"


def test_a_long_text_is_cut_short_and_stands_on_one_line() -> None:
    assert excerpt("a\nb  c", 20) == "a b c"
    assert excerpt("x" * 30, 10) == "x" * 10 + " …"


# --- tokens -------------------------------------------------------------------------------------------


def test_by_hand_ratio_and_weight_of_every_token(run: RunDir) -> None:
    tokens = Inspector(run).tokens("samples", 12, None, 0)
    (stretch,) = tokens.stretches
    assert stretch.texts == list(inspected.TEXTS)
    # The learner gives 0.1 more per place, and at the fifth the same as the sampler.
    assert stretch.log_ratio == pytest.approx([-0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4], abs=1e-6)
    assert stretch.importance is not None
    assert stretch.importance[8] == pytest.approx(math.exp(0.4), abs=1e-6)
    assert stretch.trust_weights is not None
    assert stretch.trust_weights[8] == 1.25
    assert tokens.scales["log_ratio"].largest == pytest.approx(0.4)
    assert tokens.scales["advantages"].largest == 1.0
    assert tokens.missing == {"logp_reference": "the run has no reference model"}
    assert tokens.spans == [Span(0, 4, "0.9", 2, False), Span(4, 5, "0.11", 0, True)]


def test_only_the_tokens_that_were_asked_for_are_answered(run: RunDir) -> None:
    tokens = Inspector(run).tokens("samples", 12, None, 0, start=3, count=2)
    (stretch,) = tokens.stretches
    assert (stretch.start, stretch.texts, stretch.tokens) == (3, ["\n", ""], [103, 104])
    # Scales and spans are of the whole answer: the colours must not change from part to part.
    assert tokens.scales["log_ratio"].largest == pytest.approx(0.4)
    assert len(tokens.spans) == 2
    assert Inspector(run).tokens("samples", 12, None, 0, start=100, count=5).stretches == []


def test_the_end_of_a_long_answer_is_there_and_its_middle_is_said_to_be_missing(run: RunDir) -> None:
    run.write_samples(Version(0, 16), [inspected.long_answer(10_000, 600)])
    tokens = Inspector(run).tokens("samples", 16, None, 0, start=290, count=9_420)
    assert tokens.recorded == [(0, 300), (9_700, 10_000)]
    assert [(s.start, len(s.tokens)) for s in tokens.stretches] == [(290, 10), (9_700, 10)]
    assert tokens.length == 10_000


def test_spans_by_the_same_weights_are_one() -> None:
    found = spans_of(
        [
            SpanRecord(version="0.1", count=2, lag=1),
            SpanRecord(version="0.1", count=3, lag=1),
            SpanRecord(version="0.2", count=1, lag=0),
            SpanRecord(version="0.2", count=4, lag=0, older_kv=True),
        ]
    )
    assert found == [Span(0, 5, "0.1", 1, False), Span(5, 1, "0.2", 0, False), Span(6, 4, "0.2", 0, True)]


def test_an_answer_that_is_there_as_text_alone_says_which_key_keeps_more(run: RunDir) -> None:
    with pytest.raises(NotRecorded, match=r"recording\.sample_tokens"):
        Inspector(run).tokens("samples", 12, None, 1)
    assert "recording.sample_tokens" in NO_TOKENS


def test_an_answer_of_another_version_is_said_to_be_that(run: RunDir) -> None:
    run.write_samples(Version(0, 16), [inspected.sample(by_token={"tokens": [1, 2]})])
    with pytest.raises(NotRecorded, match="answer 0 of step 16 of lineage 0 was written by another version"):
        Inspector(run).tokens("samples", 16, None, 0)


# --- the archive --------------------------------------------------------------------------------------


def test_by_hand_an_archived_answer(run: RunDir) -> None:
    inspected.archive_step(run, Version(0, 4))
    look = Inspector(run)
    assert [answer.tokens for answer in look.answers("archive", 4, None).answers] == [2, 3]
    tokens = look.tokens("archive", 4, None, 1)
    (stretch,) = tokens.stretches
    assert (stretch.tokens, stretch.texts) == ([7, 8, 9], None)
    assert stretch.log_ratio == [0.0, 0.0, -0.5]
    assert stretch.advantages == [-1.0, -1.0, -1.0]
    assert stretch.marks == [ACTION | COUNTS, OLDER_KV, ACTION | COUNTS | OLDER_KV]
    assert tokens.spans == [Span(0, 1, "0.2", 2, False), Span(1, 2, "0.3", 1, True)]
    assert tokens.begins_at == "0.3"
    assert (tokens.about.prompt_index, tokens.about.member, tokens.about.finish) == (7, 2, "length")
    assert {"trust_weights", "logp_reference", "texts"} == set(tokens.missing)


def test_an_archived_answer_has_texts_where_the_tokenizer_is_at_hand(run: RunDir) -> None:
    tiny.tokenizer().save_pretrained(run.model)
    inspected.archive_step(run, Version(0, 4))
    found = Inspector(run)
    # The ids behind the two special ones are the digits: 5 is "3".
    assert found.tokens("archive", 4, None, 1).stretches[0].texts == ["5", "6", "7"]
    assert found.answers("archive", 4, None).answers[0].answer == "34"
    assert found.answers("archive", 4, None).answers[0].prompt == "[bos]0"


def test_advantages_that_the_archive_does_not_have_are_left_out_and_it_is_said_why(run: RunDir) -> None:
    inspected.archive_step(run, Version(0, 4), value={"kind": "own"})
    tokens = Inspector(run).tokens("archive", 4, None, 0)
    assert tokens.stretches[0].advantages is None
    assert tokens.missing["advantages"] == FROM_VALUES
    assert "advantages" not in tokens.scales
    inspected.archive_step(run, Version(0, 8), whitening={"over": "tokens"})
    assert Inspector(run).tokens("archive", 8, None, 0).missing["advantages"] == WHITENED


def test_an_archived_step_that_is_pruned_meanwhile_is_said_to_be_gone(run: RunDir) -> None:
    inspected.archive_step(run, Version(0, 4))
    look = Inspector(run)
    look.steps("archive")
    run.archived_batch(Version(0, 4)).unlink()
    with pytest.raises(NotRecorded, match="step 4 is not archived, or no longer"):
        look.answers("archive", 4, None)


def test_what_is_no_batch_is_said_by_its_name(run: RunDir) -> None:
    inspected.archive_step(run, Version(0, 4))
    run.archived_batch(Version(0, 4)).write_bytes(b"nonsense")
    with pytest.raises(NotRecorded, match=r"batch\.safetensors is no batch"):
        Inspector(run).answers("archive", 4, None)


# --- over HTTP ----------------------------------------------------------------------------------------


def test_the_api_answers_in_plain_json(client: TestClient) -> None:
    found = client.get("/api/inspector/tokens", params={"step": 12, "index": 0, "start": 8, "count": 1}).json()
    assert found["stretches"][0]["texts"] == ["[eos]"]
    assert found["recorded"] == [[0, 9]]
    assert found["marks"]["left_out"] == 4
    assert client.get("/api/inspector/steps").json()["total"] == 3
    assert len(client.get("/api/inspector/answers", params={"step": 8, "limit": 1}).json()["answers"]) == 1


@pytest.mark.parametrize(
    ("path", "params", "says"),
    [
        ("answers", {"step": 9}, "step 9 has no answers in samples; there are steps 4 to 12, the nearest is 8"),
        ("answers", {"step": 8, "lineage": 3}, "step 8 of lineage 3 has no answers"),
        ("tokens", {"step": 12, "index": 2}, "step 12 has 2 answers in samples, 0 to 1; found 2"),
        ("answers", {"step": 4, "source": "archive"}, "archive.every says of which steps"),
    ],
)
def test_what_is_not_there_is_a_404_that_names_what_is(
    client: TestClient, path: str, params: dict[str, int], says: str
) -> None:
    answer = client.get(f"/api/inspector/{path}", params=params)
    assert answer.status_code == 404
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    "params",
    [
        {"step": "../../etc/passwd"},
        {"step": -1},
        {"step": 12, "source": "../samples"},
        {"step": 12, "lineage": "*"},
        {"step": 12, "limit": 10_000},
    ],
)
def test_a_request_names_no_file_and_asks_for_no_more_than_a_page(client: TestClient, params: dict[str, str]) -> None:
    assert client.get("/api/inspector/answers", params=params).status_code == 422


def test_the_api_describes_itself(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"Steps", "Answers", "Tokens", "Stretch"} <= set(described["components"]["schemas"])


def test_neither_torch_nor_an_engine_is_loaded(run: RunDir) -> None:
    inspected.archive_step(run, Version(0, 4))
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from penstock.services.dashboard.inspector import Inspector, inspector_router\n"
        "from penstock.services.dashboard.compare import compare_router\n"
        "from penstock.services.rundir import RunDir\n"
        f"run = RunDir(Path({str(run.path)!r}))\n"
        "Inspector(run).tokens('archive', 4, None, 0)\nInspector(run).tokens('samples', 4, None, 0)\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'ray', 'deepspeed', 'pandas') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
