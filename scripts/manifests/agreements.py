"""Where the manifests must agree with Penstock, with Ray and with each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from typer.main import get_command

from scripts.manifests.render import KUBERNETES, title
from scripts.manifests.rules import Deployment, Rule, bytes_of

ROOT = KUBERNETES.parents[1]
ROLES = ("learner", "rollout", "scorer")


def run_file_of(deployment: Deployment) -> tuple[Any, tuple[str, ...]]:
    """The run file in the ConfigMap, and what is wrong with its form."""
    return _read_run_file(deployment.named("ConfigMap")["penstock-run"]["data"]["run.yaml"])


@cache
def _read_run_file(text: str) -> tuple[Any, tuple[str, ...]]:
    from pydantic import ValidationError

    from penstock.deploy.findings import from_pydantic
    from penstock.deploy.runfile import RunFile
    from penstock.deploy.yaml_source import YamlSource

    values = yaml.safe_load(text)
    try:
        return RunFile.model_validate(values), ()
    except ValidationError as error:
        return None, tuple(str(finding) for finding in from_pydantic(error, RunFile, YamlSource("run.yaml", values)))


def commands_are_commands(deployment: Deployment) -> Iterator[str]:
    for pod in deployment.pods:
        for container in pod.containers:
            words = [*container.get("command", ()), *container.get("args", ())]
            shell = words[-1] if "-c" in words else shlex.join(words)
            yield from (f"{pod.owner}/{container['name']}: {problem}" for problem in wrong_commands(shell))
    for found in deployment.of("RayJob"):
        yield from (f"{title(found)}: {problem}" for problem in wrong_commands(found["spec"]["entrypoint"]))


def penstock_commands(shell: str) -> list[list[str]]:
    """The calls of `penstock` in a line of shell, as words without the first."""
    lexer = shlex.shlex(shell, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    calls: list[list[str]] = []
    open_call: list[str] | None = None
    for word in lexer:
        if re.fullmatch(r"[();<>|&]+", word):
            open_call = None
        elif open_call is not None:
            open_call.append(word)
        elif word == "penstock":
            open_call = []
            calls.append(open_call)
    return calls


def wrong_commands(shell: str) -> Iterator[str]:
    """Calls of `penstock` in a line of shell that its command line would refuse."""
    group = _command_line()
    context = group.context_class(group, info_name="penstock")
    for words in penstock_commands(shell):
        command = group.get_command(context, words[0]) if words else None
        if command is None:
            yield f"`penstock {shlex.join(words)}` is no command; there are {', '.join(group.list_commands(context))}"
            continue
        try:
            command.make_context(words[0], words[1:], parent=context)
        except Exception as error:  # usage errors, of the click that typer uses, which differs by version
            if not hasattr(error, "format_message"):
                raise
            yield f"`penstock {shlex.join(words)}` is no command: {error.format_message()}"


@cache
def _command_line() -> Any:
    from penstock.cli.main import app

    return get_command(app)


def the_run_file_is_right(deployment: Deployment) -> Iterator[str]:
    yield from run_file_of(deployment)[1]


def the_run_uses_the_store_that_is_there(deployment: Deployment) -> Iterator[str]:
    run, _ = run_file_of(deployment)
    if run is None:
        return
    address = re.fullmatch(r"redis://([\w-]+):(\d+)/\d+", run.store.url or "")
    ports = {
        found["metadata"]["name"]: {port["port"] for port in found["spec"]["ports"]}
        for found in deployment.of("Service")
    }
    if address is None or int(address[2]) not in ports.get(address[1], ()):
        yield f"run.yaml: store.url {run.store.url!r} is no Service of these: {ports}"
    variables = {
        variable["name"]
        for pod in deployment.pods
        if pod.labels.get("ray.io/node-type") == "head"
        for variable in pod.spec["containers"][0].get("env", ())
    }
    if run.store.password_env not in variables:
        yield f"run.yaml: the head, where the driver runs, does not have {run.store.password_env} (store.password_env)"


def the_store_has_room_for_what_the_gate_lets_in(deployment: Deployment) -> Iterator[str]:
    run, _ = run_file_of(deployment)
    store = next(pod for pod in deployment.pods if pod.labels["app.kubernetes.io/component"] == "store")
    maps = [found["data"] for found in deployment.of("ConfigMap")]
    settings = next(data["redis.conf"] for data in maps if "redis.conf" in data)
    most = bytes_of(re.search(r"^maxmemory (\S+)", settings, re.MULTILINE)[1])  # type: ignore[index]
    limit = bytes_of(store.spec["containers"][0]["resources"]["limits"]["memory"])
    if run is not None and run.store.max_bytes > most:
        yield f"redis.conf: maxmemory {most:g} is below the run's store.max_bytes {run.store.max_bytes}"
    if most > 0.75 * limit:
        yield f"redis.conf: maxmemory {most:g} leaves no room for a rewrite below the container's limit {limit:g}"


def every_role_has_one_group_that_fits(deployment: Deployment) -> Iterator[str]:
    """What the run file asks for each role, against what Ray's own autoscaler makes of the groups."""
    run, _ = run_file_of(deployment)
    if run is None:
        return
    groups = node_types(deployment.cluster)
    follows = run.rollout.autoscale.max if run.rollout.autoscale else run.rollout.workers
    counts = {
        "learner": run.learner.ranks,
        "rollout": max(follows, run.rollout.max_workers or run.rollout.workers),
        "scorer": run.reward.max_scorers or run.reward.scorers,
    }
    for role, asked in demands(run).items():
        fit = {name: group for name, group in groups.items() if _fits(asked, group["resources"])}
        if list(fit) != [role]:
            where = f"fits {sorted(fit) or 'no group'}, not {role!r} alone"
            yield f"run.yaml: one {role} actor asks for {asked}, which {where}"
            continue
        at_a_time = min(int(fit[role]["resources"][kind] // amount) for kind, amount in asked.items() if amount >= 0.01)
        if at_a_time * fit[role]["max_workers"] < counts[role]:
            room = f"{at_a_time} a pod × {fit[role]['max_workers']} pods"
            yield f"run.yaml: {counts[role]} {role} actors do not fit the group {role!r} ({room})"
    grows = any(group["max_workers"] > group["min_workers"] for group in groups.values())
    if grows and not run.placement.grows:
        yield "run.yaml: groups grow, and placement.grows is not said: what does not fit at once may be refused"


def demands(run: Any) -> dict[str, dict[str, float]]:
    """What one actor of each role asks of Ray, as penstock/deploy/placement.py does."""
    from penstock.deploy.placement import Placement

    device = "cuda" if run.placement.device == "cuda" else "cpu"
    placement = Placement(device, run.placement, run.engine, run.rollout.workers, run.learner.ranks, scorers=1)
    asked = {}
    for role in ROLES:
        options = placement.options(role)
        one = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
        asked[role] = {kind: amount for kind, amount in one.items() if amount > 0}
    return asked


def node_types(cluster: dict[str, Any]) -> dict[str, Any]:
    """The worker groups as Ray's autoscaler reads them off a RayCluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = {"metadata": {"name": "penstock", "namespace": "penstock"}, "spec": cluster}
    types: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    groups = {group["groupName"] for group in cluster["workerGroupSpecs"]}
    return {name: kind for name, kind in types.items() if name in groups}


def _fits(asked: dict[str, float], there: dict[str, float]) -> bool:
    return all(there.get(kind, 0) >= amount for kind, amount in asked.items())


def ray_is_the_version_that_is_pinned(deployment: Deployment) -> Iterator[str]:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = [line.split("==")[1] for line in wanted if line.startswith("ray[")]
    if deployment.cluster["rayVersion"] != pinned:
        yield f"rayVersion is {deployment.cluster['rayVersion']}, pyproject.toml pins ray {pinned}"


def ports_are_those_of_ray(deployment: Deployment) -> Iterator[str]:
    from ray._private import ray_constants
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    wanted = {
        "gcs-server": ray_constants.DEFAULT_PORT,
        "dashboard": ray_constants.DEFAULT_DASHBOARD_PORT,
        "client": 10001,
        "as-metrics": AUTOSCALER_METRIC_PORT,
        "dash-metrics": DASHBOARD_METRIC_PORT,
        "metrics": 8080,  # KubeRay starts every node with --metrics-export-port=8080
    }
    for pod in deployment.pods:
        for name, number in pod.ports().items() if pod.role == "ray" else ():
            if wanted.get(name) != number:
                yield f"{pod.owner}: port {name} is {number}; Ray's is {wanted.get(name)}"


def the_page_listens_where_it_is_looked_for(deployment: Deployment) -> Iterator[str]:
    for pod in deployment.pods:
        for container in pod.spec["containers"] if pod.role == "service" else ():
            words = container.get("command", [])
            if "--port" in words and int(words[words.index("--port") + 1]) not in pod.ports().values():
                yield f"{pod.owner}: listens on {words[words.index('--port') + 1]}, its ports are {pod.ports()}"


AGREEMENTS: tuple[Rule, ...] = (
    commands_are_commands,
    the_run_file_is_right,
    the_run_uses_the_store_that_is_there,
    the_store_has_room_for_what_the_gate_lets_in,
    every_role_has_one_group_that_fits,
    ray_is_the_version_that_is_pinned,
    ports_are_those_of_ray,
    the_page_listens_where_it_is_looked_for,
)
