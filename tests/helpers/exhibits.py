"""What notebooks left in a folder of exhibits."""

import json


def claims(folder, notebook="*"):
    """What a notebook recorded of each claim, by the claim's id."""
    found = [one for path in folder.glob(f"{notebook}.claims.json") for one in json.loads(path.read_text())]
    return {one["id"]: one for one in found}


def verdicts(folder, notebook="*"):
    """The verdict of each claim that a notebook tests."""
    return {claim: one["verdict"] for claim, one in claims(folder, notebook).items()}


def provenance(folder, exhibit):
    """The json of an exhibit: how it was made, and what it shows."""
    return json.loads((folder / f"{exhibit}.json").read_text())
