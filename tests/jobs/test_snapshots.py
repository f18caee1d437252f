"""The job `snapshots`: what it prints, as text and as JSON."""

import json
import os
import subprocess
import sys

import pytest

from jobs.command import build_parser, main
from jobs.snapshots import JOB
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.tags import read_tags
from pipeline.storage import open_storage
from pipeline.verify import verify_snapshot
from tests.pipeline.histories import Document, Night
from tests.pipeline.snapshots import FINGERPRINT, snapshot, write_file

COUNTS = {"added": 2, "changed": 0, "deleted": 0, "documents": 2, "rows": 2}


def fill(url: str) -> None:
    """Commit two snapshots: a and b in English and German, then b edited and c added."""
    storage = open_storage(url)
    store = SnapshotStore(storage)
    english = write_file(storage, ["a"], partition={"lang": "en"})
    german = {"lang": "de"}
    first = store.commit(
        snapshot([english, write_file(storage, ["b"], partition=german)], counts=COUNTS)
    )
    edited = write_file(storage, ["b", "c"], partition=german, text="edited")
    counts = {"added": 1, "changed": 1, "deleted": 0, "documents": 3, "rows": 3}
    store.commit(
        snapshot([english, edited], counts=counts, run_id="run-2").numbered(first),
    )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(JOB, [*words, "--quiet"]) == 0
    return capsys.readouterr().out


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    return json.loads(run(capsys, *words, "--json"))["result"]


def fail(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(JOB, [*words, "--quiet"])
    return code, capsys.readouterr().err


def test_list_shows_a_line_for_each_snapshot(local_url, capsys):
    fill(local_url)
    header, _, first, second = run(capsys, "list", local_url).splitlines()
    assert header.split() == [
        *("number", "created", "operation", "documents", "added", "changed", "deleted"),
        *("files", "size", "fingerprint"),
    ]
    assert first.split()[0] == "1"
    assert first.split()[2:7] == ["embed", "2", "2", "0", "0"]
    assert second.split()[0] == "2"
    assert second.split()[3:7] == ["3", "1", "1", "0"]
    assert second.split()[-1] == FINGERPRINT[:12]


def test_list_as_json_has_the_same(local_url, capsys):
    fill(local_url)
    data = run_json(capsys, "list", local_url)
    assert [item["number"] for item in data["snapshots"]] == [1, 2]
    assert data["snapshots"][1]["counts"]["changed"] == 1
    assert data["snapshots"][1]["num_files"] == 2


def test_an_empty_directory_is_listed_as_empty(local_url, capsys):
    assert "there is no snapshot here" in run(capsys, "list", local_url)
    assert run_json(capsys, "list", local_url)["snapshots"] == []


def test_list_works_on_s3(moto_url, capsys):
    fill(moto_url)
    assert len(run(capsys, "list", moto_url).splitlines()) == 4


def test_show_tells_all_about_the_latest_or_a_given_one(local_url, capsys):
    fill(local_url)
    text = run(capsys, "show", local_url)
    assert "00000002.json" in text
    assert "counts: changed" in text
    assert "data/lang=de/run-1-" in text
    assert FINGERPRINT in text
    data = run_json(capsys, "show", local_url, "1")
    assert (data["number"], data["parent"], data["documents"]) == (1, None, 2)
    assert [file["partition"] for file in data["files"]] == [{"lang": "en"}, {"lang": "de"}]
    assert data["schema"][-1] == {"name": "lang", "type": "string", "nullable": True}
    assert "secret" not in json.dumps(data)


def test_diff_names_the_documents_that_differ(local_url, capsys):
    fill(local_url)
    text = run(capsys, "diff", local_url)
    assert "from snapshot 1 to 2" in text
    assert "files: 1 added, 1 removed" in text
    data = run_json(capsys, "diff", local_url, "1", "2")
    assert data["added"] == {"count": 1, "ids": ["c"]}
    assert data["changed"] == {"count": 1, "ids": ["b"]}
    assert data["deleted"] == {"count": 0, "ids": []}
    assert data["unchanged"] == 1
    back = run_json(capsys, "diff", local_url, "2", "1")
    assert back["deleted"] == {"count": 1, "ids": ["c"]}


def test_diff_warns_when_the_encoders_differ(local_url, capsys):
    store = SnapshotStore(open_storage(local_url))
    first = store.commit(snapshot())
    store.commit(snapshot(fingerprint="e" * 64, run_id="run-2").numbered(first))
    assert "may not be compared" in run(capsys, "diff", local_url)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "URL", "9"], "no snapshot 9; found: 1 to 2"),
        (["show", "URL", "1", "2"], "expected 0 or 1 snapshot numbers or names, found 2"),
        (["diff", "URL", "1"], "expected 0 or 2 snapshot numbers or names, found 1"),
        (["list", "URL", "1"], "expected 0 snapshot numbers or names, found 1"),
        (["diff", "URL", "--ids", "-1"], "--ids -1"),
        (["forget", "URL"], "invalid choice"),
        (["show", "URL/elsewhere"], "no snapshot here"),
    ],
)
def test_wrong_words_are_the_users_to_mend(local_url, capsys, words, message):
    fill(local_url)
    code, err = fail(capsys, *(word.replace("URL", local_url) for word in words))
    assert code == 2
    assert message in err


