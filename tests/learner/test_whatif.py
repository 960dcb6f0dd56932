"""`penstock whatif` on runs of the real engine: its plain torch finds the very gradient that the engine has applied."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from learner_parts import MemorySender
from loop_parts import loop_of, run_with_worker
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import penstock
from penstock.cli.main import app
from penstock.cli.main import run as run_command
from penstock.deploy.variants import asked
from penstock.learner import archive
from penstock.learner.archived import HEAD, Models, Step
from penstock.learner.whatif import OWN, compare
from penstock.services.contracts import PenstockError
from penstock.services.model_config import ModelSection
from penstock.services.rundir import RunDir
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version

pytestmark = pytest.mark.engine
ALL = {"every": 1, "weights": True}


def made(team, folder, steps=3, **given):
    """A run that archives every step with its weights; returns its reports of steps."""
    reports = []
    loop = loop_of(team, MemoryStore(), MemorySender(), folder, steps=steps, archive=ALL, reports=reports, **given)
    assert run_with_worker(loop, loop._store, loop._publisher._sender) == "steps"
    return [report for report in reports if report["kind"] == "step"]


@pytest.fixture(scope="module")
def run(team, tmp_path_factory):
    """(folder, reports) of a GRPO run with a KL, three steps of lag up to 1."""
    folder = tmp_path_factory.mktemp("whatif")
    return folder, made(team, folder, kl={"coefficient": 0.1})


def compared(folder, *rows, sets=(), **given):
    ask = functools.partial(asked, rows, sets)
    found = compare(folder, folder / "archive", ModelSection(path="unused"), ask, **given)
    return found, {row.label: row for row in found.rows}


def test_the_runs_own_gradient_has_the_norm_that_the_engine_recorded(run):
    folder, reports = run
    found, rows = compared(folder, "cispo")
    assert found.steps == ["0.1", "0.2", "0.3"]
    norms = [step["grad_norm"] for step in rows[OWN].steps]
    assert norms == pytest.approx([r["metrics"]["actor/grad_norm"] for r in reports], rel=1e-4)
    assert norms == pytest.approx(found.recorded, rel=1e-4)
    for report, step in zip(reports, rows[OWN].steps, strict=True):
        for name in ("actor/loss", "actor/pg_loss", "rollout_corr/ess", "kl/reference", "kl/offpolicy"):
            assert step[name] == pytest.approx(report["metrics"][name], rel=1e-4, abs=1e-7), name
    assert [step["cosine"] for step in rows[OWN].steps] == pytest.approx([1.0] * 3)


def test_a_value_model_is_archived_and_its_run_found_again(team, tmp_path):
    reports = made(team, tmp_path, steps=2, name="ppo")
    _, rows = compared(tmp_path, "ppo", "a2c", "grpo")
    for label in (OWN, "ppo"):
        norms = [step["grad_norm"] for step in rows[label].steps]
        assert norms == pytest.approx([r["metrics"]["actor/grad_norm"] for r in reports], rel=1e-4)
    assert rows["a2c"].reason == ""
    assert rows[OWN].steps[1]["critic/explained_variance"] == pytest.approx(
        reports[1]["metrics"]["critic/explained_variance"], rel=1e-3, abs=1e-5
    )


def test_a_value_head_is_archived_and_its_run_found_again(team, tmp_path):
    reports = made(team, tmp_path, steps=2, name="a2c")
    _, rows = compared(tmp_path, "ppo")
    norms = [step["grad_norm"] for step in rows[OWN].steps]
    assert norms == pytest.approx([r["metrics"]["actor/grad_norm"] for r in reports], rel=1e-4)
    assert rows["ppo"].reason == ""


@pytest.mark.parametrize(("name", "warmup"), [("a2c", 1), ("ppo", 0)])
def test_at_the_next_weights_the_values_have_moved_too(team, tmp_path, name, warmup):
    from safetensors.torch import load_file

    value = {"kind": {"a2c": "head", "ppo": "own"}[name], "warmup_steps": warmup}
    made(team, tmp_path, steps=2, name=name, value=value)
    first, second = archive.steps(tmp_path / "archive")
    models = Models.load(first, ModelSection(path="unused"), torch.device("cpu"))
    held = models.policy.value_head if models.critic is None else models.critic
    before = "" if models.critic else HEAD

    def loaded(step):
        wanted = load_file(step / archive.VALUE / archive.WEIGHTS)
        return all(torch.equal(tensor, wanted[before + key]) for key, tensor in held.state_dict().items())

    assert (loaded(first), loaded(second)) == (True, False)
    models.advance(second)
    assert (loaded(first), loaded(second)) == (False, True)
    found, rows = compared(tmp_path, name, at="next")
    assert rows[name].steps
    told = [note for note in found.notes if "1 of 1 steps were made while the values warmed up (0.1)" in note]
    assert len(told) == warmup


def test_a_row_that_needs_values_says_so_where_there_are_none(run):
    _, rows = compared(run[0], "ppo", "rloo")
    assert rows["ppo"].reason == "it needs values, and the archive has no value model"
    assert rows["ppo"].steps == []
    assert len(rows["rloo"].steps) == 3


def test_cells_that_contradict_each_other_are_listed_with_the_reason(run):
    _, rows = compared(run[0], "cispo trust.kind=truncated_is", newest=1)
    assert "would multiply it twice" in rows["cispo trust.kind=truncated_is"].reason


def test_without_a_word_every_row_and_the_usual_corrections_are_tried(run):
    from penstock.deploy.variants import OWN_CORRECTIONS
    from penstock.learner.algorithms import table

    found, rows = compared(run[0], newest=1)
    assert found.steps == ["0.3"]
    assert list(rows) == [OWN, *sorted(table.rows()), *OWN_CORRECTIONS]
    assert all(len(row.steps) == 1 or row.reason for row in rows.values())


def test_corrections_change_what_they_should_and_nothing_else(run):
    sets = (
        "trust.kind=none",
        "trust.kind=truncated_is trust.max_weight=1",
        "trust.kind=sequence_is",
        "objective.clip_low=0.1",
    )
    _, rows = compared(run[0], sets=sets)
    own, *others = (rows[label] for label in (OWN, *sets))
    # At π = π_prox a bound on the ratio cuts nothing.
    assert [s["grad_norm"] for s in rows["objective.clip_low=0.1"].steps] == [s["grad_norm"] for s in own.steps]
    for row in others[:3]:
        assert all(0.5 < step["cosine"] <= 1 for step in row.steps)
    assert all(step["whatif/ess"] <= 1 + 1e-9 for row in rows.values() for step in row.steps)
    uncorrected = rows["trust.kind=none"]
    # With the KL in the loss a token's pull is not its weight alone: compare without it.
    _, plain = compared(run[0], sets=("trust.kind=none kl.coefficient=0",))
    assert [s["whatif/ess"] for s in plain["trust.kind=none kl.coefficient=0"].steps] == pytest.approx([1.0] * 3)
    assert uncorrected.mean("rollout_corr/ess") == own.mean("rollout_corr/ess")


def test_at_the_next_weights_the_bounds_on_the_ratio_bite(run):
    folder, _ = run
    sets = ("objective.clip_low=0.001 objective.clip_high=0.001", "objective.clip_low=1 objective.clip_high=10")
    found, rows = compared(folder, sets=sets, at="next")
    assert found.steps == ["0.1", "0.2"]  # of the last step nobody has the weights that it led to
    tight, loose = (rows[label] for label in sets)
    assert tight.mean("actor/pg_clipfrac_low") + tight.mean("actor/pg_clipfrac_high") > 0.2
    assert loose.mean("actor/pg_clipfrac_low") + loose.mean("actor/pg_clipfrac_high") == 0
    assert tight.mean("grad_norm") < loose.mean("grad_norm")
    assert all(step["kl/update"] > 0 for step in loose.steps)


def test_the_archived_weights_are_those_that_the_step_started_from(run):
    folder, _ = run
    for number, (first, second) in enumerate(itertools.pairwise(archive.steps(folder / "archive"))):
        version, batch, facts = archive.read(first)
        assert version == Version(0, number + 1)
        assert facts["moment"]["now"] == f"0.{number}"
        one, other = (AutoModelForCausalLM.from_pretrained(step / archive.POLICY) for step in (first, second))
        assert not torch.equal(next(one.parameters()), next(other.parameters()))
        row = int(np.argmax(batch.lengths))
        prompt, answer = batch.rows()[row]
        with torch.no_grad():
            logits = one(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(answer)), answer.tolist()].numpy()
        np.testing.assert_allclose(batch.split(batch.logp_learner)[row], expected, atol=1e-5)


def test_steps_that_are_pruned_meanwhile_are_left_out(run, tmp_path):
    shutil.copytree(run[0] / "archive", tmp_path / "archive")
    folders = archive.steps(tmp_path / "archive")

    def prune(done, of, what):
        if done == 1:  # the step is in hand already
            shutil.rmtree(folders[1], ignore_errors=True)
        shutil.rmtree(folders[2], ignore_errors=True)

    found, rows = compared(tmp_path, "cispo", progress=prune)
    assert found.steps == ["0.1", "0.2"]
    assert "step-000003-lineage-0 was pruned while it was read" in found.notes
    assert len(rows["cispo"].steps) == 2


@pytest.fixture(scope="module")
def critic_run(team, tmp_path_factory):
    """Folder of a PPO run of three steps."""
    folder = tmp_path_factory.mktemp("critic")
    made(team, folder, name="ppo")
    return folder


@pytest.mark.parametrize(("at", "keeps"), [("start", (2, 1)), ("next", (2,))])
def test_a_running_run_may_prune_at_any_moment(critic_run, tmp_path, at, keeps):
    began = time.monotonic()
    compared(critic_run, "ppo", at=at)
    whole = time.monotonic() - began
    for moment in range(12):
        folder = tmp_path / str(moment)
        shutil.copytree(critic_run / "archive", folder / "archive")

        def prune(folder=folder, pause=whole * moment / 24):
            for keep in keeps:
                time.sleep(pause)
                archive.prune(folder / "archive", keep_last=keep)

        thread = threading.Thread(target=prune)
        thread.start()
        found, rows = compared(folder, "ppo", at=at)
        thread.join()
        assert 1 <= len(found.steps) == len(rows["ppo"].steps)


def test_a_step_is_let_go_before_the_next_is_read(run, monkeypatch):
    read, seen = Step.read.__func__, []

    def noted(cls, folder):
        gc.collect()
        alive.append(sum(each() is not None for each in seen))
        seen.append(weakref.ref(step := read(cls, folder)))
        return step

    alive = []
    monkeypatch.setattr(Step, "read", classmethod(noted))
    compared(run[0], "cispo")
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("part", ["policy/model.safetensors", "batch.safetensors", "groups.msgpack"])
def test_a_damaged_step_is_left_out_and_the_note_says_what_is_damaged(run, tmp_path, part):
    shutil.copytree(run[0] / "archive", tmp_path / "archive")
    file = archive.steps(tmp_path / "archive")[1] / part
    file.write_bytes(file.read_bytes()[:100])
    found, _ = compared(tmp_path, "cispo")
    assert found.steps == ["0.1", "0.3"]
    (note,) = [note for note in found.notes if "left out" in note]
    assert note.startswith("step-000002-lineage-0 is left out") and part.split("/")[0] in note
    for step in archive.steps(tmp_path / "archive"):
        (step / part).write_bytes(b"x")
    with pytest.raises(PenstockError, match=r"could be read: step-000001-lineage-0 is left out"):
        compared(tmp_path, "cispo")


def rewritten(step, **changes):
    """The facts in an archived step, changed."""
    version, batch, facts = archive.read(step)
    (step / "batch.safetensors").write_bytes(batch.to_bytes(version=str(version), **facts | changes))


@pytest.mark.parametrize("at", ["start", "next"])
def test_a_step_that_was_skipped_for_its_gradients_is_left_out_with_a_note(run, tmp_path, at):
    shutil.copytree(run[0] / "archive", tmp_path / "archive")
    rewritten(archive.steps(tmp_path / "archive")[-1], applied=0)
    found, _ = compared(tmp_path, "cispo", at=at)
    assert found.steps == ["0.1", "0.2"]
    assert [note for note in found.notes if "left out" in note] == [
        "step-000003-lineage-0 is left out: none of its updates were applied, since their gradients were not finite"
    ]
    newest, _ = compared(tmp_path, "cispo", newest=1)
    assert newest.steps == ["0.2"]


def test_damage_in_the_groups_of_the_step_that_follows_is_no_concern_of_this_one(run, tmp_path):
    shutil.copytree(run[0] / "archive", tmp_path / "archive")
    later = archive.steps(tmp_path / "archive")[-1]
    (later / "groups.msgpack").write_bytes(b"x")
    found, _ = compared(tmp_path, "cispo", at="next")
    assert found.steps == ["0.1", "0.2"]
    (later / archive.POLICY / archive.WEIGHTS).write_bytes(b"x")
    found, _ = compared(tmp_path, "cispo", at="next")
    assert found.steps == ["0.1"]
    (note,) = [note for note in found.notes if "left out" in note]
    assert "step-000003-lineage-0/policy/model.safetensors is damaged" in note


def test_a_step_that_the_runs_own_row_cannot_be_computed_for_lends_nobody_its_place(critic_run, tmp_path):
    """Cosines are to the run's own gradient, never to that of the next variant in the list."""
    shutil.copytree(critic_run / "archive", tmp_path / "archive")
    whole, _ = compared(tmp_path, "cispo")
    shutil.rmtree(archive.steps(tmp_path / "archive")[-1] / archive.VALUE)
    found, rows = compared(tmp_path, "cispo")
    assert found.steps == whole.steps[:-1]
    assert rows["cispo"].steps[0]["cosine"] < 0.999
    assert any("left out" in note and "value" in note for note in found.notes)


