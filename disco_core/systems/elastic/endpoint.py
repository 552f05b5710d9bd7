"""A device model in several sizes, one of which answers each request."""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from disco_core import checks
from disco_core.endpoints.base import Prefix, copy_prompt
from disco_core.endpoints.llama_cpp import Job, LlamaCppEndpoint, model_file
from disco_core.errors import InputError, RefusedError
from disco_core.systems.elastic.levels import Level

if TYPE_CHECKING:
    from llama_cpp import Llama


class ElasticEndpoint(LlamaCppEndpoint):
    """An endpoint in this process whose level is chosen for each request. Close it, or use it as a context manager.

    levels     by their percent, from `load_levels`; all have the vocabulary of the model they were cut from, so that
               an answer moves by token ids between levels, and to the whole model on a server
    choose     the percent of a request's level, from its prefix; by default the largest. It is called in the thread
               that runs the levels, when the request's turn comes; what it returns that is no level, or raises,
               refuses the request.
    resident   every level stays in memory, so that switching takes no time; False: one at a time, and another is
               loaded, memory mapped, when a request needs it
    options    those of `LlamaCppEndpoint`, without its prefix cache: the levels share no cache
    answered   requests that each level has begun to answer, by percent
    switched_s seconds that the last change of level took; 0 until there is one, and always if all are resident

    InputError if a level cannot be loaded; one that is gone later refuses the requests that need it.
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
        checks.instance_of(name, str, "name")
        self.levels = _checked(levels, name)
        if choose is not None and not callable(choose):
            raise InputError(f"{name}: choose must be a function of a prefix, got {choose!r:.80}")
        if options.pop("prefix_cache", False):
            raise InputError(f"{name}: prefix_cache must be False, since the levels share no cache")
        self.answered, self.switched_s = Counter[int](), 0.0
        self._choose, self._resident = choose, checks.instance_of(resident, bool, f"{name}: resident")
        self._loaded: dict[int, Llama] = {}
        self._largest = next(iter(self.levels))
        super().__init__(self.levels[self._largest].path, name=name, **options)
        try:
            for percent in self.levels if self._resident else [self._largest]:
                self._loaded[percent] = self._level(percent)
        except BaseException:  # an interrupt too
            self.close()
            raise

    def _vocabulary(self) -> "Llama":
        """A vocabulary without weights, since levels come and go while other threads read it."""
        return self._opened(self.levels[self._largest].path, vocab_only=True, **self._options)

    def _level(self, percent: int) -> "Llama":
        level = self.levels[percent]
        llama = self._load(level.path)
        try:
            if llama.n_vocab() != self._size:
                raise InputError(
                    f"{self.name}: {level.path.name} has a vocabulary of {llama.n_vocab()} tokens, "
                    f"the largest level has {self._size}"
                )
            if level.adapter is not None:
                _apply(llama, level, self.name)
        except InputError:
            llama.close()
            raise
        return llama

    def _model(self, job: Job) -> "Llama":
        percent = self._chosen(job.prefix)
        if percent not in self._loaded:
            start = time.perf_counter()
            self._unload()
            try:
                self._loaded[percent] = self._level(percent)
            except InputError as error:
                raise RefusedError(self.name, str(error).removeprefix(f"{self.name}: ")) from None
            self.switched_s = time.perf_counter() - start
        self.answered[percent] += 1
        return self._loaded[percent]

    def _chosen(self, prefix: Prefix) -> int:
        if self._choose is None:
            return self._largest
        try:
            percent = self._choose(replace(prefix, prompt=copy_prompt(prefix.prompt)))
            shown = one_line(repr(percent))
        except BaseException as error:  # a user's function, which may even ask for an exit
            what = one_line(f"{type(error).__name__}: {error}")
            raise RefusedError(self.name, f"no level could be chosen: {what}") from error
        if isinstance(percent, bool) or not isinstance(percent, int | np.integer) or percent not in self.levels:
            every = ", ".join(map(str, self.levels))
            raise RefusedError(self.name, f"it has no level {shown:.40}; its levels are {every} %")
        return int(percent)

    def _unload(self) -> None:
        while self._loaded:
            self._loaded.popitem()[1].close()

    def _free(self) -> None:
        super()._free()
        self._unload()


def _checked(levels: Any, name: str) -> dict[int, Level]:
    """The levels, the largest first, if each has its files; InputError otherwise."""
    if not (isinstance(levels, Mapping) and levels and all(isinstance(level, Level) for level in levels.values())):
        raise InputError(f"{name}: levels must be those of load_levels, got {levels!r:.80}")
    for percent, level in levels.items():
        if percent != level.percent:
            raise InputError(f"{name}: levels must be by their percent, got {percent!r:.40} for {level.percent}")
        model_file(name, level.path)
        if level.adapter is not None and not level.adapter.is_file():
            raise InputError(f"{name}: the adapter of level {percent} is not there: {level.adapter}")
    return {level.percent: level for level in sorted(levels.values(), key=lambda level: -level.share)}


def one_line(text: str) -> str:
    """A user's words, which may have several lines, in one."""
    return " ".join(text.split())


def _apply(llama: "Llama", level: Level, name: str) -> None:
    """Load a level's adapter into its model and set it on the model's context; the model frees it."""
    import llama_cpp

    loaded = llama_cpp.llama_adapter_lora_init(llama.model, str(level.adapter).encode())
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
    if not loaded or llama_cpp.llama_set_adapters_lora(llama.ctx, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise InputError(f"{name}: the adapter {level.adapter} is none that fits the level {level.path.name}")
