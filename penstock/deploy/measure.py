"""`penstock evaluate`: one model on the held-out prompts of a run file, in this process, without Ray or a store."""

from __future__ import annotations

import os

from penstock.deploy.assemble import held_out_job
from penstock.deploy.cluster import actor_environment
from penstock.deploy.runfile import RunFile
from penstock.services.contracts import PenstockError
from penstock.services.versions import FIRST


def measure(run_file: RunFile) -> dict[str, float]:
    """Metrics of the run file's model by name.

    Raises PenstockError when there is nothing to evaluate on or by.
    """
    if run_file.evaluation.data is None or run_file.reward is None:
        raise PenstockError(
            "an evaluation needs the sections evaluation.data (held-out prompts) and reward (who judges)"
        )
    device = "cpu" if run_file.placement.device == "auto" else run_file.placement.device
    os.environ.update(actor_environment(threads=run_file.engine.threads, device=device))
    from penstock.reward.scorer import GroupScorer
    from penstock.rollout.ends import end_tokens, sampling_of
    from penstock.rollout.evaluation import evaluate
    from penstock.rollout.vllm_engine import VllmGenerator
    from penstock.services.models import load_tokenizer

    chosen = run_file.model
    tokenizer = load_tokenizer(chosen)
    training = sampling_of(run_file.rollout.sampling, tokenizer)
    job = held_out_job(run_file.evaluation, run_file.reward, training, tokenizer)
    assert job is not None, "there are held-out prompts"
    scorer = GroupScorer(run_file.reward)
    try:
        generator = VllmGenerator(
            chosen.path,
            run_file.engine,
            tokenizer=tokenizer,
            end_tokens=end_tokens(chosen.path, tokenizer, chosen.revision),
            revision=chosen.revision,
            trust_remote_code=chosen.trust_remote_code,
            seed=run_file.seed + run_file.engine.seed,
            loaded=FIRST,
        )
        try:
            return evaluate(generator, scorer, job).metrics
        finally:
            generator.close()
    finally:
        scorer.close()
