"""What `quality` draws and lists: measures by hand-over point, every loss with its margin, texts, judges."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from artifact.analysis import quality
from artifact.analysis.quality import Draws
from artifact.measure import ends
from artifact.measure.quality import SECOND, middle
from artifact.measure.store import Measured

UNMIGRATED = "unmigrated"
KINDS = {quality.MIGRATED: "migrated", quality.STARTS_OVER: "starts over", quality.ANOTHER: "another prompt's text"}
# by which measure a control is to be detected
DETECTED_BY = {KINDS[quality.STARTS_OVER]: "repetition", KINDS[quality.ANOTHER]: "chrF"}
GROUPS = {"all": "all", "as ids": "as token ids", "as text": "as text"}
VERDICTS = {"migrated": 1.0, "tie": 0.5, "unmigrated": 0.0}
MOST_WITHOUT = 0.1  # share of its replies that may be no verdict, for a judge to count


@dataclass(frozen=True, eq=False)
class Comparison:
    """The answers of a measurement, beside the same ones unmigrated, and the prompts that each replicate draws."""

    measured: Measured
    replicates: int
    seed: int

    @cached_property
    def answers(self) -> pd.DataFrame:
        """Every answer at every hand-over point, as it was measured."""
        return self.measured["requests"]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Every hand-over and every control, with each measure of it and of the unmigrated answer."""
        return quality.compare(self.answers, self.measured["perplexity"])

    @cached_property
    def prompts(self) -> list[str]:
        """Names of the prompts."""
        return sorted(self.answers.prompt.unique())

    @cached_property
    def draws(self) -> Draws:
        """Places of prompts, a row for each replicate."""
        return quality.drawn_prompts(len(self.prompts), self.replicates, self.seed)

    @cached_property
    def one_model(self) -> pd.DataFrame:
        """The rows without the second model."""
        return self.rows[(self.rows.source != SECOND) & (self.rows.target != SECOND)]

    @property
    def directions(self) -> dict[str, pd.DataFrame]:
        """The rows of each direction of migration, as "device → server"."""
        return {f"{source} → {target}": part for (source, target), part in self.rows.groupby(["source", "target"])}

    def levels(self, column: str, control: str, scale: float = 1.0) -> pd.DataFrame:
        """A measure by direction and hand-over point, with its 95 % band: migrated, unmigrated, and a control."""
        rows = list[dict[str, Any]]()
        for direction, table in self.directions.items():
            for kind in (quality.MIGRATED, UNMIGRATED, control):
                part = table[table.kind == (quality.MIGRATED if kind == UNMIGRATED else kind)]
                name = f"{column}_alone" if kind == UNMIGRATED else column
                for at, here in part.groupby("at"):
                    value, low, high = (scale * x for x in quality.level(here, name, self.draws, self.prompts))
                    row = {"direction": direction, "tokens_before": at, "answers": KINDS.get(kind, kind)}
                    rows.append(row | {column: value, "low": low, "high": high})
        return pd.DataFrame(rows)

    def losses(self) -> pd.DataFrame:
        """Every measure's loss with its band and margin, by group of answers; `role` says what a group is for.

        role   "judged", "control", or "two models", whose difference may be the models' own
        upper, lower   the bounds of the band that are least and most favourable, divided by the margin
        """
        tables = []
        for role, name, part in self._groups():
            table = quality.losses(part, self.draws, self.prompts).assign(role=role, answers_of=name)
            detected = DETECTED_BY.get(name.partition(": ")[2]) if role == "control" else None
            tables.append(table[table.measure == detected] if detected else table)
        every = pd.concat(tables, ignore_index=True)
        every = every.rename(columns={"moved": "migrated", "answers": "n", "worst": "upper", "least": "lower"})
        return every[["role", "answers_of", *(name for name in every if name not in ("role", "answers_of"))]]

    def _groups(self) -> list[tuple[str, str, pd.DataFrame]]:
        found = [
            ("judged", GROUPS.get(name, name), part)
            for name, part in quality.groups(self.one_model[self.one_model.kind == quality.MIGRATED])
        ]
        for kind in (quality.STARTS_OVER, quality.ANOTHER):
            groups = quality.groups(self.one_model[self.one_model.kind == kind])
            found += [
                ("control", f"{name.removeprefix('from the ')}: {KINDS[kind]}", part)
                for name, part in groups
                if name.startswith("from")
            ]
        for direction, part in self.directions.items():
            if SECOND in direction:
                found.append(("two models", direction, part[part.kind == quality.MIGRATED]))
        return found

    def report(self) -> str:
        """How many answers there are, and how many ended by themselves, in a few lines."""
        answers, settings = self.answers, self.measured.settings
        alone = answers[answers.moved == quality.ALONE]
        once = alone.drop_duplicates(["source", "prompt", "sample"])
        ended = (once.tokens < settings["max_tokens"]).mean()
        both = answers[answers.moved != quality.ALONE].merge(alone, on=quality.KEYS, suffixes=("", "_alone"))
        migrated = self.one_model[self.one_model.kind == quality.MIGRATED]
        return "\n".join(
            [
                f"{len(once)} unmigrated answers of more than {settings['positions'][0]} tokens to "
                f"{len(self.prompts)} prompts, {once.tokens.median():.0f} tokens in the median; "
                f"{100 * ended:.0f} % ended by themselves",
                f"{(answers.moved != quality.ALONE).sum()} migrated answers, of which "
                f"{100 * (both.after == both.after_alone).mean():.0f} % ended word by word as the unmigrated one; "
                f"{migrated.chrF.notna().sum()} of {len(migrated)} have another sample to be compared with",
                f"{'with' if SECOND in set(answers.source) else 'without'} the second model; "
                f"{self.measured.disturbed or 'measured in full'}",
            ]
        )

    def examples(self, prompts: int = 3) -> pd.DataFrame:
        """Text before and after the hand-over of a few answers, each beside the unmigrated one."""
        answers, asked = self.answers, ends.prompts().set_index("id").prompt
        at = middle(self.measured.settings["positions"])
        few = answers[(answers["at"] == at) & (answers["sample"] == 0)]
        few = few[~few.target.eq(SECOND) & ~few.source.eq(SECOND)]
        few = few[few.prompt.isin(few.prompt.unique()[1 : 1 + prompts])].sort_values(["prompt", "source", "moved"])
        return pd.DataFrame(
            {
                "prompt": [textwrap.shorten(asked[one], 25, placeholder=" …") for one in few.prompt],
                "begun by": few.source.to_numpy(),
                "continued by": few.target.to_numpy(),
                "before": [_last_words(text, 28) for text in few.before],
                "after": [textwrap.shorten(text, 34, placeholder=" …") for text in few.after],
            }
        )

    def preferred(self) -> pd.DataFrame:
        """Each judge's share of verdicts for the migrated answer, a tie being half, with its 95 % band."""
        columns = ["judge", "verdicts", "of", "migrated_preferred", "low", "high", "counts"]
        replies = self.measured["verdicts"]
        replies = replies.assign(worth=replies.verdict.map(VERDICTS).astype(float))
        rows = list[Mapping[str, Any]]()
        for name, part in replies.groupby("judge"):
            share, low, high = quality.level(part, "worth", self.draws, self.prompts)
            given = int(part.worth.notna().sum())
            row = {"judge": name, "verdicts": given, "of": len(part), "migrated_preferred": share}
            rows.append(row | {"low": low, "high": high, "counts": given >= (1 - MOST_WITHOUT) * len(part)})
        return pd.DataFrame(rows, columns=columns)


def _last_words(text: str, width: int) -> str:
    """The end of a text, from the beginning of a word on, or of a part of a long name in code."""
    flat = " ".join(text.split())
    if len(flat) <= width:
        return flat
    tail = flat[-width - 1 :]
    return "… " + re.sub(r"^[^\s_]*[\s_]", "", tail)
