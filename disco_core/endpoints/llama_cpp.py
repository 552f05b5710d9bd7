"""A model in this process by llama-cpp-python: one owner thread, and jobs that can be cancelled in mid-prefill.

Only that thread runs the model, one job after the other; other threads give it jobs and get tokens back through
queues. The vocabulary never changes and is read from any thread.
"""

import asyncio
import atexit
import codecs
import ctypes
import json
import logging
import queue
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import closing, redirect_stderr
from functools import cached_property, lru_cache
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disco_core import checks
from disco_core.endpoints.base import Generation, Prefix, Token
from disco_core.endpoints.stop import Answer
from disco_core.endpoints.vocabulary import LlamaEndpoint
from disco_core.errors import CutError, EndpointError, InputError, RefusedError

if TYPE_CHECKING:
    from llama_cpp import Llama

MOST_CONTEXT = 4096  # tokens whose memory is allocated before the model's own context is known
BATCH = 32  # prompt tokens per step: no slower here than 512, and a cancel waits for one operation of one step


def model_file(name: str, path: Any) -> Path:
    """The path, if it is a GGUF file; otherwise InputError, which begins with the endpoint's name."""
    wanted = f"{name}: model_path must be a GGUF file, got {str(path)!r}"
    try:
        with Path(path).open("rb") as file:
            magic = file.read(4)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{wanted}: {getattr(error, 'strerror', None) or error}") from None
    if magic != b"GGUF":
        raise InputError(f"{wanted}, which begins with {magic!r}")
    return Path(path)


class Job(Answer):
    """A generation that the owner thread runs, and the way back to the event loop that waits for its tokens."""

    ids: Sequence[int] = ()
    llama: "Llama | None" = None  # while the owner runs it, once the state is cut to the common beginning
    loop: asyncio.AbstractEventLoop

    def __init__(self, endpoint: "LlamaCppEndpoint", prefix: Prefix) -> None:
        super().__init__(endpoint._answer(self), prefix, endpoint.stop)
        self.endpoint, self.prefix = endpoint, prefix
        self.news: asyncio.Queue[Token | EndpointError | None] = asyncio.Queue()
        self.run: Future[None] = Future()  # cancelled if the owner has not begun it, done once the owner has left it
        self.flag = ctypes.create_string_buffer(2)  # "" goes on, any text aborts

    @property
    def prefilled(self) -> int | None:  # type: ignore[override]
        """Tokens of the prefix processed so far; None unless it is running."""
        llama = self.llama  # read once, since the owner may leave the job in between
        return None if llama is None else min(len(self.ids), llama.n_tokens)

    @property
    def ended(self) -> bool:  # type: ignore[override]
        """Whether no further token is being generated: the owner has left it, or a stop text was found."""
        return self.run.done() or super().ended

    def cancel(self) -> None:
        self.flag[0] = b"!"

    @property
    def cancelled(self) -> bool:
        return bool(self.flag.value)

    def tell(self, news: Token | EndpointError | None) -> None:
        try:
            self.loop.call_soon_threadsafe(self.news.put_nowait, news)
        except RuntimeError:  # its loop is closed: nobody listens any more
            self.cancel()


