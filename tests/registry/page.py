"""docs/models.md: which architectures run, made of what trials of tiny random models of them showed.

`python -m expertflow.tests.registry.page` (or `make models`) tries every architecture and writes
docs/results/models.json and the page. The tests compare both with what they see.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from expertflow.errors import CheckpointError
from expertflow.tests.registry.enumeration import causal_types, other_modules
from expertflow.tests.registry.images import NO_IMAGES
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.model.architecture import WITH_IMAGES
from expertflow.workers.model.families.refusals import NOT_DISPATCHED
from transformers.utils.logging import disable_progress_bar

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "models.md", DOCS / "results" / "models.json"


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one model type."""

    model_type: str
    architecture: str = ""
    exact: bool = False
    """Equal to transformers with every prompt alone (I1b), the same bits for every budget (I1a)."""
    padding: bool = False
    moving: bool = False
    reason: str = ""
    """Why rows cannot be padded or moved."""
    hints: str = ""
    """Of which layers the router can be asked ahead: all, some or none."""
    refused: str = ""

    @classmethod
    def of(cls, model_type: str, survey: Survey, hints: str) -> Row:
        """Of a model that ran exactly."""
        rows = survey.rows
        return cls(
            model_type, survey.architecture, True, rows.padding, rows.moving, rows.reason, hints
        )  # fmt: skip


class Rows(msgspec.Struct, frozen=True):
    """All architectures of one release of transformers."""

    transformers: str
    models: list[Row]

    @property
    def by_type(self) -> dict[str, Row]:
        return {row.model_type: row for row in self.models}


def load_rows() -> Rows:
    """As they were last written."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Rows)


def try_one(model_type: str, folder: Path) -> Row:
    """A tiny model through survey and trial. An exception other than a typed refusal is a bug here or there."""
    from expertflow.tests.registry.tiny import save_tiny
    from expertflow.tests.registry.trial import TOLERANCE, live, reference
    from expertflow.workers.surveyor.surveyor import survey_checkpoint

    save_tiny(model_type, folder)
    try:
        survey = survey_checkpoint(str(folder), dtype="float32")
    except CheckpointError as error:
        return Row(model_type, refused=error.what)
    life, few = live(survey, survey.expert_count), live(survey, 3)
    row = Row.of(model_type, survey, life.hints)
    exact = life.error(reference(folder)) <= TOLERANCE and few.digests == life.digests
    return msgspec.structs.replace(row, exact=exact)


def try_all() -> Rows:
    """Every architecture, one after the other."""
    import torch
    import transformers

    torch.set_num_threads(1)
    rows = []
    for model_type in causal_types():
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            rows.append(try_one(model_type, Path(folder)))
        logging.getLogger(__name__).info("%s", rows[-1])
    return Rows(transformers.__version__, rows)


_HEAD = """# Models

For anyone who asks whether a model runs, and how well. Made by `make models` from trials of tiny random models with
transformers {version}; do not edit.

Every architecture here is one whose experts transformers dispatches itself and that it declares to be a causal language
model. Of each, a tiny random model with every kind of layer was built from the library's own configuration class, saved
under the names of published checkpoints, and run through loader and compute.

- **exact**: float32 logits of every row equal those of transformers on that row alone and unpadded to 1e-4 of the
  largest, its greedy tokens are the same, and no budget of expert slots changes a bit (I1a, I1b).
- **padding exact**: rows of different lengths may share a batch. Otherwise only rows of equal length do.
- **rows move**: rows join and leave running batches. Otherwise a batch stays together, and rows leave it when done.
- **hints**: of which layers the router can be asked ahead, so that experts are fetched earlier; speed only.
- **layout**: names and shapes of published checkpoints, as transformers' own conversion rules state them, are
  read in place. **Published checkpoint**: whether real published weights were run. None were: "not tried".
"""

_OUTSIDE = """
## Outside the interface

Adapted by hand (`workers/model/families/`), tested as the families of `tests/models/families.py` and in
`tests/system/test_encoder_decoder.py` and `test_nllb.py`; no published weights were tried either.

