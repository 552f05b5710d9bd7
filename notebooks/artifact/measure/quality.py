"""Answers that moved in mid-response beside the same answers left alone, as text, on two live ends.

The device is the model in this process, the server the same model behind llama.cpp's own server; both sample, two
answers to a prompt. Each answer is then moved after so many of its tokens: the stream's own hand-over, to the other
end, which goes on. The first half is not made again but said again by a stand-in for its end, so that both have the
same beginning, token for token. One sample moves as token ids; the other as text, which the target tokenises, as
between different vocabularies. Where the optional second model is installed, answers also move between the two
models, and it judges those of which it made no half. Times mean nothing here. Three tables:

    requests     every answer, cut after so many tokens: unmigrated (for each place of a cut), or moved there
    perplexity   mean -log p of a token after the cut, under the second model
    verdicts     what judges said of an answer that moved beside the unmigrated one, where there are judges
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.analysis.quality import ALONE, KEYS
from artifact.data import model
from artifact.measure import judge
from artifact.measure.answers import Tables, run_beside
from artifact.measure.ends import CONTEXT, ends, prompts
from artifact.measure.live import spread
from disco_core import checks
from disco_core.cost import End
from disco_core.dispatch import plan_server_only
from disco_core.endpoints.base import Endpoint, Prefix, Prompt, Token, whole
from disco_core.endpoints.llama_cpp import BATCH, LlamaCppEndpoint
from disco_core.errors import InputError
from disco_core.live.stream import stream
from disco_core.migration import Built, Rule, Seen
from disco_core.systems.pd_device.refine import protected_spans, self_information

BRIEF = " Answer in two or three sentences."  # so that most answers end by themselves
SAMPLES = 2  # unmigrated answers of each end to a prompt: one is the other's reference
SECOND = model.SECOND_NAME  # as an end
SECOND_TEMPLATE = "Question: {prompt}\n\nAnswer:\n"  # it is a base model, which knows no turns
PATIENCE_S = 300.0  # an end works for several answers


@dataclass(frozen=True)
class QualitySettings:
    """How much is measured, and under what.

    prompts       prompts that are asked, spread over all lengths, up to
    longest       tokens as built
    max_tokens    of an answer
    positions     tokens after which an answer moves, if it is longer
    temperature   of both ends' sampling
    second        prompts that the second model is asked, and judges at the middle position, where it is installed
    judges        judges as "openai:<model>", separated by commas, with a key in OPENAI_API_KEY; "" for none
    judge_url     address of their server; "": OPENAI_BASE_URL, or OpenAI's own
    """

    prompts: int = 36
    longest: int = 48
    max_tokens: int = 60
    positions: Sequence[int] = (8, 16, 32)
    temperature: float = 0.4
    second: int = 24
    judges: str = ""
    judge_url: str = ""
    seed: int = 1  # 0 was a trial

    name: ClassVar[str] = "quality"
    tables: ClassVar[dict[str, list[str]]] = {
        "requests": ["source", "target", "moved", "prompt", "sample", "at", "tokens", "before", "after"],
        "perplexity": ["source", "target", "moved", "prompt", "sample", "at", "nats"],
        "verdicts": ["judge", "source", "moved", "prompt", "first", "verdict"],
    }

    def __post_init__(self) -> None:
        for name in ("prompts", "longest", "max_tokens", "second"):
            checks.count(getattr(self, name), name)
        if not isinstance(self.positions, list | tuple):
            raise InputError(f"positions must be a list of tokens, got {self.positions!r:.80}")
        places = tuple(checks.count(at, "a position") for at in self.positions)
        object.__setattr__(self, "positions", places)  # as json has them, they are a list
        if not places or sorted(set(places)) != list(places) or places[-1] >= self.max_tokens:
            raise InputError(f"positions must ascend, and stay below max_tokens={self.max_tokens}, got {places}")
        checks.positive(self.temperature, "temperature")
        checks.kind(self.judge_url, str, "judge_url")
        judge.names(checks.kind(self.judges, str, "judges"))
        whole(self.seed, "seed")
        if self.prompts > len(prompts(self.longest)):
            raise InputError(
                f"{self.prompts} prompts: only {len(prompts(self.longest))} have up to longest={self.longest} tokens"
            )
        if self.longest + 2 * self.max_tokens > CONTEXT:
            raise InputError(f"longest + 2 max_tokens must be at most {CONTEXT}, each end's context")

    def quick(self) -> "QualitySettings":
        """The same in small."""
        few = {"prompts": 3, "max_tokens": 32, "second": 2}
        places = tuple(at for at in self.positions if at < 32)[:2] or (8,)
        return replace(self, positions=places, **{name: min(n, getattr(self, name)) for name, n in few.items()})

    @property
    def middle(self) -> int:
        """The position of those answers of which judges and the second model are asked."""
        return self.positions[len(self.positions) // 2]

    def measure(self) -> Tables:
        """Every table, by name. An EndpointError where an end or a judge cannot be had; nothing is left running."""
        judges = judge.endpoints(self.judges, self.judge_url)  # first: a missing key is said at once
        with ExitStack() as stack:
            server, device = stack.enter_context(ends())
            second = stack.enter_context(model.second_model())
            return run_beside(_Session(self, server, device, second).run(judges))


class Again:
    """An end that says once more, token for token, what it said before: the first half of an answer that moves."""

    def __init__(self, end: Endpoint, said: Sequence[Token], vocabulary: str) -> None:
        self.name, self.vocabulary, self.context, self.continues = end.name, vocabulary, end.context, True
        self._end, self._said = end, said

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, as the end itself counts them."""
        return self._end.count(prompt)

    async def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """What it said after the prefix."""
        for token in self._said[len(prefix.generated) :]:
            yield token


