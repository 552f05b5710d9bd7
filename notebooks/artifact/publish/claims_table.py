"""The claims table as text and as Markdown: the paper's value, ours, where ours lies, the verdict, and why.

Ours is the reference run's; beside it, where it was measured here as well, stands this machine's.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from artifact.errors import ArtifactError
from artifact.files import FIGURES, ROOT, write_atomic
from artifact.publish.claims import MISSING, Claim, load, verdicts
from artifact.publish.verdict_files import DIFFERS, NOT_TESTED, PASS, Verdict

README = ROOT / "README.md"
HEADLINE = ("D1", "D2", "D3", "D6a", "D8", "L1", "L5", "P1")  # what the README shows of them
_BLOCK = re.compile(r"(<!-- claims: [^\n]*-->\n).*?(<!-- end of claims -->)", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One claim as it is shown, and its verdict beside the expected one."""

    id: str
    source: str
    mark: str
    statement: str
    paper: str
    ours: str
    verdict: str
    expected: str
    exhibit: str
    rule: str
    reason: str
    place: str = ""  # where our value lies against the paper's
    favourable: str = ""  # our value against the reading of the baseline that favours it
    here: str = ""  # this machine's value; "same" where it judged none or came to the same; "" if none was asked for
    here_reason: str = ""  # why it was not tested on what this machine measured

    @property
    def shown(self) -> str:
        """The verdict; where it is another than the expected one, with that."""
        return self.verdict + ("" if self.verdict == self.expected else f" (expected {self.expected})")


def lines(
    directory: str | Path = FIGURES,
    claims: Path | None = None,
    *,
    here: str | Path | None = None,
    rest: str | Path | None = None,
) -> list[Line]:
    """Every claim in the table's order.

    here   a folder of verdicts on what this machine measured, whose values are to stand beside
    rest   where the verdicts are that `directory` has none of

    ArtifactError as `claims.verdicts`.
    """
    reference = verdicts(directory, claims, rest)
    ours = verdicts(here, claims) if here is not None else {}
    return [
        _line(claim, reference[id], *(_here(directory, claim, reference[id], ours[id]) if ours else ("", "")))
        for id, claim in load(claims).items()
    ]


def shown(verdicts: Iterable[Verdict], claims: Path | None = None) -> pd.DataFrame:
    """What a notebook shows of the verdicts it came to: id, paper, ours, place, verdict, reason."""
    table = load(claims)
    rows = (_line(table[one["id"]], one, "", "") for one in verdicts)
    return pd.DataFrame(
        {
            "id": one.id,
            "paper": one.paper,
            "ours": _ours(one),
            "place": one.place,
            "verdict": one.verdict,
            "reason": one.reason,
        }
        for one in rows
    )


def _line(claim: Claim, verdict: Verdict, here: str, here_reason: str) -> Line:
    paper = claim.paper or "-"
    if claim.kind != "trend" and claim.tolerance > 0:
        paper += f" ± {claim.tolerance:g}"
    return Line(
        id=claim.id,
        source=claim.source,
        mark=claim.mark,
        statement=claim.statement,
        paper=paper,
        ours=_value(verdict),
        verdict=verdict["verdict"],
        expected=claim.expected,
        exhibit=claim.exhibit,
        rule=claim.rule,
        reason=verdict["reason"],
        place=claim.place(verdict["ours"]["median"]) if verdict["ours"] else "",
        favourable=verdict["ours"].get("favourable", "") if verdict["ours"] else "",
        here=here,
        here_reason=here_reason,
    )


def _here(directory: str | Path, claim: Claim, reference: Verdict, ours: Verdict) -> tuple[str, str]:
    """This machine's value of a claim, with its verdict where that is another, and why it was not tested."""
    judged = "id" in ours or _measured(directory, claim.exhibit)  # a verdict that no file holds has no id
    alike = ours["verdict"] == reference["verdict"]
    if not judged or (alike and ours["ours"] == reference["ours"]):
        return "same" if reference["ours"] else "-", ""
    reason = "" if ours["ours"] else ours["reason"]
    return (_value(ours) if alike else f"{_value(ours)} {ours['verdict']}".removeprefix("- ")), reason


def _value(verdict: Verdict) -> str:
    return str(verdict["ours"]["text"]) if verdict["ours"] else "-"


