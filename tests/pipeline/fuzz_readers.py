"""A byte-level fuzzer for the readers: `python -m tests.pipeline.fuzz_readers --seconds 1200`.

Each case is a number: it picks a good file, damages it and says how it is read. Cases run in a
child process with bounded memory and time, so that a crash or a hang of native code is a finding
like any other. A finding is printed with its number; `--case NUMBER` runs it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.config import SourceConfig, TextConfig
from pipeline.errors import SourceError
from pipeline.excerpt import MAX_EXCERPT_CHARS, MAX_MESSAGE_CHARS
from pipeline.records import RejectedRow
from pipeline.sources.compression import READ_BYTES, decompressed
from pipeline.sources.discover import discover
from pipeline.sources.formats import compression_of
from pipeline.sources.read import read_documents
from pipeline.sources.reasons import MAX_ERROR_CHARS
from pipeline.storage import open_storage
from tests.pipeline.damaged_files import Seed, seeds

MAX_MEMORY_BYTES = 4 << 30
CASE_TIMEOUT_S = 60
STORE_SHARE = 0.3
STORE_URL = "memory://fuzz"
SPLIT_BYTES = (1 << 26, 4096, 700, 61)


@dataclass
class Outcome:
    """What reading gave: documents by (file, offset) and rejected rows, or an error."""

    documents: dict[tuple[str, int], tuple[str, str, bytes]]
    rejected: list[RejectedRow]
    error: str | None = None

    @property
    def bad_parts(self) -> list[RejectedRow]:
        return [row for row in self.rejected if row.offset is None]

    def key(self) -> object:
        rows = sorted((row.source, row.offset, row.code) for row in self.rejected)
        return self.documents, rows, self.error

    def names(self) -> object:
        """What was found by file name, wherever the files lie."""
        documents = {(name_of(at), offset): row for (at, offset), row in self.documents.items()}
        rows = sorted(
            (name_of(row.source), str(row.offset), row.code, row.excerpt or "")
            for row in self.rejected
        )
        return documents, rows, self.error is None


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


def read_all(directory: Path | str, config: dict[str, object]) -> Outcome:
    """Read a corpus as a run does; anything but a SourceError goes up."""
    source = SourceConfig(path=str(directory), **config)
    documents: dict[tuple[str, int], tuple[str, str, bytes]] = {}
    rejected: list[RejectedRow] = []
    try:
        discovery = discover(source)
        rejected += discovery.rejected
        for split in discovery.splits:
            for batch in read_documents(split, source, TextConfig()):
                batch.documents.validate(full=True)
                rejected += batch.rejected
                for row in batch.documents.to_pylist():
                    place = row["_source"], row["_offset"]
                    assert place not in documents, f"{place} was read twice"
                    documents[place] = row["id"], row["text"], row["content_hash"]
    except SourceError as error:
        message = str(error)
        assert message.isprintable(), f"unprintable: {message!r}"
        assert len(message) <= MAX_ERROR_CHARS + 1000, f"long: {message[:200]}"
        return Outcome({}, [], message)
    _check_rejected(rejected, documents)
    return Outcome(documents, rejected)


def _check_rejected(rejected: list[RejectedRow], documents: dict[tuple[str, int], object]) -> None:
    seen = set()
    for row in rejected:
        assert len(row.message) <= MAX_MESSAGE_CHARS, f"long message: {row.message[:200]}"
        if row.excerpt is not None:
            assert len(row.excerpt) <= MAX_EXCERPT_CHARS
            assert row.excerpt.isprintable()
        if row.offset is not None:
            place = row.source, row.offset
            assert place not in documents, f"{place} is a document and rejected"
            assert place not in seen, f"{place} was rejected twice"
            seen.add(place)


def case_of(number: int) -> tuple[Seed, bytes]:
    """The file of a case and its damaged bytes."""
    rng = random.Random(number)
    seed = rng.choice(seeds())
    return seed, seed.damaged(rng)


def run_case(number: int, directory: Path) -> str:
    """Check all invariants on one case; returns a word for the statistics.

    Raises: AssertionError, or what a reader let through.
    """
    seed, data = case_of(number)
    return check(seed, data, directory, random.Random(number + 1))


def check(seed: Seed, data: bytes, directory: Path, rng: random.Random) -> str:
    """Read the damaged file in several ways and compare what they give."""
    path = directory / seed.name
    path.write_bytes(data)
    neighbour = directory / f"z-{seed.name}"
    neighbour.write_bytes(seed.data)
    try:
        good = read_all(directory, {**seed.config, "on_bad_file": "error"})
        if good.error is None:
            assert not good.bad_parts
            _check_complete(seed, path, data, good)
        again = read_all(directory, {**seed.config, "on_bad_file": "reject"})
        _check_modes_agree(good, again, neighbour)
        split_bytes = rng.choice(SPLIT_BYTES[1:])
        for mode, whole in (("error", good), ("reject", again)):
            parts = read_all(
                directory, {**seed.config, "on_bad_file": mode, "split_bytes": split_bytes}
            )
            if not whole.bad_parts and not parts.bad_parts and whole.error is None:
                assert parts.key() == whole.key(), f"split_bytes {split_bytes} gives other rows"
        if rng.random() < STORE_SHARE:
            _check_store(seed, {seed.name: data, neighbour.name: seed.data}, again)
    finally:
        path.unlink()
        neighbour.unlink()
    if good.error is None:
        return "rejected rows" if good.rejected else "read"
    return "bad file" if again.error is None else "error in both modes"


def _check_store(seed: Seed, files: dict[str, bytes], local: Outcome) -> None:
    """Files of an object store are read by other code than those of a disk, to the same end."""
    storage = open_storage(STORE_URL)
    for name, data in files.items():
        storage.put(name, data)
    try:
        found = read_all(STORE_URL, {**seed.config, "on_bad_file": "reject"})
        assert found.names() == local.names(), "a store gives other rows than a disk"
    finally:
        for name in files:
            storage.delete(name)


def _check_modes_agree(good: Outcome, again: Outcome, neighbour: Path) -> None:
    if good.error is None:
        assert again.key() == good.key(), "on_bad_file changes how a good file is read"
    elif again.error is None:
        # The bad file is one rejected row, and of it there is nothing else; its neighbour is whole.
        assert len(again.bad_parts) == 1, again.bad_parts
        bad = again.bad_parts[0].source
        assert not [place for place in again.documents if place[0] == bad]
        assert any(place[0] == str(neighbour) for place in again.documents)


def _check_complete(seed: Seed, path: Path, data: bytes, found: Outcome) -> None:
    """Every row of the damaged file is a document or a rejected row."""
    offsets = sorted(
        [offset for source, offset in found.documents if source == str(path)]
        + [
            row.offset
            for row in found.rejected
            if row.source == str(path) and row.offset is not None
        ]
    )
    if seed.is_lines:
        assert offsets == list(_line_offsets(path, data)), "a line has vanished"
    else:
        assert offsets == list(range(len(offsets))), "a row has vanished"


def _line_offsets(path: Path, data: bytes) -> Iterator[int]:
    """Where the lines begin that are not blank, found in another way than the reader's."""
    if compression_of(path.name) is not None:
        with path.open("rb") as file:
            stream = decompressed(file, compression_of(path.name), "")
            parts = []
            while part := stream.read(READ_BYTES):
                parts.append(part)
        data = b"".join(parts)
    position = 0
    for line in data.split(b"\n"):
        content = line.removeprefix(b"\xef\xbb\xbf") if not position else line
        if content.strip():
            yield position
        position += len(line) + 1


