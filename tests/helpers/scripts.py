"""Scripts that tests run in processes or kernels of their own, by the names of their files in scripts/."""

from pathlib import Path

FOLDER = Path(__file__).with_name("scripts")


def path(name: str) -> Path:
    """A script's file."""
    return FOLDER / name


def text(name: str) -> str:
    """A script's text, as a cell of a notebook has it."""
    return path(name).read_text().rstrip("\n")
