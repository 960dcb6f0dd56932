"""What a deployment of ours keeps to, whatever a schema allows. A rule yields a sentence for each thing amiss."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import yaml

from scripts.manifests.render import KUBERNETES, Object, Pod, cluster_of, pods, title

CLUSTER_WIDE = ("Namespace",)
MONITORS = {"PodMonitor": "podMetricsEndpoints", "ServiceMonitor": "endpoints"}


@dataclass(frozen=True)
class Deployment:
    """The objects of one overlay."""

    objects: list[Object]

    @cached_property
    def pods(self) -> list[Pod]:
        return pods(self.objects)

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def named(self, kind: str) -> dict[str, Object]:
        """The objects of a kind by name."""
        return {one["metadata"]["name"]: one for one in self.of(kind)}

    @property
    def cluster(self) -> dict[str, Any]:
        """The description of the one Ray cluster."""
        (cluster,) = [found for found in map(cluster_of, self.objects) if found is not None]
        return cluster

    def selected(self, selector: dict[str, Any]) -> list[Pod]:
        """The pods that a label selector picks."""
        return [pod for pod in self.pods if matches(selector, pod.labels)]


SECRETS = KUBERNETES / "secrets.example.yaml"
"""Forms of the Secrets, which no overlay has."""
Rule = Callable[[Deployment], Iterator[str]]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector of labels picks `labels`; of operators only In and Exists are in use here."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for wish in selector.get("matchExpressions", ()):
        if wish["operator"] not in ("In", "Exists"):
            raise ValueError(f"operator {wish['operator']} is not understood by this check")
        if wish["key"] not in labels or (wish["operator"] == "In" and labels[wish["key"]] not in wish["values"]):
            return False
    return True


# --- names and images -----------------------------------------------------------------------------


def names_are_given_once(deployment: Deployment) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for found in deployment.objects:
        key = found["kind"], found["metadata"]["name"]
        if key in seen:
            yield f"{title(found)} is there twice"
        seen.add(key)


def everything_lies_in_the_namespace(deployment: Deployment) -> Iterator[str]:
    spaces = set(deployment.named("Namespace"))
    for found in deployment.objects:
        if found["kind"] not in CLUSTER_WIDE and found["metadata"].get("namespace") not in spaces:
            yield f"{title(found)} is in namespace {found['metadata'].get('namespace')!r}, of which there is none here"


def images_are_pinned(deployment: Deployment) -> Iterator[str]:
    for pod in deployment.pods:
        for container in pod.containers:
            image = container["image"]
            name = image.rsplit("/", 1)[-1]
            if "@sha256:" not in image and not re.fullmatch(r"[^:]+:\d[\w.-]*", name):
                yield f"{pod.owner}: image {image!r} has neither a digest nor a tag that is a version"


# --- rights ---------------------------------------------------------------------------------------


def nobody_runs_as_root(deployment: Deployment) -> Iterator[str]:
    for pod in deployment.pods:
        security = pod.spec.get("securityContext", {})
        if not (security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0):
            yield f"{pod.owner}: securityContext lacks runAsNonRoot: true and a runAsUser above 0"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.owner}: securityContext lacks seccompProfile RuntimeDefault"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                yield f"{pod.owner}: {name} is on"
        if any("hostPath" in volume for volume in pod.spec.get("volumes", ())):
            yield f"{pod.owner}: a volume is a folder of the node (hostPath)"
        for container in pod.containers:
            yield from _gains(f"{pod.owner}/{container['name']}", container.get("securityContext", {}))
    options = deployment.cluster.get("autoscalerOptions", {})
    yield from _gains("the autoscaler", options.get("securityContext", {}))


def _gains(where: str, security: dict[str, Any]) -> Iterator[str]:
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield f"{where}: securityContext lacks allowPrivilegeEscalation: false"
    if security.get("capabilities", {}).get("drop") != ["ALL"] or security.get("capabilities", {}).get("add"):
        yield f"{where}: securityContext keeps capabilities; drop: [ALL]"


def only_the_head_talks_to_the_api_server(deployment: Deployment) -> Iterator[str]:
    for pod in deployment.pods:
        head = pod.labels.get("ray.io/node-type") == "head"
        if not head and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: automountServiceAccountToken is not false"


# --- size and health ------------------------------------------------------------------------------


def every_container_says_what_it_needs(deployment: Deployment) -> Iterator[str]:
    wanted = [(f"{pod.owner}/{c['name']}", c.get("resources", {})) for pod in deployment.pods for c in pod.containers]
    wanted.append(("the autoscaler", deployment.cluster.get("autoscalerOptions", {}).get("resources", {})))
    for where, resources in wanted:
        asked, most = resources.get("requests", {}), resources.get("limits", {})
        if not {"cpu", "memory"} <= set(asked) or "memory" not in most:
            yield f"{where}: resources need requests of cpu and memory and a limit of memory"
        elif bytes_of(most["memory"]) < bytes_of(asked["memory"]):
            yield f"{where}: the limit of memory is below the request"


def what_shall_live_is_probed(deployment: Deployment) -> Iterator[str]:
    for pod in deployment.pods:
        if pod.role == "service":
            for container in pod.spec["containers"]:
                lacking = {"startupProbe", "readinessProbe", "livenessProbe"} - set(container)
                if lacking:
                    yield f"{pod.owner}/{container['name']}: lacks {', '.join(sorted(lacking))}"


def bytes_of(quantity: str | int) -> float:
    """A quantity of memory, as Kubernetes and redis.conf write them."""
    units = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "kb": 2**10, "mi": 2**20, "mb": 2**20, "gi": 2**30}
    units |= {"gb": 2**30, "ti": 2**40}
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * units[unit.lower()]


# --- references -----------------------------------------------------------------------------------


def what_is_referred_to_is_there(deployment: Deployment) -> Iterator[str]:
    maps, claims, accounts = (deployment.named(k) for k in ("ConfigMap", "PersistentVolumeClaim", "ServiceAccount"))
    for pod in deployment.pods:
        account = pod.spec.get("serviceAccountName")
        if account is not None and account not in accounts:
            yield f"{pod.owner}: there is no ServiceAccount {account!r}"
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
        templates = _claim_templates(deployment, pod)
        for name, volume in volumes.items():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{pod.owner}: volume {name} wants a claim {claim!r} that is not there"
            wanted = volume.get("configMap", {}).get("name")
            if wanted is not None and wanted not in maps:
                yield f"{pod.owner}: volume {name} wants a ConfigMap {wanted!r} that is not there"
        for container in pod.containers:
            where = f"{pod.owner}/{container['name']}"
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in volumes and mount["name"] not in templates:
                    yield f"{where}: mounts a volume {mount['name']!r} that the pod does not have"
            yield from _secrets(where, container)


def _claim_templates(deployment: Deployment, pod: Pod) -> set[str]:
    sets = [found for found in deployment.of("StatefulSet") if title(found) == pod.owner]
    return {claim["metadata"]["name"] for found in sets for claim in found["spec"].get("volumeClaimTemplates", ())}


@cache
def _forms() -> dict[str, Object]:
    return {form["metadata"]["name"]: form for form in yaml.safe_load_all(SECRETS.read_text())}


def _secrets(where: str, container: dict[str, Any]) -> Iterator[str]:
    forms = _forms()
    for source in container.get("envFrom", ()):
        name = source.get("secretRef", {}).get("name")
        if name is not None and name not in forms:
            yield f"{where}: its environment comes from a Secret {name!r}, which {SECRETS.name} lacks"
    for variable in container.get("env", ()):
        wanted = variable.get("valueFrom", {}).get("secretKeyRef")
        if wanted is not None and wanted["key"] not in forms.get(wanted["name"], {}).get("stringData", {}):
            what = f"key {wanted['key']!r} of a Secret {wanted['name']!r}"
            yield f"{where}: {variable['name']} is {what}, which {SECRETS.name} lacks"
        if re.search(r"PASSWORD|TOKEN|SECRET|AUTH", variable["name"]) and "value" in variable:
            yield f"{where}: {variable['name']} stands in clear"


def selectors_find_somebody(deployment: Deployment) -> Iterator[str]:
    for found in deployment.of("Service"):
        if not deployment.selected({"matchLabels": found["spec"]["selector"]}):
            yield f"{title(found)}: its selector finds no pod"
    for found in deployment.of("Deployment", "StatefulSet"):
        labels = found["spec"]["template"]["metadata"]["labels"]
        if not matches(found["spec"]["selector"], labels):
            yield f"{title(found)}: its selector does not find its own pods"
    for found in deployment.of("PodDisruptionBudget"):
        if len({pod.owner for pod in deployment.selected(found["spec"]["selector"])}) != 1:
            yield f"{title(found)}: its selector must find the pods of exactly one owner"
    for found in deployment.of("NetworkPolicy"):
        for selector in [found["spec"]["podSelector"], *_peers(found)]:
            if not deployment.selected(selector):
                yield f"{title(found)}: the selector {selector} finds no pod"
    for found in deployment.of(*MONITORS):
        if not _watched(deployment, found):
            yield f"{title(found)}: its selector finds nothing"


def _peers(policy: Object) -> list[dict[str, Any]]:
    """Selectors of those whom a policy names, as far as they are pods of this deployment."""
    rules = [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]
    peers = [peer for rule in rules for peer in (*rule.get("from", ()), *rule.get("to", ()))]
    return [peer["podSelector"] for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]


def _watched(deployment: Deployment, monitor: Object) -> list[Pod]:
    """The pods that a monitor reads. The head's Service is KubeRay's and carries the labels of the head."""
    return deployment.selected(monitor["spec"]["selector"])


def named_ports_are_there(deployment: Deployment) -> Iterator[str]:
    for found in deployment.of("Service"):
        wanted = [port.get("targetPort", port["port"]) for port in found["spec"]["ports"]]
        yield from _ports(title(found), wanted, deployment.selected({"matchLabels": found["spec"]["selector"]}))
    for found in deployment.of("NetworkPolicy"):
        wanted = [port["port"] for rule in found["spec"].get("ingress", ()) for port in rule.get("ports", ())]
        yield from _ports(title(found), wanted, deployment.selected(found["spec"]["podSelector"]))
    for found in deployment.of(*MONITORS):
        wanted = [endpoint["port"] for endpoint in found["spec"][MONITORS[found["kind"]]]]
        yield from _ports(title(found), wanted, _watched(deployment, found))
    for pod in deployment.pods:
        for container in pod.spec["containers"]:
            probes = [container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")]
            wanted = [probe[how]["port"] for probe in probes for how in ("httpGet", "tcpSocket") if how in probe]
            yield from _ports(f"{pod.owner}/{container['name']}", wanted, [pod])


def _ports(where: str, wanted: list[str | int], there: list[Pod]) -> Iterator[str]:
    known = {port for pod in there for named in pod.ports().items() for port in named}
    for port in wanted:
        if port not in known:
            yield f"{where}: port {port!r} is none of {sorted(map(str, known))}"


RULES: tuple[Rule, ...] = (
    names_are_given_once,
    everything_lies_in_the_namespace,
    images_are_pinned,
    nobody_runs_as_root,
    only_the_head_talks_to_the_api_server,
    every_container_says_what_it_needs,
    what_shall_live_is_probed,
    what_is_referred_to_is_there,
    selectors_find_somebody,
    named_ports_are_there,
)
