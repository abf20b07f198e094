"""Known vulnerabilities of the installed packages, by pip-audit; and a plain word where nobody could be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from ensemble.errors import LastrowError

TIMEOUT_S = 300
# Advisories about what this project installs but does not do, each with the reason why it does not apply.
ACCEPTED: dict[str, str] = {}


@dataclass(frozen=True)
class Audit:
    """asked: packages whose advisories were read; vulnerable: "package version: advisory, fixed in"."""

    asked: int
    left_out: tuple[str, ...]
    vulnerable: tuple[str, ...]


def audit() -> Audit:
    """Ask for the advisories of every package of this environment.

    Raises:
        LastrowError: pip-audit itself did not run.
    """
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--skip-editable"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError) as e:
        raise LastrowError(f"pip-audit failed: {done.stderr.strip() or 'it said nothing'}") from e
    return read(packages)


def read(packages: list[dict]) -> Audit:
    """pip-audit's answer, sorted out."""
    left_out = tuple(package["name"] for package in packages if "skip_reason" in package)
    vulnerable = tuple(
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for package in packages
        for found in package.get("vulns", ())
        if not {found["id"], *found["aliases"]} & set(ACCEPTED)
    )
    return Audit(len(packages) - len(left_out), left_out, vulnerable)
