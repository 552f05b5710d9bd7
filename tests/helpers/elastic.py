"""Elastic endpoints of the device model's levels, and which level they choose."""

from artifact.data.model import build
from disco_core.systems.elastic import ElasticEndpoint
from tests.helpers.levels import LEVELS

QUESTION = build("Why is the sea salty? Answer in three sentences.")
LONG = build("Tell me more about the garden. " * 120)
PERCENTS = (100, *LEVELS)
LENGTH = 16


def elastic(levels, choose=None, kind=ElasticEndpoint, **options):
    return kind(levels, choose, **{"n_ctx": 1024, "name": "device"} | options)


def by_length(percents, most=LENGTH):
    """A level for each request: the first for one that may have `most` tokens, the next for one of one more."""
    return lambda asked: percents[asked.max_tokens - most]


class Counted(ElasticEndpoint):
    """Counts the models that are in memory: vocabularies alone, and levels."""

    def _opened(self, path, **options):
        llama = super()._opened(path, **options)
        here = self.__dict__.setdefault("vocabularies" if "vocab_only" in options else "models", set())
        here.add(path.name)
        self.most = max(getattr(self, "most", 0), len(self.__dict__.get("models", ())))
        close = llama.close

        def closed():
            here.discard(path.name)
            close()

        llama.close = closed
        return llama
