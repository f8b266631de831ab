"""The sizes of the model whose routing is predicted."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...checkpoint.survey import Survey
from .forecaster import Stack


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The model whose routing is to be forecast."""

    layers: int
    """MoE layers."""
    experts: int
    """Of a layer."""
    top_k: int
    folder: str = ""
    """Its checkpoint; empty: there is none, only its routing."""
    fingerprint: str = ""
    """`Survey.fingerprint`; empty: unknown."""
    encoder_layers: int = 0
    """So many of the layers, the first, are an encoder's: its tokens and the decoder's are forecast apart."""
    stack: Stack | None = None
    """Which of the two `layers` are of, where they are forecast apart."""

    def of_stack(self, stack: Stack) -> ModelShape:
        """Its layers alone."""
        layers = self.encoder_layers if stack == "encoder" else self.layers - self.encoder_layers
        return replace(self, layers=layers, stack=stack)

    @staticmethod
    def of(survey: Survey) -> ModelShape:
        return ModelShape(
            layers=survey.layers,
            experts=survey.experts,
            top_k=survey.top_k,
            folder=survey.folder,
            fingerprint=survey.fingerprint,
            encoder_layers=survey.encoder_layers,
        )
