"""Ray, started for one run or joined where one is running; and the environment its actors live in."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # not in its stubs

from penstock.deploy import exits, ray_address
from penstock.deploy.growth import grows
from penstock.deploy.leftovers import MARK, own, remove_orphans
from penstock.services.contracts import PenstockError

# Ray keeps unix sockets in its directory, and their paths may have about 100 bytes; so it lies in /tmp
# under a short name and not in the run directory.
_TEMP_PREFIX = "penstock-ray-"
_LONGEST = 17
"""Bytes of a folder in which Ray's sockets find room: with its own names of 90 the kernel allows 107."""
_INTERVAL = "RAY_metrics_report_interval_ms"
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Rollouts travel through the store and weights through files, so Ray's own object store stays small."""


class Cluster:
    """A Ray cluster for the duration of a run.

    `address` None starts one on this machine and ends it with the run; otherwise the cluster at that address
    is joined and left as it was. Under `ray job submit` the address comes from the environment by itself.

    Raises ClusterAway where nobody answers at the address, and PenstockError when no cluster can be started.
    """

    def __init__(self, address: str | None, namespace: str, actors: int, report_seconds: float | None = None) -> None:
        """`report_seconds` is how often a cluster that is started here passes on metrics; by default as Ray likes."""
        asked = ray_address.given(address)
        self.address = None if asked is None else ray_address.require_for_driver(asked)
        self._folder: Path | None = None
        # Ray's own words about dead actors, for every one of them a paragraph; the supervisor says what died and why.
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
        settings: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "configure_logging": False}
        inherited: dict[str, str] = {}
        if self.address is None:
            settings |= self._of_own(actors, report_seconds)
            inherited = _environment_of_own(report_seconds)
        else:
            settings["address"] = self.address
        try:
            with _own_signals(), exits.parent_as_before(), _inherited(inherited):
                joined = ray.init(**settings)
                exits.read_from(Path(joined.address_info["session_dir"]) / "logs")
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            self._clean()
            if self.address is not None:
                raise ray_address.not_joined(self.address, error) from error
            raise PenstockError(
                f"could not start a Ray cluster on this machine: {error}. `penstock doctor` checks what is in the way"
            ) from error

    def _of_own(self, actors: int, report_seconds: float | None) -> dict[str, Any]:
        """What a cluster that is started here is started with; makes its folder."""
        base = _short_base()
        remove_orphans(base, _TEMP_PREFIX)
        self._folder = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=base))
        own(self._folder)
        # Ray guards the cluster with a token; it need not say so at every start.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        self._mode_given = _MODE in os.environ
        AuthenticationTokenLoader.instance().reset_cache()
        every = {} if report_seconds is None else {"metrics_report_interval_ms": round(report_seconds * 1000)}
        return {
            "_temp_dir": str(self._folder / "ray"),  # which Ray opens to everybody; what is around it stays shut
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            # Logical only: every actor asks for one, and the machine's real cores are shared by threads.
            "num_cpus": max(actors, os.cpu_count() or 1),
            "_system_config": {**exits.REAPING, **every},
        }

    @property
    def joined(self) -> bool:
        """It was there before the run and stays after it; others may be on it."""
        return self.address is not None

    @property
    def grows(self) -> bool:
        """Whether it starts nodes for actors that find no room; one that was started for the run does not."""
        return self.joined and grows()

    @property
    def home(self) -> str:
        """Ray's id of the node that this process is on."""
        return str(ray.get_runtime_context().get_node_id())

    @property
    def nodes(self) -> int:
        """How many machines are in the cluster now."""
        return sum(1 for node in ray.nodes() if node["Alive"])

    @property
    def endpoints(self) -> list[str]:
        """`host:port` of every node that Prometheus may scrape under /metrics."""
        alive = [node for node in ray.nodes() if node["Alive"] and node.get("MetricsExportPort", 0) > 0]
        return sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in alive)

    @property
    def no_endpoints(self) -> str:
        """Why there are no `endpoints`, where there are none."""
        return "no node of the Ray cluster says where its metrics are (is ray[default] installed?)"

    def close(self) -> None:
        """Leave the cluster; end it when it was started here."""
        ray.shutdown()
        self._clean()

    def _clean(self) -> None:
        """Nothing stays of a cluster that was started here, nor of its token: the next one has another."""
        if self._folder is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self._mode_given:
            os.environ.pop(_MODE, None)  # which Ray has set
        Config.initialize("")  # reads it again
        AuthenticationTokenLoader.instance().reset_cache()


def _short_base() -> Path:
    """TMPDIR where its path is short enough for the sockets, else /tmp."""
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual)) <= _LONGEST else Path("/tmp")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back the SIGTERM handler that `ray.init` replaces by one that exits on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment_of_own(report_seconds: float | None) -> dict[str, str]:
    """Variables of the processes of a cluster that is started here, and of no others.

    Its token is there and in no file: what may read the user's files, as reward functions may, could otherwise start
    code in it. Ray's metrics agent, which forgets what was not said for twice the interval, takes that from there only,
    as drivers and workers do from the cluster's configuration only."""
    every = {} if report_seconds is None else {_INTERVAL: str(round(report_seconds * 1000))}
    return {_TOKEN: secrets.token_hex(32), **every}


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, processes that start have these variables; what is set already stands, so that whoever gives a token, to
    look at the cluster with Ray's tools, is heeded."""
    new = {name: value for name, value in variables.items() if not os.environ.get(name)}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def actor_environment(*, threads: int, device: str) -> dict[str, str]:
    """Environment variables of an engine's process: threads, caches, devices. Not for secrets: Ray keeps them."""
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    # On a cluster that was there before, nothing is inherited of the driver's environment.
    marked = {MARK: os.environ[MARK]} if MARK in os.environ else {}
    return (
        hidden
        | marked
        | {
            # Two threads in one engine wait for each other when the cores are shared by several engines.
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cuda" if device == "cuda" else "cpu",
            "TORCH_EXTENSIONS_DIR": os.environ.get(
                "TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "penstock" / "torch_extensions")
            ),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
    )
