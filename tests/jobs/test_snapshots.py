"""The job `snapshots`: what it prints, as text and as JSON."""

import json

import pytest

from jobs.command import main
from jobs.snapshots import JOB
from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
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
