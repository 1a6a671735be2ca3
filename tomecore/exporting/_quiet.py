"""Hide what a C++ library prints, and show it if the work fails, or if the library ends the process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["hidden_output"]

#: the last line that a reader gets if the work succeeded
_DONE = b"tomecore: the work is done\n"
#: seconds to wait for the reader
_SECONDS = 10
#: reads everything, and prints it unless the last line says that the work succeeded
_READER = """
import sys
text = sys.stdin.buffer.read()
if not text.endswith({done!r}):
    sys.stderr.buffer.write(text)
"""


@contextlib.contextmanager
def hidden_output() -> Iterator[None]:
    """Within this context, nothing reaches stdout and stderr, not even what C++ code prints.

    If the context ends with an exception, or the process ends within it, everything is printed to stderr. For
    that a second process reads the output, because a library that calls ``abort`` leaves nothing to this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _READER.format(done=_DONE)], stdin=subprocess.PIPE
    )
    pipe = reader.stdin.fileno()  # type: ignore[union-attr]
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.dup(pipe), "w", encoding="utf-8") as text:
        try:
            for number in (1, 2):
                os.dup2(pipe, number)
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                yield
            text.flush()
            os.write(pipe, _DONE)
        finally:
            text.close()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            reader.stdin.close()  # type: ignore[union-attr]
            try:
                reader.wait(_SECONDS)
            except (
                subprocess.TimeoutExpired
            ):  # a process that was started meanwhile keeps the pipe open
                reader.kill()
