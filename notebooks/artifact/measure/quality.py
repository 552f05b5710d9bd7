"""Answers migrated in mid-response and the same answers without migration, as text, on two live endpoints.

The device is the model in this process, the server the same model behind llama.cpp's server; each samples two answers
to a prompt. Each answer is then migrated at several positions by the stream's hand-over, and the other endpoint
continues it. The first half is not generated again but replayed by a stand-in for its endpoint, so that both answers
begin with the same tokens. One sample migrates as token ids; the other as text, which the target tokenises, as
between different vocabularies. With the optional second model, answers also migrate between the two models, and it
gives the perplexity of answers of which it generated no half.

No time is measured: the endpoints work at the same time, and other programs disturb nothing. An endpoint uses its
prefix cache only within a piece, so that the answers to a prompt do not depend on what was measured before. Three
tables:

    requests     source, target, moved ("alone", "ids", "text"), prompt, sample, at, tokens, before, after: every
                 answer, cut after `at` tokens: unmigrated (for each position), or migrated there
    perplexity   source, target, moved, prompt, sample, at, nats: mean -log p of a token after `at`, under the second
                 model
    verdicts     judge, source, moved, prompt, first, verdict: the judges' verdicts on a migrated and the unmigrated
                 answer, if there are judges
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from artifact.analysis.quality import ALONE, KEYS
from artifact.data import model
from artifact.errors import ArtifactError
from artifact.measure import judge
from artifact.measure.answers import run_in_thread, together
from artifact.measure.ends import CONTEXT, ends, prompts
from artifact.measure.live import spread
from artifact.measure.network_delay import Wrapped
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.cost import End
from disco_core.dispatch import plan_server_only
from disco_core.endpoints.base import Endpoint, Generation, Prefix, Prompt, Token, non_negative_int
from disco_core.endpoints.llama_cpp import BATCH, LlamaCppEndpoint
from disco_core.errors import InputError
from disco_core.live.stream import stream
from disco_core.migration import HAND_OVER, STAY, AnyPrompt, Decision, Rule, StreamState
from disco_core.systems.compression import protected_spans, self_information

if TYPE_CHECKING:
    from llama_cpp import Llama

BRIEF = " Answer in two or three sentences."  # so that answers are short, and some end before max_tokens
SAMPLES = 2  # unmigrated answers of each endpoint to a prompt: one is the reference of the other
SECOND = model.SECOND_NAME  # its name as an endpoint
SECOND_TEMPLATE = "Question: {prompt}\n\nAnswer:\n"  # a base model has no chat template
PATIENCE_S = 300.0  # an endpoint generates several answers at a time
TABLES = ("prompts",)
REQUESTS = ["source", "target", "moved", "prompt", "sample", "at", "tokens", "before", "after"]
PERPLEXITY = [*REQUESTS[:6], "nats"]
VERDICTS = ["judge", "source", "moved", "prompt", "first", "verdict"]


def measure(run: Run) -> Tables:
    """All tables; the notebook `measure_quality` describes the settings.

    InputError for invalid settings, ArtifactError if the second model is needed and not installed, EndpointError if
    an endpoint or a judge is not available; nothing is left running.
    """
    s = run.settings
    _check(s)
    judges = judge.endpoints(s.judges, s.judge_url)  # first, so that a missing key is reported at once
    with ExitStack() as stack:
        second = stack.enter_context(model.second_model()) if s.second else None
        if s.second and second is None:
            raise ArtifactError("the second model is not installed: pip install -e .[second-model], or set second=0")
        server, device = stack.enter_context(ends(prefix_cache=True))
        return run_in_thread(_Session(run, server, device, second).run(judges))


def _check(s: Any) -> None:
    for name in ("prompts", "longest", "max_tokens"):
        checks.count(getattr(s, name), name)
    non_negative_int(s.second, "second")
    if not isinstance(s.positions, list | tuple):
        raise InputError(f"positions must be a list of tokens, got {s.positions!r:.80}")
    places = [checks.count(at, "a position") for at in s.positions]
    if not places or sorted(set(places)) != places or places[-1] >= s.max_tokens:
        raise InputError(f"positions must ascend, and stay below max_tokens={s.max_tokens}, got {places}")
    checks.positive(s.temperature, "temperature")
    checks.instance_of(s.judge_url, str, "judge_url")
    judge.names(checks.instance_of(s.judges, str, "judges"))
    non_negative_int(s.seed, "seed")
    if s.prompts > len(prompts(s.longest)):
        raise InputError(f"{s.prompts} prompts: only {len(prompts(s.longest))} have up to longest={s.longest} tokens")
    if s.longest + 2 * s.max_tokens > CONTEXT:
        raise InputError(f"longest + 2 max_tokens must be at most {CONTEXT}, each end's context")


def middle(positions: Sequence[int]) -> int:
    """The position of the answers that judges and the second model evaluate."""
    return positions[len(positions) // 2]


class Again(Wrapped):
    """A stand-in for an endpoint that replays its recorded answer: the first half of a migrated answer."""

    def __init__(self, end: Endpoint, said: Sequence[Token], vocabulary: str) -> None:
        super().__init__(end)
        self.vocabulary, self.continues, self._said = vocabulary, True, said

    def apply_chat_template(self, prompt: Prompt) -> Prompt:
        """The prompt as it is."""
        return prompt

    def generate(self, prefix: Prefix) -> Generation:
        """The recorded tokens after the prefix."""

        async def recorded() -> AsyncGenerator[Token, None]:
            for token in self._said[len(prefix.generated) :]:
                yield token

        return Generation(recorded())


class MovesAfter(Rule):
    """Migrates after `at` tokens, unconditionally; the target gets the prompt in its chat template."""

    target = End.DEVICE

    def __init__(self, at: int, built: Any) -> None:
        self.at, self.built = at, built

    def prompt_for(self, end: End, prompt: AnyPrompt) -> AnyPrompt:
        """The target's prompt for the target, else the prompt as it is."""
        return self.built if end is self.target else prompt

    def decide(self, state: StreamState) -> Decision:
        """Hand over once `at` tokens are generated."""
        return HAND_OVER if len(state.record.tokens) == self.at else STAY


