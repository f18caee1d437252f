"""The progress line, with a clock that the test moves."""

from __future__ import annotations

import io

import pytest

from pipeline.progress import RATE_WINDOW_S, Progress
from pipeline.units import format_bytes, format_duration


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_has_done_total_rate_time_left_and_elapsed(clock):
    progress = Progress(1000, stream=io.StringIO(), clock=clock)
    clock.now_s += 20
    progress.update(200, tokens=40_000, note="loss 3.1")
    assert progress.line() == (
        "200/1,000 documents  20%  2,000 tokens/s  ETA 1 min 20 s  elapsed 20 s  loss 3.1"
    )


def test_where_notes_have_rate_and_time_left_they_stand_once(clock):
    progress = Progress(1000, stream=io.StringIO(), clock=clock, with_rate=False)
    clock.now_s += 20
    progress.update(200, tokens=40_000, note="7 tokens/s")
    assert progress.line() == "200/1,000 documents  20%  elapsed 20 s  7 tokens/s"


def test_a_file_gets_a_line_every_interval(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream, interval_s=10, clock=clock)
    for second in range(1, 36):
        clock.now_s += 1
        progress.update(second)
    progress.close()
    assert stream.getvalue().count("\n") == 5  # at 1, 11, 21 and 31 s, and the last
    assert "\r" not in stream.getvalue()


def test_a_file_gets_the_end_once(clock):
    stream = io.StringIO()
    with Progress(10, stream=stream, clock=clock) as progress:
        clock.now_s += 20
        progress.update(10)
    assert stream.getvalue() == "10/10 documents  100%  0 documents/s  elapsed 20 s\n"


def test_a_terminal_is_redrawn_in_place_and_ends_with_a_line(clock):
    stream = Terminal()
    with Progress(10, stream=stream, clock=clock) as progress:
        for done in range(5):
            clock.now_s += 1
            progress.update(done)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r\x1b[K") == 6
    assert text.endswith("\n")


def test_the_rate_is_that_of_the_last_minute_and_at_the_end_of_the_whole(clock):
    progress = Progress(10_000, stream=io.StringIO(), clock=clock)
    clock.now_s += 1000  # the cluster starts slowly
    progress.update(0)
    for step in range(1, 101):
        clock.now_s += 1
        progress.update(step * 10, tokens=step * 500)
    assert "500 tokens/s" in progress.line()
    assert len(progress._history) <= RATE_WINDOW_S + 2
    progress.close()
    assert "45 tokens/s" in progress.line()  # 50,000 tokens in 1,100 s


def test_an_unknown_total_has_no_share_and_no_time_left(clock):
    progress = Progress(None, unit="batches", stream=io.StringIO(), clock=clock)
    clock.now_s += 10
    progress.update(50)
    assert progress.line() == "50 batches  5 batches/s  elapsed 10 s"


def test_nothing_to_do_and_nothing_done_are_no_division_by_zero(clock):
    progress = Progress(0, stream=io.StringIO(), clock=clock)
    progress.update(0)
    progress.close()
    assert progress.line() == "0/0 documents  elapsed 0.0 s"


def test_closing_twice_writes_one_line_and_quiet_writes_none(clock):
    stream = io.StringIO()
    with Progress(1, stream=stream, clock=clock) as progress:
        progress.close()
    assert stream.getvalue().count("\n") == 1
    quiet = io.StringIO()
    with Progress(1, stream=quiet, clock=clock, quiet=True) as progress:
        clock.now_s += 100
        progress.update(1)
    assert quiet.getvalue() == ""


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1530, "1.53 kB"),
        (999_600, "1.00 MB"),
        (41_234_000_000, "41.2 GB"),
    ],
)
def test_sizes_have_three_digits(size_bytes, text):
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (300_000, "3 d 11 h"),
    ],
)
def test_durations_have_two_units(duration_s, text):
    assert format_duration(duration_s) == text
