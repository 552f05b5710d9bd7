"""How an exhibit is cited: a line and a BibTeX entry, by its stem and the sha256 of its csv.

Version, address (`repository-code`) and papers are those of CITATION.cff.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import ROOT

CITATION = ROOT / "CITATION.cff"
_DIGITS = 12  # of a sha256 in a citation


def citation(about: Mapping[str, Any]) -> str:
    """The line to cite an exhibit by."""
    parts = [f"disco-core {_cff()['version']}", _address(), f"exhibit `{about['stem']}`", _digest(about)]
    return f"{', '.join(filter(None, parts))}; after {_after(about)}."


def bibliography(every: Iterable[Mapping[str, Any]]) -> str:
    """BibTeX: entries for this project, the papers and every exhibit. ArtifactError for a broken CITATION.cff."""
    return "\n".join([_software(), *map(_paper, papers().values()), *map(_exhibit, every)])


def codecheck(every: Iterable[Mapping[str, Any]]) -> str:
    """The manifest of a CODECHECK (codecheck.yml, configuration 2.0): the paper, and the files to be reproduced."""
    import yaml

    paper = _cff()["preferred-citation"]
    manifest = [
        {"file": f"figures/{about['stem']}.{suffix}", "comment": f"{about['title']} ({about['kind']})"}
        for about in every
        for suffix in ("pdf", "csv")
        if f"{about['stem']}.{suffix}" in about["files"]
    ]
    content = {
        "version": "https://codecheck.org.uk/spec/config/2.0/",
        "source": "written by make figures; certificate, report and codechecker are the codechecker's to add",
        "paper": {
            "title": paper["title"],
            "authors": [{"name": f"{one['given-names']} {one['family-names']}"} for one in paper["authors"]],
            "reference": paper["url"],
        },
        "manifest": manifest,
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=118)}"


def papers() -> dict[str, dict[str, Any]]:
    """The papers of CITATION.cff by their key in BibTeX, such as sun2025."""
    every = [_cff()["preferred-citation"], *_cff()["references"]]
    return {f"{one['authors'][0]['family-names'].lower()}{one['year']}": one for one in every}


def _software() -> str:
    project = _cff()
    fields = {
        "title": f"{{{project['title']}}}",
        "author": f"{{{project['authors'][0]['name']}}}",
        "year": str(project["date-released"])[:4],
        "note": f"version {project['version']}; code {project['license']}, figures and tables CC BY 4.0",
    }
    return _entry("misc", "disco-core", fields | ({"url": _address()} if _address() else {}))


def _paper(paper: dict[str, Any]) -> str:
    key = next(key for key, one in papers().items() if one is paper)
    fields = {"title": f"{{{paper['title']}}}", "author": " and ".join(map(_name, paper["authors"]))}
    fields |= {"booktitle": paper["collection-title"]} if "collection-title" in paper else {}
    fields |= {"year": paper["year"], "url": paper["url"], "note": paper["identifiers"][0]["value"]}
    return _entry("inproceedings" if "booktitle" in fields else "misc", key, fields)


def _exhibit(about: Mapping[str, Any]) -> str:
    project = _cff()
    fields = {
        "title": f"{{{about['title']}}}",
        "author": f"{{{project['authors'][0]['name']}}}",
        "year": str(project["date-released"])[:4],
        "howpublished": f"disco-core {project['version']}, exhibit {about['stem']}",
        "note": f"{_digest(about)}; after {_after(about)}",
    }
    return _entry("misc", f"disco-core:{about['stem']}", fields | ({"url": _address()} if _address() else {}))


def _entry(kind: str, key: str, fields: Mapping[str, Any]) -> str:
    special = str.maketrans({"%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_"})
    texts = {name: str(value) if name == "url" else str(value).translate(special) for name, value in fields.items()}
    return f"@{kind}{{{key},\n" + "".join(f"  {name} = {{{text}}},\n" for name, text in texts.items()) + "}\n"


def _name(author: Mapping[str, str]) -> str:
    return f"{author['family-names']}, {author['given-names']}" if "family-names" in author else author["name"]


def _after(about: Mapping[str, Any]) -> str:
    """The paper that an exhibit is about, by its authors."""
    others = {"pd": "jin2025", "elastic": "yin2025", "objectives": "yin2025"}
    first = others.get(str(about["stem"]).partition("_")[0], "sun2025")
    paper = papers()[first]
    names = [one["family-names"] for one in paper["authors"] if "family-names" in one]
    short = f"{names[0]} et al." if len(names) != 3 else f"{names[0]}, {names[1]} and {names[2]}"
    return f"{short} ({paper['year']})"


def _digest(about: Mapping[str, Any]) -> str:
    return str(about["digest"])[: len("sha256:") + _DIGITS]


def _address() -> str:
    return str(_cff().get("repository-code", ""))


@cache
def _cff() -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
        if {"version", "date-released", "authors", "preferred-citation", "references"} <= found.keys():
            return dict(found)
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ArtifactError(f"cannot read CITATION.cff: {error}") from None
    raise ArtifactError("CITATION.cff needs version, date-released, authors, preferred-citation and references")
