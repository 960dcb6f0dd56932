"""Nothing that is read from Redis, the network or a run directory is unpickled or run: bombs wherever there are bytes.

That a checkpoint's own files are read so is tested beside the engine, in tests/learner/test_engine.py.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import tiny
import torch
import views
import yaml
from bombs import NAMES, Trap, forms
from starlette.testclient import TestClient

import penstock
from penstock.deploy.status import as_json, status_of
from penstock.learner import archive, checkpoints
from penstock.services.codec import CodecError, decode, encode
from penstock.services.contracts import WeightsError
from penstock.services.dashboard import comparison
from penstock.services.dashboard.access import Access
from penstock.services.dashboard.api import Subject
from penstock.services.dashboard.app import create_app
from penstock.services.dashboard.compare import compare_router
from penstock.services.dashboard.inspector import inspector_router
from penstock.services.mailbox import Mailbox, MailboxControl
from penstock.services.metrics import MetricsLog
from penstock.services.model_config import ModelSection
from penstock.services.models import ModelError, load_model, load_tokenizer
from penstock.services.replay import LedgerMemo, LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.store.server import PrivateServer
from penstock.services.trajectory import Group
from penstock.services.versions import FIRST, Version
from penstock.services.weights.files import FileReceiver, FileSender

PACKAGE = Path(penstock.__file__).parent


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "it ran")


@pytest.mark.parametrize("form", ["pickle", "old pickle", "torch", "old torch", "numpy", "yaml", "python"])
def test_the_bombs_are_real_ones(trap: Trap, form: str) -> None:
    """Whoever trusts such a file runs what is in it."""
    trusting: dict[str, Callable[[Path], Any]] = {
        "torch": lambda path: torch.load(path, weights_only=False),
        "numpy": lambda path: np.load(path, allow_pickle=True),
        "yaml": lambda path: yaml.unsafe_load(path.read_bytes()),
        "python": lambda path: exec(path.read_bytes()),
        "pickle": lambda path: pickle.loads(path.read_bytes()),  # noqa: S301
    }
    path = trap.path.with_name("bomb")
    path.write_bytes(forms(trap)[form])
    with contextlib.suppress(Exception):
        trusting[form.removeprefix("old ")](path)
    assert trap.sprung


# --- a run directory -------------------------------------------------------------------------------------


def a_run(folder: Path) -> RunDir:
    """With every kind of file that a run leaves but the engine's own state."""
    run = RunDir.create(folder, "whole", yaml.safe_dump({"name": "whole", "model": {"path": "m"}}))
    log = MetricsLog(run.metrics)
    log.begin(FIRST, 1000.0)
    log.write(Version(0, 1), {"reward/mean": 0.5}, 1001.0)
    log.close()
    run.add_event("finished", "all is well")
    run.write_status(views.view())
    run.write_summary({"outcome": "finished"})
    run.write_samples(Version(0, 1), [{"prompt": "1+1=", "answers": []}])
    for path in (run.activity, run.activity_before, run.guards, run.whatif, run.path / ".run-id", run.log("learner-0")):
        path.write_text("{}\n")
    model = archive.SavedModel(json.dumps(tiny.config().to_dict()), {"w": torch.ones(2)})
    folder_of_step = run.archive / "step-000001-lineage-0"
    archive.write(folder_of_step, Version(0, 1), BATCH, {"a": 1}, [builders.group()], {archive.POLICY: model})
    version = Version(0, 1)
    checkpoints.begin(run.checkpoints, version)
    facts = {"ranks": 1, "zero_stage": 0, "dtype": "float32", "config_hash": "", "updates": 1, "tokens": 1}
    checkpoints.seal(run.checkpoints, version, LedgerMemo(1, 0, {}, (), {}), {}, facts)
    run.control.mkdir(mode=0o700)
    (run.control / "00-a.json").write_text("{}")
    return run


BATCH = builders.one_answer(logp_learner=np.zeros(2, np.float32))


def readers(run: RunDir) -> Iterator[Callable[[], Any]]:
    """Everything that reads a run directory without going on with the run."""
    opened = penstock.open_run(run.path)
    yield lambda: opened.metrics
    yield lambda: opened.events
    yield lambda: opened.samples(1)
    yield lambda: opened.summary
    yield run.read_config
    yield run.read_status
    yield lambda: as_json(status_of(run))
    yield lambda: comparison.compare(comparison.Side.read(run), comparison.Side.read(run))
    yield lambda: checkpoints.find(run.checkpoints)
    for step in archive.steps(run.archive):
        yield lambda step=step: archive.read(step)
        yield lambda step=step: archive.read_groups(step)
    yield lambda: Mailbox(run).serve(lambda asked: pytest.fail(f"carried out: {asked}"))


