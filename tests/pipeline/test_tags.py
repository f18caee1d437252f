"""Tags: names that keep a snapshot, also while others expire."""

import json
import threading

import pytest

from pipeline.errors import CommitConflictError, ConfigError, CorruptFileError
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.expire import expire
from pipeline.snapshot.tags import (
    check_name,
    delete_tag,
    expiring,
    find_tag,
    pinned,
    put_tag,
    read_tags,
)
from pipeline.storage import Storage, open_storage
from tests.pipeline.snapshots import snapshot

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]


def fill(url: str, number: int = 4) -> SnapshotStore:
    store = SnapshotStore(open_storage(url))
    for index in range(number):
        store.commit(snapshot(run_id=f"run-{index}").numbered(store.latest()))
    return store


@pytest.fixture
def store(local_url: str) -> SnapshotStore:
    return fill(local_url)


@pytest.mark.parametrize("kind", STORES)
def test_a_tag_is_set_found_moved_and_deleted(kind, request):
    store = fill(request.getfixturevalue(f"{kind}_url"))
    storage = store.storage
    assert read_tags(storage) == ()
    made = put_tag(store, "prod", 2)
    assert (made.name, made.number) == ("prod", 2)
    assert put_tag(store, "prod", 2) == made
    assert find_tag(storage, "prod") == made
    with pytest.raises(ConfigError, match=r"'prod' names snapshot 2; move it with --force"):
        put_tag(store, "prod", 3)
    assert put_tag(store, "prod", 3, move=True).number == 3
    put_tag(store, "before", 3)
    assert [(tag.name, tag.number) for tag in read_tags(storage)] == [("before", 3), ("prod", 3)]
    assert delete_tag(storage, "prod").number == 3
    assert find_tag(storage, "prod") is None
    with pytest.raises(ConfigError, match="no tag 'prod'"):
        delete_tag(storage, "prod")


@pytest.mark.parametrize("name", ["", "12", "a/b", "../a", ".a", "a b", "é", "x" * 101, "a\n"])
def test_a_name_must_be_possible(store, name):
    with pytest.raises(ConfigError, match="is not a number"):
        check_name(name)
    with pytest.raises(ConfigError):
        put_tag(store, name, 1)


def test_names_may_hold_digits_dots_and_dashes():
    for name in ("v1.2", "2026-11-21", "1a", "a_b", "x" * 100):
        check_name(name)


def test_only_a_snapshot_that_is_there_can_be_tagged(store):
    with pytest.raises(ConfigError, match="no snapshot 9"):
        put_tag(store, "prod", 9)
    assert read_tags(store.storage) == ()


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"number": true}', b'{"number": "1"}'])
def test_a_damaged_tag_is_named_and_stops_what_removes(store, content):
    store.storage.put("_tags/prod.json", content)
    with pytest.raises(CorruptFileError, match=r"_tags/prod\.json"):
        read_tags(store.storage)
    with pytest.raises(CorruptFileError):
        expire(store, keep=1)
    assert store.numbers() == (1, 2, 3, 4)


def test_what_is_announced_to_expire_cannot_be_tagged(store):
    put_tag(store, "kept", 1)
    put_tag(store, "prod", 4)
    with expiring(store.storage, [1, 2]) as allowed:
        assert allowed == {2}
        for number in (1, 2):
            with pytest.raises(CommitConflictError, match="is being expired"):
                put_tag(store, "late", number)
        with pytest.raises(CommitConflictError):
            put_tag(store, "prod", 2, move=True)
        assert put_tag(store, "other", 3).number == 3
    # What was refused has left nothing, and what was moved is where it was.
    tags = {tag.name: tag.number for tag in read_tags(store.storage)}
    assert tags == {"kept": 1, "prod": 4, "other": 3}
    assert put_tag(store, "late", 2).number == 2


def test_a_pin_holds_for_the_length_of_its_block(store):
    with pinned(store, 1, "rollback"):
        assert expire(store, keep=1).tagged == (1,)
    assert read_tags(store.storage) == ()
    assert expire(store, keep=1).expired == (1,)
    with pytest.raises(ConfigError, match="no snapshot 1"), pinned(store, 1, "rollback"):
        pass


