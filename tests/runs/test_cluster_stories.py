"""Runs on clusters that they share with others and that consist of several nodes. Drills, but for the last."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from conftest import RECIPE, SHORT
from ray_clusters import Island, RayHead, drill, events, names, until

from penstock.services.ports import HeldPort
from penstock.services.store.binary import find_binary

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
GROUPS = 8
"""learner.groups_per_step of the drill."""


def summary_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def states_of(head: RayHead) -> dict[str, str]:
    """Of all runs, by name."""
    return {row["name"]: row["state"] for row in json.loads(head.penstock("runs", "--json"))}


@contextlib.contextmanager
def page_of(head: RayHead, *words: str) -> Iterator[str]:
    """The address of a page that is served from elsewhere."""
    command = ("penstock", "dashboard", "--port", "0", *words)
    serving = subprocess.Popen(command, cwd=head.folder, env=head.environment, stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    try:
        yield serving.stdout.readline().split()[-1].rstrip("/")
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(30)


def assert_whole(run_dir: Path, outcome: str) -> None:
    """Every prompt has a final state, and the trained ones are in a checkpoint."""
    summary = summary_of(run_dir)
    assert summary["outcome"] == outcome, summary["why"]
    assert summary["ledger"]["balanced"]
    assert summary["ledger"]["by_state"]["committed"] == GROUPS * summary["steps"]


@pytest.fixture
def shared_redis(tmp_path: Path):
    """A server that several runs use, behind a password; its URL and its password."""
    word = secrets.token_hex(8)
    with HeldPort("127.0.0.1") as port:
        lines = (f"port {port.number}", "bind 127.0.0.1", f"requirepass {word}", "appendonly yes", f"dir {tmp_path}")
        (tmp_path / "redis.conf").write_text("\n".join(lines) + "\n")
        server = subprocess.Popen([find_binary(), tmp_path / "redis.conf"], stdout=subprocess.DEVNULL)
        yield f"redis://127.0.0.1:{port.number}/0", word
        server.terminate()
        server.wait(30)


def test_two_jobs_of_one_name_on_one_cluster_and_one_redis_server_do_not_meet(tmp_path: Path, shared_redis):
    url, word = shared_redis
    drill(tmp_path / "project")
    with RayHead(8, environment={"PENSTOCK_STORE_PASSWORD": word}) as head:
        words = ("penstock", "train", "drill.yaml", f"store.url={url}", "limits.steps=100000")
        for name in ("one", "two"):
            head.submit(name, tmp_path / "project", *words)
        for name in ("one", "two"):
            until(f"{name} trains", lambda name=name: "step 2" in head.logs_of(name), 180)
        first, second = sorted((head.home / "penstock" / "runs").glob("drill-*"))

        assert states_of(head) == {first.name: "training", second.name: "training"}
        ambiguous = head.penstock("scale", "rollout=2", "--run", "drill", code=2)
        assert "may be one of several runs" in ambiguous and first.name in ambiguous and second.name in ambiguous
        head.penstock("scale", "rollout=2", "--run", first.name)
        until("the second worker of the one generates", lambda: "rollout-1" in names(first, "joined"), 90)
        crowded = head.penstock("scale", "rollout=4", "--run", second.name)
        assert "Others use the cluster too: 6 CPUs are asked for, free for it are 4" in crowded
        head.penstock("scale", "rollout=1", "--run", second.name)
        assert "rollout-1" not in names(second, "joined") and len(events(first, "steered")) == 1

        outside = ("--run", first.name, "--address", f"ray://127.0.0.1:{head.client}")
        assert "training" in head.run("penstock", "status", *outside)
        told = head.run("penstock", "tail", "-n", "100", "--kind", "joined", *outside)
        assert "rollout-1 begins to generate" in told and "published" not in told
        with page_of(head, *outside) as address:
            live = [json.loads(urllib.request.urlopen(f"{address}/api/status").read()) for _ in range(2)]
            assert {facts["verdict"] for facts in live} == {"training"}
            assert live[0]["facts"]["elsewhere"]["path"] == str(first)

        ids = {(folder / ".run-id").read_text() for folder in (first, second)}
        keys = redis.Redis.from_url(url, password=word).keys("*")
        prefixes = tuple(f"penstock:{{{run_id}}}:" for run_id in ids)
        assert keys and all(key.decode().startswith(prefixes) for key in keys)
        assert {Path("/dev/shm") / f"penstock-{run_id}" for run_id in ids} <= set(Path("/dev/shm").iterdir())
        head.penstock("stop", "--why", "enough", "--run", first.name)
        head.stop("two")
        until("the first has ended", lambda: head.state_of("one")["status"] == "SUCCEEDED", 60)
        assert head.state_of("two")["status"] == "STOPPED"
        assert_whole(first, "finished")
        assert_whole(second, "stopped")
        assert not ids & {folder.name.removeprefix("penstock-") for folder in Path("/dev/shm").iterdir()}

        # A copy of a run directory has the same id: the second to go on is refused while the first does.
        copied = first.with_name("copied")
        subprocess.run(("cp", "-r", first, copied), check=True)
        head.submit("three", tmp_path / "project", "penstock", "resume", str(first), "limits.steps=100000")
        until("it goes on", lambda: states_of(head).get(first.name) == "training", 120)
        own = {"RAY_ADDRESS": head.address, "PENSTOCK_STORE_PASSWORD": word}
        beside = tmp_path / "project"  # where the rule of one's own is
        refused = head.run("penstock", "resume", str(copied), "limits.steps=100000", code=2, cwd=beside, **own)
        assert "is going on on this machine already" in refused and "Remove the file .run-id" in refused, refused
        head.stop("three")
        assert_whole(first, "stopped")


def test_a_job_goes_on_from_another_copy_of_the_working_directory(tmp_path: Path):
    drill(tmp_path / "project")
    with RayHead() as head:
        head.submit("one", tmp_path / "project", "penstock", "train", "drill.yaml", "limits.steps=6")
        until("the first has ended", lambda: head.state_of("one")["status"] == "SUCCEEDED", 180)
        run_dir = head.run_dir("drill")
        first_copy = summary_of(run_dir) and (run_dir / "config.yaml").read_text()
        assert "working_dir_files" in first_copy
        (tmp_path / "project" / "notes.txt").write_text("so that the copy gets another name\n")
        head.submit("two", tmp_path / "project", "penstock", "resume", str(run_dir), "limits.steps=12")
        until("the second has ended", lambda: head.state_of("two")["status"] == "SUCCEEDED", 180)
        assert summary_of(run_dir)["steps"] == 12
        second_copy = (run_dir / "config.yaml").read_text()
        assert second_copy.count("working_dir_files") == first_copy.count("working_dir_files")
        assert second_copy.replace("steps: 12", "steps: 6") != first_copy

        # What is wrong is the job's status, with the exit code.
        head.submit("bad", tmp_path / "project", "penstock", "train", "drill.yaml", "limits.stepps=6")
        until("it has failed", lambda: head.state_of("bad")["status"] == "FAILED", 60)
        assert head.state_of("bad")["driver_exit_code"] == 2
        assert "did you mean limits.steps?" in head.logs_of("bad")
        goal = "goals=[{metric: reward/mean, at_least: 2.0}]"
        head.submit("missed", tmp_path / "project", "penstock", "train", "drill.yaml", "limits.steps=2", goal)
        until("it has missed", lambda: head.state_of("missed")["status"] == "FAILED", 120)
        assert head.state_of("missed")["driver_exit_code"] == 3


@pytest.mark.skipif(not Island.possible(), reason="needs root, for networks and folders of a node's own")
def test_a_node_on_another_network_takes_part_and_one_without_the_files_is_told_of(tmp_path: Path):
    drill(tmp_path / "project")
    runs = tmp_path / "runs"
    runs.mkdir()
    far = ("placement.rollout.resources={island: 0.001}", f"runs_dir={runs}")
    with Island() as island, RayHead(3, host=island.host) as head:
        train = ("penstock", "train", "drill.yaml", *far)
        island.join(head, 2, "--resources='{\"island\": 1}'", own=[runs])
        until("the node has joined", lambda: "island" in head.run("ray", "status", "--address", head.address), 60)
        said = head.run(*train, cwd=tmp_path / "project", code=2, RAY_ADDRESS=head.address)
        (broken,) = runs.glob("drill-*")
        assert f"({island.address}): the run directory {broken} is not there" in said
        assert f"({island.host}):" not in said and "on a file system that all nodes share" in said
        assert summary_of(broken)["outcome"] == "failed"
        island.sink()

        island.join(head, 2, "--resources='{\"island\": 1}'")
        until("the node has joined", lambda: "island" in head.run("ray", "status", "--address", head.address), 60)
        head.submit("one", tmp_path / "project", *train, "limits.steps=100000")
        until("it trains", lambda: "step 2" in head.logs_of("one"), 180)
        (whole,) = (path for path in runs.glob("drill-*") if path != broken)
        store = json.loads((whole / "store" / "live" / "server.json").read_text())
        assert store["url"].startswith(f"redis://{island.host}:") and "password" not in store
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(store["url"]).ping()
        assert list((whole / "weights").glob("*/manifest.json")), "weights go through files that both see"
        head.stop("one")
        assert_whole(whole, "stopped")
        assert not (whole / "weights").exists()


RAYLETS = """
import sys
from ray.cluster_utils import Cluster
few = {"object_store_memory": 128 * 2**20, "min_worker_port": 0, "max_worker_port": 0}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": sys.argv[1], **few})
for number in range(2):
    cluster.add_node(num_cpus=2, resources={"far": 1}, **few)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def raylets():
    """Three on this machine: one for learner and scorer, two for workers. What a command's environment must have."""
    head = RayHead()  # never started: its folder, token and environment are used
    command = (sys.executable, "-c", RAYLETS, str(head.folder / "ray"))
    process = subprocess.Popen(command, env=head.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield head, address
    finally:
        process.communicate(timeout=60)
        head.clear_away()


def test_two_drivers_on_three_raylets_each_with_workers_on_other_nodes_than_its_learner(tmp_path: Path, raylets):
    head, address = raylets
    drill(tmp_path / "project")
    words = ("placement.rollout.resources={far: 0.5}", "placement.rollout.cpus=0.5", "placement.learner.cpus=0.5")
    words += ("placement.scorer.cpus=0.5", "rollout.workers=2", "limits.steps=12", "recording.samples=1")
    environment = {**head.environment, "RAY_ADDRESS": address}
    driving = []
    for name in ("left", "right"):
        command = ("penstock", "train", "drill.yaml", f"name={name}", f"runs_dir={tmp_path / 'runs'}", *words)
        with (tmp_path / f"{name}.log").open("w") as log:
            driving.append(subprocess.Popen(command, cwd=tmp_path / "project", env=environment, stdout=log, stderr=log))
    for name, process in zip(("left", "right"), driving, strict=True):
        assert process.wait(300) == 0, (tmp_path / f"{name}.log").read_text()[-3000:]
        (run_dir,) = (tmp_path / "runs").glob(f"{name}-*")
        assert_whole(run_dir, "finished")
        assert summary_of(run_dir)["steps"] == 12
        lines = (run_dir / "logs" / "rollout-1.log").read_text()
        assert lines.startswith("--- process")
        assert not (run_dir / "weights").exists()


def test_the_real_engine_as_a_job_learns_and_is_stopped_with_a_model_and_a_checkpoint(tmp_path: Path, taught, home):
    import demo

    inputs, model = taught
    project = tmp_path / "project"
    shutil.copytree(model, project / "taught")
    shutil.copytree(inputs, project / "inputs")
    shutil.copy(RECIPE / "grpo.yaml", project / "run.yaml")
    words = ["model.path=taught", *demo.data_of(Path("inputs"), **demo.TRAINING_FILES), *SHORT, "limits.steps=100000"]
    with RayHead() as head:
        head.submit("one", project, "penstock", "train", "run.yaml", *words)
        until("it trains", lambda: "step 1" in head.logs_of("one"), 300, pause=1.0)
        run_dir = head.run_dir("carry")
        until("it has written a checkpoint", lambda: events(run_dir, "checkpoint"), 300)
        facts = head.status("carry")["facts"]["view"]
        assert facts["metrics"]["mismatch/max"] < 1e-4
        head.penstock("scale", "rollout=1", "--run", "carry")
        until("one has left", lambda: events(run_dir, "left"), 60)
        head.stop("one")
        summary = summary_of(run_dir)
        assert summary["outcome"] == "stopped" and summary["restarts"] == {}
        assert summary["ledger"]["balanced"]
        assert summary["ledger"]["by_state"]["committed"] == 32 * summary["steps"]
        assert (run_dir / "checkpoints" / f"step-{summary['steps']:06d}-lineage-0").is_dir()
        assert (run_dir / "model" / "model.safetensors").is_file()
        assert "penstock resume" in head.logs_of("one")
