"""Who may look at a page and who may act: hosts, tokens, origins, and what every answer carries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_parts import HERE, JSON, PORT, Control, a_run, client
from starlette.testclient import TestClient

from penstock.services.dashboard.access import WRONG_TOKEN_PAUSE
from penstock.services.dashboard.config import PageError, is_local, token_for
from penstock.services.rundir import RunDir

TOKEN = "correct-horse-battery-staple"
CHECKPOINT = '{"type": "checkpoint"}'


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return a_run(tmp_path)


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def open_page(run: RunDir, control: Control) -> Iterator[TestClient]:
    with client(run, control) as page:
        yield page


@pytest.fixture
def closed_page(run: RunDir, control: Control) -> Iterator[TestClient]:
    with client(run, control, TOKEN, "0.0.0.0") as page:
        yield page


# --- the name under which the page is asked for --------------------------------------------------------


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}", "localhost:9000", "[::1]"])
def test_a_local_page_answers_to_its_own_names(open_page: TestClient, host: str) -> None:
    assert open_page.get("/api/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example:8400", "evil@127.0.0.1", "127.0.0.1:8400/", "127.0.0.1.evil.test:8400", ""]
)
@pytest.mark.parametrize("path", ["/", "/api/live", "/static/page.js", "/library/uplot.js"])
def test_a_name_that_was_made_to_mean_this_machine_is_refused(open_page: TestClient, host: str, path: str) -> None:
    answer = open_page.get(path, headers={"host": host})
    assert answer.status_code == 403
    assert "does not go by the name" in answer.json()["detail"]


# --- what changes anything -------------------------------------------------------------------------------


def test_the_page_itself_may_act(open_page: TestClient, control: Control) -> None:
    headers = JSON | {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert open_page.post("/api/commands", content=CHECKPOINT, headers=headers).json() == {"text": "done"}
    assert len(control.asked) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": HERE},
    ],
)
def test_another_site_may_not_act_even_on_this_machine(
    open_page: TestClient, control: Control, headers: dict[str, str]
) -> None:
    answer = open_page.post("/api/commands", content=CHECKPOINT, headers=JSON | headers)
    assert answer.status_code == 403
    assert "only the page itself may act" in answer.json()["detail"]
    assert control.asked == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_no_command(open_page: TestClient, control: Control, kind: str) -> None:
    assert open_page.post("/api/commands", content=CHECKPOINT, headers={"content-type": kind}).status_code == 415
    assert control.asked == []


def test_a_large_body_is_refused_unread(open_page: TestClient) -> None:
    assert open_page.post("/api/commands", content=b" " * 100_000, headers=JSON).status_code == 413


def test_a_body_of_no_told_length_is_refused(open_page: TestClient) -> None:
    assert open_page.post("/api/commands", content=iter([b"{}"]), headers=JSON).status_code == 413


# --- the token -------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_told_and_nothing_is_done(closed_page: TestClient, control: Control) -> None:
    for path in ("/api/live", "/api/run", "/api/samples/1", "/api/openapi.json"):
        answer = closed_page.get(path)
        assert answer.status_code == 401, path
        assert "a token is needed" in answer.json()["detail"]
    assert closed_page.post("/api/commands", content=CHECKPOINT, headers=JSON).status_code == 401
    assert control.asked == []


def test_the_page_leads_to_the_sign_in_which_needs_no_token(closed_page: TestClient) -> None:
    assert closed_page.get("/").headers["location"] == "/sign-in"
    assert "Token" in closed_page.get("/sign-in").text
    assert closed_page.get("/static/page.css").status_code == 200


def test_the_token_in_a_header_is_enough(closed_page: TestClient) -> None:
    assert closed_page.get("/api/live", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    began = time.monotonic()
    assert closed_page.get("/api/live", headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert time.monotonic() - began >= WRONG_TOKEN_PAUSE, "guesses cost time"
    assert closed_page.get("/api/live", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401


def test_signing_in_gives_a_cookie_that_no_script_reads_and_that_is_not_the_token(closed_page: TestClient) -> None:
    answer = closed_page.post("/api/sign-in", json={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert closed_page.get("/api/live").status_code == 200
    assert closed_page.get("/").status_code == 200


def test_a_wrong_token_is_told_so_and_sets_nothing(closed_page: TestClient) -> None:
    answer = closed_page.post("/api/sign-in", json={"token": "guess"})
    assert answer.status_code == 401
    assert "this is not the token" in answer.json()["detail"]
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("body", [r'{"token": "\ud800"}', '{"token": 3}', "{}", '{"token": "' + 2000 * "x" + '"}', "["])
def test_what_is_no_token_is_told_in_a_sentence(closed_page: TestClient, body: str) -> None:
    answer = closed_page.post("/api/sign-in", content=body, headers=JSON)
    assert answer.status_code in (401, 422)
    assert len(answer.json()["detail"]) < 300


def test_the_cookie_of_another_page_does_not_count(closed_page: TestClient) -> None:
    closed_page.cookies.set(f"penstock-{PORT}", "0" * 64)
    assert closed_page.get("/api/live").status_code == 401


# --- what every answer carries, and what is no file ------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/sign-in", "/api/status", "/static/page.js", "/library/uplot.js", "/nowhere"])
def test_every_answer_keeps_the_browser_strict(open_page: TestClient, path: str) -> None:
    headers = open_page.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_numbers_are_not_kept_by_the_browser(open_page: TestClient) -> None:
    assert open_page.get("/api/status").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/library/../../etc/passwd",
        "/library/%2e%2e%2fsecrets",
        "/api/samples/..%2f..%2fconfig.yaml",
        "/api/samples/1e3",
    ],
)
def test_no_path_leads_out_of_what_is_served(open_page: TestClient, path: str) -> None:
    assert open_page.get(path).status_code in (404, 422)


def test_the_page_has_no_script_or_style_of_its_own_in_it(open_page: TestClient) -> None:
    page = open_page.get("/").text
    assert "<script>" not in page
    assert "<style" not in page
    assert " style=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


# --- tokens from the environment ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"])
def test_addresses_of_this_machine_alone_need_no_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_DASHBOARD_TOKEN", raising=False)
    assert is_local(host)
    assert token_for(host, "PENSTOCK_DASHBOARD_TOKEN") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "lab-3"])
def test_other_addresses_demand_a_token_and_say_how_to_set_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(PageError, match=r"needs a token.*MY_TOKEN is not set; set one with: export MY_TOKEN="):
        token_for(host, "MY_TOKEN")
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert token_for(host, "MY_TOKEN") == TOKEN


def test_a_token_that_can_be_guessed_is_refused_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    with pytest.raises(PageError, match="has 6 characters, at least 16 are needed"):
        token_for("127.0.0.1", "MY_TOKEN")
