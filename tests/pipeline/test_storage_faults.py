"""Storage in front of a proxy that damages what passes: nothing is lost, doubled or cut short."""

import gzip
import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.config import OutputConfig, SourceConfig, TextConfig
from pipeline.data_files import DataFileWriter, verified_file
from pipeline.errors import (
    AlreadyExistsError,
    CommitConflictError,
    CommitUnknownError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    StorageError,
    UnknownOutcomeError,
)
from pipeline.snapshot.changes import CHANGE_SCHEMA, write_changes
from pipeline.snapshot.commit import SnapshotStore
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.storage import open_storage
from pipeline.storage_retry import RetryPolicy
from tests.fault_proxy import RemoteFaults, Rule
from tests.pipeline.snapshots import rows, snapshot, table_schema, write_file
from tests.s3_servers import BUCKET, environment

SERVERS = ["moto", pytest.param("rgw", marks=pytest.mark.s3)]
# Bounds that end every test soon, and attempts enough for all faults that pass by themselves.
IMPATIENT = {
    "ELMO_STORE_READ_TIMEOUT_S": "0.7",
    "ELMO_STORE_ATTEMPTS": "6",
    "ELMO_STORE_FIRST_PAUSE_S": "0.02",
}
TRANSIENT = ["500", "502", "503", "429", "reset", "cut", "stall", "stall_answer"]
# After these the server may have done what the client does not know of.
CUTS = ["reset", "cut", "cut_head", "stall", "stall_answer"]
PART_BYTES = 5 << 20  # the least that S3 allows


def on_both(faults, on_moto=()):
    """Pairs of server and fault: the first faults on both servers, the others on moto alone."""
    rgw = [pytest.param("rgw", fault, marks=pytest.mark.s3) for fault in faults]
    return pytest.mark.parametrize(
        ("proxy", "fault"),
        [*(("moto", fault) for fault in (*faults, *on_moto)), *rgw],
        indirect=["proxy"],
    )


@pytest.fixture(params=SERVERS)
def proxy(request):
    proxy = request.getfixturevalue(f"{request.param}_proxy")
    with environment(IMPATIENT):
        yield proxy


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("pipeline.storage.UPLOAD_PART_BYTES", PART_BYTES)


@pytest.fixture
def storage(proxy):
    return open_storage(proxy.new_directory())


def open_uploads(proxy):
    with proxy.server.client() as client:
        return len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


def test_an_idle_proxy_changes_nothing_and_its_rules_can_be_set_from_afar(proxy, storage):
    storage.put("a/b c+d", b"1" * 100)
    with storage.open_output("big") as output:
        output.write(b"x" * (PART_BYTES + 5))
    assert storage.read_bytes("a/b c+d", 100) == b"1" * 100
    assert storage.size_bytes("big") == PART_BYTES + 5
    remote = RemoteFaults(proxy.endpoint)
    remote.add(Rule("500", count=1))
    assert storage.exists("big")
    assert [event.fault for event in remote.events()].count("500") == 1
    assert remote.events() == proxy.events()


@on_both(["500", "cut"], [fault for fault in TRANSIENT if fault not in ("500", "cut")])
def test_every_call_outlives_faults(proxy, storage, fault):
    num_faults = 1 if fault.startswith("stall") else 2

    def disturbed(call):
        proxy.clear()
        proxy.forget()
        proxy.add(Rule(fault, count=num_faults, seconds=2))
        result = call()
        assert proxy.num_faults(fault) == num_faults
        return result

    disturbed(lambda: storage.put("a", b"one"))
    disturbed(lambda: storage.put_if_absent("b", b"two"))
    assert disturbed(lambda: storage.read_bytes("a", 10)) == b"one"
    assert disturbed(lambda: storage.info("b").size_bytes) == 3
    assert [info.path for info in disturbed(storage.list_files)] == ["a", "b"]
    disturbed(lambda: storage.delete("a"))
    assert not storage.exists("a")


