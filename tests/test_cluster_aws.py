"""cluster.yaml as it stands, `ray up` against moto's EC2, and machines of this one for the instances that moto starts.

What no test can have is AWS itself. Here each instance that moto says it has started is a machine (cluster_machines.py)
that gets the instance's addresses and lets its key pair in, as cloud-init would see to. The rest is real: Ray makes key
pair and security group, sets the head up over SSH, and its autoscaler buys a GPU machine when a job asks for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_image import AWS, TINY, USERS_SHELL, Moto, furnish, write_cuda_wheels, write_text
from cluster_machines import ROOT, Lan, Machine, missing, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]

SHELL = USERS_SHELL | AWS


class Cloud:
    """moto's EC2 in the laptop's network, and machines for its instances."""

    def __init__(self, folder: Path) -> None:
        self.lan = Lan(folder)
        self.wheels = folder / "wheels"
        write_cuda_wheels(self.wheels, ROOT / "constraints.txt")
        self.laptop = self.lan.start("laptop")
        self.ask = Moto(self.laptop).ask
        for profile in ("raylm-head", "raylm-worker"):  # the user makes them
            self.ask("iam", "create_instance_profile", InstanceProfileName=profile)
        self.laptop.run("ray", "get-auth-token", "--generate", **SHELL)

    def said(self) -> str:
        """What the user's commands have said."""
        return "".join(log.read_text() for log in self.laptop.folder.glob("*.log"))

    def instances(self) -> list[dict[str, Any]]:
        reservations = self.ask("ec2", "describe_instances")["Reservations"]
        return [instance for reservation in reservations for instance in reservation["Instances"]]

    def instance(self, kind: str) -> dict[str, Any] | None:
        """The instance that Ray tagged as of this node type."""
        found = [each for each in self.instances() if tags(each)["ray-user-node-type"] == kind]
        return found[0] if found else None

    def switch_on(self, instance: dict[str, Any]) -> Machine:
        """A machine for an instance: with its addresses, and its key pair let in."""
        machine = self.lan.start(instance["InstanceId"], lambda home: furnish(home, self.wheels, AWS))
        machine.move_to(instance["PrivateIpAddress"], instance["PublicIpAddress"])
        [pair] = self.ask("ec2", "describe_key_pairs", IncludePublicKey=True)["KeyPairs"]
        machine.let_in(pair["PublicKey"])
        return machine


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    try:
        up = cloud.laptop.start("ray", "up", "-y", "cluster.yaml", **SHELL)
        wait_until(lambda: cloud.instance("head"), 240, "the head's instance")
        cloud.switch_on(cloud.instance("head") or {})
        assert up.wait(400) == 0, cloud.said()
        yield cloud
    finally:
        cloud.lan.close()


def test_the_head_is_what_cluster_yaml_says(cloud: Cloud) -> None:
    head = cloud.instance("head")
    assert head is not None
    assert len(cloud.instances()) == 1
    assert (head["InstanceType"], head["ImageId"]) == ("m7i.xlarge", "ami-00000000000000000")
    assert head["IamInstanceProfile"]["Arn"].endswith("/raylm-head")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert "InstanceLifecycle" not in head
    assert (
        tags(head).items() >= {"ray-node-type": "head", "ray-cluster-name": "raylm", "Name": "ray-raylm-head"}.items()
    )


def test_nothing_is_open_to_the_world_but_ssh(cloud: Cloud) -> None:
    [group_id] = {group["GroupId"] for instance in cloud.instances() for group in instance["SecurityGroups"]}
    [group] = cloud.ask("ec2", "describe_security_groups", GroupIds=[group_id])["SecurityGroups"]
    open_to_all = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in open_to_all] == [("tcp", 22, 22)]
    [inner] = [rule for rule in group["IpPermissions"] if rule not in open_to_all]
    assert [pair["GroupId"] for pair in inner["UserIdGroupPairs"]] == [group_id]


def test_a_run_on_a_cluster_without_workers_gets_a_spot_machine_and_trains_on_it(cloud: Cloud) -> None:
    cloud.laptop.start("ray", "dashboard", "cluster.yaml", **SHELL)
    wait_until(lambda: cloud.laptop.run("ray", "job", "list", **SHELL).returncode == 0, 180, "the tunnel")
    write_text(cloud.lan.folder / "corpus")
    place = [f"--{what}={cloud.lan.folder / what}" for what in ("corpus", "cache-dir", "storage-path")]
    train = ("python", "jobs/train_ptb.py", *TINY, *place, "--name", "bought", "--replicas", "1")
    job = cloud.laptop.start("ray", "job", "submit", "--", *train, **SHELL)
    wait_until(lambda: cloud.instance("gpu-spot"), 240, "a spot machine is bought")
    spot = cloud.instance("gpu-spot")
    assert spot is not None
    assert spot["InstanceType"] == "g6.12xlarge"
    assert spot["InstanceLifecycle"] == "spot"
    assert spot["IamInstanceProfile"]["Arn"].endswith("/raylm-worker")
    assert (spot["ImageId"], spot["MetadataOptions"]["HttpTokens"]) == ("ami-00000000000000000", "required")
    assert spot["Placement"]["AvailabilityZone"] == "us-west-2a"
    assert tags(spot).items() >= {"ray-node-type": "worker", "ray-cluster-name": "raylm"}.items()
    assert spot["SecurityGroups"] == (cloud.instance("head") or {})["SecurityGroups"]
    assert cloud.instance("gpu-on-demand") is None
    cloud.switch_on(spot)
    assert job.wait(400) == 0, cloud.said()
    summary = json.loads((cloud.lan.folder / "storage-path" / "bought" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert "waiting for nodes (room for 0 of 1 workers)" in cloud.said()


def test_ray_down_gives_every_machine_back(cloud: Cloud) -> None:
    down = cloud.laptop.run("ray", "down", "-y", "cluster.yaml", **SHELL)
    assert down.returncode == 0, down.stdout + down.stderr
    assert {instance["State"]["Name"] for instance in cloud.instances()} <= {"shutting-down", "terminated"}
