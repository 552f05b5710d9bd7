"""`python -m artifact COMMAND`: what the Makefile does with notebooks, exhibits and tables, by hand.

Exit: 0; 1, with one line that says what went wrong; 2 for a value that is not taken; 130 for Ctrl-C.
"""

import argparse
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from artifact.commands import ending
from artifact.files import BUILD, DATA, FIGURES, ROOT, lock, shown


def run(given: Namespace) -> int:
    """run a notebook from the project's root and keep the executed copy"""
    from artifact.publish import parameters as declared
    from artifact.publish import run as runner

    if given.params:
        for one in declared.parameters(given.notebook).values():
            print(f"{one.name} = {one.default}  # {one.type}: {one.help}")
        return 0
    common = declared.common(given.notebook, declared.pairs(given.common, "--common"))
    does = runner.render if given.afresh else runner.run
    print(shown(does(given.notebook, given.out, **common | declared.pairs(given.set))))
    return 0


def sweep(given: Namespace) -> int:
    """take away what the next rendering is to make anew: exhibits that are lost, changed, or of no notebook"""
    from artifact.publish import run as runner

    runner.sweep(given.folder, given.executed)
    return 0


def claims(given: Namespace) -> int:
    """print the claims table of a folder of exhibits; 1 if a verdict is not the expected one"""
    from artifact.publish import claims_table

    table = claims_table.lines(given.folder, here=given.here)
    print(claims_table.text(table, min(max(shutil.get_terminal_size((110, 24)).columns, 80), 160)))
    if given.quick:
        print("This was the quick size: what it says of a claim is a first look, and decides nothing.")
    if lost := claims_table.lost(given.folder, table):
        print(f"No exhibit in {given.folder} is called {', '.join(lost)}: correct data/claims.csv or render it.")
    off = bool(lost) or any(one.verdict != one.expected for one in table)
    return 1 if off and not given.quick else 0


def compare(given: Namespace) -> int:
    """compare exhibits and verdicts, and the pages made of them, with the committed ones; 1 if something differs"""
    from artifact.publish import claims_table, gallery
    from artifact.publish import compare as comparison

    found = comparison.compare(given.made, given.committed)
    print(found)
    pages = (ROOT / given.committed).resolve() == FIGURES.resolve()  # the README tells of no other folder
    if not given.update:
        readme = claims_table.page(claims_table.lines(FIGURES)) if pages else None
        other = [*gallery.pages(FIGURES).items(), readme] if readme else []
        stale = [path for path, text in other if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"{shown(path)} is not what {shown(FIGURES)}/ gives; run `make figures`")
        return 0 if found.same and not stale else 1
    comparison.update(given.made, given.committed, found)
    gallery.gallery(given.committed)
    if pages:
        claims_table.write_readme(claims_table.lines(given.committed))
    if found.differ:
        print(f"{given.committed} has them now as they came out")
    return 1 if found.gone else 0


def gallery(given: Namespace) -> int:
    """write the gallery of a folder of exhibits, its README.md"""
    from artifact.publish import gallery as galleries

    print(shown(galleries.gallery(given.folder)))
    return 0


def report(given: Namespace) -> int:
    """write the report of a folder of exhibits as one self-contained page"""
    from artifact.publish import report as reports

    path = reports.report(given.folder, given.out, given.here)
    print(f"{shown(path)}: {path.stat().st_size / 2**20:.1f} MB")
    return 0


def reference(given: Namespace) -> int:
    """make this machine's measurements the reference, data/measured/; not quick or disturbed ones"""
    from artifact.publish import reference as references

    for folder in references.take(given.measured):
        print(shown(folder))
    return 0


def tables(given: Namespace) -> int:
    """fetch the public traces and write the tables of data/ anew"""
    from artifact.data import tables as made

    for path in made.write(given.out):
        print(f"{path.name}: {path.stat().st_size / 1e3:.1f} kB")
    return 0


def fetch(given: Namespace) -> int:
    """fetch the public trace files into build/traces/; DISCO_TRACE_MIRROR names a mirror"""
    from artifact.data import fetch as fetched

    files = fetched.fetch()
    print(f"{len(files)} trace files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, verified")
    return 0


def alone(given: Namespace) -> int:
    """become another command, if no other one that was started so is at work in build/"""
    held = lock(BUILD / ".lock", "another make is at work in build/; wait for it, or stop it")
    os.set_inheritable(held.fileno(), True)  # held until the command and what it started have ended
    os.execvp(given.command[0], given.command)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m artifact", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = {}
    for does in (run, sweep, compare, claims, gallery, report, reference, tables, fetch, alone):
        add[does.__name__] = commands.add_parser(does.__name__, help=does.__doc__, description=does.__doc__)
        add[does.__name__].set_defaults(does=does)
    run_ = add["run"]
    run_.epilog = "example: python -m artifact run dispatch --set quick=true out=build/try"
    run_.add_argument("notebook", help="a stem such as dispatch, or the path of a notebook")
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    run_.add_argument("--set", **many, help="parameters of the notebook; an unknown one is an error")
    run_.add_argument("--common", **many, help="parameters of many notebooks; those it does not have are left out")
    run_.add_argument("--out", default=BUILD / "by-hand", type=Path, help="folder of the copy (build/by-hand)")
    run_.add_argument("--afresh", action="store_true", help="without its earlier exhibits in out, below build/")
    run_.add_argument("--params", action="store_true", help="list the notebook's parameters and stop")
    add["compare"].add_argument("made", help="folder of the exhibits as they came out")
    add["compare"].add_argument("committed", nargs="?", default="figures", help="what they are to be (figures)")
    add["compare"].add_argument("--update", action="store_true", help="put those that differ in their place, exit 0")
    add["sweep"].add_argument("folder", help="folder of the exhibits")
    add["sweep"].add_argument("executed", nargs="+", help="executed copies of the notebooks that make them")
    for name in ("claims", "gallery", "report"):
        add[name].add_argument("folder", nargs="?", default="figures", help="folder of the exhibits (figures)")
    for name in ("claims", "report"):
        add[name].add_argument("--here", help="folder of the exhibits of what this machine measured")
    add["claims"].add_argument("--quick", action="store_true", help="of a quick run: exit 0 whatever the verdicts")
    add["report"].add_argument("--out", default="build/report.html", help="the page (build/report.html)")
    add["reference"].add_argument("measured", nargs="?", default="build/measured", help="(build/measured)")
    add["tables"].add_argument("--out", type=Path, default=DATA, help="folder to write to (data/)")
    add["alone"].add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = options().parse_args(argv)
    return ending(partial(given.does, given))


if __name__ == "__main__":
    sys.exit(main())