def run_child(first: int, last: int, status: Path) -> None:
    """Run cases and write down which one is running; findings go to stdout."""
    _limit_memory()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(first, last):
            status.write_text(str(number))
            # A hang shows where it hangs, and ends the process.
            faulthandler.dump_traceback_later(CASE_TIMEOUT_S, exit=True)
            try:
                counts[run_case(number, Path(directory))] += 1
            except Exception as error:
                say(f"FINDING {number} {case_of(number)[0].name}: {_short(error)}")
            faulthandler.cancel_dump_traceback_later()
    status.write_text(f"done {dict(counts)}")


def say(*lines: str) -> None:
    """Write lines to stdout, at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _short(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"{where}: {type(error).__name__}: {ascii(str(error))[:400]}"


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def run_cases(first: int, last: int) -> tuple[list[str], str]:
    """Run the cases first ... last - 1 in child processes; returns the findings and a summary."""
    findings: list[str] = []
    summary = ""
    with tempfile.TemporaryDirectory() as directory:
        status = Path(directory, "status")
        while first < last:
            status.write_text(str(first))
            command = [sys.executable, "-X", "faulthandler", "-m", "tests.pipeline.fuzz_readers"]
            words = ["--child", str(first), str(last), str(status)]
            child = subprocess.run(
                [*command, *words], capture_output=True, text=True, check=False, env=_environment()
            )
            findings += child.stdout.splitlines()
            said = status.read_text()
            if child.returncode == 0:
                return findings, said
            number = int(said)
            name = case_of(number)[0].name
            findings.append(
                f"FINDING {number} {name}: the process died with {child.returncode}\n"
                f"{child.stderr[-3000:]}"
            )
            first = number + 1
    return findings, summary


def _environment() -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return {**os.environ, **threads, "PYTHONPATH": str(Path(__file__).parents[2])}


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run one case in this process")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(int(arguments.child[0]), int(arguments.child[1]), Path(arguments.child[2]))
        return 0
    if arguments.case is not None:
        with tempfile.TemporaryDirectory() as directory:
            say(case_of(arguments.case)[0].name)
            say(run_case(arguments.case, Path(directory)))
        return 0
    started, first, num_findings = time.monotonic(), arguments.first, 0
    while time.monotonic() - started < arguments.seconds:
        findings, summary = run_cases(first, first + 500)
        num_findings += len(findings)
        say(f"cases {first} to {first + 499}: {summary}", *findings)
        first += 500
    say(f"{first - arguments.first} cases, {num_findings} findings")
    return 1 if num_findings else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
