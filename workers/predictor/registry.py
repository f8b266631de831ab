"""Which predictor a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...configs.schema import Config
from ...errors import UsageError
from .base.forecaster import Forecaster
from .base.model_shape import ModelShape

FILE_NAME = "predictor.npz"
"""A model folder may carry a predictor of this name, which is used unless another is named."""


def make_forecaster(config: Config, subject: ModelShape) -> Forecaster | None:
    """The predictor that `config.predictor` names, None for `none`.

    Raises UsageError if a file it needs is missing or is none, CheckpointError if it belongs to another model.
    """
    name = chosen_predictor(config, subject)
    if name == "none":
        return None
    return _of_stacks(name, config, subject) if subject.encoder_layers else _MAKERS[name](config, subject)


def _of_stacks(name: str, config: Config, subject: ModelShape) -> Forecaster:
    """The encoder reads a prompt once and at a time, so what was trained on what comes one by one is the decoder's."""
    from .base.encoder_decoder import EncoderDecoderForecaster

    if name == "paper":
        what = "predictor 'paper' reads prompts and outputs as one text, which this model does not"
        raise UsageError(what, "predictor", "Take table, or path with a file of its own")
    encoder = _MAKERS["table" if name == "path" else name](config, subject.of_stack("encoder"))
    decoder = _MAKERS[name](config, subject.of_stack("decoder"))
    return EncoderDecoderForecaster(encoder, decoder, subject.encoder_layers, subject.layers, subject.experts)


def chosen_predictor(config: Config, subject: ModelShape) -> str:
    """What `auto` comes to."""
    if config.predictor != "auto":
        return config.predictor
    carried = bool(subject.folder) and (Path(subject.folder) / FILE_NAME).is_file()
    return "path" if config.predictor_file or carried else "table"


def predictor_file(config: Config, subject: ModelShape) -> Path:
    """The file that the configuration names, else the one in the model's folder."""
    if config.predictor_file:
        return Path(config.predictor_file)
    beside = Path(subject.folder) / FILE_NAME
    if not subject.folder or not beside.is_file():
        command = f"expertflow train TRACE --kind {config.predictor} --out FILE"
        remedy = f"Train one (`{command}`) and name it with --predictor-file"
        raise UsageError(f"predictor '{config.predictor}' needs a trained file", "predictor_file", remedy)
    return beside


def _path(config: Config, subject: ModelShape) -> Forecaster:
    from .path.forecaster import load_path

    return load_path(predictor_file(config, subject), subject)


def _paper(config: Config, subject: ModelShape) -> Forecaster:
    from .t5.forecaster import load_paper

    return load_paper(predictor_file(config, subject), subject)


def _table(config: Config, subject: ModelShape) -> Forecaster:
    from .base.token_table import TokenTable

    return TokenTable(subject.layers, subject.experts, subject.top_k)


def _previous(config: Config, subject: ModelShape) -> Forecaster:
    from .baselines.previous import Previous

    return Previous(subject.layers, subject.experts, subject.top_k)


def _matrices(config: Config, subject: ModelShape) -> Forecaster:
    from .baselines.activation_matrices import ActivationMatrixForecaster

    return ActivationMatrixForecaster(subject.layers, subject.experts, subject.top_k)


def _everything(config: Config, subject: ModelShape) -> Forecaster:
    from .baselines.everything import Everything

    return Everything(subject.layers, subject.experts)


def _noise(config: Config, subject: ModelShape) -> Forecaster:
    from .baselines.adversarial import Noise

    return Noise(subject.layers, subject.experts, seed=0)


def _opposite(config: Config, subject: ModelShape) -> Forecaster:
    from .baselines.adversarial import Opposite

    return Opposite(_table(config, subject))


def _oracle(config: Config, subject: ModelShape) -> Forecaster:
    from .baselines.oracle import Oracle
    from .routing_recording import read_recording

    recording = read_recording(config.oracle_routes)
    if subject.stack is not None:
        from .base.encoder_decoder import own_parts

        recording = own_parts(recording, subject.stack, subject.encoder_layers)
    return Oracle(subject.layers, subject.experts, recording)


_MAKERS: dict[str, Callable[[Config, ModelShape], Forecaster]] = {
    "path": _path,
    "paper": _paper,
    "table": _table,
    "previous": _previous,
    "matrices": _matrices,
    "everything": _everything,
    "noise": _noise,
    "opposite": _opposite,
    "oracle": _oracle,
}
