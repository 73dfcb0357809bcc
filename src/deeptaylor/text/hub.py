"""Models that read text, by name: `hf:PATH` with its tokenizer, or `package.module:factory` that gives both."""

from __future__ import annotations

import io
import os
import warnings
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..adapters.optional import import_zoo
from ..adapters.zoo import built
from ..errors import MissingExtra, ModelLoadError

FORMS = "hf:PATH (a folder written by save_pretrained, or a .gguf file) or package.module:factory"


def load_reader(source: str) -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer.

    Args:
        source: `hf:` and a folder, a .gguf file in one, or a name that transformers has in its cache; or a function
            without arguments that returns (model, tokenizer).

    Raises:
        ModelLoadError: nothing there, or something else.
        MissingExtra: transformers is not installed.
    """
    prefix, _, rest = source.partition(":")
    if not rest:
        raise ModelLoadError(f"{source!r} is no model that reads text; write {FORMS}")
    if prefix != "hf":
        made = built(source)
        if not isinstance(made, tuple) or len(made) != 2:
            raise ModelLoadError(f"{source} gives a {type(made).__name__}; for texts it must give (model, tokenizer)")
        model, tokenizer = made
        return model.eval(), tokenizer
    return _hugging_face(source, rest)


def _hugging_face(source: str, where: str) -> tuple[Any, Any]:
    path = Path(where)
    looks_local = where.startswith((".", os.sep, "~")) or path.suffix == ".gguf"
    if looks_local and not path.expanduser().exists():
        raise ModelLoadError(f"--model {source}: there is nothing at {path}")
    transformers = transformers_ready()
    folder, options = str(path.expanduser()), {}
    if path.suffix == ".gguf":
        folder, options = str(path.expanduser().parent), {"gguf_file": path.name}
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # progress bars of its own
            warnings.simplefilter("ignore")  # model zoos warn about their own past
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            if options:  # llama.cpp's format, of models that write
                kind = transformers.AutoModelForCausalLM
            else:
                named = (transformers.AutoConfig.from_pretrained(folder).architectures or [""])[0]
                kind = getattr(transformers, named, transformers.AutoModel)
            model, read = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    except Exception as error:  # transformers raises whatever its readers meet
        here = path.expanduser().exists()
        hint = "; was it cut short? Copy or save it again" if here else f"; nor is there a folder {where!r} here"
        raise ModelLoadError(f"--model {source} can't be loaded ({type(error).__name__}): {error}{hint}") from error
    # what a bare encoder makes of [CLS] is not looked at, and many files leave it out
    missing = sorted(name for name in read["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelLoadError(
            f"--model {source} lacks {len(missing)} weights of its {kind.__name__} ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}), which would be random; fine-tune and save the whole model first"
        )
    return model.eval(), tokenizer


def transformers_ready() -> Any:
    """transformers, without progress bars, and past a torchvision built for another torch."""
    if find_spec("transformers") is None:
        raise MissingExtra("models of Hugging Face need transformers", "text")
    if find_spec("torchvision") is not None:
        import_zoo("torchvision")  # transformers imports it where it finds it
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
