"""The sizes of the model whose routing is predicted."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...checkpoint.survey import Survey
from .forecaster import Stack


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes and identity of the model whose routing is predicted."""

    layers: int
    """MoE layers."""
    experts: int
    """Experts of a layer."""
    top_k: int
    folder: str = ""
    """Folder of the checkpoint; empty: there is only a trace of its routing."""
    fingerprint: str = ""
    """`Survey.fingerprint`; empty: unknown."""
    encoder_layers: int = 0
    """The first so many layers belong to an encoder; encoder and decoder are predicted separately."""
    stack: Stack | None = None
    """The stack that `layers` belong to, where the stacks are predicted separately."""

    def of_stack(self, stack: Stack) -> ModelShape:
        """Return the shape of one stack alone."""
        layers = self.encoder_layers if stack == "encoder" else self.layers - self.encoder_layers
        return replace(self, layers=layers, stack=stack)

    @staticmethod
    def of(survey: Survey) -> ModelShape:
        """Return the shape of a surveyed checkpoint."""
        return ModelShape(
            layers=survey.layers,
            experts=survey.experts,
            top_k=survey.top_k,
            folder=survey.folder,
            fingerprint=survey.fingerprint,
            encoder_layers=survey.encoder_layers,
        )
