"""Run a vector model in a child process, so that what kills it kills nothing else.

The parent sends windows as Arrow IPC over a pipe and gets vectors back. A child that dies or hangs
is a `WindowError` in the parent, whose caller then tries smaller windows; a document that kills
fresh children again and again is the culprit. Knows no files, documents or Ray.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import errors
from pipeline.backend import ModelLoader
from pipeline.child_process import ChildDied, ChildProcess
from pipeline.errors import ClusterError, PipelineError
from pipeline.token_window import PROCESS_DIED, BatchCounts, TokenWindow, WindowError

log = logging.getLogger(__name__)

# How often a document alone must kill a fresh child before it is the culprit. Some signals come
# from outside the process as a rule: it takes one more of them.
DEATHS_OF_ITS_OWN = 2
DEATHS_FROM_OUTSIDE = 3
_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
PAUSE_AFTER_OUTSIDE_S = 1.0
# A model that kills its process on whatever it is given: documents are not to blame.
MAX_CULPRITS = 16
MAX_CULPRITS_WITHOUT_SUCCESS = 3
MAX_FAILED_STARTS = 3
START_TIMEOUT_S = 900.0
# A window may take this much longer than the rate of the earlier ones promises.
SLOWNESS = 20.0
MIN_TIMEOUT_S = 60.0

_PR_SET_PDEATHSIG = 1
_CODE = "from pipeline.isolation import serve; serve()"


@dataclass
class IsolationCounts:
    """How many child processes were started, and how many documents were found to kill them."""

    num_starts: int = 0
    num_culprits: int = 0


class IsolatedModel:
    """A vector model in a child process; use as a context manager.

    `dim` and `vector_columns` are those of the model in this process.
    """

    def __init__(
        self,
        load_model: ModelLoader,
        dim: int,
        vector_columns: tuple[str, ...],
        timeout_s: float,
    ) -> None:
        """Start nothing yet.

        Args:
            load_model: picklable, makes the model in the child.
            dim: elements of a vector.
            vector_columns: as of the model.
            timeout_s: bound of the time for one window; all but a first single one get less.
        """
        self.dim = dim
        self.vector_columns = vector_columns
        self.counts = BatchCounts()
        self.processes = IsolationCounts()
        self._load_model = load_model
        self._timeout_s = timeout_s
        self._child: ChildProcess | None = None
        self._num_windows = 0
        self._tokens = 0
        self._seconds = 0.0

    def __enter__(self) -> IsolatedModel:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        self._end_child()

    def vectors(self, window: TokenWindow) -> NDArray[np.floating]:
        """Vectors of one window, as the model in the child gives them.

        Raises:
            WindowError: the child died or hung on several documents, or again and again on one.
            RuntimeError: what the model raised.
            PipelineError: the same, if it was one of ours.
            ClusterError: no child starts, or they die of too many documents.
        """
        is_single = len(window.sentences_per_document) == 1
        num_deaths = 0
        while True:
            child, is_fresh = self._started_child()
            try:
                return self._ask(child, window)
            except ChildDied as death:
                self._end_child()
                log.warning("a process that embedded %s: %s", _describe(window), death)
                if not is_single:
                    raise WindowError(PROCESS_DIED, str(death)) from None
                # An older child may have died of what came before.
                num_deaths += is_fresh
                outside = death.signal_number in _OUTSIDE
                if num_deaths >= (DEATHS_FROM_OUTSIDE if outside else DEATHS_OF_ITS_OWN):
                    raise self._culprit(death, num_deaths) from None
                if outside:
                    time.sleep(PAUSE_AFTER_OUTSIDE_S)

    def _started_child(self) -> tuple[ChildProcess, bool]:
        if self._child is not None:
            return self._child, False
        for failed in range(1, MAX_FAILED_STARTS + 1):
            self.processes.num_starts += 1
            child = ChildProcess([sys.executable, "-X", "faulthandler", "-c", _CODE])
            try:
                deadline = time.monotonic() + START_TIMEOUT_S
                child.send(pickle.dumps(self._load_model), deadline)
                _raise_if_error(json.loads(child.receive(deadline)))
                self._child = child
                return child, True
            except ChildDied as death:
                child.kill()
                if failed == MAX_FAILED_STARTS:
                    raise ClusterError(
                        "a block of documents is embedded in a process of its own because its "
                        f"actor died; there the model cannot even be loaded: the process {death}"
                    ) from None
            except BaseException:
                child.kill()
                raise
        raise AssertionError("unreachable")

    def _ask(self, child: ChildProcess, window: TokenWindow) -> NDArray[np.floating]:
        started = time.monotonic()
        deadline = started + self._limit_s(window)
        child.send(_window_bytes(window), deadline)
        answer = json.loads(child.receive(deadline))
        _raise_if_error(answer)
        data = child.receive(deadline)
        self._num_windows += 1
        self._tokens += len(window.word_ids)
        self._seconds += time.monotonic() - started
        self.counts.add(BatchCounts(**answer["counts"]))
        vectors: NDArray[np.floating] = np.frombuffer(data, np.dtype(answer["dtype"]))
        return vectors.reshape(answer["shape"])

    def _limit_s(self, window: TokenWindow) -> float:
        """Time for one window: a multiple of what the earlier ones took."""
        if not self._tokens:
            is_single = len(window.sentences_per_document) == 1
            return self._timeout_s if is_single else self._timeout_s / 4
        expected_s = len(window.word_ids) * self._seconds / self._tokens
        return min(self._timeout_s, max(MIN_TIMEOUT_S, SLOWNESS * expected_s))

    def _culprit(self, death: ChildDied, num_deaths: int) -> Exception:
        self.processes.num_culprits += 1
        limit = MAX_CULPRITS if self._num_windows else MAX_CULPRITS_WITHOUT_SUCCESS
        if self.processes.num_culprits > limit:
            succeeded = f"{self._num_windows} windows" if self._num_windows else "none"
            return ClusterError(
                f"the process that embeds dies on {self.processes.num_culprits} documents of one "
                f"block ({succeeded} of it could be embedded); the last one {death}. The model or "
                "its libraries are broken rather than the documents; nothing was committed, what "
                "was recorded is kept"
            )
        message = f"the process that embedded it alone {death}, {num_deaths} times"
        return WindowError(PROCESS_DIED, message)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def serve() -> None:
    """The child's side: load the model, then answer windows until the parent closes the pipe."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the answers.
    os.dup2(2, 1)
    _die_before_the_parent()
    try:
        model = pickle.loads(_next(requests))()  # written by the parent itself
    except Exception as error:
        _answer(answers, {"error": _error_json(error)})
        return
    _answer(answers, {})
    while request := _next(requests):
        before = replace(model.counts)
        try:
            vectors = np.ascontiguousarray(model.vectors(_window_of(request)))
        except Exception as error:
            _answer(answers, {"error": _error_json(error)})
            continue
        header = {
            "dtype": vectors.dtype.str,
            "shape": vectors.shape,
            "counts": asdict(model.counts.since(before)),
        }
        _answer(answers, header, vectors.tobytes())


