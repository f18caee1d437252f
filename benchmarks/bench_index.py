"""How fast an index is fed and answers, what a delta saves, and how much memory either takes.

Fed: `elmo index` without its check. Own: a plain program that reads the same files as a whole and
loads them by the client's own bulk tool, with the same settings. In turns; wall time, and processor
time of this process and of a server. A delta brings one document in a hundred; it is compared with
the full build of its turn. The vectors are clustered ones, or those of a snapshot.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import machine
from index_corpus import (
    ALL,
    CHANGED_SHARE,
    GROWN,
    NUM_QUERIES,
    UPDATED,
    Corpus,
    clustered,
    read_whole,
    stored,
)
from index_faiss import set_threads
from index_kinds import KINDS, MAX_TRAIN_ROWS, Kind, feed
from index_limits import measure_limits, shares
from index_memory import growth

from pipeline.index.kinds import open_index
from pipeline.index.protocol import IndexReader

NUM_HITS = 10
# A query alone takes long in a flat index.
NUM_ALONE = 50
QUERY_SEED = 4
MEASURED_PACKAGES = ("faiss-cpu", "lancedb", "pgvector", "psycopg")


class Benchmark:
    """Measures kinds of index on one corpus."""

    def __init__(self, corpus: Corpus, folder: Path, num_repeats: int, num_threads: int) -> None:
        """Work in a folder."""
        self.corpus, self.folder = corpus, folder
        self.num_repeats, self.num_threads = num_repeats, num_threads

    def feeding(self, kind: Kind) -> dict:
        """Times of all ways in turns, and their ratios; the index that holds `UPDATED` stays."""
        turns = [self._turn(kind) for _ in range(self.num_repeats)]
        times = {name: [turn[name] for turn in turns] for name in turns[0]}
        return {
            **{name: _summary(values, self.corpus.num_rows) for name, values in times.items()},
            "fed_over_own_rate": _ratio(times["own"], times["fed"]),
            "delta_over_full_time": _ratio(times["delta"], times["fed"]),
        }

    def _turn(self, kind: Kind) -> dict[str, dict[str, float]]:
        url, actions = kind.url(self.folder, "fed"), []

        def fed(number: int) -> None:
            actions.append(feed(kind.configuration(self.corpus, url, number)))

        config = kind.configuration(self.corpus, url, ALL)
        times = {
            "fed": _timed(kind, lambda: fed(ALL)),
            "own": _timed(kind, lambda: kind.own(self.corpus, self.folder, config)),
            "delta": _timed(kind, lambda: fed(UPDATED)),
        }
        assert actions == ["full", "delta"], actions
        self.url = url
        return times

    def searching(self, kind: Kind) -> dict:
        """Recall, and queries a second, of the index that was fed last."""
        reader, queries_QD = open_index(self.url), self.corpus.queries_QD
        hits = reader.search(queries_QD, NUM_HITS)
        recall = self.corpus.recall_at_10([[hit.id for hit in found] for found in hits])
        rates: dict[str, dict[str, list[float]]] = {}
        setters = kind.threads()
        for _ in range(self.num_repeats):
            for name, choose in setters.items():
                choose()
                for way, value in self._rates(kind, reader).items():
                    rates.setdefault(name, {}).setdefault(way, []).append(value)
        set_threads(self.num_threads)
        medians = {
            name: {way: machine.spread(values)["median"] for way, values in ways.items()}
            for name, ways in rates.items()
        }
        return {"recall_at_10": round(recall, 4), "search": medians}

    def _rates(self, kind: Kind, reader: IndexReader) -> dict[str, float]:
        queries_QD = self.corpus.queries_QD
        alone = queries_QD[:NUM_ALONE]

        def one_at_a_time() -> None:
            for query in range(len(alone)):
                reader.search(alone[query : query + 1], NUM_HITS)

        one = _timed(kind, one_at_a_time)
        every = _timed(kind, lambda: reader.search(queries_QD, NUM_HITS))
        return {
            "one_at_a_time_per_s": len(alone) / one["wall_s"],
            "one_at_a_time_cpu_ms": 1000 * one["cpu_s"] / len(alone),
            f"{NUM_QUERIES}_at_once_per_s": len(queries_QD) / every["wall_s"],
            f"{NUM_QUERIES}_at_once_cpu_ms": 1000 * every["cpu_s"] / len(queries_QD),
        }

    def memory(self, kind: Kind) -> dict[str, float]:
        """MiB by which a process of its own grows, for each step of the corpus."""
        url, grown = kind.url(self.folder, "grown"), {}
        for name, number, expected in (
            ("full_build_mib", ALL, "full"),
            ("delta_mib", UPDATED, "delta"),
            ("delta_that_adds_mib", GROWN, "delta"),
        ):
            config = kind.configuration(self.corpus, url, number)
            done = growth(config.model_dump(mode="json"))
            assert done["action"] == expected, done
            grown[name] = done["growth_mib"]
        return grown

    def size_bytes(self) -> dict[str, int]:
        """Of the files of the index that was fed last, by their endings; none of a server.

        A directory, which keeps several versions, counts with all of its files.
        """
        paths = sorted(Path(self.url).glob("data/*")) if "://" not in self.url else []
        newest = sorted(paths, key=lambda path: path.stat().st_mtime)
        return {path.suffix: _size_bytes(path) for path in newest}


def _size_bytes(path: Path) -> int:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _timed(kind: Kind, work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds."""
    server, wall, cpu = kind.server_cpu_s(), time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu + kind.server_cpu_s() - server}


