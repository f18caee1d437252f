"""What a training says of its pace, and how long it waited for text."""

import threading
import time
from dataclasses import replace

import pytest

from pipeline.pretraining.metrics import Measurement, StepMetrics, describe_progress
from pipeline.pretraining.pace import Pace, PaceMeter
from pipeline.pretraining.prefetch import Prefetched

MEASUREMENT = Measurement(40, 4000, 20.0, 5.0, 98.2, 95.1, 96.6, measured_in_s=4.0)
STEP = StepMetrics(
    step=41,
    tokens=4100,
    train_seconds=20.5,
    losses=[5.0, 5.1],
    learning_rate=0.0123,
    gradient_norm=0.871,
    tokens_per_s=200.0,
    left_s=80.0,
    waited_seconds=0.1,
)


def pace_of(tokens_per_s, left_s):
    return Pace(pytest.approx(tokens_per_s), pytest.approx(left_s))


def test_before_the_first_step_there_is_no_pace():
    assert PaceMeter().pace(3, 5.0) == Pace(None, None)
    meter = PaceMeter()
    meter.note(0.0, 0, 0.0)
    assert meter.pace(3, 5.0) == Pace(None, None)


def test_the_rate_is_that_of_training_and_the_time_left_has_the_measurements_to_come():
    meter = PaceMeter()
    meter.note(10.0, 2000, 0.1)
    meter.note(20.0, 4000, 0.2)
    assert meter.pace(0, 5.0) == pace_of(200.0, 80.0)
    assert meter.pace(3, 5.0) == pace_of(200.0, 95.0)
    # More steps than planned before: nothing is measured fewer times than never.
    assert meter.pace(-2, 5.0) == pace_of(200.0, 80.0)


def test_only_the_last_minute_counts():
    meter = PaceMeter()
    for second in range(1, 101):
        meter.note(float(second), 10 * second, second / 1000)
    for second in range(101, 301):
        meter.note(float(second), 1000 + 50 * (second - 100), 0.1 + (second - 100) / 500)
    assert meter.pace(0, 0.0) == pace_of(50.0, 0.5 * 500)


def test_a_training_that_is_gone_on_with_begins_with_its_earlier_pace():
    meter = PaceMeter()
    meter.note(1000.0, 50_000, 0.5)
    assert meter.pace(1, 10.0) == pace_of(50.0, 1010.0)
    meter.note(1001.0, 50_050, 0.5005)
    assert meter.pace(0, 0.0) == pace_of(50.0, 999.0)


def test_the_end_by_time_is_as_far_as_the_time_that_is_left():
    meter = PaceMeter()
    meter.note(30.0, 900, 30 / 150)
    assert meter.pace(0, 0.0) == pace_of(30.0, 120.0)
    meter.note(150.2, 4000, 150.2 / 150)
    assert meter.pace(0, 0.0).left_s == 0.0


def test_the_note_has_all_that_is_known():
    assert describe_progress(Pace(None, None), None, None, None) == ""
    note = describe_progress(Pace(1234.5, 80.0), 5.05, STEP, MEASUREMENT)
    assert note == (
        "1,234 tokens/s  ETA 1 min 20 s  loss 5.050  learning rate 0.012  gradient 0.87  "
        "held-out perplexity forward 98.2, backward 95.1, mean 96.6"
    )
    one = replace(MEASUREMENT, backward=None)
    assert "backward" not in describe_progress(Pace(None, None), None, None, one)


def test_waiting_is_counted_from_the_first_item_on():
    """Also where making one takes longer, as at the end of a window of text."""
    asked = threading.Event()

    def slow():
        for number in range(3):
            if number in (0, 2):
                # Made only after it was asked for.
                asked.wait()
                asked.clear()
                time.sleep(0.05)
            yield number

    with Prefetched(slow()) as ready:
        started = time.monotonic()
        asked.set()
        assert next(ready) == 0
        assert 0 < ready.waited_s <= time.monotonic() - started
        before_s = ready.waited_s
        assert next(ready) == 1
        threading.Timer(0.05, asked.set).start()
        assert next(ready) == 2
        assert ready.waited_s > before_s


def test_what_was_made_ahead_is_not_waited_for():
    all_made = threading.Event()

    def items():
        yield from range(3)
        all_made.set()

    with Prefetched(items(), depth=3) as ready:
        all_made.wait()
        assert [next(ready) for _ in range(3)] == [0, 1, 2]
        assert ready.waited_s == 0