class MovesAfter(Rule):
    """Moves after so many tokens, come what may; the target reads the prompt as it was built for it."""

    target = End.DEVICE

    def __init__(self, at: int, built: Any) -> None:
        self.at, self.built = at, built

    def prompt_for(self, end: End, prompt: Built) -> Built:
        """The target's own prompt for the target."""
        return self.built if end is self.target else prompt

    def moves_now(self, seen: Seen) -> bool:
        """After the token of that number."""
        return len(seen.record.tokens) == self.at


class _Session:
    """One measuring session on two ends, and a third where there is one."""

    def __init__(self, settings: QualitySettings, server: Endpoint, device: Endpoint, second: Path | None) -> None:
        self.settings, self.server, self.device, self.second = settings, server, device, second
        table = prompts(settings.longest)
        asked = spread([len(built) for built in table["built"]], settings.prompts)
        self.ids = table["id"].iloc[asked].tolist()
        self.words = [text + BRIEF for text in table["prompt"].iloc[asked]]
        self.of_second = spread([len(words) for words in self.words], min(settings.second, len(self.words)))
        self._said = dict[tuple[str, int, int], list[Token]]()
        for end in (server, device):
            end.temperature = settings.temperature  # type: ignore[attr-defined]

    async def run(self, judges: Sequence[Endpoint]) -> Tables:
        s, tables, columns = self.settings, Tables(), self.settings.tables
        try:
            rows = await self._all([(self.device, self.server), (self.server, self.device)], range(len(self.words)))
        finally:
            await self.server.aclose()  # type: ignore[attr-defined]
        of_one, told = pd.DataFrame(rows, columns=columns["requests"]), list[dict[str, Any]]()
        if self.second is not None:
            options: dict[str, Any] = {"n_ctx": CONTEXT, "name": SECOND, "temperature": s.temperature}
            with LlamaCppEndpoint(self.second, **options) as second:
                rows += await self._all([(self.device, second), (second, self.device)], self.of_second)
            judged = of_one["prompt"].isin([self.ids[k] for k in self.of_second])
            told = self._perplexity(self.second, of_one[judged & (of_one["at"] == s.middle)])
        tables["requests"] = pd.DataFrame(rows, columns=columns["requests"])
        tables["perplexity"] = pd.DataFrame(told, columns=columns["perplexity"])
        tables["verdicts"] = await self._verdicts(judges, of_one)
        return tables

    async def _all(self, pairs: Sequence[tuple[Endpoint, Endpoint]], asked: Sequence[int]) -> list[dict[str, Any]]:
        """Every answer of each source, alone and moved to its target; the sources work side by side."""
        total = len(pairs) * len(asked) * SAMPLES * (1 + len(self.settings.positions))
        with tqdm(total=total, desc="answers that move", unit="answer", disable=None) as self.bar:
            found = await asyncio.gather(*(self._from(source, target, asked) for source, target in pairs))
        return [row for rows in found for row in rows]

    async def _from(self, source: Endpoint, target: Endpoint, asked: Sequence[int]) -> list[dict[str, Any]]:
        rows = []
        for k, sample in itertools.product(asked, range(SAMPLES)):
            known = (source.name, k, sample) in self._said
            said = await self._alone(source, k, sample)
            as_ids = source.vocabulary == target.vocabulary and sample == 0
            for at in self.settings.positions:
                self.bar.update()
                if len(said) > at:
                    moved = await self._move(source, target, k, said, at, as_ids, [k, sample, at])
                    where = {"source": source.name, "prompt": self.ids[k], "sample": sample, "at": at}
                    way = {"target": target.name, "moved": "ids" if as_ids else "text"}
                    rows += [] if known else [where | {"target": source.name, "moved": ALONE} | _cut(said, at)]
                    rows.append(where | way | _cut(moved, at))
            self.bar.update()
        return rows

    async def _alone(self, end: Endpoint, k: int, sample: int) -> list[Token]:
        key = end.name, k, sample
        if key not in self._said:
            prefix = Prefix(self._built(end, k), (), self.settings.max_tokens, self._seed([k, sample, 0]))
            async with aclosing(end.generate(prefix)) as tokens:
                self._said[key] = [token async for token in tokens]
        return self._said[key]

    async def _move(
        self, source: Endpoint, target: Endpoint, k: int, said: list[Token], at: int, as_ids: bool, seeds: list[int]
    ) -> list[Token]:
        """The answer as a reader gets it whose first `at` tokens are the source's, and the rest the target's."""
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

    def _perplexity(self, path: Path, answers: pd.DataFrame) -> list[dict[str, Any]]:
        """What a model that made none of these answers makes of them: the request, and the answer as plain text."""
        words, rows, scores = dict(zip(self.ids, self.words, strict=True)), list[dict[str, Any]](), dict[str, Any]()
        options = {"n_threads": 2, "n_threads_batch": 2, "n_batch": BATCH, "n_ubatch": BATCH}
        with closing(model.load(path, n_ctx=CONTEXT, **options)) as llama:
            for row in tqdm(answers.to_dict("records"), desc="perplexity", unit="answer", disable=None):
                before, after = SECOND_TEMPLATE.format(prompt=words[row["prompt"]]) + row["before"], row["after"]
                if not after:
                    continue
                ids, within = protected_spans([(before, False), (after, True)], llama)
                if before + after not in scores:
                    scores[before + after] = self_information(llama, ids.tolist())
                told = scores[before + after][within]
                rows.append(row | {"nats": float(told[np.isfinite(told)].mean())})
        return rows

    async def _verdicts(self, judges: Sequence[Endpoint], answers: pd.DataFrame) -> pd.DataFrame:
        """Each judge on every answer that moved at the middle position, beside the one left alone."""
        s, words = self.settings, dict(zip(self.ids, self.words, strict=True))
        if not judges:
            return pd.DataFrame(columns=s.tables["verdicts"])
        shown = answers[answers["at"] == s.middle]
        both = shown[shown["moved"] != ALONE].merge(shown[shown["moved"] == ALONE], on=KEYS, suffixes=("", "_alone"))
        pairs = [
            judge.Pair(words[row.prompt], row.before + row.after, row.before_alone + row.after_alone)
            for row in both.itertuples()
        ]
        found = await judge.verdicts(judges, pairs)
        return found.join(both[["source", "moved", "prompt"]], on="pair")[s.tables["verdicts"]]


def _cut(tokens: Sequence[Token], at: int) -> dict[str, Any]:
    """An answer as a reader has it, in two halves."""
    before, after = ("".join(token.text for token in part) for part in (tokens[:at], tokens[at:]))
    return {"tokens": len(tokens), "before": before, "after": after}
