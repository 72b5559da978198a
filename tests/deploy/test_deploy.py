"""The deployment files: valid by their own schemas, and calling commands that exist."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from typer.main import get_command

from codeseg.stages.cli import COMMANDS, app, load_command

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_the_cluster_file_fits_rays_own_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert any("unbound" in line for line in cluster["setup_commands"])


def test_the_ray_job_has_the_form_kuberay_reads():
    job = yaml.safe_load((DEPLOY / "kuberay-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    for spec in (cluster["headGroupSpec"], *groups):
        assert all(isinstance(value, str) for value in spec["rayStartParams"].values())
        for container in spec["template"]["spec"]["containers"]:
            assert {"name", "image", "resources"} <= set(container)
            assert all(isinstance(variable["value"], str) for variable in container.get("env", []))
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups)


def test_the_slurm_script_is_valid_shell():
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "kuberay-job.yaml", "slurm.sh"])
def test_commands_and_options_in_the_files_exist(name):
    text = (DEPLOY / name).read_text()
    calls = re.findall(r"codeseg (\w+)((?:\s+(?!&&)[^\s`\"]+)*)", text)
    for command, rest in ((c, r) for c, r in calls if c in COMMANDS):
        options = {option for p in load_command(command).params for option in p.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options
    assert get_command(app) is not None and calls
