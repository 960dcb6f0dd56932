"""A tiny model, a sender that keeps weights in memory, and a worker that samples with them in a thread."""

from __future__ import annotations

import multiprocessing
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tiny
import torch

from penstock.services.codec import encode
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import sequence_logprobs
from penstock.services.ports import HeldPort
from penstock.services.staleness import binding_version
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Span, Trajectory
from penstock.services.weights.files import WeightsMissing


def tiny_model(seed: int = 0, family: str = "Qwen3", **changes):
    """With 32 tokens."""
    return tiny.model(seed, family, vocab_size=32, **changes)


_HELD: list[HeldPort] = []


def free_address() -> str:
    """Where ranks can meet; kept for them as long as the tests run."""
    _HELD.append(HeldPort("127.0.0.1"))
    return f"127.0.0.1:{_HELD[-1].number}"


def on_two_ranks(function, folder: Path) -> list:
    """Calls `function(rank, address, folder)` in two processes, and returns what each left in `rank-RANK.pt`, if it
    did. They are forked from a server that has imported what takes longest, once for all tests."""
    multiprocessing.set_forkserver_preload(["transformers.models.qwen3.modeling_qwen3", "penstock.learner.engine"])
    arguments = (free_address(), str(folder))
    context = torch.multiprocessing.start_processes(
        function, arguments, nprocs=2, join=False, start_method="forkserver"
    )
    assert context is not None
    while not context.join(timeout=300):
        pass
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank-*.pt"))]


def same(one, other):
    """Whether two dicts of tensors agree bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class MemorySender:
    """Published weights in a dict."""

    def __init__(self) -> None:
        self.versions = {}
        self.published = []
        self.probes = {}
        self.delay = 0.0
        self.failure = None

    def publish(self, version, tensors, probe=None):
        if self.failure is not None:
            raise self.failure
        time.sleep(self.delay)
        self.probes[version] = probe
        self.versions[version] = {name: tensor.clone() for name, tensor in tensors}
        self.published.append(version)

    @contextmanager
    def fetch(self, version):
        """As a receiver would."""
        if version not in self.versions:
            raise WeightsMissing(f"version {version} was deleted")
        yield self.versions[version]

    def retire(self, keep):
        gone = [version for version in self.versions if version not in keep]
        for version in gone:
            del self.versions[version]
        return gone

    def close(self):
        pass


class Worker(threading.Thread):
    """Reserves, samples with the newest weights, scores with `reward(tokens) -> float | None`, puts; refuses what has
    fewer than `quorum` scores."""

    quorum = 0

    def __init__(self, store, sender, reward, members=4, length=6, seed=0, outlived="drop"):
        super().__init__(daemon=True)
        self.store, self.sender, self.reward, self.members, self.length = store, sender, reward, members, length
        self.outlived = outlived
        self.model = tiny_model()
        self.logprobs = LogprobModel(self.model)
        self.version = None
        self.random = torch.Generator().manual_seed(seed)
        self.stop = threading.Event()
        self.failure = None

    def run(self):
        try:
            count = 0
            while not self.sender.versions and not self.stop.is_set():
                time.sleep(0.01)
            while not self.stop.is_set():
                published = self.store.published()
                if published != self.version and published in self.sender.versions:
                    self.model.load_state_dict(self.sender.versions[published], strict=False)
                    self.version = published
                if self.version is None:
                    time.sleep(0.01)
                    continue
                count += 1
                answer = self.store.reserve("worker", self.version, 2, 60.0, f"r{count}")
                for ticket in answer.tickets:
                    group = self.play(ticket.index)
                    if len(group.scored) < self.quorum:
                        self.store.refuse(ticket, "unscored", "KeyError: 'answer'")
                        continue
                    forks = self.store.forks()
                    binding = binding_version(group.spans, self.version, forks, self.outlived)
                    self.store.put(ticket, encode(group), binding)
                if not answer.tickets:
                    time.sleep(0.01)
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            self.failure = error

    def play(self, index: int) -> Group:
        random = np.random.default_rng(index)
        prompt = Prompt(
            index=index,
            source="test",
            row=index,
            epoch=0,
            tokens=random.integers(1, 32, 1 + index % 3).astype(np.int32),
            text=f"prompt {index}",
        )
        return Group(prompt=prompt, sampling=Sampling(max_tokens=self.length), trajectories=tuple(self.answers(prompt)))

    def answers(self, prompt):
        tokens = torch.tensor(prompt.tokens.tolist()).repeat(self.members, 1)
        with torch.inference_mode():
            for _ in range(self.length):
                probabilities = self.model(input_ids=tokens).logits[:, -1].softmax(-1)
                tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=self.random)], 1)
        for row in tokens[:, len(prompt.tokens) :].numpy().astype(np.int32):
            row = row[: 1 + int(row[0]) % self.length]
            (logprobs,) = sequence_logprobs(self.logprobs, [(prompt.tokens, row)])
            reward = self.reward(row)
            completion = Completion(
                tokens=row,
                logprobs=logprobs,
                actions=np.ones(len(row), np.bool_),
                spans=(Span(lineage=self.version.lineage, step=self.version.step, count=len(row)),),
                finish="stop",
                text=" ".join(map(str, row)),
                worker="worker",
                engine="test",
                started=0.0,
                ended=1.0,
            )
            yield Trajectory(
                completion=completion,
                reward=reward,
                parts={"test": reward},
                unscored=None if reward is not None else "reward 'test': timed out",
                reference_logprobs=logprobs - 0.01,
            )


def model_folder(folder):
    """The tiny model with a tokenizer of 32 words."""
    words = tiny.tokenizer_of(
        ["<eos>", *map(str, range(1, 32))], unknown="<eos>", spaced=True, eos_token="<eos>", pad_token="<eos>"
    )
    tiny_model().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
