"""Named values of a run: what each name means, the file they are appended to, the table they are read as."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from penstock.services.versions import Version

if TYPE_CHECKING:
    import pandas as pd

_WORD = r"[a-z0-9][a-z0-9_.\-]*"
_PART = rf"(?:{_WORD}|\{{[a-z_]+\}})"
_NAME = re.compile(rf"{_PART}(?:/{_PART})+", re.IGNORECASE)
_PLACE = re.compile(r"\{([a-z_]+)\}")


class MetricError(ValueError):
    """A metric's name or value that cannot be recorded, or two owners that claim the same name."""


@dataclass(frozen=True)
class Metric:
    """What a name stands for. A name may hold places to fill in, as in `reward/part/{name}`."""

    help: str
    unit: str = ""
    good: Literal["up", "down", "neither"] = "neither"
    """The direction in which a person wants it to move."""
    estimator: str = ""
    """How it is computed where several ways exist, for example `k3, sampled from the sampler's policy`."""


Catalogue = Mapping[str, Metric]


def check_name(name: str) -> None:
    """Raises MetricError unless `name` reads group/name, for example `kl/reference`."""
    if _NAME.fullmatch(name) is None:
        raise MetricError(f"a metric's name reads group/name in letters, digits, '_', '.', '-'; found {name!r}")
    if name.endswith("/kl") and name.count("/") == 1:  # further down it may be what a user calls a reward or a source
        raise MetricError(f"{name!r} does not say which divergence; use kl/reference, kl/update or kl/offpolicy")


def check_word(word: str, remedy: str) -> None:
    """Raises MetricError, which says the `remedy`, unless a name that a user chose can be part of a metric's name."""
    if re.fullmatch(_WORD, word, re.IGNORECASE | re.ASCII) is None:
        raise MetricError(
            f"{word!r} is to be part of metrics' names, which are made of letters, digits, '_', '.' and '-' and begin "
            f"with a letter or digit; {remedy}"
        )


def places(name: str) -> tuple[str, ...]:
    """The places to fill in, in their order: `reward/part/{name}` has `name`."""
    return tuple(_PLACE.findall(name))


def to_prometheus(name: str) -> str:
    """The name under which Prometheus knows a declared metric: `off_policy/mean` → `penstock_off_policy_mean`.

    Places to fill in become labels, and the name says so: `kl/offpolicy/{bucket}/k1` →
    `penstock_kl_offpolicy_k1_by_bucket`, which is not the metric over all buckets, `penstock_kl_offpolicy_k1`.
    """
    fixed = "/".join(part for part in name.split("/") if _PLACE.fullmatch(part) is None)
    by = "_by_" + "_".join(places(name)) if places(name) else ""
    return "penstock_" + re.sub(r"[^a-z0-9]+", "_", fixed.lower()).strip("_") + by


def merge(catalogues: Mapping[str, Catalogue]) -> dict[str, Metric]:
    """One catalogue of all owners' catalogues, by owner.

    Raises MetricError for a malformed name, a name that two owners claim, and two names that Prometheus
    could not tell apart.
    """
    merged: dict[str, Metric] = {}
    owners: dict[str, str] = {}
    exported: dict[str, str] = {}
    for owner, catalogue in catalogues.items():
        for name, metric in catalogue.items():
            check_name(name)
            if name in owners:
                raise MetricError(f"metric {name!r} is declared by {owners[name]} and by {owner}")
            twin = exported.setdefault(to_prometheus(name), name)
            if twin != name:
                raise MetricError(f"metrics {twin!r} and {name!r} have the same Prometheus name {to_prometheus(name)}")
            owners[name] = owner
            merged[name] = metric
    return merged


@dataclass(frozen=True)
class Declared:
    """Where a catalogue speaks of a name."""

    pattern: str
    """The entry; the name itself where it has no places to fill in."""
    metric: Metric
    filled: Mapping[str, str]
    """What the name has in the entry's places."""


