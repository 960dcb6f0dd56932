"""Roles put together from sections of the run file; used by the actors, by `evaluate` and by tests."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from penstock.deploy.config import HeldOutSection
from penstock.reward.config import RewardSection
from penstock.services.contracts import Generator, Scorer, WeightReceiver
from penstock.services.data_config import DataSection
from penstock.services.trajectory import Sampling
from penstock.services.versions import Version

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penstock.deploy.rollouts import RolloutPlan
    from penstock.rollout.evaluation import EvaluationJob
    from penstock.rollout.stream import PromptStream
    from penstock.rollout.worker import RolloutWorker


def build_stream(data: DataSection, tokenizer: PreTrainedTokenizerBase, seed: int) -> PromptStream:
    """The prompts of a data section, the same on every machine. `seed` is the run's; the section's is added."""
    from penstock.rollout.stream import PromptStream
    from penstock.services.data import open_prompts

    return PromptStream(
        open_prompts(data, tokenizer),
        seed=seed + data.seed,
        epochs=data.epochs,
        at_end=data.at_end,
        shuffle=data.shuffle,
    )


def held_out_job(
    held_out: HeldOutSection, reward: RewardSection, training: Sampling, tokenizer: PreTrainedTokenizerBase
) -> EvaluationJob | None:
    """The evaluation that a run file asks for; None when it names no held-out prompts."""
    from penstock.rollout.evaluation import evaluation_prompts, job_of
    from penstock.services.data import open_prompts

    if held_out.data is None:
        return None
    prompts = evaluation_prompts(open_prompts(held_out.data, tokenizer), held_out.max_prompts)
    return job_of(held_out, prompts, training, reward.accuracy_part, reward.correct_at)


def build_generator(
    name: str, restarts: int, plan: RolloutPlan, tokenizer: PreTrainedTokenizerBase, receiver: WeightReceiver
) -> Generator:
    """The engine of the worker `name`; takes seconds to minutes."""
    from penstock.rollout.ends import end_tokens

    # Neither two workers nor two lives of one may draw the same numbers: their answers would repeat.
    seed = zlib.crc32(f"{plan.seed} {plan.engine.seed} {plan.start} {name} {restarts}".encode())
    ends = end_tokens(plan.model.path, tokenizer, plan.model.revision)
    if plan.engine.kind == "paced":
        return _paced(name, plan, tokenizer, receiver, ends, seed)
    from penstock.rollout.vllm_engine import VllmGenerator

    return VllmGenerator(
        plan.model.path,
        plan.engine,
        tokenizer=tokenizer,
        end_tokens=ends,
        revision=plan.model.revision,
        trust_remote_code=plan.model.trust_remote_code,
        receiver=receiver,
        transfer=plan.route.backend,
        name=name,
        seed=seed,
        keep=plan.rollout.keep,
    )


def _paced(
    name: str,
    plan: RolloutPlan,
    tokenizer: PreTrainedTokenizerBase,
    receiver: WeightReceiver,
    ends: tuple[int, ...],
    seed: int,
) -> Generator:
    """A drill's generator. It fetches weights and verifies their checksums at every swap, and uses none of them."""
    from penstock.rollout.paced import PacedGenerator

    def fetch(version: Version) -> None:
        with receiver.fetch(version):
            pass

    paced = plan.engine.paced
    time.sleep(paced.start_seconds)
    return PacedGenerator(
        vocabulary=len(tokenizer),
        end=ends[0],
        limit=plan.engine.max_model_len,
        slots=plan.engine.max_num_seqs,
        seed=seed,
        name=name,
        tokens_per_second=paced.tokens_per_second,
        mean_length=paced.mean_length,
        text_of=lambda tokens: str(tokenizer.decode(list(tokens))),
        fetch=fetch,
    )


def build_worker(
    name: str,
    life: int,
    plan: RolloutPlan,
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    stream: PromptStream,
    scorer: Scorer,
) -> RolloutWorker:
    """A worker around an engine that has started; `life` is how often one of this name was started before."""
    from penstock.rollout.ends import sampling_of
    from penstock.rollout.groups import Rules
    from penstock.rollout.worker import RolloutWorker

    rollout = plan.rollout
    rules = Rules(
        group_size=rollout.group_size,
        max_lag=plan.max_lag,
        outlived=plan.outlived,
        max_groups=rollout.max_groups,
        lease=rollout.lease_seconds,
        quorum=plan.quorum,
        evaluation_slots=rollout.evaluation_slots,
        patience=2 * plan.store.deadline,  # once for the call that fails, once for the store to come back
        scoring_deadline=rollout.scoring_deadline,
        weights_deadline=plan.route.deadline,
    )
    return RolloutWorker(
        name,
        plan.store.connect(),
        generator,
        scorer,
        stream,
        sampling_of(rollout.sampling, tokenizer),
        rules,
        life,
    )
