"""The real engine against transformers: before, during and after weight swaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rollout_lab import END, VOCABULARY, Lab, finish, prompt_of, reference, run_up_to

from penstock.rollout.errors import EngineFailed, PromptTooLong
from penstock.services.contracts import Request, WeightsError
from penstock.services.trajectory import Completion, Sampling
from penstock.services.versions import Version
from penstock.services.weights.files import WeightsMissing

pytestmark = pytest.mark.engine

PROMPT = [5, 6, 7, 8] * 20
LONG = Sampling(max_tokens=40)


def request(key: str, sampling: Sampling = LONG, **more: Any) -> Request:
    return Request(key=key, prompt=prompt_of(more.pop("tokens", PROMPT)), sampling=sampling, **more)


def steps(engine: Any, count: int) -> dict[str, Completion]:
    done: dict[str, Completion] = {}
    for _ in range(count):
        done.update(engine.step())
    return done


def started(engine: Any, key: str, count: int, sampling: Sampling = LONG) -> None:
    run_up_to(engine, count, lambda: engine.submit(request(key, sampling)))


def test_logprobs_are_those_of_a_forward_pass(lab: Lab, engine: Any):
    for i in range(20):  # more than the engine has slots
        engine.submit(request(f"a{i}"))
    done = finish(engine)
    assert len(done) == 20
    for answer in done.values():
        expected = reference(lab.models[0], PROMPT, answer.tokens.tolist())
        assert np.abs(answer.logprobs - expected).max() < 1e-4
        assert answer.spans[0].version == engine.version and len(answer.spans) == 1
        assert (answer.finish == "stop") == (answer.tokens[-1] == END)
        assert END not in answer.tokens[:-1]


def test_logprobs_are_of_the_distribution_that_was_sampled_from(lab: Lab, engine: Any):
    engine.submit(request("warm", Sampling(temperature=0.5, max_tokens=30)))
    answer = finish(engine)["warm"]
    expected = reference(lab.models[0], PROMPT, answer.tokens.tolist(), temperature=0.5)
    assert np.abs(answer.logprobs - expected).max() < 1e-4


def test_a_swap_in_mid_answer_gives_spans_and_with_recomputed_kv_every_token_is_exact(lab: Lab, engine: Any):
    before = engine.version
    for i in range(20):
        engine.submit(request(f"b{i}"))
    done = steps(engine, 15)
    report = engine.swap(lab.publish(lab.models[1]))
    assert report.in_flight == 20 - len(done) and report.version == engine.version
    done |= finish(engine)
    crossed = 0
    for answer in done.values():
        tokens = answer.tokens.tolist()
        old, new = (reference(model, PROMPT, tokens) for model in lab.models)
        at = 0
        for span in answer.spans:
            expected = old if span.version == before else new
            assert np.abs(answer.logprobs - expected)[at : at + span.count].max() < 1e-4
            assert not span.older_kv
            at += span.count
        crossed += len(answer.spans) == 2
    assert crossed > 0 and {len(answer.spans) for answer in done.values()} <= {1, 2}


def test_weights_are_verified_while_answers_go_on_and_the_swap_need_not_wait_for_it(lab: Lab, engine: Any):
    version = lab.publish(lab.models[1])
    engine.submit(request("ahead"))
    sampled, asked = engine.sampled, 0
    while not engine.prepared(version):
        steps(engine, 1)
        asked += 1
        assert asked < 10_000, "it is never verified"
    assert engine.sampled >= sampled + min(asked, 1) and engine.version != version
    report = engine.swap(version)
    assert report.verify < 0.01 and report.gap is not None and report.gap < 1e-4
    assert engine.version == version
    finish(engine)


def test_a_reload_that_leaves_the_packed_output_layer_behind_is_caught(
    lab: Lab, engine: Any, monkeypatch: pytest.MonkeyPatch
):
    before = engine.version
    monkeypatch.setattr("penstock.rollout.vllm_reload.repack_output_layers", lambda model: None)
    started(engine, "c", 3)
    with pytest.raises(WeightsError, match="does not compute with the weights of version"):
        engine.swap(lab.publish(lab.models[1]))
    with pytest.raises(EngineFailed, match="must not be used any more"):
        engine.step()
    kept = engine.take_back(["c"])["c"]
    assert [(s.version, s.count) for s in kept.spans] == [(before, 3)]  # nothing sampled during the probe
    with pytest.raises(EngineFailed, match="must not be used any more"):
        engine.step()  # also with nothing to do


def test_without_a_probe_a_reload_that_does_nothing_at_all_is_caught(
    lab: Lab, engine: Any, monkeypatch: pytest.MonkeyPatch
):
    engine.swap(lab.publish(lab.models[0], probe=False))
    monkeypatch.setattr(engine, "_load", lambda tensors: None)
    with pytest.raises(WeightsError, match="the same log-probs"):
        engine.swap(lab.publish(lab.models[1], probe=False))


def test_an_engine_that_does_not_answer_the_probe_of_a_swap_is_given_up_at_the_deadline(
    lab: Lab, engine: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "_section", engine._section.model_copy(update={"swap_deadline": 0.2}))
    monkeypatch.setattr(engine, "_engine_step", list)
    with pytest.raises(EngineFailed, match=r"probe: no answer within 0\.2 s \(engine\.swap_deadline\)"):
        engine.swap(lab.publish(lab.models[1]))
    with pytest.raises(EngineFailed, match="must not be used any more"):
        engine.step()
    engine._calls.failed = None
    engine._calls.abort([f"aside-{engine._asides}"])


def test_a_missing_version_leaves_the_engine_as_it_was(lab: Lab, engine: Any):
    before = engine.version
    with pytest.raises(WeightsMissing, match=r"weights of version 9\.9 are not in"):
        engine.swap(Version(9, 9))
    engine.submit(request("d"))
    assert finish(engine)["d"].spans[0].version == before


def test_an_unfinished_answer_goes_on_with_what_is_left_of_its_budget(lab: Lab, engine: Any):
    started(engine, "e", 10)
    part = engine.take_back(["e"])["e"]
    assert len(part.tokens) == 10 and not engine.in_flight
    engine.swap(lab.publish(lab.models[1]))
    engine.submit(request("f", resume=part))
    answer = finish(engine)["f"]
    tokens = answer.tokens.tolist()
    assert tokens[:10] == part.tokens.tolist() and len(tokens) <= 40
    assert (answer.finish == "length") == (len(tokens) == 40 and tokens[-1] != END)
    old, new = (reference(model, PROMPT, tokens) for model in lab.models)
    assert np.abs(answer.logprobs - np.concatenate([old[:10], new[10:]])).max() < 1e-4
    assert [span.count for span in answer.spans] == [10, len(tokens) - 10]


def test_stop_tokens_still_stop_a_resumed_answer(engine: Any):
    everything = tuple(range(len(VOCABULARY)))
    started(engine, "g", 2)
    part = engine.take_back(["g"])["g"]
    engine.submit(request("h", Sampling(max_tokens=40, stop_token_ids=everything), resume=part))
    answer = finish(engine)["h"]
    assert answer.finish == "stop" and len(answer.tokens) == 3


def test_an_answer_handed_over_with_no_budget_left_is_complete(engine: Any):
    started(engine, "i", 2)
    part = engine.take_back(["i"])["i"]
    engine.submit(request("j", Sampling(max_tokens=2), resume=part))
    answer = dict(engine.step())["j"]
    assert answer.finish == "length" and answer.tokens.tolist() == part.tokens.tolist()


def test_a_cut_answer_keeps_its_tokens_and_says_stale(engine: Any):
    started(engine, "k", 1)
    ((key, answer),) = engine.cut(["k"])
    assert (key, answer.finish, len(answer.tokens)) == ("k", "stale", 1)
    assert not engine.in_flight and engine.step() == []


def test_a_prompt_without_room_for_an_answer_is_refused_and_the_engine_goes_on(engine: Any):
    with pytest.raises(PromptTooLong, match=r"has 256 tokens, engine\.max_model_len = 256"):
        engine.submit(request("l", tokens=[5] * 256))
    engine.submit(request("m", tokens=[5] * 255))
    assert len(finish(engine)["m"].tokens) == 1


def test_greedy_answers_take_the_most_likely_token(lab: Lab, engine: Any):
    import torch

    engine.submit(request("n", Sampling(temperature=0.0, max_tokens=10)))
    answer = finish(engine)["n"].tokens.tolist()
    with torch.no_grad():
        logits = lab.models[0](torch.tensor([PROMPT + answer])).logits[0]
    assert answer == logits[len(PROMPT) - 1 : -1].argmax(-1).tolist()


def test_parity_logprobs_come_from_the_engine(lab: Lab, engine: Any):
    started(engine, "o", 1, Sampling(temperature=0.0, max_tokens=40))  # greedy: its second token is no end either
    found = engine.logprobs_of(PROMPT, [9, 10, 11])
    assert np.abs(found - reference(lab.models[0], PROMPT, [9, 10, 11])).max() < 1e-4
    assert len(engine.take_back(["o"])["o"].tokens) == 2  # the others went on meanwhile


def test_kept_kv_is_marked_and_new_requests_use_no_older_prefix(lab: Lab, engine: Any):
    engine._section = engine._section.model_copy(update={"kv": "keep", "max_num_seqs": 4})
    old = engine.version
    for i in range(6):
        engine.submit(request(f"p{i}", Sampling(max_tokens=60)))
    done = steps(engine, 5)
    running = [key for key in engine.in_flight if engine.spans(key)]
    new = engine.swap(lab.publish(lab.models[1])).version
    engine.submit(request("late"))
    done |= finish(engine)
    for key, answer in done.items():
        exact = reference(lab.models[1], PROMPT, answer.tokens.tolist())
        if key in running:
            assert [(s.version, s.older_kv) for s in answer.spans] in ([(old, False), (new, True)], [(old, False)])
        elif answer.spans[0].version == new:  # began after the swap, with the very prompt that is in the cache
            assert not answer.spans[0].older_kv and np.abs(answer.logprobs - exact).max() < 1e-4
    assert "late" in done and done["late"].spans[0].version == new
