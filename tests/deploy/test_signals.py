"""The first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from penstock.deploy.signals import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_raises(number):
    before = signal.getsignal(number)
    with interruptible() as asked:
        assert not asked
        os.kill(os.getpid(), number)
        assert asked and asked.name == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_of_the_main_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def elsewhere():
        with interruptible() as asked:
            seen.append((bool(asked), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