class _Session:
    """One measuring session on two endpoints, and a third if the second model is used.

    A piece has the answers of two endpoints to one prompt, unmigrated and migrated to the other; or the evaluation of
    all answers to a prompt by the second model or a judge.
    """

    def __init__(self, run: Run, server: Endpoint, device: Endpoint, second: Path | None) -> None:
        s = run.settings
        self.taken, self.settings, self.server, self.device, self.second = run, s, server, device, second
        table = prompts(s.longest)
        asked = spread([len(built) for built in table["built"]], s.prompts)
        self.ids = table["id"].iloc[asked].tolist()
        self.words = [text + BRIEF for text in table["prompt"].iloc[asked]]
        self.of_second = spread([len(words) for words in self.words], min(s.second, len(self.words)))
        self._said = dict[tuple[str, int], list[list[Token]]]()
        for end in (server, device):
            end.temperature = s.temperature  # type: ignore[attr-defined]

    async def run(self, judges: Sequence[Endpoint]) -> Tables:
        everyone = range(len(self.words))
        self.taken.expect(len(everyone) * (1 + len(judges)) + 2 * len(self.of_second), "prompt")
        try:
            rows = await self._all(self.server, everyone)
        finally:
            await self.server.aclose()  # type: ignore[attr-defined]
        of_one, nats = pd.DataFrame(rows, columns=REQUESTS), list[dict[str, Any]]()
        if self.second is not None:
            options: dict[str, Any] = {"n_ctx": CONTEXT, "name": SECOND, "temperature": self.settings.temperature}
            with LlamaCppEndpoint(self.second, **options) as second:
                rows += await self._all(second, self.of_second)
            nats = list(self._perplexity(self.second, of_one))
        told = await asyncio.gather(*(self._verdicts(one, of_one) for one in judges))
        return {
            "requests": pd.DataFrame(rows, columns=REQUESTS),
            "perplexity": pd.DataFrame(nats, columns=PERPLEXITY),
            "verdicts": pd.DataFrame([row for rows in told for row in rows], columns=VERDICTS),
        }

    async def _all(self, other: Endpoint, asked: Sequence[int]) -> list[dict[str, Any]]:
        """All answers of the device and of another endpoint, unmigrated and migrated to each other."""
        rows = []
        for k in asked:
            found = await self.taken.piece(f"{other.name}, prompt {k}", partial(self._prompt, other, k))
            rows += found["rows"]
            for end, answers in found["said"].items():
                said = [[Token(index, *told) for index, told in enumerate(answer)] for answer in answers]
                self._said[end, k] = said
        return rows

    async def _prompt(self, other: Endpoint, k: int) -> dict[str, Any]:
        """Rows and tokens of the answers of the device and another endpoint to one prompt; both work at once."""
        both = {end.name: end for end in (self.device, other)}
        for end in both.values():
            end.prefix_cache = False  # until this prompt is in its prefix cache
        answers = await together(*(self._alone(end, k) for end in both.values()))
        said = dict(zip(both, answers, strict=True))
        rows = await together(
            self._moved(self.device, other, k, said[self.device.name]),
            self._moved(other, self.device, k, said[other.name]),
        )
        told = {name: [[(one.text, one.id) for one in answer] for answer in said[name]] for name in both}
        return {"rows": rows[0] + rows[1], "said": told}

    async def _alone(self, end: Endpoint, k: int) -> list[list[Token]]:
        """The unmigrated answers of the endpoint, generated unless they are recorded."""
        if (end.name, k) in self._said:
            return self._said[end.name, k]
        answers = []
        for sample in range(SAMPLES):
            prefix = Prefix(self._built(end, k), (), self.settings.max_tokens, self._seed([k, sample, 0]))
            async with aclosing(end.generate(prefix)) as tokens:
                answers.append([token async for token in tokens])
            end.prefix_cache = True
        return answers

    async def _moved(
        self, source: Endpoint, target: Endpoint, k: int, answers: Sequence[Sequence[Token]]
    ) -> list[dict[str, Any]]:
        """Rows of each answer at each position: unmigrated, unless recorded already, and continued by the target."""
        rows, known = list[dict[str, Any]](), (source.name, k) in self._said
        for sample, said in enumerate(answers):
            as_ids = source.vocabulary == target.vocabulary and sample == 0
            for at in (place for place in self.settings.positions if len(said) > place):
                moved = await self._move(source, target, k, said, at, as_ids, [k, sample, at])
                target.prefix_cache = True
                where = {"source": source.name, "prompt": self.ids[k], "sample": sample, "at": at}
                rows += [] if known else [where | {"target": source.name, "moved": ALONE} | _cut(said, at)]
                rows.append(where | {"target": target.name, "moved": "ids" if as_ids else "text"} | _cut(moved, at))
        return rows

    async def _move(
        self,
        source: Endpoint,
        target: Endpoint,
        k: int,
        said: Sequence[Token],
        at: int,
        as_ids: bool,
        seeds: list[int],
    ) -> list[Token]:
        """The answer that a reader receives: the first `at` tokens are the source's, the rest the target's."""
        vocabulary = source.vocabulary if as_ids else f"{source.vocabulary}, told as text"
        run = stream(
            self._built(source, k),
            plan=plan_server_only(),
            server=Again(source, said, vocabulary),
            device=target,
            rule=MovesAfter(at, self._built(target, k)),
            max_tokens=self.settings.max_tokens,
            wait=False,
            stall_s=PATIENCE_S,
            seed=self._seed(seeds),
        )
        async with aclosing(run):
            return [Token(token.index, token.text, token.id) async for token in run]

    def _built(self, end: Endpoint, k: int) -> str:
        if end.name == SECOND:
            return SECOND_TEMPLATE.format(prompt=self.words[k])
        return model.build(self.words[k])

    def _seed(self, of: list[int]) -> int:
        return int(np.random.default_rng([self.settings.seed, *of]).integers(2**31))

    def _perplexity(self, path: Path, answers: pd.DataFrame) -> Iterator[dict[str, Any]]:
        """The perplexity of answers, as plain text with the request, under a model that generated none of them."""
        shown = answers[answers["at"] == middle(self.settings.positions)]
        options = {"n_threads": 2, "n_threads_batch": 2, "n_batch": BATCH, "n_ubatch": BATCH}
        with closing(model.load(path, n_ctx=CONTEXT, **options)) as llama:
            for k in self.of_second:
                few = shown[shown["prompt"] == self.ids[k]].to_dict("records")
                asked = SECOND_TEMPLATE.format(prompt=self.words[k])
                yield from self.taken.piece_now(f"{SECOND} reads prompt {k}", partial(_read, llama, asked, few))

    async def _verdicts(self, one: Endpoint, answers: pd.DataFrame) -> list[dict[str, Any]]:
        """A judge's verdicts on every answer migrated at the middle position, compared with the unmigrated one."""
        shown, rows = answers[answers["at"] == middle(self.settings.positions)], list[dict[str, Any]]()
        alone = shown["moved"] == ALONE
        both = shown[~alone].merge(shown[alone], on=KEYS, suffixes=("", "_alone"))
        async with AsyncExitStack() as stack:
            if hasattr(one, "aclose"):
                stack.push_async_callback(one.aclose)
            for k, prompt in enumerate(self.ids):
                few = both[both["prompt"] == prompt].to_dict("records")
                pairs = [
                    judge.Pair(self.words[k], row["before"] + row["after"], row["before_alone"] + row["after_alone"])
                    for row in few
                ]
                told = await self.taken.piece(f"{one.name}, prompt {k}", partial(judge.verdicts, one, pairs))
                rows += [
                    verdict | {name: few[verdict["pair"]][name] for name in [*KEYS, "moved"]} for verdict in told
                ]
        return rows


def _read(llama: "Llama", asked: str, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean -log p of a token after `at`, for each answer that has one."""
    rows = []
    for row in answers:
        if row["after"]:
            ids, within = protected_spans([(asked + row["before"], False), (row["after"], True)], llama)
            told = self_information(llama, ids.tolist())[within]
            rows.append({name: row[name] for name in REQUESTS[:6]} | {"nats": float(told[np.isfinite(told)].mean())})
    return rows


def _cut(tokens: Sequence[Token], at: int) -> dict[str, Any]:
    """The text of an answer in two halves."""
    before, after = ("".join(token.text for token in part) for part in (tokens[:at], tokens[at:]))
    return {"tokens": len(tokens), "before": before, "after": after}
