"""The store section of a run file."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from penstock.services.store.config import StoreSection


def test_by_default_a_run_starts_its_own_server_and_keeps_what_it_acknowledged():
    section = StoreSection()
    assert (section.url, section.fsync) == (None, "never")


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://user@host:6380/1", "unix:///run/redis.sock"])
def test_urls_of_redis_servers_are_accepted(url):
    assert StoreSection(url=url).url == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "expected redis://"),
        ("host:6379", "expected redis://"),
        ("redis://", "needs a host"),
        ("unix://", "names the socket's path"),
    ],
)
def test_other_urls_are_refused_with_what_is_allowed(url, says):
    with pytest.raises(ValidationError, match=says):
        StoreSection(url=url)


def test_a_password_in_the_url_is_refused_in_favour_of_the_environment():
    with pytest.raises(ValidationError, match="PENSTOCK_STORE_PASSWORD") as refused:
        StoreSection(url="redis://:s3cret@host")
    assert "s3cret" not in refused.value.errors()[0]["msg"]


def test_the_password_comes_from_the_environment(monkeypatch):
    section = StoreSection(password_env="MY_PASSWORD")
    monkeypatch.delenv("MY_PASSWORD", raising=False)
    assert section.password() is None
    monkeypatch.setenv("MY_PASSWORD", "s3cret")
    assert section.password() == "s3cret"
    assert "s3cret" not in repr(section) + section.model_dump_json()


def test_the_section_is_read_without_loading_redis():
    code = "import sys, penstock.services.store.config as c; print('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
