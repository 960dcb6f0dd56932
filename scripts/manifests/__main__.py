"""Check deploy/kubernetes.

    python -m scripts.manifests [--schemas DIR …] [OVERLAY …]

Renders the overlays (all of them, or the folders that are named) with `kubectl kustomize` and looks at the objects: by
our own rules, and by the published schemas in the folders given. Without --schemas only Kubernetes' own kinds are held
against schemas, where the package kubernetes-validate brings them.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from scripts.manifests.agreements import AGREEMENTS
from scripts.manifests.render import RenderError, overlays, render
from scripts.manifests.rules import RULES, Deployment
from scripts.manifests.schemas import SchemaError, Schemas

BROUGHT = ("v1.33.0-local-strict", "v1.37.0-local-strict")
"""The oldest Kubernetes that the manifests are held against, and the newest."""


def brought_along() -> list[Path]:
    """Schemas of Kubernetes that come with a package."""
    found = importlib.util.find_spec("kubernetes_validate")
    if found is None or found.origin is None:
        return []
    return [Path(found.origin).parent / "kubernetes-json-schema" / version for version in BROUGHT]


def check(folder: Path, collections: list[Schemas]) -> tuple[int, list[str], set[str]]:
    """How many objects an overlay has, what is amiss, and the kinds that no schema was there for."""
    deployment = Deployment(render(folder))
    problems = [problem for rule in (*RULES, *AGREEMENTS) for problem in rule(deployment)]
    for schemas in collections:
        for found in deployment.objects:
            if (found["apiVersion"], found["kind"]) in schemas:
                problems += [p for p in schemas.problems(found) if p not in problems]
    kinds = {(found["apiVersion"], found["kind"]) for found in deployment.objects}
    unknown = {" ".join(kind) for kind in kinds if not any(kind in schemas for schemas in collections)}
    return len(deployment.objects), problems, unknown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=Path, action="append", default=[], metavar="DIR", help="may be repeated")
    parser.add_argument("overlays", nargs="*", type=Path, metavar="OVERLAY")
    args = parser.parse_args()
    missing = [str(folder) for folder in (*args.schemas, *args.overlays) if not folder.is_dir()]
    if missing:
        print(f"[manifests] no such folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    wrong = 0
    collections = [Schemas([path]) for path in brought_along()]
    try:
        collections += [Schemas([*brought_along()[-1:], *args.schemas])] if args.schemas else []
    except SchemaError as error:
        print(f"[manifests] {error}", file=sys.stderr)
        return 2
    for folder in args.overlays or overlays():
        try:
            count, problems, unknown = check(folder, collections)
        except RenderError as error:
            print(f"[manifests] {error}", file=sys.stderr)
            return 2
        if args.schemas:  # who gives schemas wants every object held against one
            problems += [f"no schema for {kind} under {', '.join(map(str, args.schemas))}" for kind in sorted(unknown)]
        for problem in problems:
            print(f"{folder.name}: {problem}")
        held = f"; no schema for {', '.join(sorted(unknown))}" if unknown else "; every object held against a schema"
        print(f"[manifests] {folder.name}: {count} objects, {len(problems)} problems{held}")
        wrong += len(problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
