"""How fast the page is at the end of a long run: `python -m benchmarks.page [--steps 100000]`.

A run directory of so many steps with a hundred metrics is made, the page is served and looked at in headless Chromium.
One JSON line:

    first_paint_cold   seconds from the click to the curves, the server just started and the metrics not yet read
    first_paint        the same, the metrics read
    update             server's seconds for one answer with a new step, median; by the clock of who asks
    update_idle        the same with nothing new
    whole              the same for everything, as after a change of the range of steps
    read               seconds in which the server reads the whole file
    watched            share of one core that the server takes while one page is open and there is a step a second
    bytes              of an answer with a new step, and of everything
"""

from __future__ import annotations

import http.client
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
import psutil
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from benchmarks import measuring
from benchmarks.page_run import write
from penstock.services.dashboard.app import STATIC
from penstock.services.rundir import RunDir

PAINT_LIMIT, UPDATE_LIMIT = 1.0, 0.1
UPDATES = 15
_SERVE = (sys.executable, "-c", "from penstock.cli.main import run; run()", "dashboard", "--port", "0")


def selected() -> str:
    """The metrics that the overview asks for."""
    text = (STATIC / "overview.js").read_text()
    listed = re.search(r"export const SELECT = \[(.*?)\];", text, re.DOTALL)
    assert listed is not None
    return ",".join(re.findall(r'"([^"]+)"', listed[1]))


@contextmanager
def served(run: RunDir) -> Iterator[tuple[str, psutil.Process]]:
    """The page's address and process."""
    with subprocess.Popen([*_SERVE, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rsplit(" ", 1)[1].strip(), psutil.Process(process.pid)
        finally:
            process.terminate()


class Asker:
    """Asks as the page does, over one connection."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        self._select = selected()
        self.have: dict[str, Any] = {}

    def ask(self, **more: Any) -> tuple[float, int, dict[str, Any]]:
        """Seconds, bytes and the answer."""
        query = urlencode({"select": self._select, "buckets": 400} | self.have | more)
        began = time.perf_counter()
        self._connection.request("GET", f"/api/live?{query}")
        body = self._connection.getresponse().read()
        took = time.perf_counter() - began
        told = msgspec.json.decode(body)
        self.have = {"revision": told["metrics"]["revision"], "width": told["metrics"]["width"]}
        if told["events"]:
            self.have["events"] = told["events"][-1]["number"]
        self.have["lanes_from"] = told["lanes_end"]
        return took, len(body), told


def add_step(run: RunDir, line: dict[str, Any], step: int) -> None:
    """As the driver does."""
    with run.metrics.open("ab") as file:
        file.write(msgspec.json.encode(line | {"step": step, "time": time.time()}) + b"\n")


def until_read(asker: Asker) -> float:
    """Seconds until the whole file has been read."""
    began = time.perf_counter()
    while asker.ask()[2]["read_share"] < 1:
        time.sleep(0.05)
    return time.perf_counter() - began


def updates(run: RunDir, address: str, steps: int) -> dict[str, Any]:
    """Server's times, with and without a new step."""
    asker = Asker(address)
    line = msgspec.json.decode(_last_line(run.metrics))
    whole = [asker.ask(revision=-1)[:2] for _ in range(3)]
    asker.ask()
    idle = [asker.ask()[0] for _ in range(UPDATES)]
    fresh, sizes = [], []
    for number in range(1, UPDATES + 1):
        add_step(run, line, steps + number)
        time.sleep(0.6)  # the server looks four times a second
        took, size, told = asker.ask()
        assert told["steps"][1] == steps + number
        fresh.append(took)
        sizes.append(size)
    return {
        "update": round(statistics.median(fresh), 4),
        "update_idle": round(statistics.median(idle), 4),
        "whole": round(statistics.median(took for took, _ in whole), 3),
        "bytes": [int(statistics.median(sizes)), whole[-1][1]],
    }


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 100_000), 2)
        return file.read().splitlines()[-1]


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Headless, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.add_argument("--window-size=1440,900")
        opened = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            opened.get("about:blank")
            yield opened
        finally:
            opened.quit()


def paint(page: webdriver.Chrome, address: str) -> float:
    """Seconds from the start of the navigation until the curves are drawn."""
    page.get("about:blank")
    page.get(address)
    found = "return performance.getEntriesByName('painted')[0]?.startTime"
    while (drawn := page.execute_script(found)) is None:
        time.sleep(0.01)
    return float(drawn) / 1000


def watched(run: RunDir, process: psutil.Process, steps: int, seconds: int = 10) -> float:
    """Share of a core, while a page is open and a step a second is done."""
    line = msgspec.json.decode(_last_line(run.metrics))

    def spent() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before = spent()
    for number in range(seconds):
        add_step(run, line, steps + number)
        time.sleep(1)
    return (spent() - before) / seconds


def main() -> None:
    """Measure, and print one line."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    asked = parser.parse_args()
    line = measuring.Line("page")
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        run = write(Path(folder) / "long", asked.steps)
        size = run.metrics.stat().st_size
        with served(run) as (address, _):
            cold = paint(page, address)
        page.get("about:blank")
        with served(run) as (address, process):
            read = until_read(Asker(address))
            found = updates(run, address, asked.steps)
            warm = statistics.median(paint(page, address) for _ in range(3))
            share = watched(run, process, asked.steps + UPDATES + 1)
    result = {
        "steps": asked.steps,
        "series": 100,
        "metrics_bytes": size,
        "first_paint_cold": round(cold, 3),
        "first_paint": round(warm, 3),
        **found,
        "read": round(read, 2),
        "watched": round(share, 4),
        "paint_limit": PAINT_LIMIT,
        "update_limit": UPDATE_LIMIT,
        "met": max(cold, warm) <= PAINT_LIMIT and max(found["update"], found["whole"]) <= UPDATE_LIMIT,
    }
    line.end(result, asked.keep)


if __name__ == "__main__":
    main()
