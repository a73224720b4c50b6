"""Uses any Python callable as a reward."""

import asyncio
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

import bonbon
from bonbon.errors import RewardError, RewardNotStarted, UserError
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_options import Options

OWN_PACKAGES = ("bonbon", "service", "trainer")
INSTALLED = Path(bonbon.__file__).parents[1]


class PythonOptions(Options):
    """The options of a Python reward."""

    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """The callable, as `package.module:callable`; the working directory is searched last."""
    version: str | None = None
    """The reward's version. The default is a digest of the module's source, which does not cover what it imports or
    loads."""
    threads: int = Field(4, ge=1)
    """The maximum number of concurrent calls of a plain function."""


class PythonReward(Reward):
    """Calls `function(prompt, completions)`, which returns one number per completion, or a coroutine that does.

    `prompt` is a `bonbon.prompt.Prompt`. A plain function runs in the reward's own thread pool, so one that hangs
    blocks nothing but this reward.
    """

    name = "python"

    def __init__(
        self,
        function: Callable[[Prompt, list[str]], Any],
        *,
        version: str,
        threads: int = 4,
        target: str = "the function",
    ) -> None:
        self.function, self._version, self._threads, self._target = function, version, threads, target
        self._pool: ThreadPoolExecutor | None = None

    @property
    def version(self) -> str:
        return self._version

    async def start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="python-reward")

    async def stop(self) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        if self._pool is None:
            raise RewardNotStarted("the Python reward")
        if inspect.iscoroutinefunction(self.function):
            scores = await self.function(prompt, list(completions))
        else:
            loop = asyncio.get_running_loop()
            scores = await loop.run_in_executor(self._pool, self.function, prompt, list(completions))
            if inspect.isawaitable(scores):
                scores = await scores
        try:
            return [float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"{self._target} returned {type(scores).__name__} for {len(completions)} completions ({error}); it "
                "must return one number per completion"
            ) from error


def load(target: str) -> Callable[[Prompt, list[str]], Any]:
    """Returns the callable named `package.module:callable`. Raises UserError when it cannot be loaded."""
    module_name, _, path = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = _import(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f"reward target {target!r} cannot be loaded: {error}", param="reward") from error
    if not callable(found):
        raise UserError(f"reward target {target!r} is {type(found).__name__}, which cannot be called", param="reward")
    return found  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    """Imports the module `name`.

    The working directory may have a module whose first name is one of this distribution's packages, such as
    `service/scores.py`. An import would look for it in the installed package, so it is loaded from its file. Modules
    that are loaded this way cannot import each other by that name.
    """
    file = Path.cwd().joinpath(*name.split(".")).with_suffix(".py")
    if name.partition(".")[0] not in OWN_PACKAGES or not file.is_file() or file.is_relative_to(INSTALLED):
        return import_module(name)
    alias = f"user_{name.replace('.', '_')}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = spec_from_file_location(alias, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[alias] = module_from_spec(spec)  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    return module


def _source_digest(target: str) -> str:
    file = _import(target.partition(":")[0]).__file__
    source = Path(file).read_bytes() if file else b""
    return sha256(target.encode() + source).hexdigest()[:16]


def build(options: Mapping[str, Any]) -> PythonReward:
    """Builds the reward from PythonOptions."""
    read = PythonOptions.read("python", options)
    function = load(read.target)
    version = read.version or _source_digest(read.target)
    return PythonReward(function, version=version, threads=read.threads, target=read.target)
