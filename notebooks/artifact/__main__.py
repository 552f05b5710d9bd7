"""`python -m artifact COMMAND`: what the Makefile does with notebooks, exhibits and tables, by hand.

Exit code: 0; 1, with one line that names the error; 2 for an invalid value; 130 for Ctrl-C.
"""

import argparse
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifact.files import BUILD, DATA, FIGURES, ROOT, lock, relative_path
from disco_core.errors import DiscoError, InputError


def run(given: Namespace) -> int:
    """run a notebook from the project's root and keep the executed copy"""
    from artifact.publish import parameters as declared
    from artifact.publish import run as runner

    if given.params:
        for one in declared.parameters(given.notebook).values():
            print(f"{one.name} = {one.default}  # {one.type}: {one.help}")
        return 0
    common = declared.common(given.notebook, declared.pairs(given.common, "--common"))
    execute = runner.render if given.afresh else runner.run
    print(relative_path(execute(given.notebook, given.out, **common | declared.pairs(given.set))))
    return 0


def sweep(given: Namespace) -> int:
    """delete what has to be rendered again: exhibits that are incomplete, edited, or of no notebook"""
    from artifact.publish import run as runner

    runner.sweep(given.folder, given.executed)
    return 0


def claims(given: Namespace) -> int:
    """print the claims table of a folder of exhibits; 1 if a verdict is not the expected one"""
    from artifact.publish import claims_table

    table = claims_table.lines(given.folder, here=given.here)
    print(claims_table.text(table, min(max(shutil.get_terminal_size((110, 24)).columns, 80), 160)))
    if given.quick:
        print("This was the quick size: its verdicts are a first look and decide nothing.")
    if missing := claims_table.lost(given.folder, table):
        print(f"No exhibit in {given.folder} is called {', '.join(missing)}: correct data/claims.csv or render it.")
    failed = bool(missing) or any(one.verdict != one.expected for one in table)
    return 1 if failed and not given.quick else 0


def compare(given: Namespace) -> int:
    """compare exhibits, verdicts and the pages made from them with the committed ones; 1 if something differs"""
    from artifact.publish import claims_table, gallery
    from artifact.publish import compare as comparison

    result = comparison.compare(given.made, given.committed)
    print(result)
    pages = (ROOT / given.committed).resolve() == FIGURES.resolve()  # the README shows no other folder
    if not given.update:
        readme = claims_table.page(claims_table.lines(FIGURES)) if pages else None
        texts = [*gallery.pages(FIGURES).items(), readme] if readme else []
        stale = [path for path, text in texts if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"{relative_path(path)} differs from what {relative_path(FIGURES)}/ gives; run `make figures`")
        return 0 if result.same and not stale else 1
    comparison.update(given.made, given.committed, result)
    gallery.gallery(given.committed)
    if pages:
        claims_table.write_readme(claims_table.lines(given.committed))
    if result.differ:
        print(f"{given.committed} is updated")
    return 1 if result.gone else 0


def gallery(given: Namespace) -> int:
    """write the gallery of a folder of exhibits, its README.md"""
    from artifact.publish import gallery as galleries

    print(relative_path(galleries.gallery(given.folder)))
    return 0


def report(given: Namespace) -> int:
    """write the report of a folder of exhibits as one self-contained page"""
    from artifact.publish import report as reports

    path = reports.report(given.folder, given.out, given.here)
    print(f"{relative_path(path)}: {path.stat().st_size / 2**20:.1f} MB")
    return 0


def reference(given: Namespace) -> int:
    """make this machine's measurements the reference, data/measured/; quick or disturbed ones are refused"""
    from artifact.publish import reference as references

    for folder in references.take(given.measured):
        print(relative_path(folder))
    return 0


def tables(given: Namespace) -> int:
    """fetch the public traces and compute the tables of data/ from them"""
    from artifact.data import fetch as download
    from artifact.data import tables as computed

    download.fetch()  # also those of which there is no table
    for path in computed.write(given.out):
        print(f"{path.name}: {path.stat().st_size / 1e3:.1f} kB")
    return 0


def fetch(given: Namespace) -> int:
    """fetch the public trace files into build/traces/; DISCO_TRACE_MIRROR names a mirror"""
    from artifact.data import fetch as download

    files = download.fetch()
    print(f"{len(files)} trace files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, verified")
    return 0


