"""Supervised fine-tuning on the learner's engine: token cross-entropy on the responses."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from penstock.learner.deal import balance
from penstock.learner.schedule import learning_rate
from penstock.learner.stages.mixture import Mixture
from penstock.learner.tally import Tally
from penstock.services.contracts import PenstockError
from penstock.services.logprobs import Row, pad_rows, plan_micro_batches, window_logprobs

if TYPE_CHECKING:
    from penstock.learner.config import SftSection
    from penstock.learner.engine import Engine, Update
    from penstock.learner.ranks import Team


def updates_in(rows: int, section: SftSection) -> int:
    """Optimizer updates of the whole stage; the last one may be of fewer rows."""
    return max(1, math.ceil(round(rows * section.epochs) / section.batch_size))


def fine_tune(
    engine: Engine,
    team: Team,
    data: Mixture,
    section: SftSection,
    seed: int,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], str] = lambda: "",
    alive: Callable[[], None] = lambda: None,
) -> str:
    """Every update of the stage; returns why it ended. Collective: all ranks have the same `data` and call it alike.

    `report` gets plain values after every update, on rank 0. `should_stop` is asked on rank 0.
    `alive` is called before every micro-batch and update, on all ranks.
    """
    if len(data) == 0:
        raise PenstockError("there are no rows to fine-tune on; see what was left out of the data as too long")
    total = updates_in(len(data), section)
    decay = section.schedule.decay_updates or max(1, total - section.schedule.warmup_updates)
    schedule = section.schedule.model_copy(update={"decay_updates": decay})
    rows = data.rows(round(len(data) * section.epochs) or 1, seed)
    done = 0
    for number, batch in enumerate(_batches(rows, section.batch_size), 1):
        if why := team.announce(should_stop().encode()).decode():
            return why
        began = time.monotonic()
        rate = learning_rate(section.learning_rate, schedule, engine.updates)
        update, loss, tokens = _update(engine, team, batch, section.micro_batch_tokens, rate, alive)
        if not update.applied:
            raise PenstockError(
                f"update {number} of {total} had an infinite or undefined gradient; lower sft.learning_rate"
            )
        done += len(batch)
        metrics = {
            "sft/loss": loss,
            "sft/lr": rate,
            "sft/grad_norm": update.grad_norm,
            "sft/epoch": done / len(data),
            "sft/tokens_per_second": tokens / (time.monotonic() - began),
        }
        if team.leads:
            report({"kind": "step", "step": number, "steps": total, "at": time.time(), "metrics": metrics})
    return "data_end"


def _update(
    engine: Engine, team: Team, batch: Sequence[Row], token_budget: int, rate: float, alive: Callable[[], None]
) -> tuple[Update, float, int]:
    """One update; loss per response token of the whole batch, and how many there were."""
    lengths = [len(prompt) + len(response) for prompt, response in batch]
    tokens = sum(len(response) for _, response in batch)
    dealt = balance(lengths, team.size)
    plans = [plan_micro_batches([lengths[i] for i in mine], token_budget) for mine in dealt]
    passes = max(len(plan) for plan in plans)
    mine, plan = dealt[team.rank], plans[team.rank]
    tally = Tally()
    for number in range(passes):
        alive()
        rows = [batch[mine[i]] for i in plan[number]] if number < len(plan) else []
        padded = pad_rows(rows, device=engine.device)
        logp, _ = window_logprobs(engine, padded)
        # The denominator is the whole batch's, so that shares and micro-batches add up to the mean.
        loss = -logp.sum() / max(1, tokens)
        engine.backward(loss, last=number == passes - 1)
        tally.add_number("loss", loss.detach().to("cpu", torch.float64))
    alive()
    update = engine.step(rate)
    return update, tally.over(team).sum("loss"), tokens


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch
