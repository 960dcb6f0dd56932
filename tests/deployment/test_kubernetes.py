"""deploy/kubernetes as it is applied: rules that it keeps, schemas that it fits, and that breaking one is noticed."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment_parts import rendered
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from scripts.manifests import __main__ as command
from scripts.manifests import monitoring
from scripts.manifests.agreements import AGREEMENTS, demands, penstock_commands, run_file_of
from scripts.manifests.render import KUBERNETES, Pod, overlays, render
from scripts.manifests.rules import RULES, Deployment, bytes_of, matches
from scripts.manifests.schemas import Schemas

Objects = list[dict[str, Any]]
NAMES = [path.name for path in overlays()]


@pytest.mark.parametrize("overlay", NAMES)
@pytest.mark.parametrize("rule", [*RULES, *AGREEMENTS], ids=lambda rule: rule.__name__)
def test_every_overlay_keeps_every_rule(overlay: str, rule: Callable[[Deployment], Any]) -> None:
    assert list(rule(Deployment(rendered(overlay)))) == []


@pytest.fixture(scope="module")
def kubernetes() -> Schemas:
    return Schemas(command.brought_along()[-1:])


@pytest.mark.parametrize("overlay", NAMES)
def test_kubernetes_own_kinds_fit_their_published_schemas(overlay: str, kubernetes: Schemas) -> None:
    held = [found for found in rendered(overlay) if (found["apiVersion"], found["kind"]) in kubernetes]
    assert {found["kind"] for found in rendered(overlay)} - {found["kind"] for found in held} <= {
        "RayJob",
        "RayCluster",
    }
    assert [problem for found in held for problem in kubernetes.problems(found)] == []


def test_the_monitors_find_the_pods_and_let_prometheus_in(tmp_path: Path) -> None:
    """As in an overlay of somebody's own."""
    parts = {"resources": KUBERNETES / "overlays" / "job", "components": KUBERNETES / "components" / "monitoring"}
    lines = {kind: [os.path.relpath(folder, tmp_path)] for kind, folder in parts.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({**lines, "namespace": "penstock"}))
    deployment = Deployment(render(tmp_path))
    assert {found["kind"] for found in deployment.objects} >= {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    assert [problem for rule in (*RULES, *AGREEMENTS) for problem in rule(deployment)] == []
    monitors = deployment.of("PodMonitor", "ServiceMonitor")
    read = {pod.owner for found in monitors for pod in deployment.selected(found["spec"]["selector"])}
    assert read == {pod.owner for pod in deployment.pods if pod.role == "ray"}
    running = {"sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"}
    for found in monitors:
        for endpoint in found["spec"].get("endpoints") or found["spec"]["podMetricsEndpoints"]:
            assert running in endpoint["relabelings"], "a pod that is pulling its image is no node that was lost"
    boards = deployment.named("ConfigMap")["penstock-grafana"]
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    there = (KUBERNETES.parent / "grafana" / "dashboards").glob("*.json")
    assert {name: json.loads(text) for name, text in boards["data"].items()} == {
        path.name: json.loads(path.read_text()) for path in there
    }
    assert len(json.dumps(boards)) < 2**20, "more than etcd takes for one object"


def test_the_alerts_for_the_operator_are_those_that_are_tested() -> None:
    written = yaml.safe_load(monitoring.WRITTEN.read_text())
    assert written == monitoring.alerts(), "make alerts"


@pytest.mark.parametrize(("overlay", "most"), [("job", 8), ("drill", 3)])
def test_rays_own_autoscaler_starts_pods_of_the_right_groups_for_what_waits(overlay: str, most: int) -> None:
    """Its scheduler is given this cluster without a single pod, and the actors of the run file as waiting."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    deployment = Deployment(rendered(overlay))
    run, _ = run_file_of(deployment)
    cluster = {"metadata": {"name": "penstock", "namespace": "penstock"}, "spec": deployment.cluster}
    kinds = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster)).get_node_type_configs()
    asked = demands(run)

    def started(**waiting: int) -> dict[str, int]:
        one = [(asked[role], count) for role, count in waiting.items()]
        requests = [ResourceRequestUtil.make(bundle) for bundle, count in one for _ in range(count)]
        reply = ResourceDemandScheduler().schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=kinds,
                max_num_nodes=100,
                resource_requests=ResourceRequestUtil.group_by_count(requests),
            )
        )
        assert not reply.infeasible_resource_requests or waiting["rollout"] > most
        return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "headgroup"}

    standing = {"learner": 1, "scorer": 1}
    assert started(learner=1, scorer=1, rollout=0) == standing
    assert started(learner=1, scorer=1, rollout=2) == {**standing, "rollout": 2}
    assert started(learner=1, scorer=1, rollout=most + 5) == {**standing, "rollout": most}


def test_the_docs_say_what_the_drill_asks_a_node_for() -> None:
    drill = Deployment(rendered("drill"))
    asked = [each["resources"]["requests"] for pod in drill.pods for each in pod.spec["containers"]]
    asked.append(drill.cluster["autoscalerOptions"]["resources"]["requests"])
    cores = sum(int(cpu[:-1]) / 1000 if cpu.endswith("m") else int(cpu) for cpu in (str(one["cpu"]) for one in asked))
    memory = sum(bytes_of(one["memory"]) for one in asked) / 2**30
    page = (KUBERNETES.parents[1] / "docs" / "deploy-kubernetes.md").read_text()
    assert f"ask for {cores:g} CPUs and {memory:g} GiB with one rollout worker" in page
    (worker,) = [pod.spec["containers"][0]["resources"]["requests"] for pod in drill.pods if "rollout" in pod.owner]
    assert worker == {"cpu": "1", "memory": "1Gi"}


# --- each rule notices what it is there for -------------------------------------------------------


def container(deployment: Deployment, kind: str, number: int = 0) -> dict[str, Any]:
    (found,) = deployment.of(kind)
    return found["spec"]["template"]["spec"]["containers"][number]


def group(deployment: Deployment, name: str) -> dict[str, Any]:
    return next(one for one in deployment.cluster["workerGroupSpecs"] if one["groupName"] == name)


def run_file(deployment: Deployment, **changes: Any) -> None:
    data = deployment.named("ConfigMap")["penstock-run"]["data"]
    data["run.yaml"] = yaml.safe_dump({**yaml.safe_load(data["run.yaml"]), **changes})


def placement(deployment: Deployment, **changes: Any) -> None:
    text = deployment.named("ConfigMap")["penstock-run"]["data"]["run.yaml"]
    run_file(deployment, placement={**yaml.safe_load(text)["placement"], **changes})


BREAKS: list[tuple[Callable[[Deployment], Any], str]] = [
    (lambda d: d.objects.append(d.of("StatefulSet")[0]), "StatefulSet penstock-store is there twice"),
    (lambda d: d.of("Deployment")[0]["metadata"].pop("namespace"), "is in namespace None"),
    (
        lambda d: container(d, "StatefulSet").update(image="redis:latest"),
        "neither a digest nor a tag that is a version",
    ),
    (lambda d: container(d, "StatefulSet").update(image="redis"), "neither a digest nor a tag that is a version"),
    (lambda d: group(d, "rollout")["template"]["spec"]["securityContext"].pop("runAsUser"), "lacks runAsNonRoot"),
    (lambda d: container(d, "Deployment").pop("securityContext"), "lacks allowPrivilegeEscalation: false"),
    (lambda d: d.cluster["autoscalerOptions"].pop("securityContext"), "the autoscaler: securityContext keeps"),
    (lambda d: group(d, "rollout")["template"]["spec"].pop("automountServiceAccountToken"), "is not false"),
    (lambda d: container(d, "StatefulSet")["resources"].pop("requests"), "resources need requests"),
    (lambda d: container(d, "StatefulSet")["resources"]["limits"].update(memory="1Gi"), "limit of memory is below"),
    (lambda d: container(d, "Deployment").pop("readinessProbe"), "lacks readinessProbe"),
    (
        lambda d: d.objects.remove(d.named("PersistentVolumeClaim")["penstock-shared"]),
        "a claim 'penstock-shared'",
    ),
    (lambda d: d.objects.remove(d.named("ServiceAccount")["penstock"]), "no ServiceAccount 'penstock'"),
    (
        lambda d: container(d, "Deployment")["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
        "mounts a volume 'x'",
    ),
    (
        lambda d: container(d, "StatefulSet")["env"][0]["valueFrom"]["secretKeyRef"].update(key="pass"),
        "key 'pass' of a Secret 'penstock-store', which secrets.example.yaml lacks",
    ),
    (
        lambda d: container(d, "StatefulSet")["env"].append({"name": "STORE_PASSWORD", "value": "open-sesame"}),
        "STORE_PASSWORD stands in clear",
    ),
    (
        lambda d: container(d, "StatefulSet").update(envFrom=[{"secretRef": {"name": "penstock-tracker"}}]),
        "comes from a Secret 'penstock-tracker', which secrets.example.yaml lacks",
    ),
    (lambda d: d.of("Service")[0]["spec"]["selector"].update(role="x"), "its selector finds no pod"),
    (lambda d: d.of("PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"].update(x="y"), "exactly one owner"),
    (
        lambda d: d.named("Service")["penstock-store"]["spec"]["ports"][0].update(targetPort="rdis"),
        "'rdis' is none",
    ),
    (lambda d: container(d, "Deployment")["livenessProbe"]["httpGet"].update(port="web"), "port 'web' is none"),
    (
        lambda d: d.of("RayJob")[0]["spec"].update(entrypoint="penstock trian /etc/penstock/run.yaml"),
        "`penstock trian /etc/penstock/run.yaml` is no command; there are train",
    ),
    (
        lambda d: d.of("RayJob")[0]["spec"].update(entrypoint="penstock train /etc/penstock/run.yaml --twice"),
        "No such option: --twice",
    ),
    (lambda d: run_file(d, rolout={}), "rolout: there is no such key"),
    (lambda d: run_file(d, store={"url": "redis://redis:6379/0"}), "is no Service of these"),
    (
        lambda d: run_file(d, store={"url": "redis://penstock-store:6379/0", "password_env": "REDIS_PASSWORD"}),
        "does not have REDIS_PASSWORD (store.password_env)",
    ),
    (
        lambda d: run_file(d, store={"url": "redis://penstock-store:6379/0", "max_bytes": 6 * 2**30}),
        "is below the run's store.max_bytes",
    ),
    (lambda d: container(d, "StatefulSet")["resources"]["limits"].update(memory="6Gi"), "leaves no room for a rewrite"),
    (
        lambda d: group(d, "rollout").update(maxReplicas=2),
        "8 rollout actors do not fit the group",
    ),
    (lambda d: group(d, "rollout").pop("resources"), "which fits no group"),
    (lambda d: placement(d, scorer={"cpus": 2}), "one scorer actor asks for {'CPU': 2.0}, which fits ['learner', "),
    (lambda d: placement(d, grows=None), "groups grow, and placement.grows is not said"),
    (lambda d: d.cluster.update(rayVersion="2.9.0"), "rayVersion is 2.9.0, pyproject.toml pins ray"),
    (
        lambda d: d.cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][1].update(containerPort=9),
        "port dashboard is 9; Ray's is 8265",
    ),
    (
        lambda d: container(d, "Deployment").update(command=["penstock", "dashboard", "--port", "8401"]),
        "listens on 8401, its ports are",
    ),
]


@pytest.mark.parametrize(("broken", "said"), BREAKS, ids=[said[:50] for _, said in BREAKS])
def test_what_is_broken_is_told(job: Deployment, broken: Callable[[Deployment], Any], said: str) -> None:
    broken(job)
    job.__dict__.pop("pods", None)
    problems = [problem for rule in (*RULES, *AGREEMENTS) for problem in rule(job)]
    assert any(said in problem for problem in problems), problems


def test_commands_are_found_in_shell_between_operators_and_behind_loops() -> None:
    line = (
        "until penstock status --json > /dev/null 2>&1; do sleep 5; done && penstock train run.yaml 'a.b={c: 1}' | cat"
    )
    assert penstock_commands(line) == [["status", "--json"], ["train", "run.yaml", "a.b={c: 1}"]]
    assert penstock_commands("echo a penstock") == [[]]


# --- schemas --------------------------------------------------------------------------------------

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "spec": {
        "group": "plants.example",
        "names": {"kind": "Tree"},
        "versions": [
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "required": ["height"],
                                "properties": {
                                    "height": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}]},
                                    "default": {"type": "string"},
                                    "wild": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "tags": {"type": "object", "additionalProperties": {"type": "string"}},
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def trees(tmp_path: Path, kubernetes: Schemas) -> Schemas:
    (tmp_path / "trees.yaml").write_text(yaml.safe_dump(CRD))
    return Schemas([tmp_path])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"height": "3m", "default": "oak", "wild": {"x": 1}, "tags": {"a": "b"}}, ""),
        ({"height": 3}, ""),
        ({"height": 3.5}, "is not of type"),
        ({}, "'height' is a required property"),
        ({"height": 3, "hight": 4}, "'hight' was unexpected"),
        ({"height": 3, "tags": {"a": 1}}, "1 is not of type 'string'"),
    ],
)
def test_a_resource_is_held_against_the_definition_of_its_kind(trees: Schemas, spec: dict[str, Any], said: str) -> None:
    tree = {"apiVersion": "plants.example/v1", "kind": "Tree", "metadata": {"name": "oak"}, "spec": spec}
    problems = list(trees.problems(tree))
    assert any(said in problem for problem in problems) if said else problems == []


def test_definitions_are_found_in_a_whole_repository(tmp_path: Path, trees: Schemas) -> None:
    """As operators' repositories are: a plain `=` among a field's values, charts whose templates are no YAML."""
    (tmp_path / "trees.yaml").write_text(yaml.safe_dump(CRD) + "---\nkind: Matchers\nenum:\n- =\n- =~\n")
    (tmp_path / "chart.yaml").write_text("{{- if .Values.crd }}\nkind: CustomResourceDefinition\n{{- end }}\n")
    (tmp_path / "values.yaml").write_text("{{ nothing of ours")
    assert Schemas([tmp_path]).kinds == trees.kinds == [("plants.example/v1", "Tree")]


def test_definitions_are_read_as_the_kubernetes_repository_has_them(tmp_path: Path) -> None:
    parts = {"type": "object", "properties": {"count": {"type": "integer", "format": "int32"}}}
    whole = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"$ref": "#/definitions/io.example.Spec"},
        },
        "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Thing"}],
    }
    (tmp_path / "swagger.json").write_text(
        json.dumps({"definitions": {"io.example.Spec": parts, "io.example.Thing": whole}})
    )
    schemas = Schemas([tmp_path])
    thing = {"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"count": 1}}
    assert schemas.kinds == [("v1", "Thing")]
    assert list(schemas.problems(thing)) == []
    assert "'cuont' was unexpected" in "".join(schemas.problems({**thing, "spec": {"cuont": 1}}))


def test_a_field_that_kubernetes_would_drop_without_a_word_is_a_problem(job: Deployment, kubernetes: Schemas) -> None:
    (store,) = job.of("StatefulSet")
    broken = copy.deepcopy(store)
    broken["spec"]["template"]["spec"]["containers"][0]["resorces"] = {}
    assert list(kubernetes.problems(store)) == []
    assert "'resorces' was unexpected" in "".join(kubernetes.problems(broken))


# --- the command ----------------------------------------------------------------------------------


def test_with_schemas_a_kind_without_one_is_a_problem(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "trees.yaml").write_text(yaml.safe_dump(CRD))
    monkeypatch.setattr(command.sys, "argv", ["manifests", "--schemas", str(tmp_path), str(overlays()[-1])])
    assert command.main() == 1
    said = capsys.readouterr().out
    assert "job: no schema for ray.io/v1 RayJob under" in said
    assert "[manifests] job: 18 objects, 1 problems" in said


def test_a_folder_of_schemas_that_is_not_there_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr(command.sys, "argv", ["manifests", "--schemas", "/nowhere/schemas"])
    assert command.main() == 2
    assert "no such folder: /nowhere/schemas" in capsys.readouterr().err


def test_a_damaged_file_of_schemas_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "trees.yaml").write_text("kind: CustomResourceDefinition\nspec: [\n")
    monkeypatch.setattr(command.sys, "argv", ["manifests", "--schemas", str(tmp_path)])
    assert command.main() == 2
    assert f"[manifests] {tmp_path}/trees.yaml is no YAML: " in capsys.readouterr().err


# --- small parts ----------------------------------------------------------------------------------


def test_sizes_are_read_as_kubernetes_and_redis_write_them() -> None:
    assert [bytes_of(size) for size in ("8Gi", "512Mi", "5gb", "1.5Gi", 1024)] == [
        8 * 2**30,
        512 * 2**20,
        5 * 2**30,
        1.5 * 2**30,
        1024,
    ]


def test_a_selector_with_expressions_picks_what_all_of_them_pick() -> None:
    selector = {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["x", "y"]}]}
    assert matches(selector, {"a": "1", "b": "y"})
    assert not matches(selector, {"a": "1", "b": "z"})
    assert not matches(selector, {"b": "y"})
    with pytest.raises(ValueError, match="NotIn is not understood"):
        matches({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": []}]}, {})


def test_named_ports_are_those_of_all_containers() -> None:
    spec = {
        "containers": [{"ports": [{"name": "a", "containerPort": 1}]}, {"ports": [{"name": "b", "containerPort": 2}]}]
    }
    assert Pod("p", {}, spec, "service").ports() == {"a": 1, "b": 2}
