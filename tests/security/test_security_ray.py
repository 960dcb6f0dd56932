"""Who may start code in the Ray cluster that a run has started: who can read the user's files cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._raylet import AuthenticationTokenLoader

from penstock.deploy.cluster import Cluster

pytestmark = pytest.mark.engine

INTRUDER = """
import sys
from penstock.deploy import ray_address

ray_address.require(sys.argv[1])  # asks the head as ray.init would, which tries for longer
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("started", ray.get(ray.remote(num_cpus=0)(lambda: 41 + 1).remote()))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        cluster = Cluster(None, "guarded", 1)
        yield cluster
        cluster.close()


@pytest.fixture(scope="module")
def token(cluster: Cluster) -> str:
    """The cluster's."""
    return str(AuthenticationTokenLoader.instance().get_raw_token())


def intrude(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start code in the cluster, as a process that was given nothing but its address."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    plain |= {"HOME": str(home), "RAY_AUTH_MODE": "token"}
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", INTRUDER, address]
    return subprocess.run(command, env=plain | environment, capture_output=True, text=True, timeout=120)


def test_the_token_of_the_users_home_does_not_open_the_cluster_of_a_run(tmp_path: Path, token: str):
    """What a reward function can read and try; the same with the cluster's own token, to show that it knows how."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    refused = intrude(tmp_path)
    assert refused.returncode != 0 and "started" not in refused.stdout
    assert "does not accept the token in ~/.ray/auth_token" in refused.stderr
    assert intrude(tmp_path, RAY_AUTH_TOKEN=token).stdout == "started 42\n"


def test_the_clusters_token_is_in_no_file_and_not_left_in_the_environment(cluster: Cluster, token: str):
    assert len(token) == 64 and token not in os.environ.values()
    home = Path.home() / ".ray" / "auth_token"
    assert not home.exists() or token not in home.read_text()
    assert cluster._folder is not None
    files = [path for path in cluster._folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if token.encode() in path.read_bytes()]


def test_of_a_cluster_that_has_ended_no_token_is_left_for_what_comes_next_in_the_process(
    cluster: Cluster, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster.close()
    assert "RAY_AUTH_MODE" not in os.environ
    assert not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
