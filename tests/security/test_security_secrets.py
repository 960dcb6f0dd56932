"""A whole run with a secret wherever one belongs, and a search through everything that it says or leaves."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.services.contracts import StoreError
from penstock.services.control import Stop
from penstock.services.store.binary import find_binary
from penstock.services.store.connection import StoreAddress

SECRETS = {
    "PENSTOCK_STORE_PASSWORD": "planted-store-Xq7",
    "PENSTOCK_DASHBOARD_TOKEN": "planted-page-token-Xq7",
    "WANDB_API_KEY": "f00d" * 10,
    "HF_TOKEN": "hf_plantedHubTokenXq7",
    "JUDGE_KEY": "planted-judge-Xq7",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-Xq7",
}
PATH = "planted-webhook-path-Xq7"
"""Of the webhook's address, which stands in ALARM."""
WORDS = [*SECRETS.values(), PATH]
RULE = """
import os

def judged(completions, **kwargs):
    assert os.environ["JUDGE_KEY"] and "PENSTOCK_STORE_PASSWORD" not in os.environ
    return [float(len(text) % 2) for text in completions]
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """The url of a Redis server behind the planted password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    word = SECRETS["PENSTOCK_STORE_PASSWORD"]
    lines = f'port {port}\nbind 127.0.0.1\nrequirepass {word}\nsave ""\n'
    with subprocess.Popen([find_binary(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as server:
        assert server.stdin is not None
        server.stdin.write(lines.encode())
        server.stdin.close()
        yield f"redis://127.0.0.1:{port}/0"
        server.terminate()


class Listener(http.server.BaseHTTPRequestHandler):
    """A webhook that answers `no` every time, so that the run has something to complain of."""

    called: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.called.append(self.path)
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def webhook() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{PATH}"
    server.shutdown()
    server.server_close()


def holding(files: Iterator[Path]) -> list[str]:
    """The files that hold one of the words."""
    found = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # gone while we looked
            if path.is_file() and not path.is_symlink():
                text = path.read_bytes()
                found += [f"{path}: {word}" for word in WORDS if word.encode() in text]
    return found


def heard(onlooker: Onlooker) -> list[str]:
    """What shows a word while the run goes on: processes, Ray's files, the page."""
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    found = [f"ps: {word}" for word in WORDS if word in listed]
    for folder in Path(tempfile.gettempdir()).glob("penstock-ray-*"):
        assert folder.stat().st_mode & 0o077 == 0, "closed to other users"
        found += holding(folder.rglob("*"))
    found += holding(Path("/dev/shm").rglob("*"))
    address = next(event.facts["address"] for event in onlooker.directory.read_events() if event.kind == "dashboard")
    for path in ("run", "status", "live?select=*", "metrics", "openapi.json"):
        request = urllib.request.Request(f"{address}api/{path}")
        request.add_header("Authorization", f"Bearer {SECRETS['PENSTOCK_DASHBOARD_TOKEN']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        found += [f"page {path}: {word}" for word in WORDS if word in text]
    command = [str(Path(sys.executable).parent / "penstock"), "status", str(onlooker.directory.path), "--json"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert "drill-secret" in told.stdout
    return found + [f"status: {word}" for word in WORDS if word in told.stdout + told.stderr]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.story
def test_secrets_stand_in_no_log_no_copy_of_the_run_file_no_error_and_no_page(
    tmp_path: Path, store: str, webhook: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, word in SECRETS.items():
        monkeypatch.setenv(name, word)
    monkeypatch.setenv("ALARM", webhook)
    (tmp_path / "rule.py").write_text(RULE)
    overrides = [
        *inputs_in(tmp_path / "runs"),
        "name=drill-secret",
        f"store.url={store}",
        "dashboard.enabled=true",
        "reward={rules: {judged: {rule: 'rule:judged'}}, environment: [JUDGE_KEY], folder: " + str(tmp_path) + "}",
        "tracking.wandb={project: p, mode: offline}",
        "guards=[{when: 'off_policy/mean >= 0', do: [{webhook: $ALARM}]}]",
        "checkpoints.every=2",
        "limits.steps=100000",
    ]
    seen: list[str] = []

    def play(onlooker: Onlooker) -> None:
        onlooker.wait("the webhook was called", lambda: Listener.called)
        onlooker.wait("a checkpoint is there", lambda: any(onlooker.directory.checkpoints.glob("step-*/manifest.json")))
        onlooker.wait("the run complains", lambda: "could not be told" in onlooker.directory.events.read_text())
        seen.extend(heard(onlooker))
        onlooker.control.send(Stop("seen enough"), "test")

    run = played(RECIPE / "drill.yaml", overrides, play)
    assert seen == []
    assert f"/{PATH}" in Listener.called
    assert list((run.dir / "wandb").rglob("*.wandb")), "a tracker was told"
    assert holding(run.dir.rglob("*")) == []
    said = capfd.readouterr()
    assert [word for word in WORDS if word in said.out + said.err] == []


@pytest.mark.parametrize("password", ["planted-wrong-Xq7", None])
def test_a_refused_password_is_not_in_the_error(store: str, password: str | None) -> None:
    with pytest.raises(StoreError) as refused:
        StoreAddress(store, "run", password, deadline=10.0).connect().counts()
    text = str(refused.value) + repr(refused.value.__cause__)
    assert "refuses the connection" in text
    assert "Xq7" not in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://:planted-Xq7@host/0",
        "redis://user:planted-@-Xq7@host/0",
        "redis://:planted/Xq7@host/0",
        "redis://host/0?password=planted-Xq7",
        "rediss://host/0?db=1&password=planted-Xq7",
        "http://user:planted-Xq7@host",
    ],
)
def test_a_password_in_the_store_s_url_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    from penstock.deploy.runfile import RunFileError, load

    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{path: m}}\ndata: {{sources: {{a: {{path: a.jsonl}}}}}}\nstore: {{url: '{url}'}}\n")
    for given, overrides in ((path, []), (RECIPE / "drill.yaml", [f"store.url={url}"])):
        with pytest.raises(RunFileError) as caught:
            load(given, overrides)
        assert "store.url" in str(caught.value)
        assert "Xq7" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("secret_key", "planted-Xq7"),
        ("private_key", "planted-Xq7"),
        ("credentials", "planted-Xq7"),
        ("address", "https://host/data?api_key=planted-Xq7&x=1"),
        ("address", "https://user:planted-Xq7@host/judge"),
    ],
)
def test_what_looks_like_a_secret_is_refused_in_a_free_mapping(tmp_path: Path, key: str, value: str) -> None:
    from penstock.deploy.runfile import RunFileError, load

    with pytest.raises(RunFileError) as caught:
        load(RECIPE / "drill.yaml", [f"reward.rules.contains.args={{{key}: '{value}'}}"])
    assert "a secret does not belong in a run file" in str(caught.value)
    assert "Xq7" not in str(caught.value)


def test_rules_are_not_given_the_store_s_password_by_name(tmp_path: Path) -> None:
    from penstock.deploy import preflight

    overrides = [*inputs_in(tmp_path), "reward.environment=[PENSTOCK_STORE_PASSWORD]"]
    found = preflight.check(RECIPE / "drill.yaml", overrides, "train")
    (problem,) = [f for f in found if f.key == "reward.environment" and f.level == "error"]
    assert "which store.password_env names" in problem.problem


def test_a_webhook_whose_address_is_a_password_belongs_into_the_environment(tmp_path: Path) -> None:
    from penstock.deploy import preflight

    address = "https://hooks.slack.com/services/T0/B0/planted-Xq7"
    guard = f"guards=[{{when: 'kl/reference > 1', do: [{{webhook: '{address}'}}]}}]"
    found = preflight.check(
        RECIPE / "drill.yaml", [*inputs_in(tmp_path), guard, "algorithm.kl.coefficient=0.01"], "train"
    )
    (problem,) = [f for f in found if f.key.endswith("webhook")]
    assert problem.level == "error"
    assert "Xq7" not in str(problem)
    assert "$NAME" in problem.remedy
