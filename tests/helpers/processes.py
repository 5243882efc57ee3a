"""Command lines in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helpers import ROOT


def without_models(pause: float = 0.0) -> str:
    """Code that puts a stand-in where the models are, which makes a second of silence."""
    return f"from tests.helpers import fakes; fakes.install_without_torch(fakes.FakePipeline(0, 1, {pause}))"


def spawn(*arguments: object, code: str | None = None, pause: float = 0.0, **options: Any) -> subprocess.Popen:
    """Starts a command line in another process.

    Args:
        code: runs before it; by default what replaces the models by a stand-in.
        pause: seconds that the stand-in takes for each batch but the first.
    """
    interruptible = "import signal; signal.signal(2, signal.default_int_handler)"  # as it is not in the background
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {interruptible}; {code or without_models(pause)}"
    program += "; from audiolm_cli.command_line.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **options)


def forked(
    *arguments: object, cwd: Path, env: Mapping[str, str], code: str = "", forget: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a fork of this process, where torch is imported already.

    Args:
        code: runs before it.
        forget: a package to be imported again, which reads its environment when it is.
    """
    import audiolm_cli.pipeline  # noqa: F401  (with torch: once for all forks)
    from audiolm_cli.command_line import cli

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = os.fork()
        if not process:
            returncode = 70
            try:
                os.chdir(cwd)
                os.environ.clear()
                os.environ.update(env)
                for number, (name, file) in enumerate((("stdout", out), ("stderr", err)), 1):
                    os.dup2(file.fileno(), number)
                    setattr(sys, name, open(number, "w", closefd=False))
                for module in [name for name in sys.modules if name.partition(".")[0] == forget]:
                    del sys.modules[module]
                signal.signal(signal.SIGINT, signal.default_int_handler)
                exec(code, {})
                returncode = cli.main([str(argument) for argument in arguments])
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(returncode)
        _, status = os.waitpid(process, 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            list(map(str, arguments)), os.waitstatus_to_exitcode(status), out.read(), err.read()
        )
