"""Compiles the native kernel when a wheel is built, or the program installed from source; see audiolm_cli/native."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface):
    """With a C compiler a wheel is one for this platform; without one it is for all, and decodes through torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        native = Path(self.root, "audiolm_cli", "native")
        self.app.display_info(runpy.run_path(str(native / "build.py"))["build"]())
        if any(native.glob("*.so")):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")
            build_data["artifacts"].append("audiolm_cli/native/*.so")
