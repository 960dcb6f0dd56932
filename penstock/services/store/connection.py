"""One connection to a Redis server: the scripts, the deadline, and errors that say what happened.

Every script may be repeated, so a call whose reply was lost is simply made again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
)
from redis.retry import Retry

from penstock.services.contracts import Fenced, StoreError
from penstock.services.store.config import OLDEST, check_url

if TYPE_CHECKING:
    from penstock.services.store.ledger import RedisStore

T = TypeVar("T")

_REFUSED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError, NoPermissionError)
_PASSING = ("BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN", "MISCONF")
"""Answers of a server that will be able to serve in a moment, or, where its disk is full, when somebody has made space:
it tries to write once a second."""
_AWAY = (redis.ConnectionError, redis.TimeoutError)
_LISTENS = 1.0
"""Seconds after which a server that is listened to counts as away; nobody listens for so long."""


class ForksChanged(Exception):
    """The client's picture of the lineages is older than the store's; internal to this package."""


class StoreRefused(StoreError):
    """The server does not let us in."""


class Away(StoreError):
    """The server has not answered within the deadline."""


class Unattached(StoreError):
    """No learner has opened this run in the store yet."""


@dataclass(frozen=True)
class StoreAddress:
    """Where a run's ledger is found. Can be pickled and sent to another process; its repr hides the password."""

    url: str
    run_id: str
    password: str | None = field(default=None, repr=False)
    deadline: float = 30.0

    def __post_init__(self) -> None:
        check_url(self.url)

    def connect(self) -> RedisStore:
        """A store of one's own. No connection is made before the first call."""
        from penstock.services.store.ledger import RedisStore

        return RedisStore(self.url, self.run_id, deadline=self.deadline, password=self.password)


