"""Prepare a corpus on a cluster: one task of Ray Data for each group of files.

All tasks write into one work directory, so it is also looked here whether all hosts have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import ray_errors
from pipeline.errors import ConfigError
from pipeline.pretraining.prepare import GroupTask, GroupText, TextGroup
from pipeline.storage import open_storage

# A task holds a shard's text in memory, and its process the interpreter and Arrow.
TASK_CPUS = 1
MARK = "seen-by-all-hosts"


def on_ray(task: GroupTask, groups: Sequence[TextGroup]) -> Iterator[GroupText]:
    """Prepare the groups in tasks of the cluster; results come as they are ready.

    A task that dies is run again and writes the same files.

    Raises:
        ClusterError: tasks died again and again.
        PipelineError: what a task raised.
    """
    by_number = dict(enumerate(groups))

    def prepare(batch: pa.Table) -> pa.Table:
        texts = [task(by_number[number]).to_json() for number in batch["item"].to_pylist()]
        return pa.table({"text": pa.array(texts, pa.string())})

    dataset = ray.data.from_items(list(by_number), override_num_blocks=max(len(groups), 1))
    dataset = dataset.map_batches(prepare, batch_size=1, batch_format="pyarrow", num_cpus=TASK_CPUS)
    with ray_errors():
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(GroupText.from_json, batch["text"].to_pylist())


def check_shared(work: str) -> None:
    """Check that every host of the cluster sees the work directory, if it is a local path.

    Raises:
        ConfigError: some do not.
        StorageError: it cannot be written.
    """
    storage = open_storage(work)
    if not storage.is_local:
        return
    storage.put(MARK, b"")
    try:
        blind = hosts_without(storage.url_of(MARK))
    finally:
        storage.delete(MARK)
    if blind:
        raise ConfigError(
            "output.work: workers need a directory that all hosts of the cluster share, and "
            f"{', '.join(blind)} do not see {storage.url} of this host: give the URL of a store, "
            "or a directory of a disk that is mounted on all of them"
        )


def hosts_without(path: str) -> list[str]:
    """Addresses of the hosts, but for this one, that have no such file; one small task for each.

    Raises:
        ClusterError: a host vanished meanwhile.
    """
    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    own = {node["NodeManagerAddress"] for node in alive if node["NodeID"] == here}
    hosts = {node["NodeManagerAddress"]: node["NodeID"] for node in alive}
    others = {host: node for host, node in sorted(hosts.items()) if host not in own}
    look = ray.remote(num_cpus=0)(_exists)
    with ray_errors():
        found = ray.get(
            [
                look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                ).remote(path)
                for node in others.values()
            ]
        )
    return [host for host, has in zip(others, found, strict=True) if not has]


def _exists(path: str) -> bool:
    return Path(path).exists()
