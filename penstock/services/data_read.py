"""Open datasets: local JSONL, Parquet and `save_to_disk` folders, or the hub; and say where a row is.

Local files are never looked up on the network. `datasets` keeps its Arrow copies in the cache folder.
"""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.services.contracts import PenstockError
from penstock.services.data_config import DataSection, SourceSection
from penstock.services.files import unreachable
from penstock.services.model_config import could_be_hub_id

if TYPE_CHECKING:
    import datasets

CACHE = Path("~/.cache/penstock/data")
_SAVED = ("state.json", "dataset_dict.json")  # one of them lies in what save_to_disk wrote
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class DataError(PenstockError):
    """Data that is not there or not what the run file says; names source, file, row, key and what is allowed."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def layout(name: str, source: SourceSection) -> tuple[str, tuple[Path, ...]]:
    """What the source is (jsonl, parquet, disk, hub) and its local files in order. Raises DataError."""
    path = Path(source.path).expanduser()
    try:
        return _layout(name, source, path)
    except OSError as error:
        raise DataError(f"source {name!r}: {source.path!r} cannot be read: {error.strerror}") from error


def _layout(name: str, source: SourceSection, path: Path) -> tuple[str, tuple[Path, ...]]:
    if source.format == "hub":
        return "hub", ()
    if why := unreachable(path):
        raise DataError(f"source {name!r}: {why}")
    if not path.exists():
        if source.format == "auto" and could_be_hub_id(source.path):
            return "hub", ()
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"source {name!r}: there is no {source.path!r}{nearest(path.name, beside)}")
    if source.format in {"auto", "disk"} and any((path / name).is_file() for name in _SAVED):
        return "disk", (path,)
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
    wanted = source.format if source.format != "auto" else _SUFFIXES.get(files[0].suffix) if files else None
    files = [p for p in files if source.format == wanted or _SUFFIXES.get(p.suffix) == wanted]
    if wanted not in {"jsonl", "parquet"} or not files:
        raise DataError(
            f"source {name!r}: {source.path!r} holds no data that can be read; allowed are files ending in "
            f"{', '.join(_SUFFIXES)}, folders of them, and folders written by save_to_disk"
        )
    return wanted, tuple(files)


def open_table(name: str, source: SourceSection, cache: Path | None = None) -> datasets.Dataset:
    """The rows of one source, memory-mapped; not tokenised. Raises DataError."""
    kind, files = layout(name, source)
    import datasets

    folder = str((cache or CACHE).expanduser() / "arrow")
    datasets.disable_progress_bars()
    datasets.logging.get_logger("datasets.packaged_modules").setLevel("CRITICAL")  # it is told below, with the line
    paths = [str(f) for f in files]
    try:
        if kind == "hub":
            table = datasets.load_dataset(
                source.path, source.subset, split=source.split, revision=source.revision, cache_dir=folder
            )
        elif kind == "disk":
            table = datasets.load_from_disk(paths[0])
        elif kind == "jsonl":
            columns_of(name, source)  # `datasets` would read a first line that is no object as something else
            table = datasets.Dataset.from_json(paths, cache_dir=folder)
        else:
            table = datasets.Dataset.from_parquet(paths, cache_dir=folder)
    except DataError:
        raise
    except Exception as error:
        cause = _bad_line(files) if kind == "jsonl" else None
        why = error.__cause__ or error
        cause = cause or f"cannot read {source.path!r}: {type(why).__name__}: {str(why).strip()[:300]}"
        raise DataError(f"source {name!r}: {cause}") from error
    if isinstance(table, dict):
        if source.split not in table:
            have = ", ".join(table)
            raise DataError(
                f"source {name!r}: {source.path!r} has no split {source.split!r}; it has {have}"
                f"{nearest(source.split, table)}"
            )
        table = table[source.split]
    mixed = [key for key, feature in table.features.items() if "Json(" in repr(feature)]
    if kind == "jsonl" and mixed:  # `datasets` would turn a string "007" in such a column into the number 7
        cause = _bad_line(files) or f"{source.path!r}: values within {mixed[0]!r} are of several types; use one type"
        raise DataError(f"source {name!r}: {cause}")
    if len(table) == 0:
        raise DataError(f"source {name!r}: {source.path!r} has no rows")
    return table.select(range(min(source.limit, len(table)))) if source.limit else table


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL file that hold something, with their numbers from 1."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line


def _row(file: Path, number: int, line: str) -> Any:
    """What the line holds. Raises DataError."""
    try:
        return json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"{file} line {number} is not JSON: {error.msg}, column {error.colno}"
        if file.read_bytes()[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{file} is UTF-16; save it as UTF-8") from error
        cut = "" if line.endswith("\n") else "; the file ends in the middle of the line"
        raise DataError(f"{where}{cut}") from error
    except ValueError as error:
        raise DataError(f"{file} line {number}: {error}") from error
    except RecursionError as error:
        raise DataError(f"{file} line {number}: lists or objects in it are nested too deeply to be read") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r} stands twice; keep one of them")
    return found


def not_text(name: str, source: SourceSection, error: Exception) -> DataError:
    """The first line of a source that is no UTF-8."""
    kind, files = layout(name, source)
    for file in files if kind == "jsonl" else ():
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as found:
                    what = f"{file} line {number}: byte {line[found.start]:#04x} is no UTF-8; save the file as UTF-8"
                    return DataError(f"source {name!r}: {what}")
    return DataError(f"source {name!r}: {source.path!r} holds text that is no UTF-8: {error}")


def _bad_line(files: tuple[Path, ...]) -> str | None:
    """What is wrong in JSONL: no line, a line that is no object, or a key whose values are of several types."""
    types: dict[str, tuple[str, int]] = {}
    if not any(True for file in files for _ in _lines(file)):
        return f"{files[0]} has no rows"
    for file in files:
        for number, line in _lines(file):
            try:
                row = _row(file, number, line)
            except DataError as error:
                return str(error)
            if not isinstance(row, dict):
                return f"{file} line {number}: expected a JSON object, found {type(row).__name__}"
            for key, value in row.items():
                kind = _kind(value)
                known, line_of = types.setdefault(key, (kind, number)) if kind else ("", 0)
                if known != kind:
                    return f"{file} line {number}: {key!r} is {kind}, but {known} in line {line_of}; use one type"
    return None


def _kind(value: Any) -> str:
    """The type of a JSON value in words; empty for null, which fits every type."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return {str: "a string", bool: "a boolean", list: "a list", dict: "an object"}[type(value)]


