"""Worlds so small that every answer can be written down, with a softmax policy whose parameters are a table of logits.

An answer is a row of a window, as the learner sees it: tokens that the policy chose (`mask`), and others (padding, or
what an environment wrote). All numbers are float64 and follow from formulas, so that a table made of them is the same
everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

END = 2
"""The token that ends an answer early, in the world that has one."""


class Token(NamedTuple):
    """One column of an answer."""

    row: int
    """Row of the table of logits that it was drawn from; −1 where an environment wrote it."""
    choice: int
    reward: float
    chance: float = 1.0
    """Probability of the environment's tokens; 1 for the policy's own."""


@dataclass(frozen=True)
class World:
    """All answers of a world. N answers in a window of W tokens."""

    name: str
    shape: tuple[int, int]
    """Rows and choices of the table of logits."""
    prompts: Tensor
    """[N] the prompt that each answers; prompts are equally likely."""
    chance: Tensor
    """[N] probability of what the environment wrote."""
    rows: Tensor
    """[N, W] row of the table; 0 where the policy did not choose."""
    choices: Tensor
    """[N, W]."""
    mask: Tensor
    """[N, W] True where the policy chose."""
    rewards: Tensor
    """[N, W] what falls to each token."""
    histories: Tensor
    """[N, W] a number for what came before the token, prompt included."""

    def logp(self, table: Tensor) -> Tensor:
        """[N, W] log-probability of every choice; of no meaning, but finite and with a gradient, elsewhere."""
        return table.log_softmax(-1)[self.rows, self.choices]

    def entropy(self, table: Tensor) -> Tensor:
        """[N, W] of what every choice was drawn from."""
        logs = table.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)[self.rows]

    def likelihood(self, table: Tensor) -> Tensor:
        """[N] probability of every answer, given its prompt."""
        return self.chance * self.logp(table).where(self.mask, 0.0).sum(-1).exp()

    @property
    def returns(self) -> Tensor:
        """[N] everything that falls to an answer."""
        return self.rewards.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """[N] tokens that the policy chose."""
        return self.mask.sum(-1)

    @property
    def prompt_count(self) -> int:
        return int(self.prompts.max()) + 1


def waves(shape: Sequence[int], phase: float, size: float = 0.8) -> Tensor:
    """A table of numbers within ±size without a pattern that matters."""
    count = int(torch.tensor(shape).prod())
    return size * torch.sin(phase + 1.7 * torch.arange(count, dtype=torch.float64)).reshape(*shape)


def _world(name: str, shape: tuple[int, int], answers: Sequence[tuple[int, Sequence[Token]]]) -> World:
    count, window = len(answers), max(len(tokens) for _, tokens in answers)
    whole = {key: torch.zeros(count, window, dtype=torch.long) for key in ("rows", "choices", "histories")}
    mask, rewards = torch.zeros(count, window, dtype=torch.bool), torch.zeros(count, window, dtype=torch.float64)
    chance = torch.ones(count, dtype=torch.float64)
    numbers: dict[tuple[int, ...], int] = {}
    for n, (prompt, tokens) in enumerate(answers):
        history = [prompt]
        for t, token in enumerate(tokens):
            whole["histories"][n, t] = numbers.setdefault(tuple(history), len(numbers))
            history.append(token.choice)
            rewards[n, t] = token.reward
            chance[n] *= token.chance
            if token.row >= 0:
                mask[n, t], whole["rows"][n, t], whole["choices"][n, t] = True, token.row, token.choice
    prompts = torch.tensor([prompt for prompt, _ in answers])
    return World(name, shape, prompts, chance, mask=mask, rewards=rewards, **whole)


def sequences() -> World:
    """Three tokens, three steps, 27 answers; a row of logits for each of the 1 + 3 + 9 prefixes; outcome rewards of
    which many are equal."""
    answers = []
    for number, tokens in enumerate(itertools.product(range(3), repeat=3)):
        prefix_rows = [0, 1 + tokens[0], 4 + 3 * tokens[0] + tokens[1]]
        outcome = (number * number + 2 * number) % 5 / 4
        rewards = [0.0, 0.0, outcome]
        answers.append((0, [Token(*each) for each in zip(prefix_rows, tokens, rewards, strict=True)]))
    return _world("sequences", (13, 3), answers)


def varied() -> World:
    """Two tokens and one that ends the answer, at most three steps: 15 answers of 1 to 3 tokens."""
    rows: dict[tuple[int, ...], int] = {}
    answers = []
    for number, tokens in enumerate(_ended()):
        laid = [rows.setdefault(tokens[:t], len(rows)) for t in range(len(tokens))]
        outcome = (3 * number * number + number) % 7 / 6
        rewards = [0.0] * (len(tokens) - 1) + [outcome]
        answers.append((0, [Token(*each) for each in zip(laid, tokens, rewards, strict=True)]))
    return _world("varied", (len(rows), 3), answers)


def _ended() -> Iterator[tuple[int, ...]]:
    for length in (1, 2, 3):
        for tokens in itertools.product(range(3), repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == 3):
                yield tokens


def mdp() -> World:
    """Two states, two actions, three steps. The environment writes the next state between two actions, and a reward
    falls to every action and every arrival; the policy knows the state only, not the time."""
    arrive = torch.tensor([[[0.7, 0.3], [0.2, 0.8]], [[0.4, 0.6], [0.9, 0.1]]], dtype=torch.float64)
    act = [[0.3, -0.2], [1.0, 0.1]]
    land = [0.0, 0.25]
    answers = []
    for a0, s1, a1, s2, a2 in itertools.product(range(2), repeat=5):
        tokens = [Token(0, a0, act[0][a0])]
        for before, action, state, then in ((0, a0, s1, a1), (s1, a1, s2, a2)):
            tokens.append(Token(-1, state, land[state], float(arrive[before, action, state])))
            tokens.append(Token(state, then, act[state][then]))
        answers.append((0, tokens))
    return _world("mdp", (2, 2), answers)


def two_prompts() -> World:
    """Two prompts, two tokens, two steps: small enough for every batch of two groups of two."""
    answers = []
    for prompt, first, second in itertools.product(range(2), repeat=3):
        outcome = [[[0.0, 1.0], [0.5, 0.0]], [[2.0, 1.0], [0.0, 1.0]]][prompt][first][second]
        start = 3 * prompt
        answers.append((prompt, [Token(start, first, 0.0), Token(start + 1 + first, second, outcome)]))
    return _world("two prompts", (6, 2), answers)


def one_token() -> World:
    """Five tokens, one step: answers without a prefix, where nothing depends on the distribution of states."""
    outcomes = [0.0, 0.25, 1.0, 0.5, -0.5]
    return _world("one token", (1, 5), [(0, [Token(0, token, reward)]) for token, reward in enumerate(outcomes)])


@dataclass(frozen=True)
class Policies:
    """Tables of logits: π that is optimised, π_prox, the sampler μ, π_ref."""

    now: Tensor
    prox: Tensor
    sampler: Tensor
    reference: Tensor


def policies(world: World, setting: str) -> Policies:
    """`on`: all but the reference are equal. `stale`: the sampler is another. `updated`: π has left π_prox, which is
    the sampler. `apart`: all differ."""
    now = waves(world.shape, 1.0)
    other, third = now + waves(world.shape, 0.3, 0.45), now + waves(world.shape, 2.2, 0.3)
    chosen = {"on": (now, now), "stale": (now, other), "updated": (third, third), "apart": (third, other)}
    prox, sampler = chosen[setting]
    return Policies(now, prox, sampler, now + waves(world.shape, 4.0, 0.6))


SEQUENCES, VARIED, MDP, TWO_PROMPTS, ONE_TOKEN = sequences(), varied(), mdp(), two_prompts(), one_token()