@on_both(["503"], ["500", "reset", "stall"])
def test_a_store_that_is_down_is_an_error_that_names_object_tries_and_time(proxy, storage, fault):
    storage.put("a", b"one")
    proxy.add(Rule(fault, seconds=60))
    with environment({**IMPATIENT, "ELMO_STORE_ATTEMPTS": "3", "ELMO_STORE_READ_TIMEOUT_S": "0.2"}):
        storage = open_storage(storage.url)
        for call in (lambda: storage.read_bytes("a", 9), lambda: storage.info("a")):
            with pytest.raises(StorageError, match=r"/a: could not .*; tried 3 times in \d+\.\d s"):
                call()
        with pytest.raises(UnknownOutcomeError if fault != "503" else StorageError) as caught:
            storage.put_if_absent("b", b"")
        assert f"{storage.url}/b" in str(caught.value)
        assert isinstance(caught.value, UnknownOutcomeError) == (fault != "503")


def test_the_time_of_all_attempts_together_is_bounded(moto_proxy):
    moto_proxy.add(Rule("stall", seconds=60))
    with environment({"ELMO_STORE_TOTAL_S": "1"}):
        storage = open_storage(moto_proxy.new_directory())
        # One attempt alone would be given 60 s.
        with pytest.raises(StorageError, match=r"/a: could not look at this: .*tried 1 times"):
            storage.info("a")


@pytest.mark.parametrize(
    ("fault", "message"),
    [("expired", "have expired .*: renew them and run again"), ("denied", "not allowed to create")],
)
def test_a_refusal_is_not_tried_again(proxy, storage, fault, message):
    storage.put("a", b"one")
    proxy.forget()
    proxy.add(Rule(fault))
    with pytest.raises(ConfigError, match=message):
        storage.put_if_absent("b", b"")
    # The answer to a HEAD request has no body that could say more.
    with pytest.raises(ConfigError, match="not allowed to open .* whether they have expired"):
        storage.read_bytes("a", 9)
    assert proxy.num_faults() == 2


def test_a_missing_file_and_a_taken_name_are_asked_for_once(proxy, storage):
    storage.put("a", b"one")
    proxy.forget()
    with pytest.raises(MissingFileError):
        storage.info("nothing")
    assert [event.method for event in proxy.events()] == ["HEAD", "GET"]
    proxy.forget()
    with pytest.raises(AlreadyExistsError):
        storage.put_if_absent("a", b"two")
    assert [event.method for event in proxy.events()].count("PUT") == 1


@pytest.mark.parametrize("fault", CUTS)
def test_a_create_whose_answer_is_lost_succeeds_and_one_that_lost_the_race_does_not(
    proxy, storage, fault
):
    proxy.add(Rule(fault, "PUT", count=1, seconds=2))
    storage.put_if_absent("a", b"mine")
    assert storage.read_bytes("a", 10) == b"mine"
    proxy.clear()
    proxy.add(Rule(fault, "PUT", count=1, seconds=2))
    with pytest.raises(AlreadyExistsError):
        storage.put_if_absent("a", b"other")
    assert storage.read_bytes("a", 10) == b"mine"


def test_a_create_that_is_refused_after_an_attempt_without_answer_is_unknown_until_seen(
    proxy, storage
):
    lost = Rule("stall_answer", "PUT", count=1, seconds=2)
    proxy.add(lost, Rule("expired"))
    with pytest.raises(UnknownOutcomeError, match="not known whether .* expired"):
        storage.put_if_absent("a", b"mine")
    proxy.clear()
    assert storage.read_bytes("a", 10) == b"mine"
    proxy.add(lost, Rule("expired", "PUT"))
    storage.put_if_absent("b", b"mine")


@pytest.mark.parametrize("fault", CUTS)
def test_a_commit_whose_answer_is_lost_finds_out_that_it_won(proxy, storage, fault):
    store = SnapshotStore(storage)
    proxy.add(Rule(fault, "PUT", "/_snapshots/", count=2, seconds=2))
    first = store.commit(snapshot(run_id="run-1"))
    assert store.latest() == first
    assert store.numbers() == (1,)
    # The same run again is no second commit; another run learns that it has lost.
    assert store.commit(snapshot(run_id="run-1")).run_id == "run-1"
    with pytest.raises(CommitConflictError, match="run-1 committed it first"):
        store.commit(snapshot(run_id="run-2"))