def test_one_snapshot_cannot_be_compared(local_url, capsys):
    SnapshotStore(open_storage(local_url)).commit(snapshot())
    assert "only snapshot 1" in fail(capsys, "diff", local_url)[1]


def nights(url: str, number: int = 4) -> SnapshotStore:
    """Nights that each add a document and change another."""
    store = SnapshotStore(open_storage(url))
    for index in range(number):
        Night({f"doc-{index}": Document("one"), "same": Document(f"{index}")}).commit(store)
    return store


def test_a_tag_names_a_snapshot_everywhere(local_url, capsys):
    store = nights(local_url)
    assert "there is no tag" in run(capsys, "tag", local_url)
    assert "snapshot 4 would be tagged prod" in run(capsys, "tag", local_url, "prod", "--dry-run")
    assert "snapshot 2 is tagged prod" in run(capsys, "tag", local_url, "prod", "2")
    assert run_json(capsys, "tag", local_url, "latest")["number"] == 4
    tags = run_json(capsys, "tag", local_url)["tags"]
    assert [(tag["name"], tag["number"]) for tag in tags] == [("latest", 4), ("prod", 2)]
    assert run(capsys, "tag", local_url).splitlines()[3].split()[:2] == ["prod", "2"]
    assert run(capsys, "list", local_url).splitlines()[3].endswith("prod")
    assert run_json(capsys, "list", local_url)["snapshots"][1]["tags"] == ["prod"]
    assert run_json(capsys, "show", local_url, "prod")["number"] == 2
    assert run_json(capsys, "diff", local_url, "prod", "latest")["added"]["count"] == 2
    code, err = fail(capsys, "tag", local_url, "prod", "3")
    assert (code, "move it with --force" in err) == (2, True)
    assert run_json(capsys, "tag", local_url, "prod", "3", "--force")["number"] == 3
    assert "would be deleted" in run(capsys, "tag", local_url, "prod", "--delete", "--dry-run")
    assert run_json(capsys, "tag", local_url, "prod", "--delete")["number"] == 3
    assert [tag.name for tag in read_tags(store.storage)] == ["latest"]


def test_rollback_says_what_it_means_and_does_it(local_url, capsys):
    store = nights(local_url)
    text = run(capsys, "rollback", local_url, "2", "--dry-run")
    assert "from 4 to 2 would mean: 0 documents added, 1 changed, 2 deleted, 2 unchanged" in text
    assert store.numbers() == (1, 2, 3, 4)
    run(capsys, "tag", local_url, "good", "2")
    data = run_json(capsys, "rollback", local_url, "good")
    assert (data["snapshot"], data["target"], data["parent"], data["num_deleted"]) == (5, 2, 4, 2)
    assert store.load(5).files == store.load(2).files
    assert "equals 2 already; nothing was committed" in run(capsys, "rollback", local_url, "2")


