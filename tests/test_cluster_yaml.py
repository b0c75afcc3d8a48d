"""What cluster.yaml says, by Ray's own schema and line by line where the README promises something."""

from __future__ import annotations

import re

from cluster_image import read_cluster_yaml
from cluster_machines import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (ROOT / "cluster.yaml").read_text()


def test_rays_schema_takes_it() -> None:
    config = prepare_config(read_cluster_yaml())
    validate_config(config)
    assert config["max_workers"] == 4
    assert {name: kind["max_workers"] for name, kind in config["available_node_types"].items()} == {
        "head": 0,
        "gpu-spot": 4,
        "gpu-on-demand": 4,
    }


def test_every_line_that_is_a_users_own_is_marked_and_no_other() -> None:
    marked = {line.split(":")[0].strip(" -") for line in TEXT.splitlines() if "# CHANGE: " in line}
    assert marked == {
        "region",
        "availability_zone",
        "ImageId",
        "IamInstanceProfile",
        "echo 'export RAYLM_STORAGE_PATH=s3",
    }
    placeholders = [line for line in TEXT.splitlines() if re.search(r"YOUR-|ami-0000|raylm-(head|worker)\}", line)]
    assert len(placeholders) == 4
    assert all("# CHANGE: " in line for line in placeholders)


def test_no_work_and_no_worker_stays_on_the_head() -> None:
    config = read_cluster_yaml()
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] > 0
    assert all(kind.get("min_workers", 0) == 0 for kind in config["available_node_types"].values())


def test_spot_machines_are_tried_before_those_on_demand() -> None:
    kinds = read_cluster_yaml()["available_node_types"]
    assert kinds["gpu-spot"]["priority"] > kinds["gpu-on-demand"]["priority"]
    spot = dict(kinds["gpu-spot"]["node_config"])
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == kinds["gpu-on-demand"]["node_config"]


def test_ray_starts_in_the_projects_folder_with_a_token_and_a_dashboard_for_the_head_alone() -> None:
    config = read_cluster_yaml()
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("cd ~/raylm && ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
