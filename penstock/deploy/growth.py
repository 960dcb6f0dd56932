"""Whether a Ray cluster starts nodes for actors that find no room: then a lack of resources is no mistake, but demand.

Ray has no plain question for it. What runs a cluster's nodes names them by type; where nobody does, Ray calls each node
by its own id.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

_UNNAMED = "node_"
"""Begins the type of a node that nobody has given a type."""


def grows() -> bool:
    """True when the cluster that is joined has an autoscaler, of either of Ray's two kinds; False also where Ray does
    not say so in time."""
    return _older() or _newer()


def _older() -> bool:
    """The autoscaler of `ray up` leaves its report in Ray's key-value store."""
    with contextlib.suppress(Exception):  # not reachable, or written by another version: nothing is known
        status: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
        types = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
        return any(not name.startswith(_UNNAMED) for name in types.values())
    return False


def _newer() -> bool:
    """The autoscaler that KubeRay uses reports its state to Ray's head."""
    with contextlib.suppress(Exception):
        status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=5)
        nodes = [*status.active_nodes, *status.idle_nodes]
        reports = int(status.stats.autoscaler_version or 0) > 0
        return reports and any(not node.ray_node_type_name.startswith(_UNNAMED) for node in nodes)
    return False
