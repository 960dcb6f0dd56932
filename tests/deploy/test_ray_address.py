"""A wrong Ray address is one clear error within seconds, whatever is wrong with it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from penstock.deploy import ray_address
from penstock.deploy.preflight import check
from penstock.deploy.ray_address import ClusterAway
from penstock.services.ports import HeldPort


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "is the address of Ray's dashboard, which takes jobs"),
        ("nowhere.invalid:6379", "there is no host 'nowhere.invalid'"),
        ("127.0.0.1:port", "is no address of a Ray cluster"),
        ("local", "there is no host 'local'"),
        ("127.0.0.1:6379/jobs", "is no address of a Ray cluster"),
    ],
)
def test_what_is_no_address_is_told_with_what_is_allowed(address: str, said: str):
    with pytest.raises(ClusterAway, match=said):
        ray_address.require(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens_the_remedy_is_named_at_once(scheme: str):
    began = time.monotonic()
    with (
        HeldPort("127.0.0.1") as port,
        pytest.raises(ClusterAway, match=r"nobody answers at .* \(`ray start --head`\)"),
    ):
        ray_address.require(f"{scheme}127.0.0.1:{port.number}")
    assert time.monotonic() - began < 5


def test_something_that_is_not_ray_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_address, "ANSWER", 1.0)
    listening, away = socket.create_server(("127.0.0.1", 0)), r"something listens .* not the head of a Ray cluster"
    with listening, pytest.raises(ClusterAway, match=away):
        ray_address.require(f"127.0.0.1:{listening.getsockname()[1]}")


def test_the_driver_of_a_run_must_be_on_a_node():
    with pytest.raises(ClusterAway, match=r"the driver of a run must be on one of its nodes.*ray job submit"):
        ray_address.require_for_driver("ray://127.0.0.1:10001")


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "there:1")
    assert ray_address.given("here:1") == "here:1"
    assert ray_address.given(None) == "there:1"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert ray_address.given(None) is None


def test_check_asks_the_cluster_before_anything_starts(place: Path):
    (place / "run.yaml").write_text(
        "model: {path: model}\ndata: {sources: {a: {path: train.jsonl}}}\n"
        "reward: {rules: {exact: {}}}\nlimits: {steps: 1}\n"
    )
    with HeldPort("127.0.0.1") as port:
        found = check(place / "run.yaml", [f"placement.ray_address=127.0.0.1:{port.number}"])
    told = {finding.key: finding.problem for finding in found if finding.level == "error"}
    assert "nobody answers" in told["placement.ray_address"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "without a token (RAY_AUTH_MODE is not `token`)"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "the token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/t"}, "the token in /t"),
        ({"RAY_AUTH_MODE": "token"}, "the token in ~/.ray/auth_token"),
    ],
)
def test_a_refused_token_is_named_by_where_it_came_from(monkeypatch: pytest.MonkeyPatch, environment, said: str):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said in ray_address._token_in_use()
