"""The address of a running Ray cluster: what it may be, and whether Ray answers there, found out within seconds.

Ray itself tries for minutes, without a word, where nobody answers.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import psutil

from penstock.services.contracts import WrongInput

ANSWER = 5.0
"""Seconds in which Ray's head must answer."""
_GCS_PORT, _CLIENT_PORT = 6379, 10001
"""Where `ray start --head` listens by default."""
_FORMS = (
    f"auto (on a node of the cluster), HOST:{_GCS_PORT} (the head's, from a node of the cluster) or "
    f"ray://HOST:{_CLIENT_PORT} (from anywhere, to look and to steer)"
)
_TOKEN = (
    "`ray start` turns token authentication on where it finds a token, and then every process needs the same one: set "
    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token (on the head: ~/.ray/auth_token, "
    "unless it was started with another)"
)


class ClusterAway(WrongInput):
    """A Ray cluster that cannot be joined: a wrong address, nobody who answers there, a token that is not right."""


def given(address: str | None) -> str | None:
    """The address that was given, or else the one in RAY_ADDRESS; None where there is neither."""
    return address or os.environ.get("RAY_ADDRESS") or None


def require(address: str) -> str:
    """What to hand to `ray.init`, once Ray's head has answered there. Raises ClusterAway with the remedy."""
    if address == "auto":
        return _found_here()
    if address.startswith(("http://", "https://")):
        raise ClusterAway(
            f"{address} is the address of Ray's dashboard, which takes jobs; here is wanted the cluster's own: {_FORMS}"
        )
    client = address.startswith("ray://")
    host, port = _host_and_port(address, _CLIENT_PORT if client else _GCS_PORT)
    _require_listener(address, host, port)
    if client:
        return address
    if _is_here(host):
        _take_own_token()
    _require_ray(address, f"{_bracketed(_numeric(host))}:{port}")
    return f"{_bracketed(host)}:{port}"


def require_for_driver(address: str) -> str:
    """The same for the driver of a run, which must be on a node of the cluster."""
    if address.startswith("ray://"):
        raise ClusterAway(
            f"{address} is for looking at runs from outside of the cluster; the driver of a run must be on one of its "
            f"nodes: give auto or HOST:{_GCS_PORT} there, or submit the run from here with `ray job submit --address "
            "http://HOST:8265 --working-dir . -- penstock train RUN.yaml`"
        )
    return require(address)


def not_joined(address: str, error: Exception) -> ClusterAway:
    """What is said when Ray's head answers and Ray cannot join all the same."""
    return ClusterAway(
        f"could not join the Ray cluster at {address}: {str(error).strip() or type(error).__name__}. Ray and Python "
        f"must have the same versions here and there, and HOST:{_GCS_PORT} is for nodes of the cluster; from elsewhere "
        f"use ray://HOST:{_CLIENT_PORT}"
    )


def _found_here() -> str:
    """The cluster that this machine is a node of."""
    from ray._private.services import find_bootstrap_address, find_gcs_addresses

    running = sorted(find_gcs_addresses())
    # What `ray start` wrote down last wins, as for Ray itself, unless that cluster is gone.
    last = find_bootstrap_address(None)
    found = last if last is not None and (last in running or not running) else (running[0] if running else None)
    if found is None:
        raise ClusterAway(
            f"no Ray cluster runs on this machine. Start one with `ray start --head`, or give its address: {_FORMS}"
        )
    if len(running) > 1 and last not in running:
        raise ClusterAway(f"several Ray clusters run on this machine: {', '.join(running)}; give the address of one")
    return require(found)


def _host_and_port(address: str, usual: int) -> tuple[str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClusterAway(f"{address!r} is no address of a Ray cluster: {error}; allowed: {_FORMS}") from error
    if not host or (parts.path not in ("", "/")):
        raise ClusterAway(f"{address!r} is no address of a Ray cluster; allowed: {_FORMS}")
    return host, port or usual


def _require_listener(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=ANSWER).close()
    except socket.gaierror as error:
        raise ClusterAway(f"there is no host {host!r} (Ray address {address}): {error.strerror}") from error
    except OSError as error:
        raise ClusterAway(
            f"nobody answers at {address} ({error.strerror or error}). Is Ray's head running there (`ray start "
            f"--head`), and is this its address? Allowed: {_FORMS}"
        ) from error


def _require_ray(address: str, numeric: str) -> None:
    """Ask the head for the cluster's id, with the token that Ray would use."""
    from ray._private.grpc_utils import init_grpc_channel

    channel = init_grpc_channel(numeric)
    try:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId").future(b"", timeout=ANSWER)
        call.exception()
        said = call.code().name
    finally:
        channel.close()
    if said == "UNAUTHENTICATED":
        raise ClusterAway(f"the Ray cluster at {address} does not accept {_token_in_use()}. {_TOKEN}")
    if said != "OK":
        raise ClusterAway(f"something listens at {address}, but it is not the head of a Ray cluster ({said}): {_FORMS}")


def _token_in_use() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "a caller without a token (RAY_AUTH_MODE is not `token`)"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "the token in RAY_AUTH_TOKEN"
    return f"the token in {os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'}"


def _take_own_token() -> None:
    """On this machine the user's own token goes where `ray start` took it from, as Ray does for `auto`."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _numeric(host: str) -> str:
    return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])


def _bracketed(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _is_here(host: str) -> bool:
    """Whether `host` is this machine."""
    address = _numeric(host)
    own = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    return ipaddress.ip_address(address).is_loopback or address in own
