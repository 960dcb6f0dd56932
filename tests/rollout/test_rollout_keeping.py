"""What is kept of an answer's sampling: by hand, and through a generator without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.rollout.config import Keep, RolloutSection, SamplingSection
from penstock.rollout.fake import FakeGenerator, experts, filtered, table
from penstock.rollout.keeping import ExpertRows, KeptSets
from penstock.rollout.meter import Meter
from penstock.rollout.recorder import Track
from penstock.rollout.vllm_extras import MasksFromEngine, MasksFromLogprobs, RoutesByHook, RoutesFromEngine
from penstock.rollout.vllm_setup import extras
from penstock.services.codec import decode, encode
from penstock.services.contracts import PenstockError, Request
from penstock.services.trajectory import Completion, PartialGroup, Sampling, Unfinished
from penstock.services.versions import Version

V1, V2 = Version(0, 1), Version(0, 2)
EVERYTHING = Keep(most_kept=40, routing=True)


def rows(*first: int) -> Any:
    """[n, 1 layer, 2] experts `n, n + 1`."""
    return np.asarray([[[n, n + 1]] for n in first], np.int16)


# --- sets -----------------------------------------------------------------------------------------


def test_sets_of_several_tokens_lie_end_to_end_and_an_unknown_one_is_empty():
    sets = KeptSets(None, 0)
    sets.add([np.asarray([3, 8], np.int32), None])
    sets.add([np.asarray([5], np.int32)])
    kept = sets.record()
    assert kept.counts.tolist() == [2, 0, 1] and kept.tokens.tolist() == [3, 8, 5]
    again = KeptSets(kept, 3)
    again.add([np.asarray([1, 2], np.int32)])
    assert again.record().counts.tolist() == [2, 0, 1, 2] and again.record().tokens.tolist() == [3, 8, 5, 1, 2]


def test_of_tokens_that_came_without_sets_none_is_known():
    sets = KeptSets(None, 2)
    sets.add([np.asarray([4], np.int32)])
    assert sets.record().counts.tolist() == [0, 0, 1]


# --- experts --------------------------------------------------------------------------------------


def test_a_position_keeps_the_experts_of_the_first_time():
    told = ExpertRows(None, prompt=2, tokens=0)
    told.add(0, rows(0, 1))
    told.add(2, rows(2))
    told.add(0, rows(7, 7, 7, 3))  # all computed again, and one more
    found = told.record(tokens=3)
    assert found is not None and (found.layers, found.top_k) == (1, 2)
    assert found.prompt.tolist() == [0, 1, 1, 2]
    assert found.answer.tolist() == [2, 3, 3, 4, 0, 0]  # the third token was not fed


def test_what_is_known_beyond_the_last_token_is_left_out():
    told = ExpertRows(None, prompt=1, tokens=0)
    told.add(0, rows(0, 1, 2, 3))
    found = told.record(tokens=2)
    assert found is not None and found.answer.tolist() == [1, 2, 0, 0]


def test_an_answer_that_goes_on_elsewhere_learns_the_experts_of_its_last_token_there():
    told = ExpertRows(None, prompt=2, tokens=0)
    told.add(0, rows(0, 1, 2))
    part = told.record(tokens=2)
    other = ExpertRows(part, prompt=2, tokens=2)
    other.add(0, rows(9, 9, 9, 5, 6))  # its prompt: all four tokens; then one more
    found = other.record(tokens=4)
    assert found is not None and found.prompt.tolist() == [0, 1, 1, 2]
    assert found.answer.tolist() == [2, 3, 5, 6, 6, 7, 0, 0]


def test_missing_positions_are_an_error_and_no_tokens_are_no_record():
    told = ExpertRows(None, prompt=2, tokens=0)
    assert told.record(tokens=0) is None
    with pytest.raises(PenstockError, match="positions from 1 on, and those of 0 to 0 never"):
        told.add(1, rows(1))
    told.add(0, rows(0, 1))
    with pytest.raises(PenstockError, match="known of 2 positions, and 3 were computed"):
        told.record(tokens=2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12))
def test_whatever_is_computed_again_the_first_time_stays(passes: list[tuple[int, int]]):
    told, expected = ExpertRows(None, prompt=1, tokens=0), dict[int, int]()
    for number, (start, count) in enumerate([(0, 1), *passes]):
        begin = min(start, len(expected))
        told.add(begin, rows(*[number] * count))
        for position in range(begin, begin + count):
            expected.setdefault(position, number)
    found = told.record(tokens=len(expected))
    assert found is not None
    flat = np.concatenate([found.prompt, found.answer[:-2]]).reshape(-1, 2)[:, 0]
    assert flat.tolist() == [expected[i] for i in range(len(expected))]


# --- through a generator --------------------------------------------------------------------------


def completed(one: FakeGenerator) -> Completion:
    while True:
        for _, completion in one.step():
            return completion


def check(answer: Completion | Unfinished, sampling: Sampling, versions: list[Version]) -> None:
    """Sets, log-probs and experts against the tables of the versions that sampled each token."""
    assert answer.kept is not None and answer.routing is not None
    sets = np.split(answer.kept.tokens, np.cumsum(answer.kept.counts)[:-1])
    last = [3, *answer.tokens.tolist()]
    for token, previous, left, found, version in zip(
        answer.tokens, last, sets, answer.logprobs, versions, strict=False
    ):
        logits = table(version, 32, sampling.temperature)[previous]
        assert left.tolist() == np.flatnonzero(np.isfinite(filtered(logits, sampling))).tolist() and token in left
        assert found == pytest.approx(logits[token] - np.logaddexp.reduce(logits[left]), abs=1e-5)
    # A position is routed by the version that draws the token after it.
    fed = [1, 2, *last[:-1]]
    expected = np.concatenate([experts(v, [t]) for v, t in zip([versions[0]] * 2 + versions, fed, strict=False)])
    told = np.concatenate([answer.routing.prompt, answer.routing.answer[:-4]]).reshape(-1, 2, 2)
    assert np.array_equal(told, expected)


def test_an_answer_that_two_generators_made_has_the_sets_and_experts_of_both():
    sampling = Sampling(max_tokens=9, top_k=6, top_p=0.9, temperature=0.8)
    one = FakeGenerator(end=-1, keep=EVERYTHING)
    one.swap(V1)
    one.submit(Request("a", prompt(), sampling))
    for _ in range(4):
        one.step()
    part = one.take_back(["a"])["a"]
    check(part, sampling, [V1] * 4)
    (member,) = decode(encode(PartialGroup(members=(part,))), PartialGroup).members
    assert isinstance(member, Unfinished)
    other = FakeGenerator(end=-1, keep=EVERYTHING, seed=1)
    other.swap(V2)
    other.submit(Request("b", prompt(), sampling, resume=member))
    answer = completed(other)
    assert len(answer.tokens) == 9
    check(answer, sampling, [V1] * 4 + [V2] * 5)
    assert decode(encode(answer), Completion) == answer


def test_a_set_that_is_too_large_is_unknown_and_a_filter_needs_someone_who_keeps_it():
    one = FakeGenerator(end=-1, keep=Keep(most_kept=5))
    one.submit(Request("a", prompt(), Sampling(max_tokens=3, top_k=6)))
    answer = completed(one)
    assert answer.kept is not None and answer.kept.counts.tolist() == [0, 0, 0] and answer.routing is None
    one.submit(Request("b", prompt(), Sampling(max_tokens=3)))
    assert completed(one).kept is None  # nothing was left out
    with pytest.raises(ValueError, match="keeps what they left"):
        FakeGenerator().submit(Request("a", prompt(), Sampling(top_k=6)))


def test_a_track_that_keeps_nothing_says_nothing():
    track = Track(Request("a", prompt(), Sampling(top_k=3)))
    track.add([3], [-0.5], V1, [np.asarray([3], np.int32)])
    assert track.unfinished().kept is None and track.unfinished().routing is None


def test_unknown_sets_are_counted():
    meter = Meter()
    meter.count("mask_unknown", by=3)
    assert meter.read()["rollout/mask_unknown"] == 3.0


# --- how vLLM is asked ----------------------------------------------------------------------------


def test_on_cpu_one_log_prob_more_than_is_recorded_tells_whether_the_set_is_whole():
    masks = MasksFromLogprobs(3)
    assert masks.arguments() == {"max_logprobs": 4}
    assert masks.params(Sampling(top_k=3), 50) == {"logprobs": 4}
    assert masks.params(Sampling(top_k=3), 2) == {"logprobs": 2}
    assert masks.params(Sampling(), 50) == masks.params(Sampling(temperature=0.0, top_k=3), 50) == {}
    minus = float("-inf")
    given = SimpleNamespace(
        start_indices=[0, 5],
        end_indices=[5, 10],
        token_ids=[7, 9, 7, 2, 4, 8, 8, 6, 5, 1],
        logprobs=[-1.0, -0.5, -1.0, minus, minus, -1.0, -1.0, -1.1, -1.2, -1.3],
    )
    output = SimpleNamespace(outputs=[SimpleNamespace(logprobs=given)], finished=True)
    one, other = masks.read(None, output)
    assert one is not None and one.tolist() == [7, 9] and one.dtype == np.int32
    assert other is None  # four were left, three are recorded


def test_on_nvidia_every_request_has_a_temperature_and_a_top_k():
    """vLLM's `return_sampling_mask` refuses others; both stand-ins draw as asked."""
    masks = MasksFromEngine(3)
    assert masks.arguments() == {"return_sampling_mask": True} and masks.aside() == {"top_k": 1}
    assert masks.params(Sampling(top_k=5), 50) == {}
    assert masks.params(Sampling(top_p=0.9), 50) == {"top_k": 50}
    assert masks.params(Sampling(temperature=0.0), 50) == {"temperature": 1.0, "top_k": 1}
    mask = SimpleNamespace(token_ids=[[2, 9], [1, 2, 3, 4]])
    one, other = masks.read(None, SimpleNamespace(outputs=[SimpleNamespace(sampling_mask=mask)]))
    assert one is not None and one.tolist() == [2, 9] and other is None


