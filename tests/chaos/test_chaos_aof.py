from __future__ import annotations

import itertools
import threading
import time

import pytest
import redis

from chaos.aof import AofError, AofReader, parse
from penstock.services.store.server import PrivateServer


def written(*commands: str) -> bytes:
    """As the server writes them."""
    lines = b""
    for command in commands:
        words = command.encode().split()
        lines += b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    return lines


def test_a_script_is_one_transaction_and_a_plain_write_another():
    found, taken = parse(data := written("SELECT 0", "MULTI", "ZADD a 1 7", "HSET b c d", "EXEC", "DEL e"))
    assert found == [
        ((b"SELECT", b"0"),),
        ((b"ZADD", b"a", b"1", b"7"), (b"HSET", b"b", b"c", b"d")),
        ((b"DEL", b"e"),),
    ]
    assert taken == len(data)


def test_what_is_cut_off_at_any_byte_is_read_when_the_rest_has_come():
    data = written("SELECT 0", "MULTI", "SET a 1", "SET b 2", "EXEC", "SET c 3")
    whole, _ = parse(data)
    for cut in range(len(data)):
        first, taken = parse(data[:cut])
        rest, _ = parse(data[taken:])
        assert first + rest == whole


def test_payloads_may_hold_line_ends():
    payload = b"\r\n*2\r\n$"
    data = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s\r\n" % (len(payload), payload)
    assert parse(data) == ([((b"SET", b"a", payload),)], len(data))


def test_the_reader_goes_on_where_it_was(tmp_path):
    reader = AofReader(tmp_path)
    assert list(reader.new()) == []
    file = tmp_path / "appendonly.aof"
    file.write_bytes(written("SET a 1")[:-3])
    assert list(reader.new()) == []
    file.write_bytes(written("SET a 1", "SET b 2"))
    assert [transaction[0][1] for transaction in reader.new()] == [b"a", b"b"]
    assert list(reader.new()) == []


def test_a_file_that_lost_what_was_read_is_no_file_to_trust(tmp_path):
    file = tmp_path / "appendonly.aof"
    file.write_bytes(written("SET a 1", "SET b 2"))
    reader = AofReader(tmp_path)
    list(reader.new())
    file.write_bytes(written("SET a 1"))
    with pytest.raises(AofError, match="writes were lost"):
        list(reader.new())


def test_a_file_that_holds_nothing_of_what_was_read_is_told_of(tmp_path):
    file = tmp_path / "appendonly.aof"
    file.write_bytes(written("SET a 1"))
    reader = AofReader(tmp_path)
    list(reader.new())
    fresh = tmp_path / "temp"
    fresh.write_bytes(written("SET c 1", "SET b 2"))
    fresh.replace(file)
    with pytest.raises(AofError, match="compacted"):
        list(reader.new())


def test_nothing_is_missed_and_nothing_read_twice_when_the_server_compacts_its_file(tmp_path):
    """A real server; the numbers are written by another thread all the while."""
    with PrivateServer(tmp_path / "store", tmp_path / "redis.log") as server:
        address = server.address("run")
        client = redis.Redis.from_url(address.url, password=address.password, protocol=2)
        reader, seen, over = AofReader(tmp_path / "store"), [], threading.Event()

        def write() -> None:
            for number in itertools.count():
                client.set("number", f"{number} {'x' * 100}")
                if over.is_set():
                    return

        writing = threading.Thread(target=write)
        writing.start()
        try:
            for _ in range(3):
                client.bgrewriteaof()
                deadline = time.monotonic() + 30
                while client.info("persistence")["aof_rewrite_in_progress"] or time.monotonic() % 1 < 0.3:
                    seen += [int(t[0][2].split()[0]) for t in reader.new() if t[0][0] == b"SET"]
                    assert time.monotonic() < deadline
        finally:
            over.set()
            writing.join()
        seen += [int(t[0][2].split()[0]) for t in reader.new() if t[0][0] == b"SET"]
        assert len(seen) > 100 and seen == list(range(len(seen)))


def test_what_is_no_command_is_told_of():
    with pytest.raises(AofError, match="REDIS0009"):
        parse(b"REDIS0009\xfa\r\n")