def record(given: Namespace) -> int:
    """record a server's TTFT under recorded arrivals at shares of the rate at which it saturates"""
    from artifact.pair import recorder

    given_ = {name: getattr(given, name) for name in ("arrivals", "lengths", "requests", "minutes", "longest")}
    plan = recorder.Plan(loads=tuple(given.load), context=given.context, seed=given.seed, out=given.out, **given_)
    return recorder.record_server(given.url, given.model, plan)


def pair(given: Namespace) -> int:
    """measure your own server and device, or read a record, and study what DiSCo would change: build/pair.html"""
    from artifact.pair import command
    from artifact.publish import parameters as declared

    command.pair(declared.pairs(given.values, "pair") | (command.from_make() if given.make else {}))
    return 0


def alone(given: Namespace) -> int:
    """run a command unless another one that was started this way is still running in build/"""
    file = lock(BUILD / ".lock", "another make is at work in build/; wait for it, or stop it")
    os.set_inheritable(file.fileno(), True)  # locked until the command and its children have ended
    os.execvp(given.words[0], given.words)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m artifact", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = {}
    for command in (run, sweep, compare, claims, gallery, report, reference, tables, fetch, pair, record, alone):
        name, doc = command.__name__, command.__doc__
        add[name] = commands.add_parser(name, help=doc, description=doc)
        add[name].set_defaults(command=command)
    run_ = add["run"]
    run_.epilog = "example: python -m artifact run dispatch --set quick=true out=build/try"
    run_.add_argument("notebook", help="a stem such as dispatch, or the path of a notebook")
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    run_.add_argument("--set", **many, help="parameters of the notebook; an unknown one is an error")
    run_.add_argument("--common", **many, help="parameters shared by many notebooks; unknown ones are ignored")
    run_.add_argument("--out", default=BUILD / "by-hand", type=Path, help="folder of the copy (build/by-hand)")
    run_.add_argument(
        "--afresh", action="store_true", help="delete its earlier exhibits first; out must be below build/"
    )
    run_.add_argument("--params", action="store_true", help="list the notebook's parameters and stop")
    add["compare"].add_argument("made", help="folder of the new exhibits")
    add["compare"].add_argument(
        "committed", nargs="?", default="figures", help="folder of the expected ones (figures)"
    )
    add["compare"].add_argument("--update", action="store_true", help="replace those that differ, exit 0")
    add["sweep"].add_argument("folder", help="folder of the exhibits")
    add["sweep"].add_argument("executed", nargs="+", help="executed copies of their notebooks")
    for name in ("claims", "gallery", "report"):
        add[name].add_argument("folder", nargs="?", default="figures", help="folder of the exhibits (figures)")
    for name in ("claims", "report"):
        add[name].add_argument("--here", help="folder of the exhibits measured on this machine")
    add["claims"].add_argument("--quick", action="store_true", help="of a quick run: exit 0 for any verdicts")
    add["report"].add_argument("--out", default="build/report.html", help="the page (build/report.html)")
    add["reference"].add_argument("measured", nargs="?", default="build/measured", help="(build/measured)")
    add["tables"].add_argument("--out", type=Path, default=DATA, help="folder to write to (data/)")
    _record_options(add["record"])
    add["pair"].add_argument("values", nargs="*", metavar="NAME=VALUE", help="without any the names are listed")
    add["pair"].add_argument("--make", action="store_true", help="take the variables given to `make` as well")
    add["alone"].add_argument(
        "words", metavar="command", nargs=argparse.REMAINDER, help="the command and its arguments"
    )
    return parser


def _record_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The key, where one is needed, is OPENAI_API_KEY of the environment. What is recorded can be read "
    )
    parser.epilog += "with `make pair TRACE=FILE`."
    parser.add_argument("--url", required=True, help="of a llama.cpp server, or of any with OpenAI's API")
    parser.add_argument("--model", help="its name on the server; needed where it serves several")
    parser.add_argument("--arrivals", default="azure-conversation", help="recorded pattern (azure-conversation)")
    parser.add_argument("--load", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9], help="(0.3 0.5 0.7 0.9)")
    parser.add_argument("--lengths", help="dataset of prompt and answer lengths (that of the arrivals)")
    parser.add_argument("--requests", type=int, default=200, help="of each load, at most (200)")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="in which the requests of a load come, at most (5)"
    )
    parser.add_argument("--longest", type=int, default=128, help="tokens of an answer, at most (128)")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer (as the server says, or 4096)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, texts and arrivals (0)")
    parser.add_argument("--out", type=Path, default=BUILD / "records", help="a folder or a .csv file (build/records)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = options().parse_args(argv)
    try:
        return int(given.command(given))
    except DiscoError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished steps are stored, run the command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