@on_both(["cut"], [fault for fault in CUTS if fault != "cut"])
def test_a_commit_whose_answer_is_lost_finds_out_that_it_lost(proxy, storage, fault):
    store = SnapshotStore(storage)
    rival = SnapshotStore(open_storage(storage.url))
    store.latest_number = lambda: None  # as it was before the rival came
    rival.commit(snapshot(run_id="rival"))
    proxy.add(Rule(fault, "PUT", "/_snapshots/", count=1, seconds=2))
    with pytest.raises(CommitConflictError, match="rival"):
        store.commit(snapshot(run_id="run-1"))


def test_a_commit_into_a_store_that_then_stays_silent_is_reported_as_unknown(proxy, storage):
    with environment({**IMPATIENT, "ELMO_STORE_ATTEMPTS": "2"}):
        store = SnapshotStore(open_storage(storage.url))
        proxy.add(Rule("cut", "PUT", "/_snapshots/"), Rule("reset", "GET|HEAD", after=1))
        with pytest.raises(CommitUnknownError, match="starting the run again is safe"):
            store.commit(snapshot(run_id="run-1"))
    proxy.clear()
    # It had arrived: the same run, started again, sees so.
    assert SnapshotStore(storage).commit(snapshot(run_id="run-1")).number == 1


def test_files_of_unique_names_do_not_mind_lost_answers(proxy, storage):
    proxy.add(Rule("cut", "PUT"))
    with environment({**IMPATIENT, "ELMO_STORE_ATTEMPTS": "2"}):
        impatient = open_storage(storage.url)
        changes = pa.Table.from_pylist([{"id": "a", "op": "add", "file": "f"}], CHANGE_SCHEMA)
        path = write_changes(impatient, 1, "run-1", changes)
    proxy.clear()
    assert storage.exists(path)


