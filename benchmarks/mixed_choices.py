"""Measure what every choice of layers in 8 bits costs, for a small model: does `quantize --mixed` take the best one?

expertflow trace TRACE --model MODEL --prompts examples/prompts.txt
python -m expertflow.benchmarks.mixed_choices MODEL examples/held_out.txt --mixed TRACE --layers 2

transformers reads the text in float32 with the rounded weights, once for each choice.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from expertflow.runtime.quality.contributions import measure_contributions
from expertflow.runtime.text.codec import TextCodec
from expertflow.workers.quantize.importance import Importance, count_loads, decoder_layers, read_routing_of
from expertflow.workers.quantize.mixing import Mixture, measure_costs
from expertflow.workers.quantize.plan import CHANNEL, WIDE_BITS, Precision, QuantisePlan
from expertflow.workers.quantize.rounding import dequantise, quantise
from expertflow.workers.surveyor.surveyor import survey_folder
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .report import show_table

ROWS, ROW_TOKENS = 32, 64
NARROW_BITS = 4
Weights = dict[str, Tensor]
"""Parameters of the experts of a layer, by name."""


def main() -> None:
    arguments = parse_arguments()
    divergence = Divergence(arguments.model, arguments.text)
    chosen, costs = choose(arguments.model, arguments.mixed, arguments.layers)
    choices = list(itertools.combinations(costs, arguments.layers))
    found = {choice: divergence.of(choice) for choice in choices}
    ends = {"none": divergence.of(()), "all": divergence.of(tuple(costs))}
    show_table(f"KL of layers in {WIDE_BITS} bits, {len(choices)} choices", list(_rows(found, ends, chosen, costs)))


def choose(model: Path, trace: Path, count: int) -> tuple[tuple[int, ...], dict[int, float]]:
    """Return the layers that `quantize --mixed` takes, and its estimate of each layer's cost."""
    survey = survey_folder(model)
    layers, routing = decoder_layers(survey), read_routing_of(survey, trace)
    contributions = measure_contributions(survey, list(layers), routing, lambda *progress: None)
    importance = Importance(list(layers.values()), count_loads(routing, trace), contributions)
    matrices = QuantisePlan(model, Precision(NARROW_BITS, CHANNEL)).matrices
    with tempfile.TemporaryDirectory() as folder:
        costs = measure_costs(matrices, CHANNEL, importance, Path(folder, "costs"), lambda *progress: None)
    return Mixture(importance, count / len(layers)).choose(costs), costs


class Divergence:
    """A model in memory whose layers take any number of bits."""

    def __init__(self, model: Path, text: Path) -> None:
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        codec = TextCodec(str(model))
        ids = codec.encode(text.read_text())[: ROWS * ROW_TOKENS]
        codec.close()
        self._ids = torch.tensor(ids).view(-1, ROW_TOKENS)
        self._weights = {number: _experts(layer) for number, layer in enumerate(self._layers) if _experts(layer)}
        self._original = {number: _copies(own) for number, own in self._weights.items()}
        self._expected = self._read()

    @property
    def _layers(self) -> Iterable[torch.nn.Module]:
        return self._model.get_submodule("model.layers").children()

    def of(self, wide: tuple[int, ...]) -> float:
        """Return the mean KL divergence, in nats a token, with these layers in 8 bits and the others in 4."""
        for number, own in self._weights.items():
            bits = WIDE_BITS if number in wide else NARROW_BITS
            for name, parameter in own.items():
                parameter.copy_(_rounded(self._original[number][name], bits))
        found = torch.nn.functional.kl_div(self._read(), self._expected, log_target=True, reduction="sum")
        return float(found) / self._expected.shape[:2].numel()

    @torch.inference_mode()
    def _read(self) -> Tensor:
        """Return log probabilities [rows, tokens, vocabulary]; the last token of a row expects nothing."""
        return self._model(self._ids[:, :-1]).logits.log_softmax(-1)


def _experts(layer: torch.nn.Module) -> Weights:
    return {name: each.detach() for name, each in layer.named_parameters() if ".experts." in f".{name}"}


def _copies(weights: Weights) -> Weights:
    return {name: each.clone() for name, each in weights.items()}


def _rounded(stack: Tensor, bits: int) -> Tensor:
    """Round matrices [experts, out, in], each by itself, as the copy of a bfloat16 model has them."""
    return torch.stack([dequantise(*quantise(each.bfloat16(), bits, each.shape[1])).float() for each in stack])


def _rows(
    found: Mapping[tuple[int, ...], float],
    ends: Mapping[str, float],
    chosen: tuple[int, ...],
    costs: Mapping[int, float],
) -> Iterator[dict[str, object]]:
    """Yield rows of the table: every choice, the best first, and what is the same for all layers."""
    for choice in sorted(found, key=lambda choice: found[choice]):
        layers = ", ".join(map(str, choice)) + (" (by --mixed)" if choice == chosen else "")
        yield {"layers": layers, "kl": f"{found[choice]:.5f}", "estimate": f"{sum(costs[each] for each in choice):.2g}"}
    yield {"layers": "mean of all choices", "kl": f"{sum(found.values()) / len(found):.5f}", "estimate": ""}
    for name, divergence in ends.items():
        yield {"layers": name, "kl": f"{divergence:.5f}", "estimate": ""}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--mixed", type=Path, required=True, metavar="TRACE")
    parser.add_argument("--layers", type=int, default=1, help="how many get 8 bits")
    return parser.parse_args()


if __name__ == "__main__":
    main()
