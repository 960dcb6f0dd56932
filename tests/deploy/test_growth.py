"""Does a cluster grow? Ray's answers are those that were seen of real clusters: without an autoscaler, with the one of
`ray up`, with the one of KubeRay. A real one that grows is in tests/runs/test_growing_cluster.py."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from penstock.deploy import growth

ALONE = "d2dd9d7676b15c50c6df55b1b98a53c96f6c62a78bd80051b0a7afe5"


def ray_says(monkeypatch, report: dict | None, types: list[str], version: str) -> None:
    text = json.dumps({"autoscaler_report": report}).encode() if report is not None else None
    monkeypatch.setattr(growth, "_internal_kv_get", lambda key: text)
    nodes = [SimpleNamespace(ray_node_type_name=name) for name in types]
    status = SimpleNamespace(active_nodes=nodes, idle_nodes=[], stats=SimpleNamespace(autoscaler_version=version))
    monkeypatch.setattr(growth, "get_cluster_status", lambda address, timeout: status)
    monkeypatch.setattr(growth.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("report", "types", "version", "grows"),
    [
        ({"node_type_mapping": {ALONE: f"node_{ALONE}"}}, [f"node_{ALONE}"], "0", False),
        (None, [f"node_{ALONE}"], "0", False),
        ({"node_type_mapping": None}, [], "", False),
        ({"node_type_mapping": {"10.0.0.1": "ray.head.default"}}, [f"node_{ALONE}"], "0", True),
        (None, ["headgroup"], "2", True),
        # KubeRay names its nodes also where nobody scales them.
        (None, ["headgroup", "workers"], "0", False),
    ],
)
def test_a_cluster_grows_where_an_autoscaler_reports(monkeypatch, report, types, version, grows):
    ray_says(monkeypatch, report, types, version)
    assert growth.grows() is grows


def test_where_ray_does_not_answer_nothing_is_taken_for_granted(monkeypatch):
    def away(*_args, **_more):
        raise TimeoutError("no answer")

    monkeypatch.setattr(growth, "_internal_kv_get", away)
    monkeypatch.setattr(growth, "get_cluster_status", away)
    monkeypatch.setattr(growth.ray, "get_runtime_context", away)
    assert growth.grows() is False
