"""The files that the page is made of: other projects' and its own."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from dataclasses import replace

import pytest

from penstock.services.dashboard.app import STATIC
from penstock.services.dashboard.config import DashboardSection, PageError
from penstock.services.dashboard.libraries import LIBRARIES, Library
from penstock.services.dashboard.listener import listen, problems


@pytest.mark.parametrize("library", LIBRARIES, ids=[library.name for library in LIBRARIES])
def test_what_is_installed_is_the_release_that_the_browser_will_accept(library: Library) -> None:
    found = hashlib.sha384(library.locate().read_bytes()).digest()
    assert library.digest == f"sha384-{base64.b64encode(found).decode()}"


def test_a_library_that_is_not_installed_is_named_with_the_remedy() -> None:
    missing = replace(LIBRARIES[0], package="no_such_package", distribution="no-such-package")
    with pytest.raises(PageError, match="install it with: pip install no-such-package"):
        missing.locate()


def test_every_file_that_the_page_asks_for_is_there() -> None:
    page = (STATIC / "index.html").read_text() + (STATIC / "sign-in.html").read_text()
    asked = set(re.findall(r'"/static/([^"]+)"', page))
    modules = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    asked |= {name for text in modules.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert asked <= {path.name for path in STATIC.iterdir()}
    libraries = set(re.findall(r'"/library/([^"]+)"', page))
    assert libraries == {library.name for library in LIBRARIES}


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PageError, match=f"port {port} of 127.0.0.1 is in use; take another one, or 0"):
            listen("127.0.0.1", port)


def test_a_port_is_held_from_its_choice_on() -> None:
    held = listen("127.0.0.1", 0)
    try:
        assert held.address == f"http://127.0.0.1:{held.port}/"
        with pytest.raises(PageError, match="in use"):
            listen("127.0.0.1", held.port)
    finally:
        held.socket.close()


def test_what_would_keep_a_page_from_being_served_is_known_before_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_DASHBOARD_TOKEN", raising=False)
    assert problems(DashboardSection(host="0.0.0.0")) == []  # it is not asked for
    assert problems(DashboardSection(enabled=True)) == []
    ((key, text),) = problems(DashboardSection(enabled=True, host="0.0.0.0"))
    assert (key, "needs a token" in text) == ("token_env", True)
    held = listen("127.0.0.1", 0)
    ((key, text),) = problems(DashboardSection(enabled=True, port=held.port))
    held.socket.close()
    assert (key, "is in use" in text) == ("port", True)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(PageError, match=r"no address of this machine.*take 127\.0\.0\.1"):
        listen("192.0.2.1", 0)
