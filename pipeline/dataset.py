"""The embed pass as a Ray Data graph: read what was selected, tokenise, embed and write in actors.

read tasks -> blocks of documents -> actor pool -> one small record a block, gathered by the driver.
Knows no encoder: a loader makes the vector model inside each actor's process.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.cluster import Allocation, ray_errors
from pipeline.config import EmbedConfig
from pipeline.embed import token_window
from pipeline.plan import PlannedRead
from pipeline.records import SourceSplit
from pipeline.selected import rows_to_embed, selected_documents
from pipeline.text import tokenise
from pipeline.token_window import VectorModel
from pipeline.watch import no_progress
from pipeline.worker import EmbedWorker, WorkerRecord, WorkerSpec

log = logging.getLogger(__name__)

# Blocks of tokenised text leave a reading task at this size, so that the first actor starts early.
BLOCK_BYTES = 16 << 20
# So often may actors die while they load the model, as long as none has succeeded. Ray itself
# starts an actor whose process dies again for ever, and replaces one that raised an error.
STARTS_PER_ACTOR = 3
STARTS_TO_SPARE = 3
REPLACEMENTS = 2
# The reading function's name, by which Ray calls its stage.
READING = "read"
# The sample that a dry run embeds to measure the rate.
MEASURED_DOCUMENTS = 200
MEASURED_TOKENS = 5_000


@dataclass(frozen=True)
class EmbedPass:
    """One pass over the selected documents.

    `documents_per_block` is what one call of an actor embeds, `num_readers` how many tasks read and
    tokenise at once.
    """

    spec: WorkerSpec
    allocation: Allocation
    documents_per_block: int
    num_readers: int

    def run(self, reads: Sequence[PlannedRead]) -> Iterator[WorkerRecord]:
        """Embed the planned documents; yields what each actor call wrote, as it finishes.

        Raises:
            SourceError: the input changed since the plan was made.
            ClusterError: an actor died again and again, or nothing moved for too long.
            PipelineError: what a reading task or an actor raised.
        """
        config = self.spec.config
        reads = [read for read in reads if read.num_documents]
        items = [
            {"read": number, "split": position}
            for number, read in enumerate(reads)
            for position in range(len(read.splits))
        ]
        with _data_context(config.run.no_progress_timeout_s):
            readers = TaskPoolStrategy(size=min(self.num_readers, len(items)))
            dataset = ray.data.from_items(items, override_num_blocks=len(items))
            dataset = dataset.map_batches(
                _reader(config, reads),
                batch_size=1,
                batch_format="pyarrow",
                # No CPU is reserved, so that reading never waits for one: where another run divides
                # the cluster with this one, or a node was lost, the actors may hold all there are.
                num_cpus=0,
                compute=readers,
            )
            dataset = self._cut(dataset, readers)
            num_documents = sum(read.num_documents for read in reads)
            dataset = self._embedded(dataset, -(-num_documents // self.documents_per_block))
            yield from self._records(dataset, num_documents)

    def _cut(self, documents: Dataset, readers: TaskPoolStrategy) -> Dataset:
        """Cut what each reading task makes into blocks of at most `documents_per_block`."""
        documents = documents.repartition(target_num_rows_per_block=self.documents_per_block)
        # This step only slices tables. Ray offers no parameters for what it reserves, a whole CPU,
        # and for how often it runs; where both are those of the reading tasks, they do it
        # themselves, and neither more processes nor a copy of the text are needed.
        step = documents._logical_plan.dag
        step.ray_remote_args["num_cpus"] = 0
        object.__setattr__(step, "compute", readers)
        return documents

    def _records(self, embedded: Dataset, num_documents: int) -> Iterator[WorkerRecord]:
        timeout_s = self.spec.config.run.no_progress_timeout_s
        started, moved, num_done = time.monotonic(), None, 0
        try:
            with ray_errors():
                for batch in embedded.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for text in batch["record"].to_pylist():
                        record = WorkerRecord.from_json(text)
                        yield record
                        num_done += record.counts.documents + sum(record.rejected_by_code.values())
                        moved = time.monotonic()
        except ExecutionTimeoutError as error:
            # Ray names what is still running by the function or class of ours.
            reading = f"MapBatches({READING})" in str(error)
            stage = "reading and embedding" if reading else "embedding"
            done = f"{num_done} of {num_documents} documents are done"
            raise no_progress(stage, done, timeout_s, started, moved) from None
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            log.warning(
                "interrupted: %d of %d documents are embedded and recorded in _runs/%s of %s, and "
                "nothing was committed; the same command goes on from there",
                num_done,
                num_documents,
                self.spec.run_id,
                self.spec.config.output.path,
            )
            raise

    def _embedded(self, documents: Dataset, num_blocks: int) -> Dataset:
        # More actors than blocks would load the model for nothing.
        num_actors = min(self.allocation.num_actors, num_blocks)
        max_starts = STARTS_PER_ACTOR * num_actors + STARTS_TO_SPARE
        with warnings.catch_warnings():
            # The limits of restarts have no named parameters yet; pyproject.toml keeps Ray below
            # the version that drops this way of giving them.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            return documents.map_batches(
                EmbedWorker,
                fn_constructor_args=(replace(self.spec, max_starts=max_starts),),
                batch_size=self.documents_per_block,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=num_actors),
                num_cpus=self.allocation.actor_cpus,
                num_gpus=self.allocation.actor_gpus or None,
                # An actor may be killed at any time, with its node or for no reason of its own:
                # what bounds the tries are the notes of attempts.py.
                max_restarts=-1,
                max_task_retries=-1,
            )


def _reader(
    config: EmbedConfig, reads: Sequence[PlannedRead]
) -> Callable[[pa.Table], Iterator[pa.Table]]:
    # The refs are few (one a group of splits) and travel inside the function.
    groups = [(read.splits, read.selected) for read in reads]
    keep_text = "text" in config.source.carry_columns

    def read(items: pa.Table) -> Iterator[pa.Table]:
        for number, position in zip(
            items["read"].to_pylist(), items["split"].to_pylist(), strict=True
        ):
            splits, selected_ref = groups[number]
            split = splits[position]
            selected = rows_to_embed(ray.get(selected_ref), split)
            for documents, _ in selected_documents(config, split, selected):
                yield tokenise(documents, config.text, keep_text=keep_text)

    return read


@contextlib.contextmanager
def _data_context(no_progress_timeout_s: int) -> Iterator[None]:
    """Ray Data's settings for this pass; a dataset seals those it was built under."""
    context = DataContext.get_current()
    settings: dict[str, Any] = {
        "target_max_block_size": BLOCK_BYTES,
        "execution_no_progress_timeout_s": no_progress_timeout_s,
        "enable_progress_bars": False,
        "max_consecutive_actor_init_deaths": REPLACEMENTS,
    }
    before = {name: getattr(context, name) for name in settings}
    for name, value in settings.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def measure_rate(spec: WorkerSpec, allocation: Allocation, read: PlannedRead) -> float:
    """Tokens per second of one actor on a sample of what is to be embedded; writes nothing.

    Args:
        spec: what the actors are built from.
        allocation: the resources of one actor.
        read: a planned read to take the sample from.
    """
    task = ray.remote(_measure_rate).options(
        num_cpus=allocation.actor_cpus, num_gpus=allocation.actor_gpus
    )
    with ray_errors():
        rate: float = ray.get(task.remote(spec, read.splits, read.selected))
    return rate