@cache
def script(name: str) -> tuple[str, str]:
    """Text and SHA-1 of one script, the common prelude in front."""
    folder = files("penstock.services.store") / "scripts"
    text = (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


def _said(error: ResponseError) -> str:
    """What the server answers, without where in a script it was refused."""
    inside = _IN_SCRIPT.search(str(error))
    return inside[1] if inside else str(error)


_IN_SCRIPT = re.compile(r"script.*-((?:OOM|MISCONF|READONLY|MASTERDOWN|NOREPLICAS)\b.*)", re.DOTALL)


def _client(url: str, password: str | None, patience: float) -> redis.Redis:
    """Gives up an attempt after `patience` seconds, and makes no other by itself."""
    return redis.Redis.from_url(
        url,
        password=password,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=patience,
        socket_connect_timeout=patience,
        **({} if urlsplit(url).scheme == "unix" else {"socket_keepalive": True}),
    )


class Connection:
    """Calls scripts under one key prefix. Safe to use from several threads."""

    def __init__(
        self, url: str, prefix: str, *, deadline: float, password: str | None, limit: str = "store.deadline"
    ) -> None:
        """`limit` is what the deadline is called where it is said that it has passed."""
        check_url(url)
        self._limit = limit
        self._url = url
        self._prefix = prefix
        self._deadline = deadline
        # An attempt may last a third of the deadline, so that one lost packet does not use all of it.
        self._redis = _client(url, password, max(0.5, deadline / 3))
        # Who listens for a moment is not to hang for as long as who wants an answer.
        self._listening = _client(url, password, _LISTENS)

    def __repr__(self) -> str:
        return f"Connection({self._url})"

    @property
    def where(self) -> str:
        return self._url

    def call(self, name: str, *args: Any) -> list[Any]:
        """Run one script. Returns its answer without the leading tag.

        Raises Fenced and StoreError as the script says; StoreError when no answer came within the deadline or the
        server refused the call.
        """
        tag, *answer = self._until_deadline(name, lambda: self._run(name, args))
        if tag == b"ok":
            return answer
        if tag == b"fenced":
            raise Fenced(f"{name}: the lease of group {args[0]} (fencing token {args[1]}) is no longer current")
        if tag == b"forks":
            raise ForksChanged
        if tag == b"unattached":
            raise self._unattached(name)
        raise StoreError(f"{name}: {answer[0].decode()} (store at {self._url})")

    def published(self) -> tuple[int, int]:
        """Lineage and step of the published version, as every worker asks several times a second: without a script,
        which costs the server four times as much."""
        asked = cast(Any, self._redis)
        found = self._until_deadline("published", lambda: asked.hmget(f"{self._prefix}meta", "lineage", "step"))
        if None in found:
            raise self._unattached("published")
        return int(found[0]), int(found[1])

    def payloads(self, indices: Sequence[int]) -> list[bytes | None]:
        """What these groups carry, on one trip; None for one that carries nothing, or is gone."""
        if not indices:
            return []

        def ask() -> list[bytes | None]:
            asked = self._redis.pipeline(transaction=False)
            for index in indices:
                asked.hget(f"{self._prefix}entry:{index}", "payload")
            return cast(list[bytes | None], asked.execute())

        return self._until_deadline("payloads", ask)

    def await_something(self, key: str, seconds: float) -> bool:
        """Whether the list `key` has something, which is taken from it: returns as soon as it has, and at the latest
        after `seconds`, which are less than a second. Of a server that does not answer the next call says so."""
        began = time.monotonic()
        try:
            return self._listening.blpop([f"{self._prefix}{key}"], timeout=seconds) is not None
        except redis.RedisError:
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            return False

    def version(self) -> tuple[int, ...]:
        """Version of the server."""
        info = self._until_deadline("asking for its version", lambda: self._redis.info("server"))
        return tuple(int(part) for part in info["redis_version"].split(".")[:3])

    def require(self, oldest: tuple[int, ...] = OLDEST) -> None:
        """Raises StoreError for a server that is too old."""
        found = self.version()
        if found < oldest:
            raise StoreError(
                f"the Redis server at {self._url} is version {'.'.join(map(str, found))}; "
                f"Penstock needs {'.'.join(map(str, oldest))} or newer"
            )

    def erase(self) -> int:
        """Delete every key under the prefix; returns how many."""
        pattern = self._prefix.replace("[", "\\[").replace("]", "\\]") + "*"

        def scan() -> int:
            found = list(self._redis.scan_iter(match=pattern, count=1000))
            return int(self._redis.unlink(*found)) if found else 0

        return self._until_deadline("erase", scan)

    def close(self) -> None:
        self._redis.close()
        self._listening.close()

    def _run(self, name: str, args: tuple[Any, ...]) -> list[Any]:
        text, digest = script(name)
        try:
            answer: Any = self._redis.evalsha(digest, 1, self._prefix, *args)
        except NoScriptError:  # a new or restarted server
            answer = self._redis.eval(text, 1, self._prefix, *args)
        return cast(list[Any], answer)

    def _unattached(self, name: str) -> Unattached:
        return Unattached(
            f"{name}: the store at {self._url} does not know this run yet; a learner attaches and reconciles first"
        )

    def _refusal(self, said: str) -> str:
        """What the server said, with the remedy where there is a known one. A refused script has changed nothing."""
        remedies = {
            "maxmemory": "it is out of memory: raise its maxmemory, or lower store.max_bytes",
            "MISCONF": "it cannot write to its disk: make space, or look at its log",
            "read only": "it is a replica: store.url must name the primary",
        }
        remedy = next((text for word, text in remedies.items() if word in said), None)
        return f"the Redis server at {self._url} answers: {said}" + (f" ({remedy})" if remedy else "")

    def _until_deadline(self, name: str, attempt: Callable[[], T]) -> T:
        began, pause = time.monotonic(), 0.01
        while True:
            try:
                return attempt()
            except _REFUSED as error:
                why = str(error).rstrip(".")
                raise StoreRefused(
                    f"{name}: the Redis server at {self._url} refuses the connection: {why}. The password comes from "
                    "the environment variable that store.password_env names"
                ) from error
            except ResponseError as error:
                answer = _said(error)
                if not answer.startswith(_PASSING):
                    raise StoreError(f"{name}: {self._refusal(answer)}") from error
                reason: Exception = error
                state = f"{self._refusal(answer)}, and has done so for"
            except _AWAY as error:
                reason = error
                state = f"the Redis server at {self._url} did not answer for"
            waited = time.monotonic() - began
            if waited + pause > self._deadline:
                limit = f"{self._limit} is {self._deadline:g} s"
                said = f": {reason}" if isinstance(reason, _AWAY) else ""
                raise Away(f"{name}: {state} {waited:.1f} s ({limit}){said}") from reason
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
