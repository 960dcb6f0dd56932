"""What processes took at most, against the kernel's own word."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from penstock.deploy.memory import beside_actors, peak_bytes, resident


def test_the_peak_stays_when_the_memory_is_given_back():
    before = peak_bytes()
    taken = bytearray(before + 64 * 2**20 - resident_now())
    taken[::4096] = b"1" * len(taken[::4096])
    del taken
    assert peak_bytes() >= before + 32 * 2**20
    assert peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert resident()["process/rss"] < resident()["process/peak_rss"] == peak_bytes()
    assert peak_bytes(2**22 + 1) == 0  # no such process


def resident_now() -> int:
    return int(resident()["process/rss"])


def test_processes_of_the_run_are_told_apart_and_actors_left_out():
    code = "import sys; print(flush=True); sys.stdin.read()"
    several = {
        kind: subprocess.Popen([sys.executable, "-c", code, kind], stdin=-1, stdout=-1)
        for kind in ("redis-server", "penstock.deploy.page", "penstock.reward.child", "raylet", "an actor")
    }
    try:
        for process in several.values():
            assert process.stdout is not None
            process.stdout.readline()
        found = beside_actors("no-such-run", {several["an actor"].pid})
        assert found.keys() == {"driver", "redis", "page", "rules", "ray"}
        assert found["driver"] == peak_bytes(os.getpid())
        assert all(2**20 < size < 2**30 for name, size in found.items() if name != "driver")
    finally:
        for process in several.values():
            process.kill()
            process.communicate()
