"""All targets by name."""

from __future__ import annotations

from expertflow.tests.fuzz.checkpoint_files import checkpoint_targets
from expertflow.tests.fuzz.connections import connection_targets
from expertflow.tests.fuzz.http_bodies import body_targets
from expertflow.tests.fuzz.learned_files import learned_targets
from expertflow.tests.fuzz.messages import decoder_targets, scheduler_target
from expertflow.tests.fuzz.target import Target
from expertflow.tests.fuzz.written_files import written_targets

TARGETS: dict[str, Target] = {
    target.name: target
    for target in [
        *decoder_targets(),
        scheduler_target(),
        *connection_targets(),
        *body_targets(),
        *checkpoint_targets(),
        *written_targets(),
        *learned_targets(),
    ]
}
