"""`elmo replay` on a real Ray: what was rejected comes in after a fix, and nothing else moves."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.command import Call, build_parser
from jobs.replay import JOB, replay
from pipeline.config import EmbedConfig, build
from pipeline.errors import TooManyRejectsError
from pipeline.run import execute, prepare
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.read import open_snapshot
from pipeline.storage import open_storage
from tests.integration.stand_in import WordBackend, WordLoader, WordModel

pytestmark = pytest.mark.usefixtures("ray_cluster")


class PickyModel(WordModel):
    """Fails on a word, as an encoder may on one document."""

    def vectors(self, window):
        if "poison" in window.words:
            raise RuntimeError("a word that breaks the model")
        return super().vectors(window)


class PickyLoader(WordLoader):
    def __call__(self):
        return PickyModel(self._level)


class PickyBackend(WordBackend):
    def loader(self, config, num_threads):
        return PickyLoader(config.vectors.level)


def write_lines(path, *rows):
    path.parent.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def row(name, text=None):
    return {"id": name, "text": text or f"The text of {name}."}


def configured(tmp_path, output="vectors", **run):
    values = {
        "source": {
            "path": str(tmp_path / "corpus"),
            "id_column": "id",
            "on_bad_file": "reject",
        },
        "model": {"directory": "none"},
        "output": {"path": str(tmp_path / output)},
        "run": {"num_actors": 1, "max_rejected_share": 1.0, **run},
    }
    return build(EmbedConfig, values, "test")


def embed(config, backend=None):
    return execute(prepare(config, backend=backend or WordBackend()))


def try_again(config, *words):
    arguments = build_parser(JOB).parse_args(["--config", "x", "--quiet", *words])
    return replay(Call("replay", arguments), config, WordBackend())


def vectors(config):
    snapshot, dataset = open_snapshot(config.output.path)
    return snapshot, {
        item["id"]: (item["content_hash"], item["vector"])
        for item in dataset.to_table().to_pylist()
    }


def test_mended_rows_come_in_and_the_snapshot_equals_one_from_scratch(tmp_path):
    corpus = tmp_path / "corpus"
    write_lines(corpus / "a.jsonl", row("a1"), row("a2"))
    bad = ['{"id": "b2", "text": oops}', {"id": "b3", "text": ""}, row("a1", "Another a1.")]
    write_lines(corpus / "b.jsonl", row("b1"), *bad)
    (corpus / "c.parquet").write_bytes(b"no parquet")
    write_lines(corpus / "d.jsonl", row("d1"))
    config = configured(tmp_path)
    report = embed(config)
    codes = {"bad_json": 1, "corrupt_file": 1, "duplicate_id": 1, "empty_text": 1}
    assert report.rejected_by_code == codes
    before = vectors(config)

    result = try_again(config)
    assert (result.data["embedded_now"], result.data["still_rejected"]) == (0, 4)
    assert "nothing could be mended" in result.text
    assert vectors(config) == before

    write_lines(corpus / "b.jsonl", row("b1"), row("b2"), bad[2])
    pq.write_table(pa.Table.from_pylist([row("c1"), row("c2")]), corpus / "c.parquet")
    write_lines(corpus / "d.jsonl", row("d1"), row("late"))
    result = try_again(config)
    fates = [result.data[key] for key in ("embedded_now", "still_rejected", "no_longer_in_source")]
    assert fates == [2, 1, 1]
    assert result.data["source_files"] == 3
    snapshot, found = vectors(config)
    assert snapshot.operation == "replay"
    # The file that had no rejected row was not read: what is new in it waits for the next night.
    assert sorted(found) == ["a1", "a2", "b1", "b2", "c1", "c2", "d1"]

    embed(config)
    scratch = configured(tmp_path, "scratch")
    embed(scratch)
    assert vectors(config)[1] == vectors(scratch)[1]
    assert "late" in vectors(config)[1]


def test_documents_that_the_model_rejected_are_embedded_once_it_is_mended(tmp_path):
    write_lines(tmp_path / "corpus/a.jsonl", row("a"), row("p", "Full of poison."), row("b"))
    config = configured(tmp_path)
    assert embed(config, PickyBackend()).rejected_by_code == {"embed_failed": 1}
    assert embed(config).snapshot is None  # The same input is not tried again by itself.
    planned = try_again(config, "--dry-run")
    assert planned.data["rejected_before"] == {"embed_failed": 1}
    assert "1 embed_failed" in planned.text
    assert sorted(vectors(config)[1]) == ["a", "b"]
    result = try_again(config)
    assert (result.data["embedded_now"], result.data["still_rejected"]) == (1, 0)
    assert result.data["embedded_documents"] == 1
    assert sorted(vectors(config)[1]) == ["a", "b", "p"]
    assert "nothing to replay" in try_again(config).text


def test_the_rows_of_a_run_that_a_limit_stopped_can_be_replayed_by_its_name(tmp_path):
    write_lines(tmp_path / "corpus/a.jsonl", row("a"))
    config = configured(tmp_path, max_rejected=0)
    embed(config)
    write_lines(tmp_path / "corpus/b.jsonl", row("b"), "{broken", row("c"))
    with pytest.raises(TooManyRejectsError, match=r"1 of 4 rows .* run.max_rejected = 0"):
        embed(config)
    storage = open_storage(config.output.path)
    (listed,) = storage.list_files("_rejected")
    stopped = listed.path.split("/")[1]
    assert "nothing to replay" in try_again(config).text
    (tmp_path / "corpus/b.jsonl").write_text(json.dumps(row("mended")) + "\n")
    result = try_again(config, "--run", stopped)
    assert (result.data["embedded_now"], result.data["replayed_run"]) == (1, stopped)
    assert sorted(vectors(config)[1]) == ["a", "mended"]
    (tmp_path / "corpus/b.jsonl").unlink()
    result = try_again(config, "--run", stopped)
    assert result.data["no_longer_in_source"] == 1
    assert SnapshotStore(storage).latest_number() == 2
