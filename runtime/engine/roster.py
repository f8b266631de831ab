"""The supervisor's decisions on start, restart and introduction of stages, without a process or a clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...errors import CheckpointError, EngineError, ExpertFlowError, UsageError
from ...ipc.messages import ErrorFacts, Peer, PeerDied
from ...ipc.transport.addresses import Party

RESTART_WINDOW_S = 60.0
"""Seconds of work within which the deaths of a stage are counted."""
PERMANENT_ERRORS = (CheckpointError, UsageError)
"""Errors that a restart would meet again: files or options are wrong."""

Facts = dict[str, int | float | str]


class Spawn(NamedTuple):
    """Start this stage with this epoch."""

    party: Party


class SendControl(NamedTuple):
    """Send a message to a stage."""

    party: Party
    message: Peer | PeerDied


class Kill(NamedTuple):
    """Kill a stage that does not become ready; its death is then handled like any other."""

    party: Party


class GiveUp(NamedTuple):
    """End the engine; the user sees `cause`."""

    cause: ExpertFlowError


RosterAction = Spawn | SendControl | Kill | GiveUp


class Member:
    """State of one stage."""

    def __init__(self) -> None:
        self.epoch = 0
        self.started_s = 0.0
        self.ready_s = 0.0
        self.worked_s = 0.0
        self.facts: Facts | None = None
        self.failure: ExpertFlowError | None = None
        self.overdue = False
        self.deaths: list[tuple[float, ExpertFlowError]] = []

    @property
    def ready(self) -> bool:
        """Return whether the current start of the stage is ready."""
        return self.facts is not None


class Roster:
    """State machine of all stages: events in, actions out.

    Until every stage was ready once, any death ends the engine; afterwards the stage is restarted. More than
    `restart_limit` deaths of one stage within a minute end the engine with the first of their causes. The minute counts
    work only: otherwise a stage that starts slowly and dies could restart for ever.
    """

    def __init__(self, peers: Mapping[str, Iterable[str]], restart_limit: int, start_timeout_s: float) -> None:
        self.members = {stage: Member() for stage in peers}
        self.complete = False
        self._peers = {stage: [peer for peer in names if peer in peers] for stage, names in peers.items()}
        self._restart_limit = restart_limit
        self._start_timeout_s = start_timeout_s

    def start(self, now_s: float) -> list[RosterAction]:
        """Start every stage."""
        return [self._spawn(stage, now_s) for stage in self.members]

    def is_current(self, party: Party | None) -> bool:
        """Return whether messages of this party count: late messages of older epochs do not."""
        return party is not None and party.stage in self.members and self.members[party.stage].epoch == party.epoch

    def on_ready(self, stage: str, facts: Facts, now_s: float) -> list[RosterAction]:
        """Introduce a stage that is ready and its ready peers to each other."""
        member = self.members[stage]
        member.facts, member.ready_s = facts, now_s
        self.complete = self.complete or all(member.ready for member in self.members.values())
        actions: list[RosterAction] = []
        for peer in self._peers[stage]:
            if self.members[peer].ready:
                actions += [self._introduce(peer, stage), self._introduce(stage, peer)]
        return actions

    def on_failed(self, stage: str, error: ErrorFacts) -> None:
        """Note the error of a stage that is about to end."""
        self.members[stage].failure = error.to_error()

    def on_died(self, stage: str, end: EngineError, now_s: float) -> list[RosterAction]:
        """Restart a stage that has ended as `end` says, and notify its peers at once. Its own error takes precedence.

        The engine gives up at the restart limit, or at once where a restart would meet the same error.
        """
        member, cause = self.members[stage], self.cause_of(stage, end)
        if not self.complete or isinstance(member.failure, PERMANENT_ERRORS):
            return [GiveUp(cause)]
        member.worked_s += now_s - member.ready_s if member.ready else 0.0
        recent = [death for death in member.deaths if member.worked_s - death[0] < RESTART_WINDOW_S]
        member.deaths = [*recent, (member.worked_s, cause)]
        if len(member.deaths) > self._restart_limit:
            return [GiveUp(_restart_limit_error(stage, member.deaths))]
        return [*self._notify_peers_of_death(stage), self._spawn(stage, now_s)]

    def cause_of(self, stage: str, end: EngineError) -> ExpertFlowError:
        """Return why a stage has ended as `end` says: the stage's own error, or that it was late, comes first."""
        member = self.members[stage]
        return member.failure or (self._timeout_error(stage) if member.overdue else end)

    def on_released(self, stage: str, now_s: float) -> list[RosterAction]:
        """Note the end of a stage that was asked to end, which is no death; `start_again` starts its successor."""
        member = self.members[stage]
        actions = self._notify_peers_of_death(stage)
        member.worked_s += now_s - member.ready_s if member.ready else 0.0
        member.facts = None
        return actions

    def start_again(self, stage: str, now_s: float) -> list[RosterAction]:
        """Start the successor of a stage that `on_released` took."""
        return [self._spawn(stage, now_s)]

    def check_timeouts(self, now_s: float) -> list[RosterAction]:
        """Kill every stage that has not become ready in time, once."""
        actions: list[RosterAction] = []
        for stage, member in self.members.items():
            waiting = member.epoch and not member.ready and not member.overdue
            if waiting and now_s - member.started_s > self._start_timeout_s:
                member.overdue = True
                actions.append(Kill(Party(stage, member.epoch)))
        return actions

    def _spawn(self, stage: str, now_s: float) -> Spawn:
        member = self.members[stage]
        member.epoch += 1
        member.started_s, member.facts, member.failure, member.overdue = now_s, None, None, False
        return Spawn(Party(stage, member.epoch))

    def _notify_peers_of_death(self, stage: str) -> list[RosterAction]:
        """Notify the ready peers of a stage that was ready; a stage that was not was never introduced."""
        member = self.members[stage]
        peers = [peer for peer in self._peers[stage] if member.ready and self.members[peer].ready]
        died = PeerDied(stage, member.epoch)
        return [SendControl(Party(peer, self.members[peer].epoch), died) for peer in peers]

    def _introduce(self, stage: str, to: str) -> SendControl:
        member = self.members[stage]
        return SendControl(Party(to, self.members[to].epoch), Peer(stage, member.epoch, member.facts or {}))

    def _timeout_error(self, stage: str) -> EngineError:
        text = f"was not ready after {self._start_timeout_s:g} s"
        return EngineError(text, f"stage {stage}", "Raise start_timeout_s if the machine is slow")


def _restart_limit_error(stage: str, deaths: list[tuple[float, ExpertFlowError]]) -> EngineError:
    first = deaths[0][1]
    text = f"died {len(deaths)} times within a minute; the first time: {first}"
    return EngineError(text, f"stage {stage}", "Remove the cause, or raise restart_limit")