def corpus_files(num_rows):
    table = pa.table(
        {
            "id": [f"row-{n}" for n in range(num_rows)],
            "text": [
                f"This is text number {n}, {uuid.uuid5(uuid.NAMESPACE_OID, str(n))}."
                for n in range(num_rows)
            ],
        }
    )
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    parquet, comma, ipc = pa.BufferOutputStream(), pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table, parquet, row_group_size=num_rows // 4)
    pyarrow.csv.write_csv(table, comma)
    with pa.ipc.new_file(ipc, table.schema) as writer:
        writer.write_table(table, max_chunksize=num_rows // 4)
    return {
        "rows.jsonl": lines,
        "rows.jsonl.gz": gzip.compress(lines),
        "rows.csv": comma.getvalue().to_pybytes(),
        "rows.parquet": parquet.getvalue().to_pybytes(),
        "rows.arrow": ipc.getvalue().to_pybytes(),
    }


def read_corpus(url):
    config = SourceConfig(path=url, id_column="id", split_bytes=60_000)
    documents = 0
    for split in discover(config).splits:
        for batch in read_documents(split, config, TextConfig()):
            assert not len(batch.rejected)
            documents += batch.documents.num_rows
    return documents


NAMES = ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows.arrow"]
CUT_BODIES = [
    *((name, fault) for name in NAMES for fault in ("truncate", "truncate_fitting")),
    ("rows.jsonl", "stall_body"),
    ("rows.parquet", "stall_body"),
]


@pytest.mark.parametrize(("name", "fault"), CUT_BODIES)
def test_a_corpus_read_through_cut_answers_has_all_rows_or_is_an_error(moto_proxy, name, fault):
    with environment(IMPATIENT):
        storage = open_storage(moto_proxy.new_directory())
        storage.put(name, corpus_files(2000)[name])
        rule = Rule(fault, "GET", rf"/{name}", probability=0.4, seconds=2)
        moto_proxy.add(rule)
        assert read_corpus(f"{storage.url}/{name}") == 2000
        assert moto_proxy.num_faults(fault)
        moto_proxy.clear()
        moto_proxy.add(Rule(fault, "GET", rf"/{name}", seconds=2))
        with pytest.raises(StorageError, match=rf"{name}: could not read"):
            read_corpus(f"{storage.url}/{name}")


@pytest.mark.parametrize("fault", ["truncate", "truncate_fitting"])
def test_small_files_and_pyarrow_are_not_given_short_answers_either(proxy, storage, fault):
    content = bytes(range(256)) * 400
    storage.put("a", content)
    storage.put("rows.parquet", corpus_files(2000)["rows.parquet"])
    proxy.add(Rule(fault, "GET", "/(a|rows)", probability=0.4))
    for _ in range(5):
        assert storage.read_bytes("a", len(content)) == content
    filesystem = storage.as_arrow_filesystem()
    for _ in range(5):
        assert pads.dataset(["rows.parquet"], filesystem=filesystem).to_table().num_rows == 2000
    assert proxy.num_faults(fault) >= 3
    proxy.clear()
    proxy.add(Rule(fault, "GET", "/(a|rows)"))
    with pytest.raises(StorageError, match="of the 102400 bytes from byte 0|not completed"):
        storage.read_bytes("a", len(content))
    with pytest.raises(StorageError, match="rows.parquet: could not read"):
        pads.dataset(["rows.parquet"], filesystem=filesystem).to_table()


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(proxy, storage):
    storage.put("a", b"1" * (10 << 20))
    with storage.open_input("a") as file:
        assert file.read(10) == b"1" * 10
        storage.put("a", b"2" * (10 << 20))
        with pytest.raises(StorageError, match="was replaced while it was read"):
            file.read()


@pytest.mark.s3
def test_listings_of_many_pages_outlive_faults_on_single_pages(rgw_server, rgw_proxy):
    url = rgw_proxy.new_directory()
    with rgw_server.environment(), ThreadPoolExecutor(8) as pool:
        direct = open_storage(url)
        list(pool.map(lambda n: direct.put(f"x/{n:04}", b""), range(1100)))
    rgw_proxy.add(*(Rule(fault, "GET", probability=0.15) for fault in ("500", "reset", "truncate")))
    with environment(IMPATIENT):
        storage = open_storage(url)
    for _ in range(8):
        assert len(storage.list_files("x")) == 1100
    assert rgw_proxy.num_faults() >= 4


@on_both(["cut"], ["500", "reset", "stall_answer"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", r"\?uploads"),
        ("PUT", "partNumber=1"),
        ("PUT", "partNumber=2"),
        ("POST", "uploadId"),
    ],
)
def test_a_large_upload_outlives_a_fault_at_each_of_its_requests(
    proxy, storage, fault, method, path
):
    content = b"0123456789abcdef" * (PART_BYTES // 16) + b"end"
    proxy.add(Rule(fault, method, path, count=1, seconds=2))
    with storage.open_output("big") as output:
        output.write(content[:PART_BYTES])
        output.write(content[PART_BYTES:])
    assert proxy.num_faults(fault) >= 1
    assert storage.read_bytes("big", len(content)) == content
    assert open_uploads(proxy) == 0


@pytest.mark.parametrize("path", ["partNumber=1", "uploadId=.*", r"\?uploads"])
def test_a_large_upload_that_fails_leaves_no_object_and_no_open_upload(proxy, storage, path):
    with environment({**IMPATIENT, "ELMO_STORE_ATTEMPTS": "2"}):
        impatient = open_storage(storage.url)
        fault = "cut" if path == r"\?uploads" else "500"
        proxy.add(Rule(fault, "PUT|POST", path))
        with (
            pytest.raises(StorageError, match="/big: could not write"),
            impatient.open_output("big") as output,
        ):
            output.write(b"x" * (PART_BYTES + 5))
    proxy.clear()
    assert storage.list_files() == []
    assert open_uploads(proxy) == 0


def written(storage, num_rows, **values):
    output = OutputConfig(path=storage.url, **values)
    with DataFileWriter(storage, table_schema(), output, {}, "run-1") as writer:
        writer.write(rows([f"id-{n}" for n in range(num_rows)]))
        return writer.close()


@pytest.mark.parametrize("fault", ["flip_request", "flip_answer"])
def test_a_small_data_file_damaged_on_its_way_is_sent_again(proxy, storage, fault):
    proxy.add(Rule(fault, "PUT|GET", "/data/", count=1))
    file = written(storage, 100)
    assert proxy.num_faults(fault) == 1
    proxy.clear()
    with verified_file(storage, file) as source:
        assert pq.ParquetFile(source).metadata.num_rows == 100


def test_a_data_file_that_always_arrives_damaged_is_an_error_and_not_kept(moto_proxy):
    storage = open_storage(moto_proxy.new_directory())
    moto_proxy.add(Rule("flip_request", "PUT", "/data/"))
    with pytest.raises(StorageError, match=r"/data/run-1-.*damaged on its way.*run again"):
        written(storage, 100)
    assert storage.list_files() == []


def test_what_a_server_checks_itself_is_sent_again_without_being_read_back(rgw_proxy):
    storage = open_storage(rgw_proxy.new_directory())
    rgw_proxy.add(Rule("flip_request", "PUT", "/data/", count=2))
    file = written(storage, 100, verify_writes=False)
    assert rgw_proxy.num_faults() == 2
    with verified_file(storage, file):
        pass
    assert all(
        "/data/" not in event.path or event.method != "GET" for event in rgw_proxy.events()[:-1]
    )


def test_a_large_data_file_damaged_on_its_way_is_an_error_and_not_kept(moto_proxy, monkeypatch):
    monkeypatch.setattr("pipeline.data_files.RESEND_BYTES", 1000)
    storage = open_storage(moto_proxy.new_directory())
    moto_proxy.add(Rule("flip_request", "PUT", "/data/", count=1))
    with pytest.raises(StorageError, match="damaged on its way"):
        written(storage, 100)
    assert storage.list_files() == []


def test_without_verification_only_the_size_is_looked_at(moto_proxy):
    storage = open_storage(moto_proxy.new_directory())
    moto_proxy.add(Rule("flip_request", "PUT", "/data/", count=1))
    file = written(storage, 100, verify_writes=False)
    with pytest.raises(CorruptFileError), verified_file(storage, file):
        pass
    moto_proxy.forget()
    written(storage, 100, verify_writes=False)
    assert [event.method for event in moto_proxy.events()] == ["PUT", "HEAD"]


def test_many_threads_share_a_storage_that_fails_now_and_then(proxy, storage):
    proxy.add(*(Rule(fault, probability=0.03) for fault in ("500", "503", "reset", "cut")))
    proxy.add(Rule("truncate_fitting", "GET", "/data/", probability=0.03))

    def work(number):
        mine = storage if number % 2 else open_storage(storage.url)
        file = write_file(mine, [f"{number}-{n}" for n in range(20)])
        mine.put_if_absent(f"records/{number}", b"%d" % number)
        with verified_file(mine, file) as source:
            return pq.ParquetFile(source).metadata.num_rows

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [20] * 24
    proxy.clear()
    assert len(storage.list_files("data")) == len(storage.list_files("records")) == 24


def test_the_limits_of_retries_are_read_from_the_environment():
    with environment({"ELMO_STORE_ATTEMPTS": "3", "ELMO_STORE_READ_TIMEOUT_S": "1.5"}):
        assert RetryPolicy.from_environment() == RetryPolicy(attempts=3, read_timeout_s=1.5)
    for wrong in (
        {"ELMO_STORE_ATTEMPTS": "0"},
        {"ELMO_STORE_TOTAL_S": "soon"},
        {"ELMO_STORE_RETRIES": "3"},
    ):
        with environment(wrong), pytest.raises(ConfigError, match="ELMO_STORE_"):
            open_storage("s3://bucket/x")


def test_pauses_grow_are_jittered_and_end_at_the_longest():
    policy = RetryPolicy(first_pause_s=1, longest_pause_s=8)
    pauses = {num: [policy.pause_s(num) for _ in range(300)] for num in (1, 3, 30)}
    assert max(pauses[1]) <= 1 < max(pauses[3]) <= 4 < max(pauses[30]) <= 8
    assert min(pauses[30]) < 1