@contextlib.contextmanager
def page(run: RunDir) -> Iterator[Callable[[], None]]:
    """Asks the run's page for every answer that it has."""
    subject = Subject(run, lambda: as_json(status_of(run)), MailboxControl(run), {}, "ada")
    access = Access("127.0.0.1", 8400, None, user_of=lambda *_: os.geteuid())
    app = create_app(subject, access, (inspector_router(run), compare_router(run)))
    with TestClient(app, base_url="http://127.0.0.1:8400", raise_server_exceptions=False) as client:
        routes = list(client.get("/api/openapi.json").json()["paths"])

        def ask() -> None:
            for route in routes:
                client.get(route.replace("{step}", "1").replace("{lineage}", "0").replace("{sample}", "0"))

        yield ask


def files_of(run: RunDir) -> list[Path]:
    return sorted(path for path in run.path.rglob("*") if path.is_file() and path.name != ".lock")


@pytest.fixture
def kept(tmp_path: Path) -> RunDir:
    return a_run(tmp_path / "runs")


def test_no_file_of_a_run_directory_is_run_by_whoever_looks_at_it(kept: RunDir, trap: Trap) -> None:
    """Every file in turn as a bomb of every form; what cannot be read is an error, or is left out."""
    whole = {path: path.read_bytes() for path in files_of(kept)}
    assert len(whole) >= 17, list(whole)
    bombs = forms(trap)
    assert set(bombs) == set(NAMES)
    with page(kept) as ask:
        for path, right in whole.items():
            for form, bomb in bombs.items():
                path.write_bytes(bomb)
                for read in readers(kept) if path != kept.config else [kept.read_config]:
                    with contextlib.suppress(Exception):
                        read()
                if form in ("pickle", "yaml"):
                    ask()
                assert not trap.sprung, path
            path.write_bytes(right)


def test_code_that_config_yaml_names_is_not_imported_by_whoever_looks(kept: RunDir, trap: Trap) -> None:
    (kept.path / "planted.py").write_bytes(forms(trap)["python"])
    named = {
        "name": "whole",
        "algorithm": {"name": "planted:ROW", "folder": str(kept.path)},
        "reward": {"rules": {"a": {"rule": "planted:ROW"}}, "folder": str(kept.path)},
        "model": {"path": "m", "trust_remote_code": True},
    }
    kept.config.write_text(yaml.safe_dump(named))
    for read in readers(kept):
        read()
    with page(kept) as ask:
        ask()
    assert not trap.sprung


# --- the store -------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateServer]:
    with PrivateServer(tmp_path / "store", tmp_path / "store.log") as running:
        yield running


def test_a_payload_from_the_store_is_a_record_or_an_error(server: PrivateServer, trap: Trap) -> None:
    store = server.address("run").connect()
    store.attach(LedgerRules(max_lag=100, groups_per_step=100, prompts=None, max_bytes=10**9))
    store.reconcile(FIRST, 0, "start")
    bombs = list(forms(trap).values())
    for ticket, bomb in zip(store.reserve("w", FIRST, len(bombs), 60.0, "r").tickets, bombs, strict=True):
        store.put(ticket, bomb, FIRST)
    taken = store.take(FIRST, len(bombs)).groups
    assert [group.payload for group in taken] == bombs
    for group in taken:
        with pytest.raises(CodecError):
            decode(group.payload, Group)
    assert not trap.sprung


def test_a_bomb_behind_a_record_s_own_header_is_damage(trap: Trap) -> None:
    whole = encode(builders.group())
    head = whole[: whole.index(b"Group") + len(b"Group")]
    for bomb in forms(trap).values():
        for data in (head + bytes(8) + bomb, whole + bomb, bomb + whole):
            with pytest.raises(CodecError):
                decode(data, Group)
    assert not trap.sprung


