"""The small parts of a rollout worker, one by one."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import completion, prompt, spans, trajectory
from pydantic import ValidationError

from penstock.rollout.config import EngineSection, EvaluationSection, RolloutSection, SamplingSection
from penstock.rollout.ends import end_tokens, sampling_of
from penstock.rollout.episode import Episode
from penstock.rollout.evaluation import EvaluationJob, evaluate, evaluation_prompts, job_of, summarise
from penstock.rollout.evaluation import EvaluationSample as Sample
from penstock.rollout.fake import FakeGenerator
from penstock.rollout.leases import Leases
from penstock.rollout.meter import Meter
from penstock.rollout.metrics import METRICS
from penstock.rollout.patience import patiently
from penstock.rollout.probe import judge, judge_change
from penstock.rollout.recorder import Track
from penstock.rollout.vllm_extras import MasksFromEngine
from penstock.services.contracts import DeadlinePassed, Request, StoreError, SwapReport, WeightsError
from penstock.services.data import PromptRow
from penstock.services.metrics import describe
from penstock.services.replay import Ticket
from penstock.services.trajectory import PartialGroup, Sampling, StepScore, Unfinished
from penstock.services.versions import Version
from penstock.services.weights.manifest import Manifest, ProbeRecord, TensorEntry

V1, V2 = Version(0, 1), Version(0, 2)
SAMPLING = Sampling(max_tokens=8)


def unfinished(tokens: list[int], version: Version = V1) -> Unfinished:
    return Unfinished(
        tokens=np.asarray(tokens, np.int32),
        logprobs=np.full(len(tokens), -1, np.float32),
        spans=spans((version, len(tokens))) if tokens else (),
    )


# --- tokens in flight -----------------------------------------------------------------------------


def test_tokens_of_one_version_make_one_span_and_a_mark_begins_another():
    track = Track(Request("a", prompt(), SAMPLING))
    track.add([3], [-0.5], V1)
    track.add([4, 5], [-1.0, -1.5], V1)
    track.add([], [], V2)
    track.add([6], [-2.0], V2)
    track.older_kv = True
    track.add([7], [-2.5], V2)
    done = track.completion("stop", "text", "worker", "engine")
    assert [(s.version, s.count, s.older_kv) for s in done.spans] == [(V1, 3, False), (V2, 1, False), (V2, 1, True)]
    assert done.tokens.tolist() == [3, 4, 5, 6, 7] and done.actions.all()
    assert done.logprobs.tolist() == [-0.5, -1.0, -1.5, -2.0, -2.5]


def test_a_resumed_answer_goes_on_in_its_own_span():
    track = Track(Request("a", prompt(), SAMPLING, resume=unfinished([9, 8])))
    track.add([7], [-2.0], V1)
    assert [(s.version, s.count) for s in track.unfinished().spans] == [(V1, 3)]
    assert track.unfinished().logprobs.tolist() == [-1, -1, -2]


# --- one group ------------------------------------------------------------------------------------


def test_a_group_goes_on_from_what_was_handed_back():
    partial = PartialGroup(members=(completion([4, 5]), unfinished([6]), unfinished([])))
    episode = Episode.begin(Ticket(7, 3, 0.0), prompt(7), SAMPLING, 4, partial)
    asked = episode.requests()
    assert [request.key for request in asked] == ["7.3.1", "7.3.2", "7.3.3"]
    assert [request.resume is not None for request in asked] == [True, True, False]
    assert episode.absorb("7.3.1", completion([6, 1, 2])) == 2  # one of the three came from elsewhere
    assert episode.absorb("7.3.3", completion([1])) == 1
    assert not episode.complete
    episode.interrupt({"7.3.2": unfinished([5])})
    left = episode.partial()
    assert left is not None and [len(m.tokens) for m in left.members] == [2, 3, 1, 1]
    assert episode.tokens == 7


def test_a_group_of_which_nothing_exists_hands_on_nothing():
    episode = Episode.begin(Ticket(0, 1, 0.0), prompt(), SAMPLING, 2, None)
    episode.interrupt({"0.1.0": unfinished([])})
    assert episode.partial() is None


# --- leases, patience, meter ----------------------------------------------------------------------


class Renewals:
    """A store that only renews, and can be away."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gone: set[int] = set()
        self.away = 0

    def renew(self, worker: str, tickets: list[Ticket], lease: float) -> tuple[int, ...]:
        self.calls.append([ticket.index for ticket in tickets])
        if self.away:
            self.away -= 1
            raise StoreError("away")
        return tuple(self.gone & set(self.calls[-1]))


