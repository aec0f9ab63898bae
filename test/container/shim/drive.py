"""One case through the platform's own shim (sagemaker-shim), with moto as its object store.

    python drive.py exec|invoke FOLDER RESULTS COMMAND...

Puts the files of FOLDER into a bucket, runs ``sagemaker-shim invoke`` around COMMAND, the container's entry point, as
the platform does, and leaves in RESULTS what it takes back: ``outputs/``, ``result.json`` (of the case), ``setup.json``
(of the start, which may fail, too) and ``seconds.txt``, from the start of the container's process to a healthy server.

From the environment: SHIM_USER (the user of the image), SHIM_MEMORY_MB (0: no limit), SHIM_INPUT, SHIM_OUTPUT and
SHIM_DATA (``/input``, ``/output``, ``/opt/ml/input/data``).
"""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

INPUTS, OUTPUTS, PREFIX = "inputs", "outputs", "case/"


def main() -> None:
    """Run it; fails only if the shim itself does."""
    method, folder, results = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it says each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    store = boto3.client("s3", endpoint_url=os.environ["AWS_S3_ENDPOINT_URL"])
    for bucket in (INPUTS, OUTPUTS):
        store.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    for file in files:
        store.upload_file(str(folder / file), INPUTS, str(file))
    task = {
        "pk": "case",
        "inputs": [{"relative_path": str(f), "bucket_name": INPUTS, "bucket_key": str(f)} for f in files],
        "output_bucket_name": OUTPUTS,
        "output_prefix": PREFIX,
        "timeout": "PT600S",
    }
    shim = [Path(sys.executable).with_name("sagemaker-shim"), "invoke", "--tasks", json.dumps([task])]
    marks: dict[str, float] = {}
    with tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(
            shim, env=os.environ | _settings(method, sys.argv[4:]), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert running.stdout
        for line in running.stdout:
            for mark in ("Calling self.proc_args", "Health endpoint returned status code 200"):
                if mark in line:
                    marks[mark] = time.monotonic()
        code = running.wait()
        errors.seek(0)
        said = errors.read()
    for entry in store.list_objects_v2(Bucket=OUTPUTS).get("Contents", []):
        name = entry["Key"].removeprefix(PREFIX)
        known = {".sagemaker_shim/inference_result.json": "result.json"}
        known[".sagemaker_shim/runtime_setup_result.json"] = "setup.json"
        path = results / known.get(name, f"outputs/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download_file(OUTPUTS, entry["Key"], str(path))
    if len(marks) == 2:
        start, end = marks.values()
        (results / "seconds.txt").write_text(f"{end - start:.1f}\n")
    server.stop()
    if code:
        sys.exit(f"the shim ended with {code}: {said[-3000:]}")


def _settings(method: str, command: list[str]) -> dict[str, str]:
    """What the platform says to the shim (sagemaker_shim.models)."""
    data = Path(os.environ.get("SHIM_DATA", "/opt/ml/input/data"))
    settings = {
        "API_METHOD": method,
        "ENTRYPOINT_B64J": base64.b64encode(json.dumps(command).encode()).decode(),
        "CMD_B64J": base64.b64encode(b"null").decode(),
        "USER": os.environ.get("SHIM_USER", ""),
        "SIGNING_KEY_HEX": "00",
        "RUNTIME_OUTPUT_BUCKET_NAME": OUTPUTS,
        "RUNTIME_OUTPUT_PREFIX": PREFIX,
        "MAX_MEMORY_MB": os.environ.get("SHIM_MEMORY_MB", "7168"),  # of 8 GiB it keeps one to itself
        "INPUT_PATH": os.environ.get("SHIM_INPUT", "/input"),
        "OUTPUT_PATH": os.environ.get("SHIM_OUTPUT", "/output"),
        "LINKED_INPUT_PARENT": str(data),
        "MODEL_DEST": str(data / "model"),
        "WRITABLE_DIRECTORIES": str(data / "model"),
        "POST_CLEAN_DIRECTORIES": str(data / "model"),
    }
    if not settings["USER"]:
        settings["SET_EXTRA_GROUPS"] = "False"  # which takes root
    if data == Path("/opt/ml/input/data"):  # the platform's own
        for name in ("MODEL_DEST", "WRITABLE_DIRECTORIES", "POST_CLEAN_DIRECTORIES"):
            del settings[name]
    return {f"GRAND_CHALLENGE_COMPONENT_{name}": value for name, value in settings.items()}


if __name__ == "__main__":
    main()