def test_on_nvidia_rows_of_layers_with_experts_come_at_the_end_or_from_what_lies_ready():
    def rpc(method: str) -> list[Any]:
        return {"expert_layers": [[1, 3]]}[method]

    ready = [np.full((2, 4, 1), 5, np.uint8), np.full((1, 4, 1), 6, np.uint8)]
    processor = SimpleNamespace(
        external_req_ids={"a": ["a-12345678"]},
        request_states={"a-12345678": SimpleNamespace(routed_experts_chunks=ready)},
    )
    engine = SimpleNamespace(collective_rpc=rpc, output_processor=processor)
    routes = RoutesFromEngine()
    routes.begin(engine)
    told = np.arange(8, dtype=np.uint8).reshape(2, 4, 1)
    found = routes.at_end(engine, "a", SimpleNamespace(routed_experts=told))
    assert found is not None and found.dtype == np.int16 and found[..., 0].tolist() == [[1, 3], [5, 7]]
    cut = routes.at_end(engine, "a", None)
    assert cut is not None and cut.shape == (3, 2, 1) and cut[:, 0, 0].tolist() == [5, 5, 6]
    ready.clear()
    assert routes.at_end(engine, "a", None) is None and routes.after_step(engine) == []


def test_each_platform_has_its_way():
    assert [type(way) for way in extras(EVERYTHING, on_cpu=True)] == [MasksFromLogprobs, RoutesByHook]
    assert [type(way) for way in extras(EVERYTHING, on_cpu=False)] == [MasksFromEngine, RoutesFromEngine]
    assert extras(Keep(), on_cpu=True) == extras(Keep(), on_cpu=False) == (None, None)


# --- the run file ---------------------------------------------------------------------------------


def test_how_many_tokens_are_recorded_follows_from_the_filter():
    assert SamplingSection(top_k=20).most_kept == SamplingSection(keep_mask=True).most_kept == 0
    assert SamplingSection(top_k=20, keep_mask=True).most_kept == 52  # room for tokens that are as likely
    assert SamplingSection(top_p=0.9, keep_mask=True).most_kept == 1024
    assert SamplingSection(top_p=0.9, keep_mask=True, max_kept=7).most_kept == 7
    section = RolloutSection(keep_routing=True, sampling=SamplingSection(top_k=4, keep_mask=True))
    assert section.keep == Keep(most_kept=36, routing=True)
