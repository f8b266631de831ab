"""Which predictor a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...configs.schema import Config
from ...errors import UsageError
from ..checkpoint.survey import Survey
from .forecaster import Forecaster

FILE_NAME = "predictor.npz"
"""A model folder may carry a predictor of this name, which is used unless another is named."""


def make_forecaster(config: Config, survey: Survey) -> Forecaster | None:
    """The predictor that `config.predictor` names, None for `none`.

    Raises UsageError if a file it needs is missing or is none, CheckpointError if it belongs to another model.
    """
    if config.predictor == "none":
        return None
    if config.predictor in ("path", "paper"):
        return _trained(config, survey)
    return _UNTRAINED[config.predictor](config, survey)


def _trained(config: Config, survey: Survey) -> Forecaster:
    file = predictor_file(config, survey)
    if config.predictor == "paper":
        from .paper.forecaster import load_paper

        return load_paper(file, survey)
    from .path.forecaster import load_path

    return load_path(file, survey)


def predictor_file(config: Config, survey: Survey) -> Path:
    """The file that the configuration names, else the one in the model's folder."""
    if config.predictor_file:
        return Path(config.predictor_file)
    beside = Path(survey.folder) / FILE_NAME
    if not beside.is_file():
        remedy = "Train one (`expertflow train TRACE --out FILE`) and name it with --predictor-file"
        raise UsageError(f"predictor '{config.predictor}' needs a trained file", "predictor_file", remedy)
    return beside


def _table(config: Config, survey: Survey) -> Forecaster:
    from .token_table import TokenTable

    return TokenTable(survey.layers, survey.experts, survey.top_k)


def _previous(config: Config, survey: Survey) -> Forecaster:
    from .previous import Previous

    return Previous(survey.layers, survey.experts, survey.top_k)


def _matrices(config: Config, survey: Survey) -> Forecaster:
    from .matrices import Matrices

    return Matrices(survey.layers, survey.experts, survey.top_k)


def _everything(config: Config, survey: Survey) -> Forecaster:
    from .everything import Everything

    return Everything(survey.layers, survey.experts)


def _noise(config: Config, survey: Survey) -> Forecaster:
    from .liars import Noise

    return Noise(survey.layers, survey.experts, seed=0)


def _opposite(config: Config, survey: Survey) -> Forecaster:
    from .liars import Opposite

    return Opposite(_table(config, survey))


def _oracle(config: Config, survey: Survey) -> Forecaster:
    from .oracle import Oracle
    from .recording import read_recording

    return Oracle(survey.layers, survey.experts, read_recording(config.oracle_routes))


_UNTRAINED: dict[str, Callable[[Config, Survey], Forecaster]] = {
    "table": _table,
    "previous": _previous,
    "matrices": _matrices,
    "everything": _everything,
    "noise": _noise,
    "opposite": _opposite,
    "oracle": _oracle,
}