def _measure_rate(spec: WorkerSpec, splits: Sequence[SourceSplit], selected: pa.Table) -> float:
    config = spec.config
    samples: list[pa.Table] = []
    num_tokens = 0
    for split in splits:
        for documents, _ in selected_documents(config, split, rows_to_embed(selected, split)):
            tokens = tokenise(documents.slice(0, MEASURED_DOCUMENTS), config.text)
            samples.append(tokens)
            num_tokens += len(tokens["tokens"].combine_chunks().flatten())
            if num_tokens >= MEASURED_TOKENS:
                return _rate(spec.load_model(), pa.concat_tables(samples))
    return _rate(spec.load_model(), pa.concat_tables(samples)) if samples else 0.0


def _rate(model: VectorModel, tokens: pa.Table) -> float:
    """Rate over the first MEASURED_TOKENS tokens, after one small warm-up."""
    counts = pc.list_value_length(tokens["tokens"]).to_numpy()
    num_documents = 1 + int(np.searchsorted(np.cumsum(counts), MEASURED_TOKENS))
    sample = tokens.filter(pc.greater(pc.list_value_length(tokens["tokens"]), 0))
    sample = sample.slice(0, num_documents)
    model.vectors(token_window(sample.slice(0, 1)))
    started = time.monotonic()
    model.vectors(token_window(sample))
    seconds = time.monotonic() - started
    return float(len(sample["tokens"].combine_chunks().flatten()) / max(seconds, 1e-9))
