"""Write a checkpoint as GGUF in bfloat16 with llama.cpp's own converter: SOURCE, the folder of the checkpoint, FILE.

Models made for measuring have no tokenizer; their vocabulary is left out, which llama.cpp allows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    source, folder, file = (Path(each) for each in sys.argv[1:4])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import convert_hf_to_gguf as converter  # pyright: ignore[reportMissingImports]
    from conversion.base import TextModel  # pyright: ignore[reportMissingImports]

    if not (folder / "tokenizer.json").exists():
        TextModel.set_vocab = _set_no_vocab
    sys.argv = ["convert_hf_to_gguf", str(folder), "--outtype", "bf16", "--outfile", str(file)]
    converter.main()


def _set_no_vocab(model: Any) -> None:
    model._set_vocab_none()
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


if __name__ == "__main__":
    main()
