"""A rule process shut in by the kernel, so that it reaches no process outside: Landlock, which needs no rights.

A process in a Landlock domain may not look into one that is not in it: neither its memory nor its environment nor its
descriptors, where a store's password is. Newer kernels also keep its signals in. Files and the network stay as open to
it as they are to the user: rules read data, write caches and ask judges. Root keeps its rights over files, and no
others: with them it could go around all this.
"""

from __future__ import annotations

import ctypes
import os

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""System calls, by the same numbers on every architecture."""
_VERSION = 1
"""Flag that asks for the version of the kernel's interface."""
_NO_NEW_PRIVS = 38
_PATH_BENEATH = 1
_MAKE_BLOCK, _REFER = 1 << 11, 1 << 13
"""Making block devices; moving files from one folder to another."""
_DROP = 24
_CAPABILITIES = 0x20080522
"""Third form of the sets that `capget` and `capset` take: two words of 32 each."""
_KEPT = frozenset({0, 1, 3, 4, 5, 6, 7, 10})
"""What root keeps: chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service. Without them files that
its rules may need would be closed to it, and it could not become another user."""
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1
_SCOPES = 6
"""Version from which on a domain may be about signals and abstract sockets alone, and so about no files."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _Whose(ctypes.Structure):
    _fields_ = (("form", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Of the kernel's Landlock; 0 where it has none or keeps it switched off."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))))


def lacking() -> str:
    """Why rules cannot be shut in on this machine; empty where they can."""
    if version():
        return ""
    return "this kernel has no Landlock (Linux 5.13 and newer have it, where it is among the `lsm` of the boot line)"


def shut_in(known: int | None = None) -> str:
    """Shut in this process, its only thread, and all that it will start; there is no way back. Returns why it cannot
    be, which is empty when it was done. `known`: the version to go by, the kernel's own or an older one."""
    known = version() if known is None else known
    try:
        if not known:
            _drop_capabilities()
            return lacking()
        ruleset = _made(known)
        _call("prctl", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
        _call("landlock_restrict_self", _libc.syscall(_RESTRICT, ruleset, ctypes.c_uint(0)))
        os.close(ruleset)
        _drop_capabilities()
    except OSError as error:
        return f"the kernel refuses it: {error}"
    return ""


def _made(known: int) -> int:
    """A ruleset that forbids as little as there can be in one: what it is for comes with any."""
    if known >= _SCOPES:
        return _create(_Ruleset(0, 0, _ABSTRACT_SOCKETS | _SIGNALS), 24)
    if known == 1:
        return _create(_Ruleset(_MAKE_BLOCK), 8)
    # Of these versions every ruleset about files forbids moving them, unless it is allowed.
    ruleset = _create(_Ruleset(_REFER), 8)
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    beneath = _Beneath(_REFER, root)
    added = _libc.syscall(_ADD, ruleset, ctypes.c_int(_PATH_BENEATH), ctypes.byref(beneath), ctypes.c_uint(0))
    os.close(root)
    _call("landlock_add_rule", added)
    return ruleset


def _drop_capabilities() -> None:
    """All but those that are kept, for good."""
    for number in set(range(64)) - _KEPT:
        _libc.prctl(_DROP, number, 0, 0, 0)  # refused to whoever has none; what they start gets none either
    whose, words = _Whose(_CAPABILITIES, 0), (_Capabilities * 2)()
    _call("capget", _libc.capget(ctypes.byref(whose), words))
    kept = sum(1 << number for number in _KEPT)
    for word, mask in zip(words, (kept & 0xFFFFFFFF, kept >> 32), strict=True):
        word.effective, word.permitted, word.inheritable = word.effective & mask, word.permitted & mask, 0
    _call("capset", _libc.capset(ctypes.byref(whose), words))


def _create(wanted: _Ruleset, size: int) -> int:
    made = _libc.syscall(_CREATE, ctypes.byref(wanted), ctypes.c_size_t(size), ctypes.c_uint(0))
    return _call("landlock_create_ruleset", made)


def _call(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)