def place(source: SourceSection, row: int) -> tuple[str, dict[str, Any]]:
    """Where row `row` (from 0) of a source lies, for error texts, and the raw row where that is known."""
    kind, files = layout("", source)
    if kind == "jsonl":
        left = row
        for file in files:
            for number, line in _lines(file):
                if left == 0:
                    return f"{file} line {number} (row {row})", json.loads(line)
                left -= 1
    return f"{source.path} row {row}", {}


def columns_of(name: str, source: SourceSection) -> list[str] | None:
    """Column names read cheaply from local files; None for the hub. Raises DataError."""
    kind, files = layout(name, source)
    if kind == "jsonl":
        try:
            number, line = next(_lines(files[0]), (0, ""))
            row = _row(files[0], number, line) if line else {}
        except DataError as error:
            raise DataError(f"source {name!r}: {error}") from error
        except OSError as error:
            raise DataError(f"source {name!r}: {files[0]} cannot be read: {error.strerror}") from error
        if not isinstance(row, dict) or not row:
            cause = _bad_line(files) or f"{files[0]} line {number} has no keys"
            raise DataError(f"source {name!r}: {cause}")
        return list(row)
    if kind == "parquet":
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_schema(files[0]).names)
        except (OSError, ValueError) as error:
            raise DataError(f"source {name!r}: {files[0]} is no Parquet file: {error}") from error
    if kind == "disk":
        folder = files[0] if (files[0] / "state.json").is_file() else files[0] / source.split
        info = folder / "dataset_info.json"
        return list(json.loads(info.read_text())["features"]) if info.is_file() else None
    return None


def needed_columns(source: SourceSection, responses: bool) -> dict[str, str]:
    """Column by the key that names it, for prompts or for pairs of prompt and response."""
    columns = source.columns
    wanted = {"messages": columns.messages} if columns.messages else {"prompt": columns.prompt}
    if responses and not columns.messages and columns.response:
        wanted["response"] = columns.response
    if columns.system:
        wanted["system"] = columns.system
    found = {f"columns.{key}": column for key, column in wanted.items() if column is not None}
    return found | {f"keep.{i}": column for i, column in enumerate(source.keep or ())}


def check_columns(name: str, source: SourceSection, present: Iterable[str], responses: bool) -> list[tuple[str, str]]:
    """(key, what is wrong and the nearest right name) for every column that the source lacks."""
    have = list(present)
    listed = ", ".join(have)
    found = [
        (key, f"source {name!r}: {source.path!r} has no column {column!r}; it has {listed}{nearest(column, have)}")
        for key, column in needed_columns(source, responses).items()
        if column not in have
    ]
    if responses and not source.columns.messages and source.columns.response is None:
        key = "columns.response"
        found.append((key, f"source {name!r}: fine-tuning needs the column of the answers; it has {listed}"))
    return found


def problems(section: DataSection, responses: bool = False) -> list[tuple[str, str]]:
    """What can be known to be wrong without network or tokenizer: (key within the section, what and remedy).

    `responses` asks for pairs of prompt and response, as fine-tuning does.
    """
    found: list[tuple[str, str]] = []
    for name, source in section.sources.items():
        try:
            present = columns_of(name, source)
        except DataError as error:
            found.append((f"sources.{name}.path", str(error)))
            continue
        if present is not None:
            missing = check_columns(name, source, present, responses)
            found += [(f"sources.{name}.{key}", text) for key, text in missing]
    return found
