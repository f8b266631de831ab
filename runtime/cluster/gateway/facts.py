"""Facts of the cluster as one engine. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ....ipc.messages import Welcome


def combine_facts(facts: Sequence[Welcome], queue_limit: int) -> Welcome:
    """Return the facts that hold for every replica; `batch_size` is that of all together. There must be one."""
    first = facts[0]
    return Welcome(
        model=first.model,
        vocabulary=min(each.vocabulary for each in facts),
        context=min(each.context for each in facts),
        eos_ids=first.eos_ids,
        queue_limit=queue_limit,
        batch_size=sum(each.batch_size for each in facts),
    )