def until(condition: Any) -> None:
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


def test_leases_are_renewed_in_their_own_thread_also_after_a_failure():
    store: Any = Renewals()
    store.away = 1
    first, second = Ticket(0, 1, 0.0), Ticket(1, 2, 0.0)
    with Leases(store, "w", 0.06) as leases:
        leases.hold(first)
        leases.hold(second)
        until(lambda: [0, 1] in store.calls[1:])
        store.gone = {1}
        until(lambda: leases.lost() == [second])
        leases.drop(first)
    count = len(store.calls)
    time.sleep(0.05)
    assert len(store.calls) == count  # the thread has ended


def test_patience_ends_and_says_for_what():
    answers: list[Any] = [StoreError("no"), StoreError("no"), 5]

    def call() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    signs: list[int] = []
    assert patiently("ask", call, 5.0, first=0.001, meanwhile=lambda: signs.append(1)) == 5
    assert len(signs) == 2, "a sign of life before each repetition"
    answers[:] = [StoreError("connection refused")] * 99
    with pytest.raises(DeadlinePassed, match=r"ask: the store has not answered .* its last error: connection refused"):
        patiently("ask", call, 0.02, first=0.01)


def test_rates_are_over_the_last_half_minute():
    now = [100.0]
    meter = Meter(lambda: now[0])
    meter.sampled(600)
    now[0] += 10
    meter.sampled(300)
    meter.waited(4.0)
    assert meter.read()["rollout/tokens_per_second"] == 90
    assert meter.read()["rollout/waiting_share"] == 0.4
    assert meter.read()["rollout/waiting_seconds"] == 4
    now[0] += 25
    assert meter.read()["rollout/tokens_per_second"] == 10  # the first 600 are 35 seconds old
    assert meter.read()["rollout/tokens"] == 900