class MeetingStorage(Storage):
    """Lets another act at each step of one who tags or expires."""

    def meet(self, path: str, action) -> None:
        """Call `action` just before the first call that touches a path that begins so."""
        self._path, self._action = path, action

    def _met(self, path: str) -> None:
        if getattr(self, "_action", None) and path.startswith(self._path):
            action, self._action = self._action, None
            action()

    def put_if_absent(self, path, data):
        self._met("create " + path)
        super().put_if_absent(path, data)

    def glob(self, pattern):
        self._met("list " + pattern)
        return super().glob(pattern)

    def exists(self, path):
        self._met("exists " + path)
        return super().exists(path)

    def delete(self, path):
        self._met("delete " + path)
        super().delete(path)

    def read_bytes(self, path, max_bytes):
        self._met("read " + path)
        return super().read_bytes(path, max_bytes)


TAGGER_STEPS = ["read _tags/", "read _snapshots/", "create _tags/", "list _expiring/"]
TAGGER_STEPS += ["exists _snapshots/"]


@pytest.mark.parametrize("step", TAGGER_STEPS)
def test_an_expire_between_any_two_steps_of_a_tag_leaves_no_tag_without_its_snapshot(store, step):
    storage = MeetingStorage("file", store.url)
    storage.meet(step, lambda: expire(store, keep=1))
    check_meeting(store, lambda: put_tag(SnapshotStore(storage), "prod", 2))


EXPIRE_STEPS = ["list _snapshots/", "list _tags/", "create _expiring/", "delete _snapshots/"]
EXPIRE_STEPS += ["delete _snapshots/00000002", "delete _snapshots/00000003", "delete _expiring/"]


@pytest.mark.parametrize("step", EXPIRE_STEPS)
def test_a_tag_between_any_two_steps_of_an_expire_leaves_no_tag_without_its_snapshot(store, step):
    storage = MeetingStorage("file", store.url)
    refused = []

    def tag():
        try:
            put_tag(store, "prod", 2)
        except (CommitConflictError, ConfigError) as error:
            refused.append(error)

    storage.meet(step, tag)
    report = expire(SnapshotStore(storage), keep=1)
    assert 4 in store.numbers()
    assert report.expired == tuple(n for n in (1, 2, 3, 4) if n not in store.numbers())
    check_kept(store, bool(refused))


def check_meeting(store, act):
    try:
        act()
    except (CommitConflictError, ConfigError):
        check_kept(store, True)
    else:
        check_kept(store, False)


def check_kept(store, was_refused):
    tags = read_tags(store.storage)
    assert (tags == ()) is was_refused
    for tag in tags:
        assert store.load(tag.number).number == tag.number


@pytest.mark.parametrize("kind", ["local", "moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_tags_and_expires_at_once_leave_no_tag_without_its_snapshot(kind, request):
    url = request.getfixturevalue(f"{kind}_url")
    for round_ in range(5):
        store = fill(f"{url}/{round_}", 6)
        barrier = threading.Barrier(4)

        def run(act, store=store, barrier=barrier):
            barrier.wait()
            try:
                act(store)
            except (CommitConflictError, ConfigError):
                return

        acts = [lambda s, n=n: put_tag(s, f"tag-{n}", n) for n in (1, 2)]
        acts += [lambda s: expire(s, keep=1), lambda s: expire(s, keep=3)]
        threads = [threading.Thread(target=run, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 6 in store.numbers()
        for tag in read_tags(store.storage):
            assert store.storage.exists(manifest_path(tag.number))


def test_an_announcement_that_a_killed_expire_left_keeps_its_snapshots_from_being_tagged(store):
    left = {"numbers": [1], "created_at": "2026-11-21T03:00:00Z"}
    store.storage.put("_expiring/" + "0" * 32 + ".json", json.dumps(left).encode())
    with pytest.raises(
        CommitConflictError, match="announced at 2026-11-21T03:00:00Z.*snapshots gc"
    ):
        put_tag(store, "prod", 1)
    assert put_tag(store, "prod", 2).number == 2