def test_the_newest_are_counted_among_those_that_something_follows(run):
    found, _ = compared(run[0], "cispo", at="next", newest=1)
    assert found.steps == ["0.2"]


def test_a_run_without_weights_is_told_how_to_have_them(team, tmp_path):
    loop = loop_of(team, MemoryStore(), MemorySender(), tmp_path, steps=2)
    run_with_worker(loop, loop._store, loop._publisher._sender)
    with pytest.raises(
        PenstockError, match=r"1 archived steps without weights.*archive\.every=N archive\.weights=true"
    ):
        compared(tmp_path)
    with pytest.raises(PenstockError, match="no archived steps"):
        compared(tmp_path / "elsewhere")


def test_the_comparison_is_plain_json(run):
    found, _ = compared(run[0], "ppo", "cispo")
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    cispo = next(row for row in read["rows"] if row["label"] == "cispo")
    assert cispo["mean"]["grad_norm"] == pytest.approx(np.mean([s["grad_norm"] for s in cispo["steps"]]))
    assert cispo["spread"]["grad_norm"] == pytest.approx(np.std([s["grad_norm"] for s in cispo["steps"]], ddof=1))


@pytest.fixture
def run_dir(run, tmp_path):
    """A run directory around the archive."""
    directory = RunDir.create(tmp_path, "tiny", CONFIG)
    shutil.copytree(run[0] / "archive", directory.archive, dirs_exist_ok=True)
    return directory


