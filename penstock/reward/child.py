"""The rule process: imports the rules once, then judges groups until its socket closes.

Started by the sandbox as `python -m penstock.reward.child SOCKET PARENT`. It must start fast, so nothing heavy
is imported here. What rules print goes to stderr; the socket is out of their reach by ordinary means.
"""

from __future__ import annotations

import asyncio
import copy
import ctypes
import difflib
import importlib
import inspect
import operator
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from penstock.reward import confinement, wire
from penstock.reward.rules import RULES

_PR_SET_PDEATHSIG = 1


class RuleError(Exception):
    """A rule that cannot be found or called; the text is the cause."""


def resolve(name: str) -> Callable[..., Any]:
    """The function of a built-in name or `module:function`. Raises RuleError."""
    if ":" not in name:
        if name not in RULES:
            near = difflib.get_close_matches(name, RULES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "your own is module:function"
            raise RuleError(f"there is no rule {name!r}; built in are {', '.join(RULES)}; {hint}")
        return RULES[name]
    module_name, _, path = name.partition(":")
    found: Any = importlib.import_module(module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            names = [n for n in dir(found) if callable(getattr(found, n)) and not n.startswith("_")]
            near = difflib.get_close_matches(attribute, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names) or 'no functions'}"
            raise RuleError(f"{module_name} ({getattr(found, '__file__', '?')}) has no {attribute!r}{hint}")
        found = getattr(found, attribute)
    if not callable(found):
        raise RuleError(f"{name!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def call(function: Callable[..., Any], args: dict[str, Any], request: wire.Call) -> list[wire.Entry]:
    """One call in TRL's signature, its result made into plain entries. Raises RuleError for a wrong result."""
    count = len(request.completions)
    columns = {name: [copy.deepcopy(value) for _ in range(count)] for name, value in request.columns.items()}
    given = columns | {
        "prompts": [copy.deepcopy(request.prompt) for _ in range(count)],
        "completions": request.completions,
        "completion_ids": request.completion_ids,
        "parts": request.parts,
        **args,
    }
    result = function(**_accepted(function, given))
    if inspect.isawaitable(result):
        result = asyncio.run(_awaited(result))
    try:
        entries = list(result)
    except TypeError:
        raise RuleError(f"must return a list with {count} entries, returned {type(result).__name__}") from None
    if len(entries) != count:
        raise RuleError(f"must return one entry for each of {count} completions, returned {len(entries)}")
    lengths = [len(ids) for ids in request.completion_ids]
    return [_entry(value, length) for value, length in zip(entries, lengths, strict=True)]


def _check_args(spec: wire.RuleSpec, function: Callable[..., Any]) -> None:
    """Raises RuleError for an argument in the run file that the function does not have."""
    parameters = inspect.signature(function).parameters.values()
    if ":" in spec.rule and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for name in spec.args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RuleError(f"it has no argument {name!r}, only {', '.join(known)}{hint}")


async def _awaited(result: Any) -> Any:
    return await result


def _accepted(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """What the function can take of what there is: all of it where it has **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return given
    missing = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    missing = [name for name in missing if name not in given]
    if missing:
        near = difflib.get_close_matches(missing[0], given, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RuleError(f"needs the argument {missing[0]!r}, and there are {', '.join(given)}{hint}")
    return {p.name: given[p.name] for p in parameters if p.name in given}


def _entry(value: Any, tokens: int) -> wire.Entry:
    """A number, None, both of them with steps, or why the value is none of these; of an answer of `tokens` tokens."""
    if isinstance(value, dict):
        return _stepwise(value, tokens)
    return _number(value)


def _number(value: Any) -> float | str | None:
    """A number, None, or why the value is neither."""
    if value is None:
        return None
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if not hasattr(type(value), "__float__"):
        return f"returned {value!r:.80} ({type(value).__name__}), which is no number"
    number = float(value)
    return number if number - number == 0 else f"returned {number}, which is no finite number"


def _stepwise(value: dict[Any, Any], tokens: int) -> wire.Entry:
    """Reward and steps of one answer, or why they are none."""
    if unknown := [key for key in value if key not in ("reward", "steps")]:
        return f"returned a dict with the key {unknown[0]!r}; it has the keys 'reward' and 'steps'"
    reward = _number(value.get("reward"))
    if isinstance(reward, str):
        return f"'reward': {reward}"
    steps: list[tuple[int, float]] = []
    try:
        for end, score in value.get("steps") or ():
            number = _number(score)
            if not isinstance(number, float):
                return f"'steps': the score at token {end!r:.20}: {number or 'returned None, which is no number'}"
            steps.append((operator.index(end), number))
    except (TypeError, ValueError):
        given = repr(value["steps"])
        return f"'steps' is a list of pairs (last token, score), returned {given:.80}"
    ends = [end for end, _ in steps]
    if ends != sorted(set(ends)) or (ends and not 0 <= ends[0] <= ends[-1] < tokens):
        return f"'steps': last tokens must rise and lie within 0 to {tokens - 1}, returned {ends!s:.80}"
    return wire.Stepwise(reward, steps) if steps else reward


def _cause(error: BaseException) -> str:
    """Type, text and the innermost line of the user's code."""
    if isinstance(error, RuleError):
        return str(error)
    own = _own_frames(error)
    where = f" ({os.path.basename(own[-1].filename)} line {own[-1].lineno})" if own else ""  # noqa: PTH119
    return f"{type(error).__name__}: {error}{where}"


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The traceback without this file and the import machinery."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]


def _receive(connection: socket.socket) -> wire.Request | None:
    """The next message; None when the scorer has gone."""
    head = _exactly(connection, wire.HEADER.size)
    if head is None:
        return None
    body = _exactly(connection, wire.HEADER.unpack(head)[0])
    return None if body is None else wire.REQUESTS.decode(body)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            return None
        received += piece
    return bytes(received)


def _prepare(setup: wire.Setup) -> tuple[dict[str, tuple[Callable[..., Any], dict[str, Any]]], str]:
    """Limits, folder and the functions of all parts; and why the process is not shut in, where it was to be."""
    unconfined = confinement.shut_in() if setup.confine else ""
    if setup.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (setup.memory_bytes, setup.memory_bytes))
    os.chdir(setup.folder)
    sys.path.insert(0, setup.folder)
    functions = {}
    for part, spec in setup.rules.items():
        try:
            functions[part] = (resolve(spec.rule), spec.args)
            _check_args(spec, functions[part][0])
        except (Exception, SystemExit) as error:
            raise RuleError(f"reward {part!r}: cannot import the rule {spec.rule!r}: {_cause(error)}") from error
    return functions, unconfined


def serve(connection: socket.socket) -> None:
    """Answer messages until the other end closes."""
    functions: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    while (request := _receive(connection)) is not None:
        reply: wire.Reply
        try:
            if isinstance(request, wire.Setup):
                functions, unconfined = _prepare(request)
                reply = wire.Ready(unconfined)
            else:
                function, args = functions[request.part]
                reply = wire.Scores(call(function, args, request))
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a user's function raises is its cause
            if not isinstance(error, RuleError):
                frames = "".join(traceback.format_list(_own_frames(error)))
                print(f"{frames}{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  the sandbox logs it
            reply = wire.Failed(_cause(error))
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(wire.frame(reply))


def main() -> None:
    """Take the socket, and end together with the scorer."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    # The kernel ends this process when the scorer dies, even if a rule holds the interpreter at that moment.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.set_inheritable(descriptor, False)
    os.dup2(2, 1)
    serve(socket.socket(fileno=descriptor))
    # Threads that a rule left behind must not keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    main()
