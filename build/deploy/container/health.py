"""Whether what a Triton serves answers: the container's health check, with the standard library alone.

    python3 health.py /models [http://127.0.0.1:8000]

Triton 2.51 stays "ready" when the process of a Python step has died, and fails every request that needs it. So each
ensemble of the repository is asked a real question: zeros, for all outputs, often enough that every instance of a step gets
one.
Exit code 0: it answers, or is busy. 1: it does not; says why.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0  # a dead step fails after one; a queue as long as this is as good as none
BUSY = 503  # who is refused for a full queue was refused by a server that works
ROUNDS = 3  # of as many questions as a step has instances: which one takes a request is not said


def check(repository, url=URL):
    """Ask what lies in the folder of a server that is reached at `url`.

    Raises:
        OSError: it does not answer, or with an error.
    """
    _ask(f"{url}/v2/health/ready")
    for folder in sorted(path for path in Path(repository).iterdir() if path.is_dir()):
        config = _config(url, folder.name)
        if config.get("platform") != "ensemble":
            continue
        steps = [_config(url, step["model_name"]) for step in config["ensemble_scheduling"]["step"]]
        instances = max(_instances(step) for step in steps)
        for _ in range(ROUNDS * instances if instances > 1 else 1):
            try:
                _ask(f"{url}/v2/models/{folder.name}/infer", _question(config))
            except urllib.error.HTTPError as e:
                if e.code != BUSY:
                    raise


def _ask(url, body=None):
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, content, timeout=TIMEOUT_S) as answer:  # noqa: S310 always http
        return answer.read()


def _config(url, model):
    return json.loads(_ask(f"{url}/v2/models/{model}/config"))


def _instances(config):
    return sum(group["count"] * max(len(group.get("gpus", ())), 1) for group in config.get("instance_group", ()))


def _question(config):
    """The smallest request: every axis that is open has length 1, every value is 0."""
    inputs = []
    for tensor in config["input"]:
        shape = [1] * (config["max_batch_size"] > 0) + [max(int(length), 1) for length in tensor["dims"]]
        kind = tensor["data_type"].removeprefix("TYPE_")
        nothing = "" if kind == "STRING" else 0
        count = 1
        for length in shape:
            count *= length
        name = "BYTES" if kind == "STRING" else kind
        inputs.append({"name": tensor["name"], "datatype": name, "shape": shape, "data": [nothing] * count})
    # Binary: what is not looked at need not be written out in decimals.
    return {"inputs": inputs, "parameters": {"binary_data_output": True}}


def main():
    """Check the repository, and the address, that the command line names."""
    try:
        check(*sys.argv[1:])
    except urllib.error.HTTPError as e:
        sys.exit(f"{e.url} answered {e.code}: {e.read().decode(errors='replace')}")
    except OSError as e:
        sys.exit(f"there is no answer: {e}")


if __name__ == "__main__":
    main()
