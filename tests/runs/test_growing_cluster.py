"""A drill on a Ray cluster with an autoscaler: a worker that finds no room is waited for, and a node is started for it.

Ray's own provider for tests makes nodes that are raylets on this machine; the autoscaler, its demand and its scheduling
are the real ones, of the newer kind, which KubeRay uses.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.services.control import Refused, Scale, Stop

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

HEAD_ID = "f" * 51 + "00000"
LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
HEAD, NODE = "ray.head.default", "small"


def config(address: str) -> dict:
    """A head with room for a learner, a scorer and one worker; nodes with room for one worker, two of them at most."""
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "available_node_types": {
            HEAD: {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0},
            NODE: {
                "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": HEAD,
        **{f"{name}_commands": [] for name in LISTS},
        **{name: {} for name in ("head_node", "worker_nodes", "auth", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def address(tmp_path_factory, monkeypatch) -> Iterator[str]:
    """Of a running head with its autoscaler; everything that came of it is ended afterwards."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = tmp_path_factory.mktemp("g", numbered=True)
    short = Path(f"/tmp/pg-{os.getpid()}")  # Ray's sockets need a short path
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    where = f"{ray.util.get_node_ip_address()}:{port}"
    (folder / "cluster.json").write_text(json.dumps(config(where)))
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--temp-dir={short}", "--num-cpus=3"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    command += [f"--autoscaling-config={folder / 'cluster.json'}"]
    own = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    own |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_NODE_TYPE_NAME": HEAD}
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=os.environ | own, start_new_session=True, stdout=log, stderr=log)
    try:
        _until_it_answers(port, head, folder / "head.log")
        yield where
    finally:
        _end(head, str(short), where)


def _until_it_answers(port: int, head: subprocess.Popen, log: Path) -> None:
    ends = time.monotonic() + 60
    while True:
        assert head.poll() is None, log.read_text()[-2000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return time.sleep(3)  # its autoscaler reports once a second
        assert time.monotonic() < ends, log.read_text()[-2000:]
        time.sleep(0.2)


def _end(head: subprocess.Popen, folder: str, where: str) -> None:
    """The head, and the nodes that its autoscaler has started: their arguments have its folder or its address."""
    head.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(20)
    for process in psutil.process_iter(["cmdline"]):
        arguments = " ".join(process.info["cmdline"] or [])
        if process.pid != os.getpid() and (folder in arguments or where in arguments):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    subprocess.run(["rm", "-rf", folder], check=False)


def test_workers_that_find_no_room_make_the_cluster_grow(address, tmp_path):
    answers: list[str] = []

    def play(onlooker: Onlooker) -> None:
        assert ray.cluster_resources()["CPU"] == 3
        answers.append(onlooker.control.send(Scale("rollout", 3), "story"))
        onlooker.delivered("rollout-1", "rollout-2")
        assert ray.cluster_resources()["CPU"] == 5
        with pytest.raises(Refused, match=r"more than rollout\.max_workers, which is 3"):
            onlooker.control.send(Scale("rollout", 4), "story")
        onlooker.control.send(Scale("rollout", 1), "story")
        onlooker.left("rollout-1", "rollout-2")
        onlooker.control.send(Stop("the story is over"), "story")

    overrides = [f"placement.ray_address={address}", "rollout.max_workers=3", "limits.steps=100000"]
    run = played(RECIPE / "drill.yaml", [*inputs_in(tmp_path), *overrides], play)
    assert "5 CPUs are asked for, the cluster has 3; its autoscaler is waited for" in answers[0]
    ledger = run.summary["ledger"]
    assert ledger["balanced"] and set(ledger["dropped"]) <= {"run_ended", "stale"}
