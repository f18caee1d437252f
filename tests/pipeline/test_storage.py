"""One behaviour over all stores, and what each store adds."""

import errno
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow.dataset as pads
import pytest

from pipeline.errors import (
    AlreadyExistsError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    StorageError,
    UnknownOutcomeError,
    UnsafeStoreError,
)
from pipeline.storage import OutputFile, Storage, open_storage, probe, redact_url, split_pattern
from pipeline.storage_errors import translated
from tests.pipeline.racers import create_many, processes
from tests.s3_servers import S3Server, environment

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
PART_AND_A_BIT = (16 << 20) + 5


@pytest.fixture(params=STORES)
def storage(request: pytest.FixtureRequest) -> Storage:
    """An empty directory on each kind of store."""
    return open_storage(request.getfixturevalue(f"{request.param}_url"))


def paths(storage: Storage, prefix: str = "") -> list[str]:
    return [info.path for info in storage.list_files(prefix)]


def test_an_empty_storage_lists_nothing(storage):
    assert storage.list_files() == []
    assert storage.list_files("no/such/directory") == []
    assert storage.glob("**/*") == []


def test_what_is_put_is_read_back_and_listed_with_its_size(storage):
    storage.put("b/c/two.txt", b"22")
    storage.put("a.txt", b"1")
    storage.put("b/c/empty", b"")
    found = storage.list_files()
    assert [(info.path, info.size_bytes) for info in found] == [
        ("a.txt", 1),
        ("b/c/empty", 0),
        ("b/c/two.txt", 2),
    ]
    assert paths(storage, "b") == ["b/c/empty", "b/c/two.txt"]
    assert paths(storage, "b/c/") == ["b/c/empty", "b/c/two.txt"]
    assert paths(storage, "b/c/two.txt") == []
    assert paths(storage, "b/c/tw") == []
    assert storage.read_bytes("b/c/two.txt", 2) == b"22"
    assert storage.read_bytes("b/c/empty", 0) == b""
    assert storage.size_bytes("a.txt") == 1
    assert storage.info("a.txt") == found[0]


def test_put_replaces_and_the_version_changes(storage):
    storage.put("a", b"one")
    before = storage.info("a")
    storage.put("a", b"other")
    after = storage.info("a")
    assert storage.read_bytes("a", 10) == b"other"
    assert before.version != after.version
    assert after.modified_at == pytest.approx(before.modified_at, abs=60)


def test_a_file_is_listed_as_soon_as_it_is_there_also_after_an_earlier_listing(storage):
    other = pickle.loads(pickle.dumps(storage))
    assert paths(other, "x") == []
    assert not other.exists("x/1")
    storage.put_if_absent("x/1", b"1")
    assert paths(other, "x") == ["x/1"]
    assert other.exists("x/1")
    storage.put_if_absent("x/2", b"2")
    assert paths(other, "x") == ["x/1", "x/2"]
    storage.delete("x/1")
    assert paths(other, "x") == ["x/2"]
    assert not other.exists("x/1")


def test_globs_match_within_and_across_directories(storage):
    for path in ("a.x", "a.y", "d/b.x", "d/e/c.x", "d/e/.hidden.x", "d[1]/f.x"):
        storage.put(path, b"")

    def matches(pattern: str) -> list[str]:
        return [info.path for info in storage.glob(pattern)]

    assert matches("*.x") == ["a.x"]
    assert matches("?.?") == ["a.x", "a.y"]
    assert matches("d/*.x") == ["d/b.x"]
    assert matches("*/*.x") == ["d/b.x", "d[1]/f.x"]
    assert matches("d/**/*.x") == ["d/b.x", "d/e/.hidden.x", "d/e/c.x"]
    assert matches("**/c.x") == ["d/e/c.x"]
    assert matches("d[[]1]/f.x") == ["d[1]/f.x"]
    assert matches("a.x") == ["a.x"]
    assert matches("d") == []
    assert matches("nothing/*") == []


@pytest.mark.parametrize(
    "name", ["k=a%2Fb/ä中 .txt", "+&#;@!$'(),.txt", "%25.txt", "-", "~", "a=b=c"]
)
def test_odd_names_are_kept_as_they_are(storage, name):
    storage.put_if_absent(f"dir/{name}", b"1")
    assert paths(storage) == [f"dir/{name}"]
    assert storage.read_bytes(f"dir/{name}", 1) == b"1"
    storage.delete(f"dir/{name}")
    assert paths(storage) == []


