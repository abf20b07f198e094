"""What the container starts: build/server/__main__.py, by packages that lie beside this file and that no step sees."""

import runpy
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here / "packages")]
runpy.run_module("build.server", run_name="__main__", alter_sys=True)
