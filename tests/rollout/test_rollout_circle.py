"""A worker with the real engine, the ledger in memory and real weight files: one small circle."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from rollout_lab import END, VOCABULARY, Lab, logits_of, prompt_of, reference, weights_of

from penstock.rollout.evaluation import EvaluationJob
from penstock.rollout.worker import RolloutWorker, Rules
from penstock.services.codec import decode
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Trajectory
from penstock.services.versions import FIRST
from penstock.services.weights.files import FileReceiver, FileSender

pytestmark = pytest.mark.engine


class LongIsGood:
    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Trajectory, ...]]:
        result: Future[tuple[Trajectory, ...]] = Future()
        result.set_result(
            tuple(Trajectory(completion=c, reward=float(len(c.tokens)), parts={"length": None}) for c in completions)
        )
        return result

    def close(self) -> None: ...


class Stream:
    def __getitem__(self, index: int) -> Prompt:
        return prompt_of([3 + index % 40, 5, 6, 7] * 8, index)


def test_groups_of_several_versions_all_agree_with_the_models_that_sampled_them(lab: Lab, engine: Any):
    store = MemoryStore()
    store.attach(LedgerRules(max_lag=2, groups_per_step=4, prompts=None, max_bytes=10**9))
    store.reconcile(FIRST, 0, "start")
    sender = FileSender(lab.folder / "circle")
    models = {FIRST: lab.models[0]}
    sender.publish(FIRST, weights_of(lab.models[0]))
    engine._receiver = FileReceiver(sender.folder, deadline=1.0)
    worker = RolloutWorker(
        "w0", store, engine, LongIsGood(), Stream(), Sampling(max_tokens=60), Rules(group_size=4, max_lag=2)
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    job = EvaluationJob(tuple(prompt_of([9, 8, 7], i) for i in range(4)), Sampling(max_tokens=20), samples=2)
    report = worker.evaluate(job)
    groups: list[Group] = []
    try:
        version = FIRST
        ends = time.monotonic() + 120
        for step in range(1, 5):
            while len(taken := store.take(version, 4).groups) < 4:
                assert time.monotonic() < ends and thread.is_alive()
                time.sleep(0.01)
            groups += [decode(stored.payload, Group) for stored in taken]
            version = version.next()
            models[version] = lab.models[step % 2]
            sender.publish(version, weights_of(models[version]))
            store.advance(version)
            sender.retire(store.pinned() | {version})
        found = report.result(timeout=30)
    finally:
        worker.request_drain()
        thread.join(30)
        engine._receiver = lab.receiver
        sender.close()
    assert not thread.is_alive() and store.counts().balanced and len(groups) == 16
    for group in groups:
        for answer in (t.completion for t in group.trajectories):
            prompt, tokens, at = group.prompt.tokens.tolist(), answer.tokens.tolist(), 0
            for span in answer.spans:
                expected = reference(models[span.version], prompt, tokens)[at : at + span.count]
                assert np.abs(answer.logprobs[at : at + span.count] - expected).max() < 1e-4
                at += span.count
            assert END not in tokens[:-1]
    assert len({span.version for group in groups for span in group.spans}) > 1
    assert len(found.samples) == 12 and found.version in models
    greedy = [[VOCABULARY.index(character) for character in s.text] for s in found.samples if s.greedy]
    used, other = models[found.version], next(m for m in lab.models if m is not models[found.version])
    assert len(greedy) == 4
    for tokens in greedy:  # of the one version that was pinned, while training went on with others
        assert (logits_of(used, [9, 8, 7], tokens).argmax(-1) == tokens).all()
        assert not (logits_of(other, [9, 8, 7], tokens).argmax(-1) == tokens).all()
