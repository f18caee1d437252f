"""Whether the actors of a run get GPUs. Knows the configuration and what nodes offer, no Ray."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config import EmbedConfig


def with_gpus(config: EmbedConfig, gpus_of_nodes: Iterable[float]) -> EmbedConfig:
    """The configuration with `run.gpus_per_actor` and `model.device` settled.

    By default an actor has a GPU where the cluster holds some and the model can use them. Ray
    leaves a node's GPUs visible to actors that reserved none, so these are told to stay on the CPU.

    Args:
        config: what is configured.
        gpus_of_nodes: GPUs of each node of the cluster.
    """
    run, model = config.run, config.model
    gpus = run.gpus_per_actor
    if gpus is None:
        wanted = model.needs_gpu or (any(gpus_of_nodes) and not model.needs_cpu)
        gpus = 1.0 if wanted else 0.0
    device = "cpu" if gpus == 0 and model.device == "auto" else model.device
    return config.model_copy(
        update={
            "run": run.model_copy(update={"gpus_per_actor": gpus}),
            "model": model.model_copy(update={"device": device}),
        }
    )
