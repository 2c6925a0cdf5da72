"""Training whose data comes out of a bucket and whose output goes into one, stopped and gone on from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.training.conftest import STEPS, User
from tests.training.test_interrupted import SAME
from tests.training.test_interrupted import whole as whole  # the fixture

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]


@pytest.fixture
def bucket(user: User) -> Iterator[Mapping[str, str]]:
    """Serve S3 on loopback with the data in it; lend the variables that lead there."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {
        "AWS_ACCESS_KEY_ID": "here", "AWS_SECRET_ACCESS_KEY": "there", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }  # fmt: skip
    client = boto3.client(
        "s3", endpoint_url=access["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="here", aws_secret_access_key="there",
    )  # fmt: skip
    try:
        client.create_bucket(Bucket="lake")
        client.put_object(Bucket="lake", Key="rows/sft.jsonl", Body=(user.folder / "sft.jsonl").read_bytes())
        yield access
    finally:
        client.close()
        server.stop()


def test_stopped_run_goes_on_from_what_is_in_the_bucket(
    user: User, whole: float, bucket: Mapping[str, str]
) -> None:
    places = {"dataset": "s3://lake/rows/sft.jsonl", "output": "s3://lake/runs/kept", "env": bucket}
    file = user.write("kept", save=200, **places)
    user("apply", "-y", "-d", "-f", file)
    user.until_step("kept", 10)
    user("stop", "-y", "kept")
    run = user.shown("kept")
    assert (run["state"], run["jobs"][0]["reason"]) == ("stopped", "interrupted")
    saved = int(user.said("kept").split('"interrupted": ')[1].split("}")[0])
    user("apply", "-y", "--resume", "-f", file)
    assert f'"resumed": {saved}' in user.said("kept")
    assert abs(user.loss("kept") - whole) < SAME
    left = user.shown("kept")["artifacts"]
    assert {each["location"] for each in left} == {"s3://lake/runs/kept"}
    client = boto3.client(
        "s3", endpoint_url=bucket["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="here", aws_secret_access_key="there",
    )  # fmt: skip
    keys = {each["Key"] for each in client.list_objects_v2(Bucket="lake", Prefix="runs/kept/")["Contents"]}
    claimed = json.loads(
        client.get_object(Bucket="lake", Key="runs/kept/modelyard-output.json")["Body"].read()
    )
    client.close()
    assert {"runs/kept/adapter_model.safetensors", f"runs/kept/checkpoint-{STEPS}/trainer_state.json"} <= keys
    assert claimed["run"] == "kept"
    assert len({key.split("/")[2] for key in keys if "/checkpoint-" in key}) == 2
