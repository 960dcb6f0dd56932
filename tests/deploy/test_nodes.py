"""What every node must see of a run: told together, node by node, with what helps."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import ray

from penstock.deploy import nodes
from penstock.deploy.nodes import Ground, Look, NotShared, inputs_of, lacking, require_common_ground
from penstock.deploy.runfile import load
from penstock.services.ports import HeldPort
from penstock.services.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path / "runs", "wide", "name: wide\n")
    (made.path / ".run-id").write_text("wide-1")
    return made


def test_a_node_that_sees_everything_lacks_nothing(run: RunDir, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as store:
        url = f"redis://127.0.0.1:{store.getsockname()[1]}/0"
        assert lacking(Ground(run.path, "wide-1", (tmp_path,), {"model.path": tmp_path}, url), patience=0) == []


def test_everything_that_is_lacking_is_told_at_once(run: RunDir, tmp_path: Path):
    gone = tmp_path / "gone"
    with HeldPort("127.0.0.1") as port:
        url = f"redis://127.0.0.1:{port.number}/0"
        found = lacking(Ground(run.path, "another-run", (gone,), {"model.path": gone}, url), patience=0)
    assert found == [
        f"the run directory {run.path} is not there",
        f"the folder {gone} is not there, or cannot be written to",
        f"model.path: {gone} is not there",
        f"the store at 127.0.0.1:{port.number} does not answer (Connection refused)",
    ]


def test_inputs_are_what_the_run_file_names_on_this_machines_disks(place: Path):
    text = (
        "model: {path: model}\ndata: {sources: {a: {path: train.jsonl}}}\n"
        "reward: {rules: {exact: {}}, folder: .}\nlimits: {steps: 1}\n"
    )
    (place / "run.yaml").write_text(text)
    assert inputs_of(load(place / "run.yaml")) == {
        "model.path": place / "model",
        "data.sources.a.path": place / "train.jsonl",
    }
    (place / "mine.py").write_text("def right(completions, **columns): return [1.0 for _ in completions]\n")
    (place / "run.yaml").write_text(text.replace("exact: {}", "mine: {rule: 'mine:right'}"))
    assert inputs_of(load(place / "run.yaml"))["reward.folder"] == place


def test_all_nodes_share_the_deadline(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    now, left = [100.0], []

    def late(answer, timeout: float):
        left.append(timeout)
        now[0] += timeout
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(nodes.ray, "get", late)
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    with pytest.raises(NotShared, match="has not answered for 40 s"):
        require_common_ground([Look("a", None), Look("b", None)], run, 40.0)
    assert left == [40.0, 0.0]


def test_the_error_lists_every_node_and_what_helps(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    def answer(found, timeout: float):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(nodes.ray, "get", answer)
    require_common_ground([Look("head (10.0.0.1)", [])], run, 90.0)
    looks = [
        Look("head (10.0.0.1)", []),
        Look("gpu-1 (10.0.0.2)", ["the run directory /runs/a is not there"]),
        Look("gpu-2 (10.0.0.3)", ray.exceptions.GetTimeoutError()),
        Look("gpu-3 (10.0.0.4)", ray.exceptions.RaySystemError("No module named 'penstock'")),
    ]
    with pytest.raises(NotShared) as error:
        require_common_ground(looks, run, 90.0)
    said = str(error.value)
    assert "may live on 4 nodes" in said and "head (10.0.0.1)" not in said
    assert "  gpu-1 (10.0.0.2): the run directory /runs/a is not there" in said
    assert "  gpu-2 (10.0.0.3): has not answered for 90 s (deadlines.answer)" in said
    assert "No module named 'penstock'. Install the same version there" in said
    assert f"give a runs_dir (now {run.path.parent}) on a file system that all nodes share" in said
