"""The page in a real browser: it renders, says no error, and shows every score and every use."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ET

import pytest

from elmo_model import Encoder
from pipeline.evaluation.bilms import LayerVectors
from pipeline.evaluation.page import page
from pipeline.evaluation.senses import NUM_NEIGHBOURS, SENSED_WORDS, map_words, readable
from pipeline.evaluation.svg import Bar, bars
from tests.elmo_model.random_models import write_model

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)
REFERENCES = ["TF-IDF", "layer 0 (no context)"]
LINES = [
    ("TF-IDF", "baseline", 0.61),
    ("layer 0 (no context)", "baseline", 0.52),
    ("layer 1", "layer", 0.66),
    ("average of layers", "model", 0.7),
    ("learned mix", "model", -0.02),
    ("a <b>&other", "other", 0.4),
]


def run_to_end(command):
    """What a command prints and says; its group of processes is gone in any case."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            printed, said = process.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    return printed, said


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium (a Debian package) is not installed")
    return found


def score(name, group, value):
    differences = [
        {"against": other, "value": 0.1, "low": 0.05, "high": 0.2, "verdict": "better"}
        for other in REFERENCES
        if other != name
    ]
    interval = {"low": value - 0.05, "high": value + 0.04}
    return {"name": name, "group": group, "value": value, **interval, "differences": differences}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The JSON of two tasks with one model, and the maps of real (untrained) vectors."""
    encoder = Encoder.from_files(**write_model(tmp_path_factory.mktemp("model")), device="cpu")
    table = {
        "metric": "accuracy",
        "references": REFERENCES,
        "scores": [score(*line) for line in LINES],
    }
    task = {"name": "sets", "kind": "classification", "num_items": 300, "notes": ["A <note>."]}
    mix = {"shares": [0.2, 0.5, 0.3], "gamma": 1.1}
    maps = [vars(found) for found in map_words(LayerVectors.all_layers(encoder))]
    for found in maps:
        found["uses"] = [vars(use) for use in found["uses"]]
        found["neighbours"] = {
            sense: [vars(near) for near in nearest]
            for sense, nearest in found["neighbours"].items()
        }
    return {
        "model": "model <of> tests",
        "weights_sha256": "0" * 64,
        "layers": 3,
        "dim": 12,
        "max_items": 300,
        "tokens": 12345,
        "padding_share": 0.012,
        "tokens_per_s": 999.0,
        "tasks": [
            {**task, "tables": [table, table], "mix": mix},
            {**task, "name": "no mix", "tables": [table], "mix": None},
        ],
        "words": maps,
    }


def test_every_use_of_a_word_is_on_its_map_once(result):
    for sensed, found in zip(SENSED_WORDS, result["words"], strict=True):
        sentences = [text for texts in sensed.sentences.values() for text in texts]
        assert len(found["uses"]) == len(sentences)
        assert {use["sense"] for use in found["uses"]} == set(sensed.sentences)
        assert set(found["neighbours"]) == set(sensed.sentences)
        assert 0 <= found["same_sense_share"] <= 1
        for sense, nearest in found["neighbours"].items():
            assert len(nearest) == NUM_NEIGHBOURS
            assert all(near["word"] != sensed.word for near in nearest)
            own = sensed.sentences[sense][0]
            assert all(near["sentence"] != readable(own) for near in nearest)
            cosines = [near["cosine"] for near in nearest]
            assert cosines == sorted(cosines, reverse=True)


def test_the_page_asks_for_nothing_from_outside(result):
    text = page(result)
    assert "<script" not in text
    assert set(re.findall(r"(?:src|href)=\"([^\"]*)\"", text)) == {"data:,"}
    assert "url(" not in text
    assert "http" not in text
    assert "model &lt;of&gt; tests" in text
    assert "a &lt;b&gt;&amp;other" in text


def test_a_chromium_renders_every_mark_and_says_no_error(result, browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(result), "utf-8")
    shot = tmp_path / "page.png"
    dom, said = run_to_end(
        [
            browser,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,2600",
            f"--screenshot={shot}",
            "--dump-dom",
            path.as_uri(),
        ],
    )
    assert "CONSOLE" not in said
    num_uses = sum(len(word["uses"]) for word in result["words"])
    assert dom.count('<rect class="bar ') == 3 * len(LINES)
    assert dom.count('class="whisker"') == 3 * len(LINES)
    assert dom.count('<rect class="share ') == 3
    assert dom.count('<circle class="point ') == num_uses
    assert dom.count('<section class="card task">') == 2
    assert dom.count("<tr>") == 1 + 3
    assert shot.read_bytes().startswith(b"\x89PNG")
    # A page of one colour would take far less.
    assert shot.stat().st_size > 50_000


def test_bars_and_whiskers_stand_where_their_numbers_are():
    root = ET.fromstring(
        bars("t", [Bar("a", 0.5, 0.4, 0.6, "layer"), Bar("b", -0.1, -0.2, 0, "x")])
    )
    first, second = (item for item in root if item.get("class", "").startswith("bar"))
    left, width = float(first.get("x")), float(first.get("width"))
    # From -0.2 to 0.6: the first begins where the second, which is negative, ends.
    assert float(second.get("x")) + float(second.get("width")) == pytest.approx(left, abs=0.2)
    assert float(second.get("width")) == pytest.approx(width / 5, abs=0.2)
    whisker = next(item for item in root if item.get("class") == "whisker").get("d")
    low, high = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", whisker).groups()
    assert float(low) == pytest.approx(left + width * 0.8, abs=0.2)
    assert float(high) == pytest.approx(left + width * 1.2, abs=0.2)


def test_a_long_name_is_cut_to_its_place_and_whole_when_pointed_at():
    names = ["layer 0 (no context), white", "classification customer-reviews-2026.csv", "评论" * 9]
    root = ET.fromstring(bars("t", [Bar(name, 0.5, 0.4, 0.6, "layer") for name in names]))
    labels = [item for item in root if item.get("class") == "label"]
    assert [label.text for label in labels] == [
        names[0],
        "classification customer-rev…",
        "评论" * 6 + "评…",
    ]
    assert [label.findtext("title") for label in labels] == names