class LlamaCppEndpoint(LlamaEndpoint):
    """An endpoint in this process. Close it, or use it as a context manager, `async` or not.

    model_path     GGUF file; InputError if it is missing, something else, or cannot be loaded
    n_threads      threads that compute
    n_ctx          tokens of prompt and answer that fit, at most the context the model was trained with
    temperature    0 is greedy; `top_p` None: llama.cpp's default
    stop           one or several texts: what this endpoint generates ends before one, also where that began in the
                   text it continues
    chat_template  Jinja template for messages, by default the one in the file
    prefix_cache   whether to use it: a job continues from the beginning it has in common with the last
                   one, also if that was cancelled; otherwise each job starts from an empty state
    confirmed      tokens actually processed, also by cancelled jobs

    A prompt that is a text is expected in the chat template: special tokens are parsed, and a BOS that it already has
    is not doubled. Messages are refused if there is no template.
    """

    def __init__(
        self,
        model_path: Path | str,
        n_threads: int = 1,
        n_ctx: int = 2048,
        name: str = "llama.cpp",
        temperature: float = 0.0,
        prefix_cache: bool = False,
        chat_template: str | None = None,
        *,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> None:
        self.name, self.confirmed = checks.instance_of(name, str, "name"), 0
        self._configure(temperature, top_p, stop, prefix_cache)
        if chat_template is not None:
            checks.instance_of(chat_template, str, f"{name}: chat_template")
        self.chat_template, self._path = chat_template, model_file(name, model_path)
        threads, context = checks.count(n_threads, f"{name}: n_threads"), checks.count(n_ctx, f"{name}: n_ctx")
        self._options = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": context}
        self._llama = self._vocabulary()
        self._bos, self._eos = self._mark(self._llama.token_bos()), self._mark(self._llama.token_eos())
        self._closed = False
        self._identify(self._llama.n_vocab(), self._llama.n_ctx())
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: set[Job] = set()
        self._owner = threading.Thread(target=self._own, name=name, daemon=True)
        self._owner.start()
        atexit.register(self.close)  # a daemon thread inside a model's step would not survive the interpreter's end

    def generate(self, prefix: Prefix) -> Generation:
        """The tokens that follow, up to the end of the turn. Closing stops even a prefill within milliseconds."""
        return Job(self, prefix)

    async def _answer(self, job: Job) -> AsyncGenerator[Token, None]:
        job.ids, job.loop = self._ids(job.prefix), asyncio.get_running_loop()
        self._open.add(job)
        self._jobs.put(job)
        try:
            if self._closed:  # only now: a job that came before that is surely taken from the queue
                raise RefusedError(self.name, "it is closed")
            while (news := await job.news.get()) is not None:
                if isinstance(news, EndpointError):
                    raise news
                yield news
        finally:
            job.cancel()
            self._open.discard(job)
            if not job.run.cancel():
                await asyncio.wrap_future(job.run)

    def close(self) -> None:
        """Stop the running job, refuse those that wait, and free the memory. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for job in list(self._open):
            job.cancel()
        self._jobs.put(None)
        self._owner.join()
        self._free()

    def __enter__(self) -> "LlamaCppEndpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "LlamaCppEndpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path.name!r}, {self.name!r})"

    def _templated(self, messages: str) -> str:
        try:
            if self._chat is not None:
                return str(self._chat(messages=json.loads(messages)).prompt)
        except Exception as error:  # the template's own code: some know no system message, or want roles by turns
            raise RefusedError(self.name, f"its chat template does not take these messages: {error}") from None
        raise RefusedError(self.name, f"{self._path.name} has no chat template: pass chat_template, or a text or ids")

    @cached_property
    def _chat(self) -> Any:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self.chat_template or self._llama.metadata.get("tokenizer.chat_template")
        return None if template is None else Jinja2ChatFormatter(template, eos_token=self._eos, bos_token=self._bos)

    def _mark(self, id: int) -> str:
        """The text of a special token; "" if the model has none."""
        return str(self._llama._model.token_get_text(id)) if id >= 0 else ""

    def _tokenized(self, text: str, opening: bool) -> tuple[int, ...]:
        if self._closed:
            raise RefusedError(self.name, "it is closed")
        adds = opening and not (self._bos and text.startswith(self._bos))
        return tuple(self._llama.tokenize(text.encode(), add_bos=adds, special=True))

    def _vocabulary(self) -> "Llama":
        """What any thread reads the vocabulary from: here the model itself."""
        return self._load(self._path)

    def _model(self, job: Job) -> "Llama":
        """The model that runs a job, in the owner thread; an EndpointError refuses the job."""
        return self._llama

    def _free(self) -> None:
        self._llama.close()

    def _load(self, path: Path) -> "Llama":
        """A model, unless it was trained with less context: that is read first where much would be allocated."""
        if self._options["n_ctx"] > MOST_CONTEXT:
            with closing(self._opened(path, vocab_only=True)) as file:
                architecture = file.metadata.get("general.architecture", "")
                trained = file.metadata.get(f"{architecture}.context_length", checks.MOST_TOKENS)
                self._check_context(path, int(trained))
        llama = self._opened(path, n_batch=BATCH, n_ubatch=BATCH, **self._options)
        try:
            self._check_context(path, llama._model.n_ctx_train())
        except InputError:
            llama.close()
            raise
        return llama

    def _opened(self, path: Path, **options: Any) -> "Llama":
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise RefusedError(self.name, "it needs the package llama-cpp-python") from error
        try:
            with redirect_stderr(StringIO()):  # llama.cpp warns of settings that are intended
                return Llama(str(path), verbose=False, **options)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.name}: model_path {str(path)!r} cannot be loaded: {error}") from None

    def _check_context(self, path: Path, trained: int) -> None:
        """InputError if the context is longer than the one that the model was trained with."""
        wanted = self._options["n_ctx"]
        if wanted > trained:
            raise InputError(f"{self.name}: n_ctx must be at most {trained} for {path.name}, got {wanted}")

    def _own(self) -> None:
        """The owner thread. Whatever happens in a job, the thread survives and the job is confirmed to have ended."""
        while (job := self._jobs.get()) is not None:
            if not job.run.set_running_or_notify_cancel():
                continue
            try:
                self._generate(job)
            except EndpointError as error:
                job.tell(error)
            except BaseException as error:  # even the exit that a user's function asks for
                what = "it was stopped" if job.cancelled else f"{type(error).__name__}: {error}"
                job.tell(CutError(self.name, what))
            finally:
                job.tell(None)
                job.run.set_result(None)

    def _generate(self, job: Job) -> None:
        from llama_cpp import llama_set_abort_callback, llama_vocab_is_eog

        if job.cancelled:  # while it waited; no model is loaded for it
            raise CutError(self.name, "it was stopped")
        llama = self._model(job)
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # it reports every cancel as an error
        if not self.prefix_cache:
            llama.reset()
        # what needs no prefill: the common beginning, without the last token, whose output gives the next one
        llama.n_tokens = known = llama.longest_token_prefix(llama.input_ids[: llama.n_tokens], job.ids[:-1])
        job.llama = llama
        llama.set_seed(secrets.randbelow(2**32) if job.prefix.seed is None else job.prefix.seed)
        llama_set_abort_callback(llama.ctx, _abort(), ctypes.cast(job.flag, ctypes.c_void_p))
        text = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in several tokens
        ids_known = [token.id for token in job.prefix.generated]
        if None not in ids_known:
            text.decode(llama._model.detokenize(ids_known))
        first, budget = len(ids_known), job.prefix.max_tokens
        try:
            sampled = {"temp": self.temperature} | ({} if self.top_p is None else {"top_p": self.top_p})
            with closing(llama.generate(job.ids, **sampled)) as ids:
                for index, id in enumerate(islice(ids, budget), first):
                    if llama_vocab_is_eog(llama._model.vocab, id):
                        break
                    job.made += 1
                    job.tell(Token(index, text.decode(llama._model.detokenize([id])), id))
                    if job.cancelled:
                        raise CutError(self.name, "it was stopped")
        finally:
            job.llama = None
            self.confirmed += llama.n_tokens - known


@lru_cache(maxsize=1)
def _abort() -> Any:
    """llama.cpp calls this after every operation: `bool (*)(void *)`, here C's `strlen` of the job's flag.

    A Python function would have to take the interpreter's lock some six hundred times a token.
    """
    from llama_cpp import ggml_abort_callback

    strlen = ctypes.CDLL("msvcrt" if hasattr(ctypes, "windll") else None).strlen
    return ctypes.cast(strlen, ggml_abort_callback)
