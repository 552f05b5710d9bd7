"""A device model in several sizes, one of which answers each request."""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disco_core import checks
from disco_core.endpoints.base import Generation, Prefix
from disco_core.endpoints.llama_cpp import Job, LlamaCppEndpoint
from disco_core.errors import InputError, RefusedError
from disco_core.systems.elastic.levels import Level

if TYPE_CHECKING:
    from llama_cpp import Llama


class ElasticEndpoint(LlamaCppEndpoint):
    """An endpoint in this process whose level is chosen for each request. Close it, or use it as a context manager.

    levels     by their percent, from `load_levels`; all have the vocabulary of the model they were cut from, so that
               an answer moves by token ids between levels, and to the whole model on a server
    choose     the percent of a request's level, from its prefix; by default the largest. What it returns that is no
               level, or raises, refuses the request.
    resident   every level stays in memory, so that switching takes no time; False: one at a time, and another is
               loaded, memory mapped, when a request needs it
    options    those of `LlamaCppEndpoint`, without its prefix cache: the levels share no cache
    answered   requests that each level has begun to answer, by percent
    switched_s seconds that the last change of level took

    InputError if a level cannot be loaded.
    """

    def __init__(
        self,
        levels: Mapping[int, Level],
        choose: Callable[[Prefix], int] | None = None,
        *,
        resident: bool = True,
        name: str = "elastic",
        **options: Any,
    ) -> None:
        if not levels or not all(isinstance(level, Level) for level in levels.values()):
            raise InputError(f"{name}: levels must be those of load_levels, got {levels!r:.80}")
        if choose is not None and not callable(choose):
            raise InputError(f"{name}: choose must be a function of a prefix, got {choose!r:.80}")
        if options.pop("prefix_cache", False):
            raise InputError(f"{name}: prefix_cache must be False, since the levels share no cache")
        self.levels = dict(sorted(levels.items(), reverse=True))
        self.answered, self.switched_s = Counter[int](), 0.0
        self._choose, self._resident = choose, checks.instance_of(resident, bool, f"{name}: resident")
        self._loaded: dict[int, Llama] = {}
        largest = next(iter(self.levels))
        super().__init__(self.levels[largest].path, name=name, **options)
        try:
            for percent in self.levels if self._resident else [largest]:
                self._loaded[percent] = self._level(percent)
        except InputError:
            self.close()
            raise

    def generate(self, prefix: Prefix) -> Generation:
        """The tokens that follow, from the level chosen for this prefix."""
        return Job(self, prefix)

    def _level(self, percent: int) -> "Llama":
        level = self.levels[percent]
        llama = self._load(level.path)
        if level.adapter is not None:
            _apply(llama, level.adapter, self.name)
        return llama

    def _model(self, job: Job) -> "Llama":
        percent = self._chosen(job.prefix)
        if percent not in self._loaded:
            start = time.perf_counter()
            while self._loaded:
                self._loaded.popitem()[1].close()
            self._loaded[percent] = self._level(percent)
            self.switched_s = time.perf_counter() - start
        self.answered[percent] += 1
        return self._loaded[percent]

    def _chosen(self, prefix: Prefix) -> int:
        try:
            percent = next(iter(self.levels)) if self._choose is None else self._choose(prefix)
        except Exception as error:  # a user's function
            raise RefusedError(self.name, f"no level could be chosen: {type(error).__name__}: {error}") from error
        if percent not in self.levels:
            known = ", ".join(map(str, self.levels))
            raise RefusedError(self.name, f"it has no level {percent!r:.40}; its levels are {known} %")
        return percent

    def _free(self) -> None:
        super()._free()
        while self._loaded:
            self._loaded.popitem()[1].close()


def _apply(llama: "Llama", adapter: Path, name: str) -> None:
    """Load an adapter into a model and set it on the model's context; the model frees it."""
    import llama_cpp

    loaded = llama_cpp.llama_adapter_lora_init(llama.model, str(adapter).encode())
    if not loaded:
        raise InputError(f"{name}: the adapter {adapter} cannot be loaded")
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
    if llama_cpp.llama_set_adapters_lora(llama.ctx, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise InputError(f"{name}: the adapter {adapter} does not fit its level")