def _summary(values: list[dict[str, float]], num_rows: int) -> dict:
    """Spread of the times, and rows of the whole index a second."""
    spread = {
        name: machine.spread([value[name] for value in values]) for name in ("wall_s", "cpu_s")
    }
    return {
        **spread,
        "rows_per_s": round(num_rows / spread["wall_s"]["median"]),
        "rows_per_cpu_s": round(num_rows / max(spread["cpu_s"]["median"], 1e-3)),
    }


def _ratio(over: list[dict[str, float]], under: list[dict[str, float]]) -> dict[str, dict]:
    """Of what ran next to each other."""
    return {
        name: machine.spread([a[name] / b[name] for a, b in zip(over, under, strict=True)])
        for name in ("wall_s", "cpu_s")
    }


def _corpus(arguments: argparse.Namespace, url: str) -> Corpus:
    if arguments.snapshot:
        vectors_ND = stored(arguments.snapshot)
        return Corpus(url, vectors_ND[NUM_QUERIES:], vectors_ND[:NUM_QUERIES])
    rows_ND = clustered(arguments.rows, arguments.dim, seed=1)
    # Of as many centres as the rows.
    queries_QD = clustered(arguments.rows, arguments.dim, seed=QUERY_SEED)[:NUM_QUERIES]
    return Corpus(url, rows_ND, queries_QD)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--snapshot", help="take the vectors of this snapshot directory instead")
    parser.add_argument("--repeats", type=int, default=3)
    faiss_kinds = [name for name in KINDS if name.startswith("faiss")]
    parser.add_argument("--kinds", nargs="+", default=faiss_kinds, choices=KINDS)
    parser.add_argument(
        "--threads", type=int, default=1, help="of FAISS while it is fed; more wait for each other"
    )
    parser.add_argument("--result", help="write the result here as well")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    result = {"machine": machine.describe()}
    with tempfile.TemporaryDirectory(prefix="elmo-bench-") as directory:
        folder = Path(directory)
        corpus = _corpus(arguments, str(folder / "vectors"))
        result |= {
            "vectors": "of a snapshot" if arguments.snapshot else "clustered",
            "rows": corpus.num_rows,
            "dim": corpus.dim,
            "repeats": arguments.repeats,
            "changed_share": CHANGED_SHARE,
            "seed": 1,
            "versions": {name: version(name) for name in MEASURED_PACKAGES},
            "threads": arguments.threads,
            "max_train_rows": MAX_TRAIN_ROWS,
            "limits": measure_limits(corpus.paths(ALL), folder),
            "read_whole": _timed(KINDS["faiss-flat"], lambda: read_whole(corpus.paths(ALL))),
        }
        benchmark = Benchmark(corpus, folder, arguments.repeats, arguments.threads)
        shape = (corpus.num_rows, corpus.dim, MAX_TRAIN_ROWS["ivf"])
        for name in arguments.kinds:
            kind = KINDS[name]
            found = {"load": round(os.getloadavg()[0], 2), **benchmark.feeding(kind)}
            found["size_bytes"] = benchmark.size_bytes()
            found |= benchmark.searching(kind)
            found["memory"] = benchmark.memory(kind)
            found["limit_over_cpu_time"] = shares(name, found, result["limits"], shape)
            result[name] = found
            # What is done is kept if the rest takes too long.
            machine.save(arguments.result, result)


if __name__ == "__main__":
    main()
