"""The page on this machine's own address: to whom it answers. Real connections to a real server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from other_user import NOBODY, as_nobody, needs_root

from penstock.deploy.page import beside
from penstock.services.dashboard.config import DashboardSection
from penstock.services.dashboard.peer import user_of
from penstock.services.rundir import RunDir

TOKEN = "correct-horse-battery-staple"
PATHS = ["/", "/sign-in", "/api/status", "/api/run", "/api/live", "/static/page.js", "/library/uplot.js", "/nowhere"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return RunDir.create(tmp_path_factory.mktemp("runs"), "watched", "name: watched\n")


@pytest.fixture(scope="module")
def page(run: RunDir) -> Iterator[int]:
    """The port of a page that asks for no token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PENSTOCK_DASHBOARD_TOKEN", raising=False)
        with beside(DashboardSection(enabled=True), run) as served:
            assert served is not None
            yield urlsplit(served.address).port or 0


def ask(port: int, path: str, *headers: str, method: str = "GET", body: str = "", host: str = "127.0.0.1") -> int:
    """The status of the answer. A plain socket: a stranger can import nothing."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", *headers]
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", body]).encode())
        return int(connection.recv(20).split()[1])


@needs_root
def test_another_user_is_refused_whatever_he_asks_for(page: int) -> None:
    assert [ask(page, path) for path in PATHS] == [200] * 7 + [404]
    assert as_nobody(lambda: [ask(page, path) for path in PATHS]) == [403] * 8


@needs_root
def test_another_user_cannot_steer(page: int, run: RunDir) -> None:
    body = '{"type": "checkpoint"}'
    headers = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    assert as_nobody(lambda: ask(page, "/api/commands", *headers, method="POST", body=body)) == 403
    assert not list(run.control.glob("*")) if run.control.exists() else True


@needs_root
def test_saying_to_be_somebody_else_does_not_help(page: int) -> None:
    """A connection of the page's own user stands beside, for its address to be borrowed."""
    with socket.create_connection(("127.0.0.1", page)) as own:
        here = "{}:{}".format(*own.getsockname())
        for header in (f"X-Forwarded-For: {here}", f"Forwarded: for={here}", "X-Real-IP: 127.0.0.1"):
            assert as_nobody(lambda header=header: ask(page, "/api/status", header)) == 403


@needs_root
def test_with_a_token_the_token_decides_for_everybody(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DASHBOARD_TOKEN", TOKEN)
    with beside(DashboardSection(enabled=True), run) as served:
        assert served is not None
        port = urlsplit(served.address).port or 0
        right, wrong = f"Authorization: Bearer {TOKEN}", "Authorization: Bearer guess"
        assert ask(port, "/api/status") == 401
        assert as_nobody(lambda: [ask(port, "/api/status", *given) for given in ((), (wrong,), (right,))]) == [
            401,
            401,
            200,
        ]


# --- who is at the other end -----------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_says_whose_a_connection_is(family: int, host: str) -> None:
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as client:
            accepted, where = server.accept()
            with accepted:
                assert user_of(where[:2], server.getsockname()[:2]) == os.geteuid()
                assert user_of((host, 1), server.getsockname()[:2]) is None, "a connection that is not there"
                client.close()
                assert user_of(where[:2], server.getsockname()[:2]) is None, "one that its process has closed"


@needs_root
def test_the_kernel_says_it_of_other_users_too() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            connection = socket.create_connection(("127.0.0.1", port))
            os.close(writing)
            os.read(reading, 1)
            connection.close()
            os._exit(0)
        accepted, where = server.accept()
        with accepted:
            assert user_of(where, ("127.0.0.1", port)) == NOBODY
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


@pytest.mark.parametrize("client", [("testclient", 50000), ("", 0), ("10.0.0.1", 80)])
def test_of_what_is_no_connection_of_this_machine_nobody_is_known(client: tuple[str, int]) -> None:
    assert user_of(client, ("127.0.0.1", 8400)) is None