def _die_before_the_parent() -> None:
    # Linux only; elsewhere the child goes when its pipe is closed.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _next(requests: BinaryIO) -> bytes:
    size = int.from_bytes(requests.read(8), "little")
    return requests.read(size)


def _answer(answers: BinaryIO, header: dict[str, Any], data: bytes | None = None) -> None:
    for message in (json.dumps(header).encode(), *([] if data is None else [data])):
        answers.write(len(message).to_bytes(8, "little") + message)
    answers.flush()


def _error_json(error: Exception) -> dict[str, str]:
    code = error.code if isinstance(error, WindowError) else ""
    return {"type": type(error).__name__, "message": str(error), "code": code}


def _raise_if_error(answer: dict[str, Any]) -> None:
    if "error" not in answer:
        return
    kind, message, code = (answer["error"][key] for key in ("type", "message", "code"))
    if code:
        raise WindowError(code, message)
    ours: Callable[[str], Exception] | None = getattr(errors, kind, None)
    if isinstance(ours, type) and issubclass(ours, PipelineError):
        raise ours(message)
    raise RuntimeError(f"{kind}: {message}")


def _window_bytes(window: TokenWindow) -> bytes:
    columns = {
        "words": pa.array([window.words], pa.list_(pa.string())),
        "word_ids": _one_row(window.word_ids),
        "sentence_lengths": _one_row(window.sentence_lengths),
        "sentences_per_document": _one_row(window.sentences_per_document),
    }
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _one_row(values: NDArray[np.integer]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))


def _window_of(data: bytes) -> TokenWindow:
    batch = pa.ipc.open_stream(data).read_next_batch()
    return TokenWindow(
        words=batch["words"].flatten().to_pylist(),
        word_ids=batch["word_ids"].flatten().to_numpy(),
        sentence_lengths=batch["sentence_lengths"].flatten().to_numpy(),
        sentences_per_document=batch["sentences_per_document"].flatten().to_numpy(),
    )


def _describe(window: TokenWindow) -> str:
    num_documents = len(window.sentences_per_document)
    return f"{num_documents} documents with {len(window.word_ids)} tokens"