def test_expire_and_gc_remove_what_they_say(local_url, capsys):
    store = nights(local_url)
    run(capsys, "tag", local_url, "prod", "1")
    text = run(capsys, "expire", local_url, "--keep", "1", "--dry-run")
    assert "would be expired: 2 to 3;" in text
    assert "kept: 1, 4 (because of tags: 1)" in text
    data = run_json(capsys, "expire", local_url, "--keep", "1")
    assert (data["expired"], data["kept"], data["tagged"]) == ([2, 3], [1, 4], [1])
    assert "expired: none" in run(capsys, "expire", local_url, "--keep-days", "5")
    assert "removed: 0 files" in run(capsys, "gc", local_url)
    force = ("--older-than", "0", "--force")
    for info in store.storage.list_files():
        os.utime(store.storage.url_of(info.path), (1e9, 1e9))
    planned = run(capsys, "gc", local_url, *force, "--dry-run")
    data = run_json(capsys, "gc", local_url, *force)
    assert data["num_by_kind"] == {"data file": 2}
    assert f"would be removed: {len(data['paths'])} files" in planned
    assert all(path in planned for path in data["paths"])
    for number in (1, 4):
        assert verify_snapshot(store.storage, store.load(number)).is_good


def test_compact_needs_no_configuration(local_url, capsys):
    store = nights(local_url)
    before = len(store.load(4).files)
    text = run(capsys, "compact", local_url, "--below", "1MiB", "--dry-run")
    assert f"{before} of {before} files" in text
    assert "would become 1" in text
    data = run_json(capsys, "compact", local_url, "--below", "1MiB")
    assert (data["snapshot"], data["num_merged"], data["num_files"]) == (5, before, 1)
    assert "the rows are those of 4" not in run(capsys, "compact", local_url, "--below", "1048576")
    assert run_json(capsys, "compact", local_url, "--below", "1MB")["snapshot"] is None
    assert store.latest_number() == 5
    assert verify_snapshot(store.storage, store.load(5)).is_good


def test_keeping_house_works_on_s3(moto_url, capsys):
    nights(moto_url)
    # A process of its own: this one may have joined a cluster that does not know the server.
    command = [sys.executable, "-m", "jobs.snapshots", "compact", moto_url, "--below", "1MiB"]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True)
    assert json.loads(done.stdout)["result"]["num_files"] == 1
    assert run_json(capsys, "rollback", moto_url, "3")["snapshot"] == 6
    assert run_json(capsys, "expire", moto_url, "--keep", "2")["expired"] == [1, 2, 3, 4]
    assert run_json(capsys, "gc", moto_url)["paths"] == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rollback", "URL"], 2, "expected 1 snapshot numbers or names, found 0"),
        (["rollback", "URL", "9"], 2, "no snapshot 9"),
        (["rollback", "URL", "prod"], 2, "'prod' is neither a snapshot number nor a tag"),
        (["show", "URL", "../x"], 2, "a name has letters"),
        (["tag", "URL", "7"], 2, "is not a number"),
        (["tag", "URL", "prod", "9"], 2, "no snapshot 9"),
        (["tag", "URL", "prod", "--delete"], 2, "no tag 'prod'"),
        (["tag", "URL", "--delete"], 2, "say the name"),
        (["tag", "URL", "prod", "1", "--delete"], 2, "and no snapshot"),
        (["expire", "URL"], 2, "how many snapshots to keep"),
        (["expire", "URL", "--keep", "0"], 2, "from 1 on"),
        (["gc", "URL", "--older-than", "1"], 2, "--force"),
        (["gc", "URL", "--keep", "1"], 2, "--keep goes with expire"),
        (["list", "URL", "--force"], 2, "--force goes with gc and tag"),
        (["compact", "URL"], 2, "say --below"),
        (["compact", "URL", "--below", "many"], 2, "is not a size"),
        (["compact", "URL", "--below", "0"], 2, "expected 1 to"),
    ],
)
def test_wrong_words_change_nothing(local_url, capsys, words, code, message):
    fill(local_url)
    found, err = fail(capsys, *(word.replace("URL", local_url) for word in words))
    assert (found, message in err) == (code, True), err
    assert SnapshotStore(open_storage(local_url)).numbers() == (1, 2)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("5", 5), ("64MiB", 64 << 20), ("1.5 kB", 1500), ("2GB", 2 * 10**9)]
)
def test_sizes_are_read_with_their_units(text, size_bytes):
    parsed = build_parser(JOB).parse_intermixed_args(["compact", "x", "--below", text])
    assert parsed.below == size_bytes
