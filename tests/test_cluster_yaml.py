"""`cluster.yaml` against the schema that Ray ships and the API of EC2, without a cloud."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
PATH = ROOT / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text())


def test_it_fits_the_schema_that_ray_ships(cluster):
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(cluster, json.loads(schema.read_text()))


def test_ray_up_would_accept_it(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["max_workers"] == 24
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_a_misspelt_key_would_be_found(cluster):
    cluster["available_node_types"]["gpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster))


def test_ec2_knows_every_field_of_the_node_configs(cluster):
    """Ray passes them on without a look; a wrong one fails only once a node is asked for."""
    service = botocore.session.get_session().get_service_model("ec2")
    request = service.operation_model("RunInstances").input_shape
    for name, node in cluster["available_node_types"].items():
        parameters = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(parameters, request)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert set(parameters) <= set(request.members), name


def test_the_head_is_on_demand_and_the_gpus_are_spot(cluster):
    nodes = cluster["available_node_types"]
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]
    assert nodes["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["reader"]["resources"].get("GPU", 0) == 0


def test_every_type_has_its_counts_and_they_fit_together(cluster):
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != "head"}
    for node in workers.values():
        assert 1 <= node["min_workers"] <= node["max_workers"]
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]


def test_nodes_have_roles_and_the_file_has_no_keys(cluster):
    for node in cluster["available_node_types"].values():
        assert set(node["node_config"]["IamInstanceProfile"]) == {"Name"}
    text = PATH.read_text()
    assert not re.search(
        r"(?i)AKIA[0-9A-Z]{16}|secret_access|access_key|private_key|password", text
    )
    assert not re.search(r"arn:aws:iam::\d+", text)


def test_all_nodes_ask_for_the_token_and_only_the_head_itself_serves_jobs(cluster):
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_token_is_a_file_that_only_its_owner_reads_before_ray_starts(cluster):
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    # The value itself would stand in the list of processes, and in this file.
    assert "RAY_AUTH_TOKEN=" not in PATH.read_text()
    assert not re.search(r"RAY_AUTH_MODE=(?!token)", PATH.read_text())


def test_no_command_opens_a_port_to_everybody(cluster):
    """Ray's own ports are open to the nodes' security group; nothing here widens that."""
    commands = "\n".join(cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"])
    for wide in ("0.0.0.0", "::", "--ray-client-server-port", "--ray-debugger-external"):
        assert wide not in commands
    assert "security_group" not in cluster["provider"]
    assert "RAY_DATA_AUTOLOAD_CLOUDPICKLE" not in PATH.read_text()


def test_the_environment_is_that_of_the_lock_file(cluster):
    mounted = [local for local in cluster["file_mounts"].values() if not local.startswith("~")]
    assert mounted == ["requirements.lock"]
    assert all((ROOT / local).is_file() for local in mounted)
    setup = "\n".join(cluster["setup_commands"])
    assert "--python 3.11" in setup
    assert "-r ~/elmo/requirements.lock" in setup
    assert {".git", ".venv", ".demo"} <= set(cluster["rsync_exclude"])
