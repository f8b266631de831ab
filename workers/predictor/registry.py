"""Registry of predictors: makes the one that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...configs.schema import Config
from ...errors import UsageError
from .base.forecaster import Forecaster
from .base.model_shape import ModelShape

FILE_NAME = "predictor.npz"
"""A model folder may carry a predictor of this name, which is used unless another is named."""


def make_forecaster(config: Config, shape: ModelShape) -> Forecaster | None:
    """Return the predictor that `config.predictor` names, None for `none`.

    Raise UsageError if a file it needs is missing or is no predictor, CheckpointError if it belongs to another model.
    """
    name = choose_predictor(config, shape)
    if name == "none":
        return None
    return _encoder_decoder(name, config, shape) if shape.encoder_layers else _MAKERS[name](config, shape)


def _encoder_decoder(name: str, config: Config, shape: ModelShape) -> Forecaster:
    """Return one predictor for each stack. `path` is the decoder's: the encoder reads a prompt once, in one step."""
    from .base.encoder_decoder import EncoderDecoderForecaster

    if name == "paper":
        what = "predictor 'paper' reads prompts and outputs as one text, which this model does not"
        raise UsageError(what, "predictor", "Take table, or path with a file of its own")
    encoder = _MAKERS["table" if name == "path" else name](config, shape.of_stack("encoder"))
    decoder = _MAKERS[name](config, shape.of_stack("decoder"))
    return EncoderDecoderForecaster(encoder, decoder, shape.encoder_layers, shape.layers, shape.experts)


def choose_predictor(config: Config, shape: ModelShape) -> str:
    """Return the predictor's name; `auto` is `path` if the configuration or the folder has a file, else `table`."""
    if config.predictor != "auto":
        return config.predictor
    carried = bool(shape.folder) and (Path(shape.folder) / FILE_NAME).is_file()
    return "path" if config.predictor_file or carried else "table"


def predictor_file(config: Config, shape: ModelShape) -> Path:
    """Return the file that the configuration names, else the one in the model's folder.

    Raise UsageError if there is neither.
    """
    if config.predictor_file:
        return Path(config.predictor_file)
    beside = Path(shape.folder) / FILE_NAME
    if not shape.folder or not beside.is_file():
        command = f"expertflow train TRACE --kind {config.predictor} --out FILE"
        remedy = f"Train one (`{command}`) and name it with --predictor-file"
        raise UsageError(f"predictor '{config.predictor}' needs a trained file", "predictor_file", remedy)
    return beside


def _path(config: Config, shape: ModelShape) -> Forecaster:
    from .path.forecaster import load_path

    return load_path(predictor_file(config, shape), shape)


def _paper(config: Config, shape: ModelShape) -> Forecaster:
    from .t5.forecaster import load_t5

    return load_t5(predictor_file(config, shape), shape)


def _table(config: Config, shape: ModelShape) -> Forecaster:
    from .base.token_table import TokenTable

    return TokenTable(shape.layers, shape.experts, shape.top_k)


def _previous(config: Config, shape: ModelShape) -> Forecaster:
    from .baselines import Previous

    return Previous(shape.layers, shape.experts, shape.top_k)


def _matrices(config: Config, shape: ModelShape) -> Forecaster:
    from .baselines import ActivationMatrixForecaster

    return ActivationMatrixForecaster(shape.layers, shape.experts, shape.top_k)


def _everything(config: Config, shape: ModelShape) -> Forecaster:
    from .baselines import Everything

    return Everything(shape.layers, shape.experts)


def _noise(config: Config, shape: ModelShape) -> Forecaster:
    from .baselines import Noise

    return Noise(shape.layers, shape.experts, seed=0)


def _opposite(config: Config, shape: ModelShape) -> Forecaster:
    from .baselines import Opposite

    return Opposite(_table(config, shape))


def _oracle(config: Config, shape: ModelShape) -> Forecaster:
    from .baselines import Oracle
    from .routing_recording import read_recording

    recording = read_recording(config.oracle_routes)
    if shape.stack is not None:
        from .base.encoder_decoder import own_parts

        recording = own_parts(recording, shape.stack, shape.encoder_layers)
    return Oracle(shape.layers, shape.experts, recording)


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
