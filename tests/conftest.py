"""Strict ground for all tests: eight CPU devices, checked shapes, no network, no stray state."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests run small programs once: most of their time is compiling, which this halves.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# Shapes and types of public array functions are checked at every call the tests make.
_HOOK = install_import_hook(["kard_jax", "tasks"], "beartype.beartype")

import gc
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> pathlib.Path:
  """The folder of real data beside a checkout; absent on a user's machine."""
  if not SHARED.is_dir():
    pytest.skip("../shared/data is not here")
  return SHARED


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory):
  """Runs that are resumed or repeated compile the same again, here and in other processes."""
  folder = str(tmp_path_factory.mktemp("compiled"))
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    yield


@pytest.fixture(autouse=True, scope="session")
def _seldom_collected():
  """What JAX keeps of each program makes a whole collection take half a second, and more later."""
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def _clean_gin():
  """Gin's configuration is global: no test may leave some behind."""
  yield
  import gin

  gin.clear_config()
