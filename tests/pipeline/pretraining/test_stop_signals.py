"""Signals that ask a training to end: noted once, then as they were before."""

import os
import signal

import pytest

from pipeline.pretraining.stop import stop_signals, stopped


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_is_noted_and_ends_the_training_as_it_would_have_ended_the_process(
    handlers, caplog, number, ends
):
    with stop_signals() as received:
        os.kill(os.getpid(), number)
        assert received == [number]
    with pytest.raises(ends):
        stopped(received, "after step 3")
    assert "stopped after step 3; the same command goes on from there" in caplog.text


def test_a_second_signal_is_not_held_back(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_the_process_ignores_it_goes_on_to_ignore(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == []
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