CONFIG = "model: {path: /nowhere}\ndata: {sources: {train: {path: /nowhere.jsonl}}}\n"


def test_from_python_the_comparison_leaves_json_and_a_plot_in_the_run_directory(run_dir):
    found = penstock.whatif(run_dir.path, ["cispo objective.max_weight=3", "ppo"], ["trust.kind=none"], newest=2)
    assert [row.label for row in found.rows] == [OWN, "cispo objective.max_weight=3", "ppo", "trust.kind=none"]
    written = json.loads(run_dir.whatif.read_text())
    assert written["steps"] == ["0.2", "0.3"]
    assert written["rows"][1]["section"]["objective"] == {"kind": "cispo", "max_weight": 3.0}
    assert (run_dir.plots / "whatif.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_prints_plain_columns_where_it_is_piped(run_dir):
    result = CliRunner().invoke(app, ["whatif", str(run_dir.path), "--row", "cispo", "--row", "ppo", "--newest", "1"])
    assert result.exit_code == 0, result.output
    heading, own, cispo = result.stdout.splitlines()
    notes = result.stderr.splitlines()
    assert heading.split("\t")[:3] == ["variant", "gradient norm", "gradient norm spread"]
    assert own.split("\t")[0] == OWN
    assert float(cispo.split("\t")[1]) > 0
    assert notes[0] == "ppo: it needs values, and the archive has no value model"
    assert notes[1].startswith("note: at the start of a step")


def test_the_command_refuses_wrong_variants_before_it_computes_anything(run_dir, monkeypatch, capsys):
    arguments = ["whatif", str(run_dir.path), "--row", "cisp", "--set", "trust.max_wieght=3"]
    monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        "penstock: --row 'cisp': error: name: no algorithm is called 'cisp'; did you mean 'cispo'"
    )
    assert said[1].startswith("--set 'trust.max_wieght=3': error: trust.max_wieght: ")
    assert said[1].endswith("did you mean trust.max_weight?")
    assert not run_dir.whatif.exists()


def test_the_command_gives_json_when_asked(run_dir):
    arguments = ["whatif", str(run_dir.path), "--set", "trust.kind=none", "--at", "next", "--newest", "1", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert json.loads(result.stdout)["steps"] == ["0.2"]


def test_neither_deepspeed_nor_vllm_is_needed():
    code = "import sys, penstock.learner.whatif; print([m for m in ('deepspeed', 'vllm', 'ray') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
