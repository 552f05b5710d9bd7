"""In the place of xllamacpp: a server that is no server; ADDRESS is where it says that it listens."""

from types import SimpleNamespace

ADDRESS = ""


def CommonParams():
    return SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())


def Server(params):
    return SimpleNamespace(listening_address=ADDRESS)
