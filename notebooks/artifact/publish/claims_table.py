"""The claims table as text, as Markdown and in the README: the paper's value, ours, the verdict, and why.

Ours is the reference run's; beside it, where it was measured here as well, stands this machine's.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import ArtifactError
from artifact.files import FIGURES, ROOT, write_atomic
from artifact.publish.claims import DIFFERS, MISSING, NOT_TESTED, PASS, Claim, Verdict, load, verdicts

README = ROOT / "README.md"
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
    head = ("id", "mark", "claim", "paper", *(("reference", "here") if here else ("ours",)), "verdict")
    rows: list[tuple[str, ...]] = [head]
    for one in shown:
        values = (one.ours, one.here) if here else (one.ours,)
        rows.append((one.id, one.mark, one.statement, one.paper, *values, one.shown))
    fixed = {at: max(len(row[at]) for row in rows) for at in (0, 1, len(head) - 1)}
    shares = (0.34, 0.18, 0.24, 0.24) if here else (0.42, 0.22, 0.36)
    room = max(width - sum(fixed.values()) - 2 * (len(head) - 1), 40)
    widths = [fixed[0], fixed[1], *(int(room * share) for share in shares), fixed[len(head) - 1]]
    wrapped = [line for row in rows for line in _wrapped(row, widths)]
    wrapped.insert(1, "  ".join("-" * one for one in widths))
    reasons = dict.fromkeys(one.reason for one in shown if one.reason)
    notes = [f"{', '.join(one.id for one in shown if one.reason == why)}: {why}" for why in reasons]
    missed = dict.fromkeys(one.here_reason for one in shown if one.here_reason)
    notes += [f"here: {', '.join(one.id for one in shown if one.here_reason == why)}: {why}" for why in missed]
    filled = [textwrap.fill(note, width, subsequent_indent="    ") for note in notes]
    return "\n".join([*wrapped, "", *filled, "", count(shown)])


def _wrapped(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [
        "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in zip(*padded, strict=True)
    ]


def markdown(shown: Sequence[Line], folder: str = "figures") -> str:
    """The table in Markdown, each verdict linked to its exhibit in `folder`."""
    head = "| | claim | paper | ours | verdict |\n|---|---|---|---|---|\n"
    rows = []
    for one in shown:
        linked = f"[{one.shown}]({folder}/{one.exhibit}.png)" if _tested(one) else one.shown
        cells = (f"{one.id} ({one.mark})", one.statement, one.paper, one.ours, linked)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return head + "".join(rows) + f"\n{count(shown)}.\n"


def page(shown: Sequence[Line], readme: Path | None = None) -> tuple[Path, str]:
    """The README with the table between its two marks. ArtifactError where they are missing."""
    path = readme or README
    before = path.read_text(encoding="utf-8")
    after, blocks = _BLOCK.subn(lambda found: f"{found[1]}\n{markdown(shown)}\n{found[2]}", before)
    if blocks != 1:
        raise ArtifactError(f"{path.name} has no block <!-- claims: ... --> ... <!-- end of claims --> for the table")
    return path, after


def write_readme(shown: Sequence[Line], readme: Path | None = None) -> Path:
    """Write the table into the README, between its two marks. ArtifactError where they are missing."""
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