@pytest.mark.parametrize(
    "path", ["/a", "../a", "a/../../b", "a/./b", "a//b", "a/", "", "a\0b", "a\nb", "\ud800"]
)
def test_paths_cannot_leave_the_storage(storage, path):
    for call in (storage.open_input, storage.delete, storage.info, storage.create_output):
        with pytest.raises(ConfigError):
            call(path)
    for call in (storage.put, storage.put_if_absent):
        with pytest.raises(ConfigError):
            call(path, b"")
    assert paths(storage) == []


def test_a_path_that_no_store_takes_is_an_error(storage):
    with pytest.raises((ConfigError, MissingFileError)):
        storage.info("/".join(["d" * 250] * 5))
    with pytest.raises((ConfigError, StorageError)):
        storage.put("/".join(["d" * 300] * 4), b"")


def test_a_missing_file_is_told_from_a_failure(storage):
    storage.put("dir/file", b"1")
    for path in ("nothing", "dir", "dir/file/below"):
        for call in (storage.info, storage.size_bytes):
            with pytest.raises(MissingFileError, match=path):
                call(path)
        assert storage.info_or_none(path) is None
        assert not storage.exists(path)
    with pytest.raises(MissingFileError, match="nothing"):
        storage.open_input("nothing")
    storage.delete("nothing")


def test_an_oversized_file_is_not_read_whole(storage):
    storage.put("big", b"12345")
    with pytest.raises(CorruptFileError, match="allowed 4 bytes"):
        storage.read_bytes("big", 4)


def test_inputs_seek_and_read_in_any_order(storage):
    content = bytes(range(256)) * 20
    storage.put("file", content)
    with storage.open_input("file") as first, storage.open_input("file") as second:
        assert first.seekable()
        first.seek(-10, os.SEEK_END)
        assert first.read() == content[-10:]
        assert first.read(1) == b""
        assert second.read(5) == content[:5]
        second.seek(3)
        assert second.tell() == 3
        assert second.read() == content[3:]


def test_put_if_absent_creates_once_and_leaves_the_first_content(storage):
    storage.put_if_absent("dir/key", b"first")
    with pytest.raises(AlreadyExistsError, match="dir/key"):
        storage.put_if_absent("dir/key", b"second")
    assert storage.read_bytes("dir/key", 10) == b"first"
    assert paths(storage) == ["dir/key"]
    storage.delete("dir/key")
    storage.put_if_absent("dir/key", b"third")
    assert storage.read_bytes("dir/key", 10) == b"third"


def test_of_many_threads_that_create_one_key_one_wins(storage):
    barrier = threading.Barrier(16)

    def create(index: int) -> bool:
        barrier.wait()
        try:
            storage.put_if_absent("key", b"%d" % index * 1000)
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes("key", 10_000) == b"%d" % won.index(True) * 1000
    assert paths(storage) == ["key"]


