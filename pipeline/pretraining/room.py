"""Room for workers on a cluster: how many of them find a place, beside all else that runs there.

Ray waits in silence for what it cannot place. Here each place is a placement group of its own: so
Ray's scheduler itself says how many there are, and an autoscaler sees what is missing. Knows no
training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import ray
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from pipeline.cluster import NodeResources, is_local, nodes, shares
from pipeline.errors import ClusterError

log = logging.getLogger(__name__)

# Places that are there are found within a second. For more than the least number it is waited this
# long: workers that have just died give theirs back, and that nodes are lost is noticed.
SETTLE_S = 10.0
# When a wait is first said, and then how often.
FIRST_NOTICE_S, NOTICE_INTERVAL_S = 10.0, 60.0


class Places:
    """Places that are asked for, and held as they are found until they are released."""

    def __init__(self, resources: Mapping[str, float], num_places: int) -> None:
        """Ask for places with the resources of one worker each."""
        self._groups = [placement_group([dict(resources)]) for _ in range(num_places)]

    def num_found(self) -> int:
        """How many there are by now."""
        table = placement_group_table()
        found = (table.get(group.id.hex(), {}) for group in self._groups)
        return sum(entry.get("state") == "CREATED" for entry in found)

    def release(self) -> None:
        """Give them back, and ask for no more."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []


class RoomSearch:
    """With how many workers to begin: asked again and again until there is an answer."""

    def __init__(
        self,
        resources: Mapping[str, float],
        least: int,
        most: int,
        timeout_s: float | None,
    ) -> None:
        """Look for room.

        Args:
            resources: of one worker.
            least: workers that it takes to train.
            most: workers that are wanted.
            timeout_s: how long nodes may take to come, if those of the cluster are too few; None
                waits for ever.
        """
        self._resources, self._least, self._most = resources, least, most
        self._timeout_s = timeout_s
        self._begun = time.monotonic()
        self._noticed_s: float | None = None

    def answer(self, num_found: int) -> int | None:
        """The number of workers to begin with, or None to wait on.

        Args:
            num_found: places that are found by now.

        Raises:
            ClusterError: the nodes that there are would not hold the workers if they were free, and
                others have not come.
        """
        waited_s = time.monotonic() - self._begun
        if num_found == self._most:
            return num_found
        holds = capacity(self._resources, nodes())
        settled = num_found >= min(holds, self._most) or waited_s >= SETTLE_S
        if num_found >= self._least and settled:
            log.warning("training with %d of %d workers; %s", num_found, self._most, self._what())
            return num_found
        is_late = self._timeout_s is not None and waited_s >= self._timeout_s
        if holds < self._least and (is_late or is_local()):
            raise ClusterError(
                f"the training asks for {self._asked()}, and there would be room for {holds} if "
                f"nothing else ran: {self._what()}. Lower run.num_workers, run.num_threads or "
                "run.gpus_per_worker, allow fewer with run.min_workers, or add nodes"
            )
        # For nodes that are still to come there may be long to wait: that is said at once.
        first_s = FIRST_NOTICE_S if holds >= self._least else 0.0
        due_s = first_s if self._noticed_s is None else self._noticed_s + NOTICE_INTERVAL_S
        if waited_s >= due_s:
            self._noticed_s = waited_s
            log.warning(
                "waiting for room since %d s: the training asks for %s, room was found for %d; %s",
                waited_s,
                self._asked(),
                num_found,
                self._what(),
            )
        return None

    def _asked(self) -> str:
        number = f"{self._least} to {self._most}" if self._least < self._most else f"{self._most}"
        each = " and ".join(f"{amount:g} {name}" for name, amount in self._resources.items())
        return f"{number} workers with {each} each"

    def _what(self) -> str:
        total, free = ray.cluster_resources(), ray.available_resources()
        has = " and ".join(
            f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)"
            for name in self._resources
        )
        return f"the {len(nodes())} nodes of the cluster have {has}"


class Growth:
    """Room for the workers that are missing while others train."""

    def __init__(self, resources: Mapping[str, float], num_missing: int, interval_s: float) -> None:
        """Look for so many places, from the first question on.

        Args:
            resources: of one worker.
            num_missing: more workers that are wanted.
            interval_s: how long the others train at least before more may join.
        """
        self._resources, self._num_missing = resources, num_missing
        self._interval_s = interval_s
        self._places: Places | None = None
        self._due = 0.0

    def is_due(self) -> bool:
        """Whether the workers should start again, with more; to be asked once all of them train.

        Before that, it would take a place of theirs.
        """
        if self._num_missing and self._places is None:
            self._places = Places(self._resources, self._num_missing)
            self._due = time.monotonic() + self._interval_s
        if self._places is None or time.monotonic() < self._due:
            return False
        num_found = self._places.num_found()
        if num_found:
            log.info("there is room for %d more workers, and the others stop for them", num_found)
        return num_found > 0

    def release(self) -> None:
        """Give back what was found."""
        if self._places is not None:
            self._places.release()


def capacity(resources: Mapping[str, float], cluster: list[NodeResources]) -> int:
    """How many workers the nodes hold where nothing else runs."""
    total = 0
    for node in cluster:
        has = {"CPU": node.num_cpus, "GPU": node.num_gpus}
        total += min(shares(has[name], amount) for name, amount in resources.items() if amount)
    return total
