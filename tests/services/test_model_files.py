"""Headers of safetensors files: counted by hand, and every way in which a file can be damaged is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from penstock.services import weight_files
from penstock.services.model_config import ModelError

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()


def test_parameters_are_counted_over_all_files(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.float16)}, tmp_path / "one.safetensors")
    save_file({"c": np.zeros((), np.float32)}, tmp_path / "two.safetensors", metadata={"format": "pt"})
    assert weight_files.count(tmp_path) == 2 * 3 + 5 + 1
    assert weight_files.problem(tmp_path) == ""


def test_a_folder_without_weights_has_no_count(tmp_path: Path) -> None:
    assert weight_files.count(tmp_path) is None
    assert "has no weights" in weight_files.problem(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert "pytorch_model.bin is a pickle, which could run code" in weight_files.problem(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no safetensors file (0 bytes)"),
        (b"\x08\x00", "is no safetensors file (2 bytes)"),
        (b"\xff" * 64, "is no safetensors file (64 bytes)"),
        (struct.pack("<Q", 1000) + b'{"w":', "has a damaged header (13 bytes)"),
        (struct.pack("<Q", 2) + b"[]", "has a damaged header (10 bytes)"),
        (struct.pack("<Q", 7) + b'{"w":3}', "has a damaged header (15 bytes)"),
        (struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 23, f"is cut short: {31 + len(HEADER)} of "),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch them with: git lfs pull"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        weight_files.count(tmp_path)
    assert said in str(caught.value) and "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("index", [b"{oops", b"[]", b'{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "one.safetensors").write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 24)
    (tmp_path / weight_files.INDEX).write_bytes(index)
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        weight_files.problem(tmp_path)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 24)
    parts = {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    (tmp_path / weight_files.INDEX).write_text(json.dumps({"weight_map": parts}))
    assert "names three.safetensors and 1 more, which is missing" in weight_files.problem(tmp_path)
