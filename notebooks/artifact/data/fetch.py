"""Public trace files, pinned by commit and sha256, fetched once into `build/traces/`.

`registry.txt` lists them. A file with the right hash is not fetched again, so an interrupted fetch continues where it
stopped, and a file has its name only after it is complete and verified.
"""

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from artifact.errors import TraceError
from artifact.files import BUILD

REGISTRY = Path(__file__).with_name("registry.txt")
CACHE = BUILD / "traces"
HOME = "https://raw.githubusercontent.com/"
MIRROR = "DISCO_TRACE_MIRROR"
CONNECTIONS = 4
RETRIES = 2


def address() -> str:
    """The base address of the files, with a slash at the end: DISCO_TRACE_MIRROR if it is set, else GitHub.

    TraceError if the mirror is not an http(s) address.
    """
    base = os.environ.get(MIRROR, "").strip() or HOME
    try:
        parts = urlsplit(base)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or any(c.isspace() for c in base):
        raise TraceError(f"{MIRROR} is {base!r}; it must be an address like http://127.0.0.1:8000/")
    return base.rstrip("/") + "/"


def fetch(
    files: str = "*", *, registry: Path | None = None, cache: Path | None = None, retries: int = RETRIES
) -> list[Path]:
    """Paths, in the registry's order, of its files that match a shell pattern; missing files are fetched.

    TraceError, which names the file and the remedy; the files that did arrive need not be fetched again.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    base = address()
    cache = CACHE if cache is None else cache
    store = pooch.create(path=cache, base_url=base, registry=None, retry_if_failed=retries)
    store.load_registry(registry or REGISTRY)
    names = [name for name in store.registry_files if fnmatchcase(name, files)]
    if not names:
        raise TraceError(f"no file of the registry matches {files!r}")
    missing = [name for name in names if not _verified(cache / name, store.registry[name])]
    if missing:
        _download(store, missing, base)
    return [cache / name for name in names]


def _verified(path: Path, sha256: str) -> bool:
    import pooch

    return path.is_file() and bool(pooch.file_hash(str(path)) == sha256)


def _download(store: Any, names: list[str], base: str) -> None:
    import pooch
    from tqdm import tqdm

    try:
        for folder in {(Path(store.path) / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)  # pooch's connections would race to make it
    except OSError as error:
        raise TraceError(f"cannot write {error.filename}: {error.strerror}") from error
    with (
        ThreadPoolExecutor(CONNECTIONS) as pool,
        tqdm(total=len(names), desc="public traces", unit="file", disable=None) as bar,
    ):
        # files are small: not streamed, so that no connection of a failed try stays open
        get = pooch.HTTPDownloader(stream=False)
        jobs = {pool.submit(store.fetch, name, downloader=get): name for name in names}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update()
        except (OSError, ValueError) as error:
            raise TraceError(_reason(jobs[job], store.path, base, error)) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _reason(name: str, folder: Path, base: str, error: Exception) -> str:
    """One line: the file, the error and the remedy."""
    response = getattr(error, "response", None)  # errors of requests are OSErrors with the HTTP response
    if response is not None:
        reason = f"{base}{name}: HTTP {response.status_code}; check {MIRROR} (unset, it is {HOME})"
    elif isinstance(error, OSError) and error.errno is not None:
        reason = f"cannot write {folder / name}: {error.strerror}; free some space or correct its permissions"
    elif isinstance(error, OSError):
        reason = f"{base}{name}: no complete response ({type(error).__name__}); check the network or {MIRROR}"
    elif "hash" in str(error):
        reason = f"{base}{name}: corrupt or incomplete, its sha256 is not the pinned one; check {MIRROR}"
    else:
        reason = f"{base}{name}: {type(error).__name__}: {error}; check {MIRROR}"
    return f"{reason}; files that are complete stay, run the command again to continue"
