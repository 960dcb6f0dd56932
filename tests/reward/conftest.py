"""A folder with reward functions, as a user has it beside the run file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

FUNCTIONS = '''
import asyncio, ctypes, os, re, subprocess, sys, threading, time

def same(prompts, completions, answer, **kwargs):
    """As written for TRL."""
    return [1.0 if c == a else 0.0 for c, a in zip(completions, answer)]

def same_chat(prompts, completions, answer, **kwargs):
    """As written for TRL's conversational data."""
    assert prompts[0][-1]["role"] == "user"
    return [1.0 if c[0]["content"] == a else 0.0 for c, a in zip(completions, answer)]

def no_kwargs(completions, completion_ids):
    return [len(ids) for ids in completion_ids]

async def later(completions, **kwargs):
    await asyncio.sleep(0.01)
    return [0.25] * len(completions)

def seen(prompts, completions, **kwargs):
    print(sorted(kwargs), prompts)
    return [float(len(kwargs["tags"]))] * len(completions)

def spoil(completions, tags, **kwargs):
    tags[0].append("x")
    return [len(t) for t in tags]

def abstain(completions, **kwargs): return [None] * len(completions)
def mixed(completions, **kwargs): return [1.0, None, float("nan"), float("inf"), "2", True, ValueError("odd")]
def short(completions, **kwargs): return [1.0]
def nothing(completions, **kwargs): return None
def boom(completions, **kwargs): raise ValueError("no such planet")
def leave(completions, **kwargs): sys.exit(3)
def sleep(completions, **kwargs): time.sleep(60)
def backtrack(completions, **kwargs): re.match(r"(a+)+$", "a" * 40 + "b")
def die(completions, **kwargs):
    print("about to go", flush=True)
    os._exit(3)
def segfault(completions, **kwargs): ctypes.string_at(0)
def killed(completions, **kwargs): os.kill(os.getpid(), 9)
def greedy(completions, **kwargs): return [float(len(bytearray(8 << 30)))]
def noisy(completions, **kwargs):
    print("x" * 300_000)
    sys.stdout.buffer.write(b"\\0\\0\\0\\1raw")
    os.write(1, b"more")
    return [1.0] * len(completions)
def secrets(completions, **kwargs): return [float(os.environ.get("PENSTOCK_TEST_SECRET") == "s3")]
def thread(completions, **kwargs):
    threading.Thread(target=time.sleep, args=(60,)).start()
    return [1.0] * len(completions)
def grandchild(completions, **kwargs):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open("grandchild.pid", "w") as file:
        file.write(str(child.pid))
    time.sleep(60)
def wrong_name(completions, anwser): return []
def by_args(completions, scale, **kwargs): return [scale] * len(completions)
not_a_function = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.fixture
def children() -> Callable[[], set[int]]:
    """Living processes that the test has started; others of this process may have started before it."""

    def living() -> set[int]:
        return {p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}

    before = living()
    return lambda: living() - before