def count(shown: Sequence[Line]) -> str:
    """How many claims have which verdict, and which have not the expected one."""
    all_of = [one.verdict for one in shown]
    parts = [f"{all_of.count(kind)} {kind}" for kind in (PASS, DIFFERS, NOT_TESTED, MISSING) if kind in all_of]
    off = [one.id for one in shown if one.verdict != one.expected]
    return f"{len(all_of)} claims: {', '.join(parts)}; " + (
        f"not as expected: {', '.join(off)}" if off else "every verdict is the expected one"
    )


def text(shown: Sequence[Line], width: int = 110) -> str:
    """The table for a terminal, its reasons below it."""
    here = any(one.here for one in shown)
    head = ("id", "claim", "paper", *(("reference", "here") if here else ("ours",)), "place", "verdict")
    rows = [
        (one.id, one.statement, one.paper, _ours(one), *((one.here,) if here else ()), one.place, one.shown)
        for one in shown
    ]
    shares = (0.31, 0.15, 0.22, 0.2, 0.12) if here else (0.39, 0.18, 0.29, 0.14)
    verdict = max(len(one.shown) for one in shown)
    room = max(width - 18 - verdict, 50)
    widths = [4, *(int(room * share) for share in shares), verdict]
    table = tabulate(rows, head, tablefmt="simple", maxcolwidths=widths, disable_numparse=True)
    reasons = dict.fromkeys(one.reason for one in shown if one.reason)
    notes = [f"{', '.join(one.id for one in shown if one.reason == why)}: {why}" for why in reasons]
    missed = dict.fromkeys(one.here_reason for one in shown if one.here_reason)
    notes += [f"here: {', '.join(one.id for one in shown if one.here_reason == why)}: {why}" for why in missed]
    filled = [textwrap.fill(note, width, subsequent_indent="    ") for note in notes]
    return "\n".join([table, "", *filled, "", count(shown)])


def markdown(shown: Sequence[Line], page: str = "") -> str:
    """The table in Markdown, each verdict linked to its exhibit on a page, the gallery."""
    rows = []
    for one in shown:
        linked = f"[{one.shown}]({page}#{one.exhibit})" if _tested(one) else one.shown
        rows.append((f"{one.id} ({one.mark})", one.statement, one.paper, _ours(one), one.place, linked))
    lines = [("", "claim", "paper", "ours", "place", "verdict"), ("---",) * 6, *rows]
    barred = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in barred)


def headline(shown: Sequence[Line]) -> str:
    """The README's small table: the claims in HEADLINE."""
    by_id = {one.id: one for one in shown}
    missing = [id for id in HEADLINE if id not in by_id]
    if missing:
        raise ArtifactError(f"data/claims.csv has no claim {', '.join(missing)}, which the README shows")
    return f"{markdown([by_id[id] for id in HEADLINE], 'figures/README.md')}\n{count(shown)}.\n"


def _ours(one: Line) -> str:
    return one.ours + (f"; against Stoch+ {one.favourable}" if one.favourable else "")


def page(shown: Sequence[Line], readme: Path | None = None) -> tuple[Path, str]:
    """The README with its small table between the two marks. ArtifactError where they are missing."""
    path = readme or README
    before = path.read_text(encoding="utf-8")
    after, blocks = _BLOCK.subn(lambda block: f"{block[1]}\n{headline(shown)}\n{block[2]}", before)
    if blocks != 1:
        raise ArtifactError(f"{path.name} has no block <!-- claims: ... --> ... <!-- end of claims --> for the table")
    return path, after


def write_readme(shown: Sequence[Line], readme: Path | None = None) -> Path:
    """Write the small table into the README, between its two marks. ArtifactError where they are missing."""
    path, text = page(shown, readme)
    return path if path.read_text(encoding="utf-8") == text else write_atomic(path, text)


def lost(directory: str | Path, shown: Sequence[Line]) -> list[str]:
    """Exhibits that a tested claim names and nobody rendered, with the claims."""
    missing = {
        one.exhibit for one in shown if _tested(one) and not (ROOT / directory / f"{one.exhibit}.json").exists()
    }
    return [f"{name!r} ({', '.join(one.id for one in shown if one.exhibit == name)})" for name in sorted(missing)]


def _tested(one: Line) -> bool:
    return one.verdict in (PASS, DIFFERS)


def _measured(directory: str | Path, exhibit: str) -> bool:
    try:
        return bool(json.loads((ROOT / directory / f"{exhibit}.json").read_text())["kind"] == "measured")
    except (OSError, ValueError, KeyError, TypeError):
        return False
