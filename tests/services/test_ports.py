"""A port is held from the moment it is chosen until its server listens on it, and longer."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from penstock.services.ports import HeldPort

HOST = "127.0.0.1"


def given_by_the_kernel(count: int) -> set[int]:
    """Ports of so many sockets that are open at the same time and asked for any, as careless servers do."""
    asking = [socket.socket() for _ in range(count)]
    for each in asking:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind(("", 0))
    numbers = {each.getsockname()[1] for each in asking}
    for each in asking:
        each.close()
    return numbers


def test_two_hundred_holders_have_two_hundred_ports_and_nobody_else_is_given_one():
    held = [HeldPort(HOST) for _ in range(200)]
    numbers = {port.number for port in held}
    assert len(numbers) == 200
    assert not numbers & given_by_the_kernel(400)
    for port in held:
        port.release()


def test_a_server_may_listen_on_a_port_that_is_held_and_only_one():
    with HeldPort(HOST) as port, socket.create_server((HOST, port.number)):
        socket.create_connection((HOST, port.number), timeout=5).close()
        with pytest.raises(OSError, match="in use"):
            socket.create_server((HOST, port.number))


def test_it_is_held_at_all_addresses_where_a_server_may_listen_at_once():
    """The near end of a connection from another address would be in its way."""
    with HeldPort(HOST) as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.2", port.number))
        socket.create_server(("", port.number)).close()


def test_a_port_stays_held_when_its_server_has_died():
    with HeldPort(HOST) as port:
        socket.create_server((HOST, port.number)).close()
        assert port.number not in given_by_the_kernel(400)
        socket.create_server((HOST, port.number)).close()


def test_many_processes_that_start_at_once_never_choose_the_same_port():
    program = (
        "import sys\nfrom penstock.services.ports import HeldPort\n"
        f"held = [HeldPort({HOST!r}) for _ in range(20)]\n"
        "print(*[port.number for port in held], flush=True)\nsys.stdin.read()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    numbers: list[str] = []
    for process in started:
        assert process.stdout is not None
        numbers += process.stdout.readline().split()
    for process in started:
        process.communicate()
    assert len(numbers) == len(set(numbers)) == 200


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match="assign"):
        HeldPort("203.0.113.7")
