"""The claims table as text, as Markdown and in the README: the paper's value, ours, the verdict, and why.

python -m artifact.publish.claims_table figures
"""

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifact.commands import command
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

    @property
    def shown(self) -> str:
        """The verdict; where it is another than the expected one, with that."""
        return self.verdict + ("" if self.verdict == self.expected else f" (expected {self.expected})")


def lines(directory: str | Path = FIGURES, claims: Path | None = None) -> list[Line]:
    """Every claim in the table's order. ArtifactError as `claims.verdicts`."""
    found = verdicts(directory, claims)
    return [_line(claim, found[id]) for id, claim in load(claims).items()]


def _line(claim: Claim, verdict: Verdict) -> Line:
    paper = claim.paper or "-"
    if claim.kind != "trend" and claim.tolerance > 0:
        paper += f" ± {claim.tolerance:g}"
    return Line(
        id=claim.id,
        source=claim.source,
        mark=claim.mark,
        statement=claim.statement,
        paper=paper,
        ours=verdict["ours"]["text"] if verdict["ours"] else "-",
        verdict=verdict["verdict"],
        expected=claim.expected,
        exhibit=claim.exhibit,
        rule=claim.rule,
        reason=verdict["reason"],
    )


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
    rows: list[tuple[str, ...]] = [("id", "mark", "claim", "paper", "ours", "verdict")]
    rows += [(one.id, one.mark, one.statement, one.paper, one.ours, one.shown) for one in shown]
    fixed = [max(len(row[column]) for row in rows) for column in (0, 1)]
    last = max(len(row[5]) for row in rows)
    room = max(width - sum(fixed) - last - 10, 40)
    widths = [*fixed, room * 42 // 100, room * 22 // 100, room - room * 42 // 100 - room * 22 // 100, last]
    wrapped = [line for row in rows for line in _wrapped(row, widths)]
    wrapped.insert(1, "  ".join("-" * one for one in widths))
    reasons = dict.fromkeys(one.reason for one in shown if one.reason)
    notes = [f"{', '.join(one.id for one in shown if one.reason == why)}: {why}" for why in reasons]
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


def write_readme(shown: Sequence[Line], readme: Path | None = None) -> Path:
    """Write the table into the README, between its two marks. ArtifactError where they are missing."""
    path = readme or README
    before = path.read_text(encoding="utf-8")
    after, blocks = _BLOCK.subn(lambda found: f"{found[1]}\n{markdown(shown)}\n{found[2]}", before)
    if blocks != 1:
        raise ArtifactError(f"{path.name} has no block <!-- claims: ... --> ... <!-- end of claims --> for the table")
    return path if after == before else write_atomic(path, after)


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


@command("nothing was changed")
def main(argv: list[str] | None = None) -> int:
    """Print the table of a directory; 1 where a verdict is not the expected one or missing, or its exhibit is."""
    parser = argparse.ArgumentParser(prog="python -m artifact.publish.claims_table", description=main.__doc__)
    parser.add_argument("directory", nargs="?", default="figures", help="folder of the claims files")
    told = "of a run in small: do not fail where too few answers were measured to decide"
    parser.add_argument("--quick", action="store_true", help=told)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md as well")
    options = parser.parse_args(argv)
    shown = lines(options.directory)
    print(text(shown, min(max(shutil.get_terminal_size((110, 24)).columns, 80), 160)))
    if options.readme:
        write_readme(shown)
    off = [one for one in shown if one.verdict != one.expected]
    if options.quick:
        few = [one for one in off if _tested(one) and _measured(options.directory, one.exhibit)]
        if few:
            print(f"In small, too few answers were measured to decide {', '.join(one.id for one in few)}.")
        off = [one for one in off if one not in few]
    if missing := lost(options.directory, shown):
        print(
            f"No exhibit in {options.directory} is called {', '.join(missing)}: correct data/claims.csv or render it."
        )
    return 1 if off or missing else 0


if __name__ == "__main__":
    sys.exit(main())