def test_a_meter_that_nobody_reads_forgets_what_is_older_than_its_window():
    now = [0.0]
    meter = Meter(lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        meter.sampled(5)
        meter.waited(0.5)
    assert len(meter._recent) == 2 * 31
    assert meter.read()["rollout/tokens_per_second"] == pytest.approx(5 * 31 / 30)


def test_every_count_of_the_catalogue_is_there_from_the_start():
    """That something grew is seen only where it was 0 before."""
    counted = {name for name, metric in METRICS.items() if "since" in metric.help or name.startswith("rollout/tokens_")}
    counted -= {"rollout/tokens_per_second", "rollout/tokens_sampled", "rollout/tokens_in_flight"}  # not the meter's
    fresh = Meter().read()
    assert len(counted) >= 7
    assert {name: fresh.get(name) for name in counted} == dict.fromkeys(counted, 0.0)


def test_every_metric_is_declared():
    meter = Meter()
    for name in ("groups_put", "refused", "handed_back", "fenced", "cut", "resumed", "tokens_put"):
        meter.count(name)
    meter.sampled(1)
    meter.swapped(SwapReport(V1, 0.1, 0.2, 0.3, 4))
    found = set(meter.read()) | set(summarise([sample("a", 1.0), sample("b", 0.0, greedy=True)], None, 1.0))
    assert not [name for name in found if describe(name, METRICS) is None]


def test_the_largest_gap_of_all_swaps_is_kept_for_whoever_does_not_ask_after_each():
    meter = Meter()
    assert meter.largest_gap[0] == 0.0
    for step, gap in enumerate((1e-6, None, 3e-4, 2e-6)):
        meter.swapped(SwapReport(Version(0, step), 0.1, 0.2, 0.3, 4, gap))
    assert meter.largest_gap == (3e-4, "0.2")
    assert meter.read()["rollout/swap/gap"] == 2e-6


# --- the probe ------------------------------------------------------------------------------------


def manifest(logprobs: tuple[float, ...] | None = None, checksum: str = "0" * 16, dtype: str = "float32") -> Manifest:
    entry = TensorEntry(name="w", shape=(1,), dtype=dtype, checksum=checksum, bytes=4, file="f")
    probe = ProbeRecord(tuple(range(len(logprobs) + 1)), logprobs) if logprobs else None
    return Manifest(version="0.1", tensors=(entry,), total_bytes=4, probe=probe)


def test_a_probe_passes_within_the_rounding_of_its_number_format_only():
    assert judge(V1, manifest((-1.0, -2.0)), [-1.00001, -2.0], "float32") == pytest.approx(1e-5, rel=1e-3)
    with pytest.raises(WeightsError, match=r"version 0\.1: .* up to 0\.005 nats; allowed in float32"):
        judge(V1, manifest((-1.0, -2.0)), [-1.005, -2.0], "float32")
    judge(V1, manifest((-1.0, -2.0)), [-1.005, -2.0], "bfloat16")
    judge(V1, manifest((-1.0, -2.0), dtype="bfloat16"), [-1.005, -2.0], "float32")
    with pytest.raises(WeightsError, match=r"up to 0\.5 nats"):
        judge(V1, manifest((-1.0, -2.0)), [-1.5, -2.0], "bfloat16")
    with pytest.raises(WeightsError, match="nan"):
        judge(V1, manifest((-1.0, -2.0)), [float("nan"), -2.0], "float32")


def test_a_token_that_a_rounding_sends_to_other_experts_does_not_fail_a_probe():
    given = manifest((-1.0, -2.0, -3.0, -4.0))
    rerouted = [-1.00001, -2.4, -3.0, -4.3]
    with pytest.raises(WeightsError, match=r"up to 0\.4 nats"):
        judge(V1, given, rerouted, "float32")
    assert judge(V1, given, rerouted, "float32", experts=True) == pytest.approx(1e-5, rel=1e-2)
    with pytest.raises(WeightsError, match=r"up to 0\.3 nats"):
        judge(V1, given, [-1.5, -2.4, -3.0, -4.3], "float32", experts=True)
    with pytest.raises(WeightsError):
        judge(V1, given, [float("nan")] * 4, "float32", experts=True)


def test_other_weights_must_compute_something_else():
    judge_change(V2, None, manifest(), [-1.0])
    judge_change(V2, (manifest(), [-1.0]), manifest(), [-1.0])  # the same weights again
    judge_change(V2, (manifest(), [-1.0]), manifest(checksum="f" * 16), [-1.1])
    with pytest.raises(WeightsError, match=r"the same log-probs with version 0\.2 as with 0\.1"):
        judge_change(V2, (manifest(), [-1.0]), manifest(checksum="f" * 16), [-1.0])


# --- evaluation -----------------------------------------------------------------------------------


def sample(source: str, reward: float | None, greedy: bool = False, **parts: float | None) -> Sample:
    cause = None if reward is not None else "broke"
    return Sample(source, 0, greedy, reward, parts, cause, 4, "stop", "p", "t")


def test_accuracy_counts_what_was_scored_and_tells_datasets_apart():
    found = summarise([sample("a", 1.0), sample("a", 0.4), sample("b", 0.5), sample("b", None)], None, 0.5)
    assert found["eval/sampled/accuracy"] == pytest.approx(2 / 3)
    assert found["eval/a/sampled/accuracy"] == 0.5 and found["eval/b/sampled/accuracy"] == 1.0
    assert found["eval/sampled/reward"] == pytest.approx(1.9 / 3)
    assert found["eval/sampled/unscored"] == 0.25 and "eval/greedy/accuracy" not in found


def test_accuracy_can_be_that_of_one_reward_part():
    found = summarise(
        [sample("a", 2.0, right=0.0, form=1.0), sample("a", 0.0, right=1.0), sample("a", 1.0)], "right", 1.0
    )
    assert found["eval/sampled/accuracy"] == 0.5 and found["eval/sampled/reward"] == 1.0
    assert "eval/a/sampled/accuracy" not in found  # one dataset: the same number again


def test_an_evaluation_alone_gives_greedy_answers_that_are_the_same_every_time():
    class Judge:
        def submit(self, asked: Any, answers: Any) -> Future[Any]:
            result: Future[Any] = Future()
            result.set_result(tuple(trajectory(1.0, tokens=a.tokens.tolist(), text=a.text) for a in answers))
            return result

        def close(self) -> None: ...

    job = EvaluationJob(tuple(prompt(i, [3 + i]) for i in range(6)), SAMPLING, samples=2)
    one, other = (evaluate(FakeGenerator(seed=s, end=-1), Judge(), job, slots=5) for s in (1, 2))
    greedy = [[s.text for s in report.samples if s.greedy] for report in (one, other)]
    sampled = [[s.text for s in report.samples if not s.greedy] for report in (one, other)]
    assert greedy[0] == greedy[1] and len(greedy[0]) == 6
    assert sampled[0] != sampled[1] and len(sampled[0]) == 12


def test_an_evaluation_counts_what_steps_earn():
    class Judge:
        def submit(self, asked: Any, answers: Any) -> Future[Any]:
            result: Future[Any] = Future()
            judged = [trajectory(0.5, tokens=a.tokens.tolist()) for a in answers]
            result.set_result(
                tuple(msgspec.structs.replace(t, steps=(StepScore(token=0, score=0.25),)) for t in judged)
            )
            return result

        def close(self) -> None: ...

    job = EvaluationJob((prompt(0, [3]),), SAMPLING, samples=2)
    report = evaluate(FakeGenerator(seed=1, end=-1), Judge(), job, slots=5)
    assert [s.reward for s in report.samples] == [0.75] * 3
    assert report.metrics["eval/sampled/reward"] == report.metrics["eval/greedy/reward"] == 0.75


@pytest.mark.parametrize("told", [2, None])
def test_where_the_engine_says_nothing_of_its_masks_they_are_unknown(told: int | None) -> None:
    """None is what vLLM's output holds where it made no mask."""
    ids = None if told is None else SimpleNamespace(token_ids=[[5, 3], [1, 2, 4]])
    output = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[3, 4], sampling_mask=ids)])
    sets = MasksFromEngine(2).read(None, output)
    assert [None if each is None else each.tolist() for each in sets] == [None if told is None else [3, 5], None]


