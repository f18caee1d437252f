"""`elmo nightly` as it is scheduled: night after night over the same output."""

import json

import pytest
import yaml

from jobs import nightly
from jobs.command import main
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.read import open_snapshot
from pipeline.snapshot.tags import put_tag
from pipeline.storage import open_storage

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def config_file(tmp_path, shared):
    values = {
        "source": {"path": str(tmp_path / "corpus"), "id_column": "id"},
        "model": {
            "options_file": str(shared / "golden/bilm-tf/options.json"),
            "weights_file": str(shared / "golden/bilm-tf/lm_weights.hdf5"),
        },
        "output": {"path": str(tmp_path / "vectors")},
        "run": {"num_actors": 1},
        "nightly": {
            "compact_below_bytes": 1 << 20,
            "compact_min_files": 3,
            "keep_snapshots": 2,
            "gc_older_than_hours": None,
        },
    }
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def write_corpus(tmp_path, texts):
    folder = tmp_path / "corpus"
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (folder / "all.jsonl").write_text("\n".join(rows))


def run(config_file, capsys, *flags):
    code = main(nightly.JOB, ["--config", str(config_file), "--json", "--quiet", *flags])
    return code, json.loads(capsys.readouterr().out)


def test_nights_follow_one_another_and_the_house_stays_small(tmp_path, config_file, capsys):
    texts = {"a": "The first night."}
    url = str(tmp_path / "vectors")
    for number, name in enumerate("bcde", 2):
        write_corpus(tmp_path, texts)
        code, status = run(config_file, capsys)
        assert (code, status["result"]["new"]) == (0, 1)
        assert status["result"]["rows"]["rows_in"] == len(texts)
        if number == 2:
            put_tag(SnapshotStore(open_storage(url)), "first", 1)
        texts[name] = f"The text of night {number}."
    # The third night had three small files, which were merged; the fourth added one.
    numbers = SnapshotStore(open_storage(url)).numbers()
    assert numbers == (1, 4, 5)
    snapshot, dataset = open_snapshot(url)
    assert sorted(dataset.to_table(["id"])["id"].to_pylist()) == ["a", "b", "c", "d"]
    assert len(snapshot.files) == 2
    code, status = run(config_file, capsys)
    assert (code, status["result"]["status"]) == (0, "unchanged")


def test_a_failed_upkeep_is_reported_and_the_commit_stands(tmp_path, config_file, capsys):
    write_corpus(tmp_path, {"a": "One."})
    open_storage(str(tmp_path / "vectors")).put("_tags/broken.json", b"{")
    code, status = run(config_file, capsys, "--set", "nightly.keep_snapshots=1")
    assert code == status["exit_code"] == 7
    assert status["result"]["status"] == "committed"
    assert "_tags/broken" in status["result"]["upkeep"]["error"]
    assert open_snapshot(str(tmp_path / "vectors"))[0].number == 1


def test_a_dry_run_changes_nothing(tmp_path, config_file, capsys):
    write_corpus(tmp_path, {"a": "One.", "b": "Two."})
    code, status = run(config_file, capsys, "--dry-run")
    assert (code, status["result"]["new"]) == (0, 2)
    assert SnapshotStore(open_storage(str(tmp_path / "vectors"))).latest() is None