- `llama4_text`, and the language model of `llama4`: padding is exact beyond `floor_scale`, unlike the library's.
- `dbrx`: a configuration without `rope_theta` or `clip_qkv` in `attn_config` fails in the library itself.
- `jetmoe`: the experts of its MLPs are routed over slots; those of its attention belong to the skeleton.
- `switch_transformers`: a prompt goes through the encoder, the decoder starts by itself. Padding uses up no capacity.
- `nllb-moe`: the library's own forward is wrong. transformers {version} takes the 0 and 1 of the router's mask for the
  numbers of experts, so that two of them are ever computed. ExpertFlow follows transformers 4, with which these models
  were published (top-2, capacity and its order, the scale of `moe_token_dropout`), checked against a straight-line
  reference; I1b compares with the corrected library. Padding uses up no capacity, and moves no position, whatever
  `router_ignore_padding_tokens` says: in transformers {version} true lets padding use up capacity, and false does not.
"""

_NAMES = """
## Under another name

A `model_type` that transformers does not know runs as the model whose class `architectures` in config.json names, if
the weights have that model's names and shapes; the engine says so. So does Kimi-K2 (`kimi_k2` is DeepSeek-V3 with
`DeepseekV3ForCausalLM`). Code that lies in the folder is never run. Of a model that takes images, but whose folder has
no weights of a vision part, the language model runs alone.

## Not run

Families with routed experts in transformers that do not run, as the refusal says:

{families}
Checkpoints of any family that do not run, each named with its remedy:

- experts of one layer stored in several types or shapes (layers may differ): save it once in one dtype.
- adapters (PEFT) and weights with LoRA tensors inside: merge them first.
- names with a wrapper's prefix (`module.`, `_orig_mod.`):
  `python -m expertflow.workers.surveyor.strip_prefix FOLDER` takes it away in place.
- no output head, or the head of a classifier.

Sequences end where positions are exact no more: with RoPE of type `dynamic` at `max_position_embeddings`, since beyond
it keys that are cached keep other frequencies; with `longrope` at `original_max_position_embeddings`, where its factors
change for the whole batch.
"""

_IMAGES = """
## Images

With images ([vision.md](vision.md)) these run exactly: {running}. The others of transformers' image-text-to-text models
with routed experts do not:

"""

_COLUMNS = ("architecture", "class", "exact", "padding exact", "rows move", "hints", "layout", "published checkpoint")


def render(rows: Rows) -> str:
    """The page."""
    running = [row for row in rows.models if not row.refused]
    refused = [row for row in rows.models if row.refused]
    parts = [_HEAD.format(version=rows.transformers), f"\n{len(running)} of {len(rows.models)} run.\n\n"]
    parts += [_cells(_COLUMNS), _cells(["---"] * len(_COLUMNS)), *map(_line, running)]
    parts += ["\n## Limits\n\n", *(f"- `{row.model_type}`: {row.reason}\n" for row in running if row.reason)]
    none = [] if refused else ["None.\n"]
    parts += ["\n## Refused\n\n", *none, *(f"- `{row.model_type}`: {row.refused}\n" for row in refused)]
    parts += ["\nNot causal language models, as the refusal says (with images some run, see below):\n\n"]
    parts += [f"- {', '.join(f'`{each}`' for each in types)}\n" for types in other_modules().values()]
    parts += [_IMAGES.format(running=", ".join(f"`{each}`" for each in sorted(WITH_IMAGES)))]
    parts += [f"- `{model_type}`: {reason}\n" for model_type, reason in NO_IMAGES.items()]
    families = "".join(f"- `{model_type}`: {reason}\n" for model_type, reason in NOT_DISPATCHED.items())
    parts += [_NAMES.format(families=families)]
    return "".join([*parts, _OUTSIDE.format(version=rows.transformers)])


def _line(row: Row) -> str:
    flags = (row.exact, row.padding, row.moving)
    said = ("yes" if flag else "no" for flag in flags)
    return _cells([f"`{row.model_type}`", row.architecture, *said, row.hints, "read in place", "not tried"])


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |\n"


def main() -> int:
    disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rows = try_all()
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
    PAGE.write_text(render(rows))
    return 0 if all(row.exact or row.refused for row in rows.models) else 1


if __name__ == "__main__":
    sys.exit(main())