@pytest.mark.parametrize("store", ["local", "moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_of_several_processes_that_create_one_key_one_wins(store, request):
    storage = open_storage(request.getfixturevalue(f"{store}_url"))
    with processes(4) as pool:
        won = list(pool.map(create_many, [storage] * 4, range(4)))
    assert sorted(number for numbers in won for number in numbers) == list(range(10))
    for index, numbers in enumerate(won):
        for number in numbers:
            assert storage.read_bytes(f"race/{number}", 10) == b"%d" % index


def test_an_output_appears_when_it_is_closed(storage):
    with storage.open_output("data/file") as output:
        output.write(b"one ")
        output.write(memoryview(b"two"))
        assert not storage.exists("data/file")
    assert storage.read_bytes("data/file", 10) == b"one two"
    assert paths(storage) == ["data/file"]


def test_an_empty_output_is_an_empty_file(storage):
    with storage.open_output("data/file"):
        pass
    assert storage.size_bytes("data/file") == 0


def test_a_range_of_a_file_is_read_and_one_beyond_its_end_is_an_error(storage):
    storage.put("data/file", bytes(range(100)))
    assert storage.read_range("data/file", 0, 100) == bytes(range(100))
    assert storage.read_range("data/file", 90, 100) == bytes(range(90, 100))
    assert storage.read_range("data/file", 7, 8) == b"\x07"
    with pytest.raises(CorruptFileError, match="data/file: expected bytes 90 to 101, found 10"):
        storage.read_range("data/file", 90, 101)
    with pytest.raises(MissingFileError, match="data/other"):
        storage.read_range("data/other", 0, 1)


def test_an_output_of_several_parts_is_whole(storage):
    part = os.urandom(1 << 20)
    with storage.open_output("file") as output:
        for _ in range(17):
            output.write(part)
    assert storage.size_bytes("file") == 17 << 20
    with storage.open_input("file") as file:
        assert file.read() == part * 17


@pytest.mark.parametrize("num_bytes", [10, PART_AND_A_BIT])
def test_an_aborted_output_leaves_nothing(storage, num_bytes):
    def fail_in_the_middle() -> None:
        nonlocal output
        with storage.open_output("data/file") as output:
            output.write(b"x" * num_bytes)
            raise ZeroDivisionError

    output: OutputFile
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    output.close()
    output.abort()
    with pytest.raises(ValueError, match="finished"):
        output.write(b"x")
    assert paths(storage) == []
    assert pending_uploads(storage) == 0


@pytest.mark.parametrize("num_bytes", [10, PART_AND_A_BIT])
def test_a_forgotten_output_does_not_complete_itself(storage, num_bytes):
    output = storage.create_output("data/file")
    output.write(b"x" * num_bytes)
    del output
    assert paths(storage) == []
    assert pending_uploads(storage) == 0


def test_pyarrow_reads_and_lists_through_the_same_storage(storage):
    storage.put("k=a%2Fb/data.csv", b"id\n1\n2\n")
    filesystem = storage.as_arrow_filesystem()
    table = pads.dataset(["k=a%2Fb/data.csv"], format="csv", filesystem=filesystem).to_table()
    assert table["id"].to_pylist() == [1, 2]


def test_a_storage_travels_between_processes_by_its_url(storage):
    storage.put("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.url == storage.url
    assert copy.read_bytes("a", 1) == b"1"
    assert copy.url_of("a") == f"{storage.url}/a"


def test_the_probe_accepts_a_store_with_put_if_absent_and_leaves_nothing(storage):
    probe(storage)
    assert paths(storage) == []


def test_the_probe_refuses_a_store_that_lets_every_create_win(rclone_url):
    storage = open_storage(rclone_url)
    with pytest.raises(UnsafeStoreError, match=r"of 8 concurrent creates .* Known to work"):
        probe(storage)
    # After racing creates rclone may go on to list a name whose object is gone.
    for path in paths(storage):
        with pytest.raises(MissingFileError):
            storage.read_bytes(path, 100)


@pytest.mark.s3
def test_the_probe_refuses_a_versioned_bucket_of_ceph(rgw_server):
    with rgw_server.client() as client:
        client.create_bucket(Bucket="versioned")
        versioning = {"Status": "Enabled"}
        client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration=versioning)
    with rgw_server.environment(), pytest.raises(UnsafeStoreError, match="versioning"):
        probe(open_storage("s3://versioned/x"))


def test_the_probe_refuses_a_disk_without_hard_links(tmp_path, monkeypatch):
    def no_links(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UnsafeStoreError, match="hard links"):
        probe(open_storage(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_relative_and_home_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_storage("out/x/").url == str(tmp_path / "out/x")
    assert open_storage("~/x").url == str(tmp_path / "home/x")
    assert open_storage(f"file://{tmp_path}/y").url == str(tmp_path / "y")
    assert open_storage("/").url_of("a") == "/a"


def test_local_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"1")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "real")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/broken").symlink_to(tmp_path / "nothing")
    assert paths(open_storage(str(tmp_path / "root"))) == ["link/file"]


def test_no_partial_file_is_left_on_disk_and_a_dying_writer_leaves_only_a_hidden_one(tmp_path):
    storage = open_storage(str(tmp_path))
    output = storage.create_output("data/file")
    output.write(b"x" * (2 << 20))
    (partial,) = (tmp_path / "data").iterdir()
    assert partial.name.startswith(".")
    assert partial.name.endswith(".partial")
    output.close()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["file"]


def test_a_full_disk_is_a_storage_error_and_the_partial_file_goes(tmp_path, monkeypatch):
    storage = open_storage(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = storage.create_output("file")
    output.write(b"x")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        output.close()
    with pytest.raises(StorageError, match="No space left"):
        storage.put("other", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a URL"),
        ("s3://", "bucket is missing"),
        ("s3://b/a/../../c", "relative"),
        ("nope://bucket/x", "known are s3://"),
        ("s3://key:very-secret@bucket/x", "credentials do not belong"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_done(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        open_storage(url)
    assert "very-secret" not in str(caught.value)


def test_a_missing_package_names_the_extra():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"elmo-nightly\[gcs\]"):
            open_storage("gs://bucket/x")


@pytest.mark.parametrize("store", ["moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_a_missing_bucket_is_the_users_to_mend(store, request):
    request.getfixturevalue(f"{store}_url")
    storage = open_storage("s3://no-such-bucket-here/x")
    calls: list[Callable[[], object]] = [
        storage.list_files,
        lambda: storage.glob("*"),
        lambda: storage.put("a", b""),
        lambda: storage.put_if_absent("a", b""),
        lambda: probe(storage),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="no-such-bucket-here.*does not exist"):
            call()


def test_missing_credentials_are_the_users_to_mend(moto_url):
    unset = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_PROFILE": None}
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_CONFIG_FILE": "/nowhere"}
    with environment({**unset, **nowhere}):
        storage = open_storage(moto_url)
        with pytest.raises(ConfigError, match="no credentials.*AWS_ACCESS_KEY_ID"):
            storage.list_files()
        with pytest.raises(ConfigError, match="no credentials"):
            storage.put_if_absent("a", b"")


@pytest.mark.s3
def test_wrong_credentials_are_the_users_to_mend_and_are_not_shown(rgw_url):
    with environment({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}):
        storage = open_storage(rgw_url)
        with pytest.raises(ConfigError, match="not allowed to list") as caught:
            storage.list_files()
        assert "not-the-secret" not in str(caught.value)
        with pytest.raises(ConfigError, match="not allowed to create"):
            storage.put_if_absent("a", b"")


def test_a_silent_endpoint_is_a_storage_error_and_leaves_a_create_unknown(moto_url):
    with environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "ELMO_STORE_ATTEMPTS": "2"}):
        storage = open_storage(moto_url)
        with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
            storage.list_files()
        with pytest.raises(UnknownOutcomeError, match="not known whether"):
            storage.put_if_absent("a", b"")


def test_options_reach_the_client_and_are_not_shown(moto_server: S3Server):
    options = {
        "endpoint_url": moto_server.endpoint,
        "key": "option-key",
        "secret": "option-secret",
    }
    storage = open_storage(moto_server.new_directory(), options)
    storage.put("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("a", 1) == b"1"
    assert "option-secret" not in repr(storage)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (412, "PreconditionFailed", AlreadyExistsError),
        (500, "InternalError", UnknownOutcomeError),
        (503, "SlowDown", UnknownOutcomeError),
        (400, "InvalidRequest", StorageError),
        (404, "NoSuchBucket", ConfigError),
        (403, "SignatureDoesNotMatch", ConfigError),
    ],
)
def test_each_answer_to_a_create_has_its_meaning(status, code, expected):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    response = {
        "Error": {"Code": code, "Message": "said the server"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = translate_boto_error(ClientError(response, "PutObject"))
    assert type(translated(error, "create", "s3://b/k", True)) is expected


def test_a_store_that_wants_the_length_first_names_the_setting():
    error = OSError(errno.EINVAL, "Missing")
    error.__cause__ = type("E", (Exception,), {"response": {"Error": {"Code": "411"}}})()
    message = str(translated(error, "write", "s3://b/k", False))
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        (
            "at https://u@h/p?a=1&X-Amz-Signature=abc done",
            "at https://***@h/p?a=1&X-Amz-Signature=*** done",
        ),
        ("gs://bucket/k=v", "gs://bucket/k=v"),
        ("?token=t&access_key=k&q=1", "?token=***&access_key=***&q=1"),
    ],
)
def test_credentials_are_redacted(text, expected):
    assert redact_url(text) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b/corpus/2026-*/x.jsonl", ("s3://b/corpus", "2026-*/x.jsonl")),
        ("s3://b/x.jsonl", ("s3://b", "x.jsonl")),
        ("s3://b/dir/", ("s3://b/dir", "")),
        ("s3://b", ("s3://b", "")),
        ("s3://b/*", ("s3://b", "*")),
        ("file:///x", ("file:///", "x")),
        ("file:///a/b", ("file:///a", "b")),
        ("/x", ("/", "x")),
        ("/a[1]/x", ("/", "a[1]/x")),
        ("x.csv", (".", "x.csv")),
        ("a/b*", ("a", "b*")),
    ],
)
def test_a_url_is_split_into_directory_and_pattern(url, expected):
    assert split_pattern(url) == expected


def pending_uploads(storage: Storage) -> int:
    """Multipart uploads that were started and neither completed nor aborted."""
    if not storage.url.startswith("s3://"):
        return 0
    import boto3

    bucket, _, prefix = storage.url.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3")
    uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
    client.close()
    return len(uploads)
