"""`python -m build.server FOLDER`: the supervisor over a repository that is built, as the container and a fleet start it.

What it does not know of goes to tritonserver as it is. LASTROW_ADMIN_KEY and LASTROW_TRACE work as they do for `make serve`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from build.server import LOOPBACK, PORTS, ServerError, check_repository, endpoints
from build.server.supervisor import ANNOUNCED_S, Ports, Supervisor

HEALTH_PORT = 8003


def served(repository: Path) -> str:
    """The model that clients ask for: the ensemble, or the one there is.

    Raises:
        ServerError: there are several, or none.
    """
    check_repository(repository)
    texts = {config.parent.name: config.read_text(encoding="utf-8") for config in repository.glob("*/config.pbtxt")}
    ensembles = [name for name, text in texts.items() if re.search(r'^platform:\s*"ensemble"', text, re.MULTILINE)]
    found = ensembles or list(texts)
    if len(found) != 1:
        raise ServerError(
            f"{repository} serves {', '.join(sorted(found)) or 'nothing'}; needed is one ensemble or one model"
        )
    return found[0]


def main() -> int:
    """Serve the repository that the command line names; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m build.server", description=__doc__, allow_abbrev=False)
    parser.add_argument("repository", type=Path)
    for option, port in {**PORTS, "health-port": HEALTH_PORT}.items():
        parser.add_argument(f"--{option}", type=int, default=port)
    parser.add_argument("--address", default=LOOPBACK, help="where all of them listen")
    parser.add_argument("--announce-s", type=float, default=ANNOUNCED_S, help="answered on so long after SIGTERM")
    given, more = parser.parse_known_args()
    ports = Ports(given.http_port, given.grpc_port, given.metrics_port, given.health_port, given.address, given.address)
    try:
        model = served(given.repository)
        arguments = endpoints.closed(admin_key=os.environ.get(endpoints.ADMIN_KEY, ""))
        arguments += endpoints.observed(os.environ.get("LASTROW_TRACE", ""), model)
        code = Supervisor(given.repository, model, ports, [*arguments, *more], given.announce_s).run()
    except (ServerError, ValueError) as e:
        print(f"serve: {e}", file=sys.stderr)
        return 1
    return code if code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