def find(name: str, catalogue: Catalogue) -> Declared | None:
    """The entry for `name`, also one with places to fill in; None when nobody declared it."""
    if name in catalogue:
        return Declared(name, catalogue[name], {})
    for pattern, metric in catalogue.items():
        if "{" in pattern:
            parts = _PLACE.split(pattern)  # fixed, place, fixed, place, …
            parts[::2], parts[1::2] = map(re.escape, parts[::2]), [f"(?P<{place}>[^/]+)" for place in parts[1::2]]
            expression = "".join(parts)
            if filled := re.fullmatch(expression, name):
                return Declared(pattern, metric, filled.groupdict())
    return None


def describe(name: str, catalogue: Catalogue) -> Metric | None:
    """What `name` means, also by an entry with places to fill in; None when nobody declared it."""
    found = find(name, catalogue)
    return found.metric if found else None


# --- the file -------------------------------------------------------------------------------------

_KEYS = ("lineage", "step", "time")


def _plain(value: float) -> float | int | str:
    """JSON has no not-a-number and no infinity; they are written as text, which `float` reads back."""
    return value if math.isfinite(value) else str(float(value))


class MetricsLog:
    """Appends one whole line per step to `metrics.jsonl`; what was written before a crash stays readable.

    A line that a crash cut short is removed when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("a+b")
        self._file.seek(0)
        text = self._file.read()
        self._file.truncate(text.rfind(b"\n") + 1)
        self._file.seek(0, 2)

    def begin(self, version: Version, at: float) -> None:
        """A learner attached at `version`: whatever older lineages wrote beyond this step is a lost future."""
        self.write(version, {}, at)

    def write(self, version: Version, values: Mapping[str, float], at: float) -> None:
        """Append the values of the step that ended in `version`, at unix time `at`.

        A second line for the same version adds to the first (an evaluation that ended later).
        """
        for name in values:
            check_name(name)
        line = {"lineage": version.lineage, "step": version.step, "time": round(at, 3)}
        body = json.dumps(line | {name: _plain(value) for name, value in values.items()}, allow_nan=False)
        self._file.write(body.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # being written at this moment, or cut short by a crash
            try:
                yield json.loads(line)
            except ValueError as error:
                raise MetricError(f"{path}:{number}: not a line of metrics: {error}") from error


def _kept(lines: Iterable[dict[str, Any]], lost_future: bool) -> list[dict[str, Any]]:
    """Lines in the order of their steps, those of one step joined, without the lost future unless wanted."""
    rows = list(lines)
    begins: dict[int, int] = {}
    for row in rows:
        begins[row["lineage"]] = min(row["step"], begins.get(row["lineage"], row["step"]))
    joined: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in rows:
        lost = any(lineage > row["lineage"] and row["step"] > step for lineage, step in begins.items())
        if lost and not lost_future:
            continue
        # A lineage begins with the very weights of the version it forked from: the same row of the table.
        key = (row["step"], row["lineage"]) if lost_future else (row["step"],)
        joined[key] = joined.get(key, {}) | row
    return [joined[key] for key in sorted(joined)]


def read_rows(path: Path, lost_future: bool = False) -> list[dict[str, float]]:
    """One dict per step: lineage, step, time and the values recorded. Raises MetricError for a damaged line."""
    return [{k: v if k in _KEYS else float(v) for k, v in row.items()} for row in _kept(_lines(path), lost_future)]


def read_table(path: Path, lost_future: bool = False) -> pd.DataFrame:
    """`metrics.jsonl` as a pandas table: one row per step, NaN where a metric was not recorded.

    Of a run that fell back to an older checkpoint only the line of steps that led to the end is kept;
    `lost_future=True` keeps the abandoned rows too. Raises MetricError for a damaged line.
    """
    import pandas as pd

    rows = read_rows(path, lost_future)
    names = sorted({name for row in rows for name in row} - set(_KEYS))
    return pd.DataFrame(rows, columns=[*_KEYS, *names])
