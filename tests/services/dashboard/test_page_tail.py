"""A growing file, read from where it stopped the last time."""

from __future__ import annotations

from pathlib import Path

from penstock.services.dashboard.tail import Tail


def test_only_whole_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b"one\ntwo\nthr")
    assert tail.read() == [b"one\n", b"two\n"]
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert tail.read() == [b"three\n"]
    assert tail.behind == 0


def test_a_large_file_is_read_in_parts_of_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = [f"line {number}\n".encode() for number in range(1000)]
    path.write_bytes(b"".join(lines))
    tail, found = Tail(path), []
    while part := tail.read(most=100):
        assert sum(map(len, part)) <= 100 + len(lines[-1])
        found += part
    assert found == lines


def test_a_file_that_was_replaced_or_cut_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    path.write_bytes(b"a\nb\n")
    tail.read()
    path.write_bytes(b"c\n")
    assert tail.read() == [b"c\n"]
    path.rename(tmp_path / "before")
    path.write_bytes(b"d\ne\nf\n")
    assert tail.read() == [b"d\n", b"e\n", b"f\n"]