def test_evaluation_prompts_are_fixed_and_each_row_comes_once():
    class Rows:
        weight = 1.0

        def __init__(self, name: str, size: int) -> None:
            self.name, self.size = name, size

        def __len__(self) -> int:
            return self.size

        def __getitem__(self, item: int) -> Any:
            return PromptRow(self.name, item, np.ones(1, np.int32), "", {})

    sources: Any = {"a": Rows("a", 5), "b": Rows("b", 50)}
    some, everything = evaluation_prompts(sources, 12), evaluation_prompts(sources, None)
    assert [(p.source, p.row) for p in some] == [(p.source, p.row) for p in everything[:12]]
    assert len({(p.source, p.row) for p in everything}) == 55


def test_what_a_run_file_leaves_open_is_as_in_training():
    training = Sampling(temperature=0.7, max_tokens=99, stop_token_ids=(4,))
    job = job_of(EvaluationSection(samples=3), (), training, "exact", 1.0)
    assert (job.sampling.max_tokens, job.sampling.stop_token_ids, job.sampling.temperature) == (99, (4,), 1.0)
    assert job_of(EvaluationSection(max_tokens=5), (), training, "exact", 1.0).sampling.max_tokens == 5


# --- the end of an answer -------------------------------------------------------------------------


class Words:
    eos_token_id = 1

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(c) for c in text]


def test_a_stop_text_that_is_one_token_becomes_its_id():
    sampling = sampling_of(SamplingSection(stop=("!", "?"), top_k=5, max_tokens=7), Words())
    assert (sampling.stop_token_ids, sampling.top_k, sampling.max_tokens) == ((33, 63), 5, 7)


def test_a_stop_text_of_several_tokens_is_refused():
    with pytest.raises(ValueError, match=r"'ab' is 2 tokens of this tokenizer, \[97, 98\]"):
        sampling_of(SamplingSection(stop=("ab",)), Words())


def test_answers_end_with_every_end_token_that_the_model_knows(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["X"], "eos_token_id": [1, 5]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert end_tokens(str(tmp_path), Words()) == (1, 5, 7)


# --- the run file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (RolloutSection, {"sampling": {"temperature": 0.0}}),
        (RolloutSection, {"sampling": {"min_p": 0.1}}),
        (RolloutSection, {"workers": 0}),
        (EngineSection, {"dtype": "float16"}),
        (EngineSection, {"memory_share": 1.0}),
        (EngineSection, {"kv": "drop"}),
        (EvaluationSection, {"samples": 0}),
    ],
)
def test_what_cannot_work_is_refused_in_the_run_file(section: Any, values: dict[str, Any]):
    with pytest.raises(ValidationError):
        section(**values)