def test_every_key_of_the_ledger_may_hold_a_bomb(server: PrivateServer, trap: Trap) -> None:
    """Whoever can write there can spoil a run, and cannot make it run anything."""
    import redis

    password = server.address("run").password
    with redis.Redis.from_url(server.url, password=password) as raw:
        for bomb in forms(trap).values():
            raw.flushall()
            store = server.address("run", deadline=1.0).connect()
            rules = LedgerRules(max_lag=100, groups_per_step=100, prompts=None, max_bytes=10**9)
            store.attach(rules)
            store.reconcile(FIRST, 0, "start")
            first, *_ = store.reserve("w", FIRST, 3, 60.0, "r").tickets
            store.put(first, b"x", FIRST)
            for key in raw.scan_iter():
                _spoil(raw, key, bomb)
            for call in (
                lambda store=store: store.reserve("w", FIRST, 1, 60.0, "s"),
                lambda store=store, first=first: store.put(first, b"x", FIRST),
                lambda store=store: store.take(FIRST, 1),
                lambda store=store: store.counts(),
                lambda store=store: store.published(),
                lambda store=store, rules=rules: store.attach(rules),
            ):
                with contextlib.suppress(Exception):
                    call()
            store.close()
            assert not trap.sprung


def _spoil(raw: Any, key: bytes, bomb: bytes) -> None:
    kind = raw.type(key)
    if kind == b"string":
        raw.set(key, bomb)
    elif kind == b"hash":
        raw.hset(key, mapping=dict.fromkeys(raw.hkeys(key), bomb))
    elif kind == b"list":
        raw.lset(key, 0, bomb)
    elif kind == b"set":
        raw.sadd(key, bomb)
    elif kind == b"zset":
        raw.zadd(key, {bomb: 0})


# --- weights and models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("name", ["manifest.json", "00000.safetensors"])
def test_published_weights_are_tensors_or_an_error(tmp_path: Path, trap: Trap, form: str, name: str) -> None:
    sender = FileSender(tmp_path / "weights")
    sender.publish(FIRST, [("w", torch.ones(3))])
    (sender.folder / str(FIRST) / name).write_bytes(forms(trap)[form])
    with pytest.raises(WeightsError), FileReceiver(sender.folder, 0.1).fetch(FIRST):
        pass
    assert not trap.sprung


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
def test_a_model_s_pickled_weights_are_not_trusted(tmp_path: Path, trap: Trap, form: str) -> None:
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(forms(trap)[form])
    with pytest.raises(ModelError):
        load_model(ModelSection(path=str(folder)))
    assert not trap.sprung


def test_code_beside_a_model_is_not_run_unless_the_run_file_says_so(tmp_path: Path, trap: Trap) -> None:
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "planted.py").write_bytes(forms(trap)["python"])
    for name, entry in (
        ("config.json", {"AutoConfig": "planted.C", "AutoModelForCausalLM": "planted.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["planted.T", None]}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entry}))
    for load in (load_model, load_tokenizer):
        with contextlib.suppress(Exception):  # it may also be loaded as what transformers knows under that name
            load(ModelSection(path=str(folder)))
    assert not trap.sprung


def test_a_chat_template_reaches_nothing(trap: Trap) -> None:
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(trap.path) + "') }}"
    with pytest.raises(Exception, match="unsafe"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not trap.sprung


@pytest.mark.engine
def test_the_engine_does_not_trust_pickled_weights_either(tmp_path: Path, trap: Trap) -> None:
    code = (
        "import sys; from vllm.model_executor.model_loader.weight_utils import pt_weights_iterator as read\n"
        "try:\n    list(read([sys.argv[1]], False))\nexcept Exception as error:\n    print(type(error).__name__)"
    )
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(forms(trap)["torch"])
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "UnpicklingError", done.stderr[-2000:]
    assert not trap.sprung


# --- the source ------------------------------------------------------------------------------------------


def test_no_module_of_ours_unpickles_evaluates_or_runs_a_shell() -> None:
    """By the syntax tree. The ones that are allowed say why where they stand."""
    forbidden_modules = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
    forbidden_calls = {"eval", "exec", "os.system", "os.popen", "pickle.loads", "yaml.unsafe_load", "yaml.full_load"}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [f"{where} imports {m}" for m in modules if m.split(".")[0] in forbidden_modules]
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                trusting = {
                    "torch.load": given.get("weights_only") != "True",
                    "np.load": given.get("allow_pickle", "False") != "False",
                    "yaml.load": given.get("Loader") != "_Loader",
                }
                if name in forbidden_calls or trusting.get(name) or given.get("shell", "False") != "False":
                    found.append(f"{where} calls {name}")
    assert found == []
