"""Objects against the schemas that Kubernetes, KubeRay and the Prometheus operator publish, which are given as files.

Two kinds of file are understood, wherever they lie below a folder:

- definitions of Kubernetes' own kinds: `api/openapi-spec/swagger.json` of the Kubernetes repository, or the
  `_definitions.json` of collections that are made from it;
- CustomResourceDefinitions in YAML, as operators are installed with.

A field that a schema does not know is a mistake, although the API server would drop it without a word. What schemas say
in CEL (`x-kubernetes-validations`) is not evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from scripts.manifests.render import Object, title

Kind = tuple[str, str]
"""apiVersion and kind."""
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_LEFT_OUT = ("description", "default", "properties")
_SCALARS = {"int-or-string": ["string", "integer"], "quantity": ["string", "number"]}
_DEFINITION = "CustomResourceDefinition"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads a plain `=` as text, as Kubernetes does; YAML 1.1 has a type of its own for it, which nobody constructs."""


_Loader.add_constructor("tag:yaml.org,2002:value", _Loader.construct_yaml_str)


class SchemaError(Exception):
    """A file that should hold schemas and cannot be read; the text says which and why."""


class Schemas:
    """The schemas below some folders, by the kind of object they are for. Raises SchemaError for a damaged file."""

    def __init__(self, folders: list[Path]) -> None:
        self._definitions: dict[str, Any] = {}
        self._kinds: dict[Kind, Any] = {}
        for path in [path for folder in folders for path in sorted(folder.rglob("*"))]:
            if path.name in ("swagger.json", "_definitions.json"):
                self._read_definitions(path)
            elif path.suffix in (".yaml", ".yml"):
                self._read_resources(path)

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._kinds

    @property
    def kinds(self) -> list[Kind]:
        """What there are schemas for."""
        return sorted(self._kinds)

    def _read_definitions(self, path: Path) -> None:
        read = json.loads(path.read_text())
        found = read.get("definitions") or read.get("$defs") or {}
        self._definitions |= {name: _closed(schema) for name, schema in found.items()}
        for name, schema in found.items():
            for kind in schema.get("x-kubernetes-group-version-kind", ()):
                version = f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]
                self._kinds[version, kind["kind"]] = {"$ref": f"#/definitions/{name}"}

    def _read_resources(self, path: Path) -> None:
        text = path.read_text()
        # Beside definitions a repository has charts, whose templates are no YAML.
        if re.search(rf"^kind: *{_DEFINITION} *$", text, re.MULTILINE) is None:
            return
        try:
            documents = list(yaml.load_all(text, _Loader))
        except yaml.YAMLError as error:
            if "{{" in text:  # a template that makes definitions
                return
            raise SchemaError(f"{path} is no YAML: {error}") from error
        for found in documents:
            if not isinstance(found, dict) or found.get("kind") != _DEFINITION:
                continue
            group, kind = found["spec"]["group"], found["spec"]["names"]["kind"]
            for version in found["spec"]["versions"]:
                schema = _closed(version["schema"]["openAPIV3Schema"])
                # The API server knows the metadata of every kind; definitions of resources leave them open.
                schema["properties"]["metadata"] = {"$ref": f"#/definitions/{_OBJECT_META}"}
                self._kinds[f"{group}/{version['name']}", kind] = schema

    def problems(self, found: Object) -> Iterator[str]:
        """What is wrong with one object, which must be of a known kind."""
        schema = self._kinds[found["apiVersion"], found["kind"]]
        root = {**schema, "definitions": {_OBJECT_META: {}, **self._definitions}}
        for error in jsonschema.Draft7Validator(root).iter_errors(found):
            where = ".".join(str(part) for part in error.absolute_path) or "the object"
            yield f"{title(found)}: {where}: {error.message[:300]}"


def _closed(schema: Any) -> Any:
    """The same schema in plain JSON Schema, and closed: objects have the properties that are named and no others."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": f"#/definitions/{schema['$ref'].rsplit('/', 1)[1]}"}
    closed = {name: _closed(part) for name, part in schema.items() if name not in _LEFT_OUT}
    if isinstance(schema.get("properties"), dict):  # not a property that is called so
        closed["properties"] = {name: _closed(part) for name, part in schema["properties"].items()}
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
        if not open_ended and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") in _SCALARS:
        closed["type"] = _SCALARS.get(schema.get("format", ""), ["string", "integer"])
        closed.pop("anyOf", None)
    elif schema.get("nullable") and isinstance(schema.get("type"), str):
        closed["type"] = [schema["type"], "null"]
    return closed
