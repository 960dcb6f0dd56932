"""Write deploy/kubernetes/components/monitoring/rules.yaml: the alert rules of deploy/prometheus as the operator
takes them.

    python -m scripts.manifests.monitoring
"""

from __future__ import annotations

from typing import Any

import yaml

from scripts.manifests.render import KUBERNETES

RULES = KUBERNETES.parent / "prometheus" / "rules.yml"
WRITTEN = KUBERNETES / "components" / "monitoring" / "rules.yaml"
HEAD = """\
# The alerts of deploy/prometheus/rules.yml for the Prometheus operator. Made by: make alerts
"""


def alerts() -> dict[str, Any]:
    """The PrometheusRule."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "penstock"},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    WRITTEN.write_text(HEAD + yaml.safe_dump(alerts(), sort_keys=False, allow_unicode=True, width=10**6))
    print(f"[alerts] {WRITTEN.relative_to(KUBERNETES.parents[1])}")
