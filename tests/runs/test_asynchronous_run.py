"""One whole asynchronous run on the real engines: it learns, keeps its bounds, and leaves everything it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECIPE, STEPS, folders_of_runs, processes_of

import penstock
from penstock.services.metrics import read_rows

pytestmark = [pytest.mark.engine, pytest.mark.slow]
GROUPS = 32
"""learner.groups_per_step of the recipe."""


def after_and_before(run, name):
    found = run.summary["evaluation"][name]
    return found["after"], found["before"]


def test_the_policy_gets_better_sampled_by_a_tenth_and_greedy_by_a_fifth(asynchronous):
    after, before = after_and_before(asynchronous, "eval/sampled/accuracy")
    assert after >= before + 0.10
    after, before = after_and_before(asynchronous, "eval/greedy/accuracy")
    assert after >= before + 0.20


def test_no_token_is_staler_than_allowed_and_some_are_stale_at_all(asynchronous):
    lags = asynchronous.metrics["off_policy/max"].dropna()
    assert lags.max() <= 2
    assert lags.max() >= 1, "a run without lag shows nothing about asynchrony"


def test_every_issued_prompt_is_in_exactly_one_final_state(asynchronous):
    ledger = asynchronous.summary["ledger"]
    assert ledger["balanced"]
    states = ledger["by_state"]
    assert states["committed"] == STEPS * GROUPS
    assert states["committed"] + states["dropped"] == ledger["issued"]
    assert sum(ledger["dropped"].values()) == states["dropped"]


def test_sampler_and_learner_agree_on_log_probs_where_there_is_no_lag(asynchronous):
    gaps = asynchronous.metrics["mismatch/max"].dropna()
    assert len(gaps) > 0
    assert gaps.max() < 1e-4


def test_the_summary_is_complete(asynchronous):
    summary = asynchronous.summary
    assert summary["outcome"] == "finished"
    assert summary["steps"] == STEPS
    assert set(summary["seconds"]) == {"start", "evaluate", "train", "end"}
    assert summary["tokens"]["trained"] > 0
    assert summary["tokens"]["sampled_per_second"] > 0
    assert summary["restarts"] == {}
    assert set(summary["libraries"]) >= {"torch", "ray", "deepspeed", "transformers"}
    actors, beside = {"learner-0", "rollout-0", "rollout-1", "scorer-0"}, {"driver", "redis", "ray", "rules"}
    assert set(summary["peak_memory_bytes"]) == actors | beside
    assert summary["peak_memory_sum_bytes"] < 12e9
    assert all(size > 2**20 for size in summary["peak_memory_bytes"].values())


def test_metrics_have_a_line_per_step_and_samples_can_be_read(asynchronous):
    rows = read_rows(asynchronous.dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    table = asynchronous.metrics
    assert table["learner/tokens"].iloc[-1] == table["batch/tokens"].sum()
    sample = asynchronous.samples(STEPS)[0]
    right = str(sum(int(number) for number in sample["prompt"].rstrip("=").split("+")))
    assert sample["reward"] == float(sample["answer"] == right[::-1])  # answers are written units first


def test_the_tokens_of_samples_can_be_inspected_and_agree_with_what_was_measured(asynchronous):
    from penstock.services.dashboard.inspector import Inspector
    from penstock.services.rundir import RunDir

    look = Inspector(RunDir.open(asynchronous.dir))
    apart = []
    for step in range(1, STEPS + 1):
        for answer in look.answers("samples", step, None).answers:
            tokens = look.tokens("samples", step, None, answer.index)
            (stretch,) = tokens.stretches
            assert "".join(stretch.texts).startswith(answer.answer)
            assert all(abs(advantage) < 10 for advantage in stretch.advantages)
            fresh = [
                place for span in tokens.spans if span.lag == 0 for place in range(span.start, span.start + span.count)
            ]
            apart += [abs(stretch.log_ratio[place]) for place in fresh]
    # Where there is no lag the two engines differ by rounding alone, as over the whole batch.
    assert max(apart) <= asynchronous.metrics["mismatch/max"].max() + 1e-6
    whole = look.answers("archive", 10, None)
    assert whole.total == GROUPS * 8
    assert "".join(look.tokens("archive", 10, None, 0).stretches[0].texts).startswith(whole.answers[0].answer[:1])


def test_plots_logs_archive_and_checkpoints_are_there(asynchronous):
    from penstock.learner import archive, checkpoints

    folder = asynchronous.dir
    assert {p.name for p in (folder / "plots").glob("*.png")} >= {"reward.png", "lag.png", "throughput.png"}
    assert {p.stem for p in (folder / "logs").glob("*.log")} >= {"learner-0", "rollout-0", "rollout-1", "scorer-0"}
    version, batch, _ = archive.read(sorted((folder / "archive").iterdir())[-1])
    assert version.step == 10
    assert len(batch) == GROUPS * 8
    assert checkpoints.latest(folder / "checkpoints").version.step == STEPS


def test_audits_take_the_log_ratio_apart(asynchronous):
    """Two engines with the same weights differ by rounding; older weights by more than that."""
    audited = asynchronous.metrics.set_index("step").loc[[5, 10]]
    assert (audited["audit/residual"] < 1e-4).all()
    assert (audited["kl/mismatch"].abs() < 1e-6).all()
    assert (audited["kl/staleness"] > 10 * audited["kl/mismatch"].abs()).all()


def test_what_if_finds_the_runs_own_gradient_again_and_what_other_rows_would_have_made_of_it(asynchronous):
    found = penstock.whatif(asynchronous.dir, ["cispo", "ppo"], ["trust.kind=none"])
    own, cispo, ppo, bare = found.rows
    norms = asynchronous.metrics.set_index("step").loc[[5, 10], "actor/grad_norm"].tolist()
    assert [step["grad_norm"] for step in own.steps] == pytest.approx(norms, rel=1e-3)
    assert own.mean("cosine") == pytest.approx(1)
    # No correction at a lag of at most two is nearly the run's own; another reduction and weight is not quite it.
    assert 0.9 < cispo.mean("cosine") < 1 - 1e-6
    assert 0.9 < bare.mean("cosine") < 1 - 1e-9
    assert "value" in ppo.reason
    assert (asynchronous.dir / "plots" / "whatif.png").is_file()


def test_the_model_on_disk_is_the_one_that_was_measured(asynchronous):
    """Greedy answers by a plain transformers loop on the saved model, against what the run recorded at its end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(asynchronous.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(asynchronous.model)
    source = next(iter(asynchronous.config.evaluation.data.sources.values()))
    rows = [json.loads(line) for line in Path(source.path).read_text().splitlines()]
    prompts = torch.tensor([tokenizer(row["prompt"])["input_ids"] for row in rows])  # all of one length
    with torch.no_grad():
        answers = model.generate(prompts, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(answers[:, prompts.shape[1] :], skip_special_tokens=True)
    right = sum(text == row["answer"] for text, row in zip(texts, rows, strict=True)) / len(rows)
    after, _ = after_and_before(asynchronous, "eval/greedy/accuracy")
    # The run measures the first 256 rows of a shuffled order, this loop all of about 520.
    assert right == pytest.approx(after, abs=0.08)


def test_evaluating_the_saved_model_finds_the_greedy_accuracy_that_the_run_recorded(asynchronous):
    """By the command, in a process of its own: this one holds Ray, and is no place for an engine as well."""
    command = [Path(sys.executable).parent / "penstock", "evaluate", asynchronous.dir / "config.yaml"]
    done = subprocess.run(
        [*command, "--model", asynchronous.model], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split() for line in done.stdout.splitlines() if line.startswith("eval/"))
    after, _ = after_and_before(asynchronous, "eval/greedy/accuracy")
    assert float(said["eval/greedy/accuracy"]) == pytest.approx(after, abs=5e-5), "printed to four places"


def test_nothing_is_left_running_or_lying_about(asynchronous, folders_before):
    run_id = (asynchronous.dir / ".run-id").read_text()
    assert processes_of(asynchronous.dir) == []
    assert folders_of_runs() <= folders_before
    assert not Path(f"/dev/shm/penstock-{run_id}").exists()
    assert not (asynchronous.dir / "store" / "live").exists()


def test_status_tells_of_a_finished_run(asynchronous):
    from penstock.deploy.status import status

    told = status(asynchronous.dir)
    assert told.verdict.startswith("finished: limits.steps")
    assert not told.alive
    assert told.view.step == STEPS


def test_the_recipe_passes_the_check(overrides_of):
    assert [f for f in penstock.check(RECIPE / "grpo.yaml", overrides_of) if f.level == "error"] == []
