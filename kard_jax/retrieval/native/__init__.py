"""The compiled kernels: built from this folder's C by the machine's own compiler at first use.

A shared library, loaded by ctypes, whose calls run without Python's global lock. It is compiled for
this very processor and kept in the user's cache folder under a hash of sources, compiler, flags and
processor, so another machine with the same home folder makes its own. Where there is no compiler,
or `KARD_JAX_NATIVE=0` is set, `library()` is None and each user of it goes the slower, equal way.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

SWITCH = "KARD_JAX_NATIVE"
_FLAGS = (
  "-std=c11",
  "-O3",
  "-march=native",
  "-shared",
  "-fPIC",
  "-fno-math-errno",
  "-fwrapv",
  "-pthread",
)
_TIMEOUT = 300  # seconds for the compiler; it needs a few


@functools.cache
def library() -> ctypes.CDLL | None:
  """The kernels, compiled if need be; None without a compiler or with `KARD_JAX_NATIVE=0`."""
  if os.environ.get(SWITCH) == "0":
    return None
  compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
  if compiler is None:
    warnings.warn(
      "no C compiler (cc) was found: retrieval takes the slower way, with the same results;"
      " install gcc or clang, or set CC",
      stacklevel=2,
    )
    return None
  try:
    return ctypes.CDLL(str(_compiled(compiler)))
  except (OSError, subprocess.SubprocessError) as error:
    detail = (getattr(error, "stderr", "") or str(error)).strip()[-500:]
    warnings.warn(
      f"the C kernels could not be compiled or loaded, so retrieval takes the slower way, with the"
      f" same results: {detail}",
      stacklevel=2,
    )
    return None


def declare(prefix: str, functions: Iterable[tuple[str, Any, Sequence[Any]]]) -> ctypes.CDLL | None:
  """The kernels, with the types of some of them: (name after the prefix, result, arguments)."""
  found = library()
  for name, result, arguments in functions if found else ():
    function = getattr(found, prefix + name)
    function.restype, function.argtypes = result, arguments
  return found


def _compiled(compiler: str) -> pathlib.Path:
  """The path of the library; compiled unless it is there."""
  here = pathlib.Path(__file__).parent
  sources = sorted(here.glob("*.c"))
  digest = hashlib.sha256(" ".join([*_FLAGS, compiler, platform.machine(), _processor()]).encode())
  for path in sorted([*sources, *here.glob("*.h")]):
    digest.update(path.name.encode() + b"\0" + path.read_bytes())
  target = _cache() / f"kernels-{digest.hexdigest()[:16]}.so"
  if target.exists():
    return target
  target.parent.mkdir(parents=True, exist_ok=True)
  # Several processes may compile at once: each its own file, and the last rename wins.
  with tempfile.TemporaryDirectory(dir=target.parent) as folder:
    built = pathlib.Path(folder) / target.name
    command = [compiler, *_FLAGS, *map(str, sources), "-lm", "-o", str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
    built.replace(target)
  return target


def _cache() -> pathlib.Path:
  """The user's cache folder; a fresh temporary one where none can be written."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  folder = pathlib.Path(base) / "kard_jax"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      return folder
  except OSError:
    pass
  return pathlib.Path(tempfile.mkdtemp(prefix="kard_jax-"))


def _processor() -> str:
  """What `-march=native` depends on: the processor's model and its flags."""
  try:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
      lines = [line for line in file if line.startswith(("model name", "flags", "Features"))]
    return "".join(lines[:2])
  except OSError:
    return platform.processor()
