"""With which statuses our commands leave, and the exceptions that stand for them."""

from __future__ import annotations

DONE = 0
FAILED = 1  # an error of ours: there is a traceback
BAD_INPUT = 2  # what the user gave cannot be used; told in one line, on every host
LOST = 75  # another host is late or gone; start all again (sysexits' EX_TEMPFAIL)
ABORTED = 134  # process 0 is gone, and JAX ends the others itself (SIGABRT); start all again
INTERRUPTED = 130  # Ctrl-C
STOPPED = 143  # SIGTERM; what was trained is saved; start it again (a shell's 128 + 15)


class Stopped(Exception):
  """SIGTERM came, and all hosts have saved at the same step."""


class Terminated(Exception):
  """SIGTERM came while nothing was trained: the stage is made again at the next start."""


class Lost(Exception):
  """Another host is late or gone; says which, and where it was last."""
