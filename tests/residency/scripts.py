"""Conversations between ledger and holdings as plain text: what happens in, what both cores do about it out.

tests/data/scripts/README.md describes the language.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from expertflow.ipc.messages import Cause, Filled, Hint, Miss, Recall, Released, ResidentTable, StepPrediction
from expertflow.tests.residency.world import Broken, Shape, World, require
from expertflow.workers.compute.experts.holdings import Holdings, HoldingsAction, HoldingsEvent, Run
from expertflow.workers.loader.events import LedgerAction, LedgerEvent, PromoteFill, StartFill
from expertflow.workers.loader.ledger import Ledger

INDENT = "    "


class Script:
    """One script, played line by line in a world whose cores write down what they do."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._answers: list[str] = []
        slots, layers, experts = map(int, re.findall(r"\d+", self._header("given")))
        self._shape = Shape(slots, layers, experts, top_k=int(self._header("top-k")))
        self.world = World(self._shape, self._program(), self._ledger, self._holdings)
        for slot, key in enumerate(read_keys(self._header("compute holds", ""))):
            self.world.contents[slot] = key
            self.world.holdings.handle(Filled(slot, *key))
        self._answers.clear()

    def play(self) -> str:
        """Return the text with the answers of the cores below every event.

        Raises Broken with the line if an event is not possible there, or if the cores break the protocol.
        """
        played = [answer for line in self._lines if not line.startswith(INDENT) for answer in self._play_line(line)]
        return "\n".join(played) + "\n"

    def _play_line(self, line: str) -> Iterator[str]:
        yield line
        for pattern, event in EVENTS.items():
            if found := re.fullmatch(pattern, line):
                self._answers.clear()
                try:
                    event(self.world, *found.groups())
                except Broken as error:
                    raise Broken(f"{line}: {error}") from error
                yield from (INDENT + answer for answer in self._answers)
                return
        require(
            not line or re.match(r"#|given|top-k|compute holds|step \d+ uses", line) is not None, f"what is: {line}"
        )

    def _header(self, name: str, default: str | None = None) -> str:
        found = [line.removeprefix(name).lstrip(": ") for line in self._lines if line.startswith(name)]
        require(bool(found) or default is not None, f"a line that begins with {name!r} is missing")
        return found[0] if found else default or ""

    def _program(self) -> list[list[list[int]]]:
        """Return [step][layer] the experts that the step uses."""
        steps = [read_keys(line) for line in self._lines if re.match(r"step \d+ uses", line)]
        layers = range(self._shape.layers)
        return [[[expert for layer, expert in step if layer == wanted] for wanted in layers] for step in steps]

    def _ledger(self, shape: Shape) -> Ledger:
        ledger = Ledger(shape.slots, shape.layers, shape.experts, shape.top_k)
        return self._written_down(ledger, "loader")

    def _holdings(self, shape: Shape) -> Holdings:
        return self._written_down(Holdings(shape.slots, shape.layers, shape.experts), "compute")

    def _written_down(self, core: Any, name: str) -> Any:
        """Return the core, whose actions become answers from now on."""
        handle = core.handle

        def handle_and_write(event: LedgerEvent | HoldingsEvent) -> list[LedgerAction | HoldingsAction]:
            actions = handle(event)
            self._answers.extend(f"{name}: {describe(action)}" for action in actions)
            return actions

        core.handle = handle_and_write
        return core


# Events: what a line lets happen


def read_keys(text: str) -> list[tuple[int, int]]:
    """Return (layer, expert) of every `layer/expert` in the text."""
    return [(int(layer), int(expert)) for layer, expert in re.findall(r"(\d+)/(\d+)", text)]


def perform(world: World, action: str, which: int = 0) -> None:
    require(action in world.enabled(), f"not possible now: {action}")
    world.perform(action, which)


def receive(world: World, who: str, message: str) -> None:
    """Deliver the message that is longest under way; the script names its type."""
    link = world.to_loader if who == "loader" else world.to_compute
    require(bool(link) and type(link[0]).__name__ == message, f"no {message} is next on the way to {who}")
    perform(world, f"{who} receives")


def end_kernel(world: World, expert: str) -> None:
    perform(world, "kernel ends", place_of(int(expert), [running for running, _ in world.kernels]))


def end_fill(world: World, slot: str) -> None:
    perform(world, "fill ends", place_of(int(slot), list(world.fills)))


def place_of(number: int, under_way: list[int]) -> int:
    require(number in under_way, f"{number} is not among {under_way}")
    return under_way.index(number)


def hint(world: World, keys: str) -> None:
    """Tell the ledger of a hint, with certainty."""
    wanted = read_keys(keys)
    scores = np.zeros(world.shape.experts, np.uint8)
    scores[[expert for _, expert in wanted]] = 255
    world.advise(Hint(world.number, wanted[0][0], scores.tobytes()))


def predict(world: World, step: str, keys: str) -> None:
    """Tell the ledger of a prediction, with certainty."""
    scores = np.zeros((world.shape.layers, world.shape.experts), np.uint8)
    for key in read_keys(keys):
        scores[key] = 255
    world.advise(StepPrediction(int(step), scores.tobytes()))


EVENTS: dict[str, Callable[..., None]] = {
    r"(loader) receives (\w+)": receive,
    r"(compute) receives (\w+)": receive,
    r"(loader hears of compute|compute hears of loader|layer starts|layer ends)": perform,
    r"expert (\d+) is computed": end_kernel,
    r"the fill of slot (\d+) ends": end_fill,
    r"hint: (.+)": hint,
    r"prediction of step (\d+): (.+)": predict,
    r"loader dies": World.kill_loader,
    r"compute dies": World.kill_compute,
}


# Actions: what a core answers


def describe(action: LedgerAction | HoldingsAction) -> str:
    """Return one action in words; experts as `layer/expert`."""
    match action:
        case StartFill():
            urgent = "urgently " if action.urgent else ""
            return f"{urgent}fill slot {action.slot} with {action.layer}/{action.expert}{because(action.cause)}"
        case PromoteFill():
            return f"the fill of slot {action.slot} becomes urgent"
        case Run():
            return "run " + ", ".join(f"expert {expert} from slot {slot}" for expert, slot in action.experts)
        case _:
            return f"send {type(action).__name__}: {describe_message(action)}"


def describe_message(message: Filled | Recall | Miss | Released | ResidentTable) -> str:
    match message:
        case Filled():
            return f"slot {message.slot} holds {message.layer}/{message.expert}"
        case Recall():
            when = "now" if message.step < 0 else f"after layer {message.layer} of step {message.step}"
            return f"slots {list_of(message.slots)}, {when}{because(message.cause)}"
        case Miss():
            return describe_miss(message)
        case Released():
            return f"slots {list_of(message.slots)}"
        case _:
            held = [f"slot {slot} {layer}/{expert}" for slot, (layer, expert) in message.slots.items()]
            return (", ".join(held) or "nothing held") + (
                f"; Miss: {describe_miss(message.need)}" if message.need else ""
            )


def describe_miss(miss: Miss) -> str:
    return list_of([f"{miss.layer}/{expert}" for expert in miss.experts]) + f" in step {miss.step}"


def because(cause: Cause) -> str:
    return f" (for a {cause.kind} in layer {cause.layer})" if cause.kind not in ("", "policy") else ""


def list_of(items: list[Any]) -> str:
    return " ".join(str(item) for item in items)
