"""Writing a vocabulary file: what is in it, where it may go, and that it is never half there."""

import json
import subprocess
import sys
import threading

import pyarrow as pa
import pytest

from elmo_model.vocabulary import Vocabulary
from pipeline import vocabulary_file
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.vocabulary_file import check_output, companions, write_vocabulary
from pipeline.word_counts import COUNTS_SCHEMA

STORES = ["local", "memory", "moto"]


@pytest.fixture(params=STORES)
def url(request):
    return request.getfixturevalue(f"{request.param}_url") + "/words/vocabulary.txt"


def table(**counts):
    return pa.table([list(counts), list(counts.values())], schema=COUNTS_SCHEMA)


def read(url):
    directory, _, name = url.rpartition("/")
    return open_storage(directory).read_bytes(name, 1 << 20)


def test_the_file_is_the_one_of_the_original_program(url):
    write_vocabulary(url, table(the=9, été=3), None)
    assert read(url) == "<S>\n</S>\n<UNK>\nthe\nété\n".encode()
    assert Vocabulary.from_bytes(read(url), url).words[3:] == ("the", "été")
    assert [info.path for info in open_storage(url.rpartition("/")[0]).list_files()] == [
        "vocabulary.txt"
    ]


def test_a_table_in_several_pieces_is_written_as_one(url):
    pieces = pa.concat_tables([table(a=3).slice(0, 0), table(a=3, b=2).slice(1), table(c=1)])
    write_vocabulary(url, pieces, {})
    assert read(url) == b"<S>\n</S>\n<UNK>\nb\nc\n"
    assert read(companions(url)[0]) == b"b\t2\nc\t1\n"


def test_counts_and_summary_are_written_beside_it(url):
    write_vocabulary(url, table(the=9, cat=3), {"tokens": 12})
    counts, summary = companions(url)
    assert counts.endswith("/words/vocabulary.counts.tsv")
    assert summary.endswith("/words/vocabulary.summary.json")
    assert read(counts) == b"the\t9\ncat\t3\n"
    assert json.loads(read(summary)) == {"tokens": 12}


def test_a_vocabulary_that_is_there_is_replaced_only_when_asked(url):
    check_output(url, with_counts=True, overwrite=False)
    write_vocabulary(url, table(old=1), {})
    with pytest.raises(ConfigError, match=r"vocabulary\.txt: expected no file there.*--overwrite"):
        check_output(url, with_counts=False, overwrite=False)
    check_output(url, with_counts=True, overwrite=True)
    write_vocabulary(url, table(new=1), {})
    assert read(url).endswith(b"\nnew\n")


def test_counts_that_are_there_are_not_replaced_unasked_either(url):
    open_storage(url.rpartition("/")[0]).put("vocabulary.counts.tsv", b"precious")
    check_output(url, with_counts=False, overwrite=False)
    with pytest.raises(ConfigError, match=r"vocabulary\.counts\.tsv: expected no file there"):
        check_output(url, with_counts=True, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_is_no_name_of_a_file(url, overwrite):
    write_vocabulary(url, table(a=1), None)
    directory = url.rpartition("/")[0]
    for name in (directory, f"{directory}/"):
        with pytest.raises(ConfigError, match="found a directory; add a name"):
            check_output(name, with_counts=False, overwrite=overwrite)


def test_a_bucket_alone_is_no_name_of_a_file():
    with pytest.raises(ConfigError, match="bucket is missing"):
        check_output("s3://bucket", with_counts=False, overwrite=False)


def test_a_relative_name_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output("words", with_counts=True, overwrite=False)
    write_vocabulary("words", table(a=2), {})
    assert {path.name for path in tmp_path.iterdir()} == {
        "words",
        "words.counts.tsv",
        "words.summary.json",
    }


def test_a_file_that_no_reader_would_take_is_not_written(url, monkeypatch):
    monkeypatch.setattr(vocabulary_file, "MAX_VOCABULARY_BYTES", 30)
    write_vocabulary(url, table(a=2), None)
    with pytest.raises(ConfigError, match=r"have 31 bytes, .* 30; lower vocabulary\.max_size"):
        write_vocabulary(url, table(abcdefghijklmno=2), {})
    assert read(url).endswith(b"\na\n")
    assert open_storage(url.rpartition("/")[0]).info_or_none("vocabulary.counts.tsv") is None


def test_a_reader_sees_the_old_or_the_new_vocabulary_and_nothing_between(local_url):
    url = f"{local_url}/vocabulary.txt"
    versions = [table(**{f"w{v}x{n}": 1 for n in range(20_000)}) for v in range(2)]
    whole = set()
    for version in versions:
        write_vocabulary(url, version, None)
        whole.add(read(url))
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(read(url))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(20):
        write_vocabulary(url, versions[number % 2], None)
    done.set()
    watcher.join()
    assert set(seen) <= whole
    assert len(seen) > 2


FULL_DISK = """
import resource, sys
import pyarrow as pa
from pipeline.vocabulary_file import write_vocabulary
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write_vocabulary(sys.argv[1], pa.table({"word": ["w" * 20_000], "count": [1]}), None)
"""


def test_a_disk_that_is_full_leaves_the_old_vocabulary_and_nothing_else(tmp_path):
    path = tmp_path / "vocabulary.txt"
    write_vocabulary(str(path), table(old=1), None)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert "StorageError" in done.stderr, done.stderr
    assert path.read_bytes().endswith(b"\nold\n")
    assert list(tmp_path.iterdir()) == [path]
