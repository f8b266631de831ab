"""`expertflow batch`: a file of requests in OpenAI's batch format, with an engine of its own or a running one."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import tyro

from ...errors import UsageError
from ...ipc.messages import Welcome
from ...ipc.shared.rundir import engines_of
from ...workers.checkpoint.resolve import resolve_folder
from ..batch_files.calls import read_defaults
from ..batch_files.checking import check_lines, served_model, stated_facts
from ..batch_files.header import Option
from ..batch_files.job import STREAM, Job, JobFiles, JobModel, open_input, open_job, sort_files
from ..batch_files.progress import BatchProgress
from ..batch_files.runner import BatchRun, lines_under_way, report_faults
from ..batch_files.store import IndexedInput
from ..batch_files.view import BatchView
from ..batch_files.work_order import find_forecast, input_order, shared_order
from ..client import Client
from ..client.address import is_remote, run_dir_of
from ..client.async_client import AsyncClient
from ..cluster.hosts.control import joined_cluster
from ..command_line.base import DONE, WRONG_USAGE, EngineCommand
from ..openai.model import ServedModel
from ..text.codec import TextCodec
from .common.engine_client import refuse_engine_options, remembered_engine


@dataclass(frozen=True, kw_only=True)
class Batch(EngineCommand):
    """Run a file of requests in OpenAI's batch format, a line each; results are appended as they end.

    The same command goes on where an earlier run was stopped.
    """

    chooses_memory: ClassVar = True
    option_groups: ClassVar = {
        "Batch": (
            "requests",
            "results",
            "errors",
            "defaults",
            "check",
            "sort",
            "order",
            "served_model_name",
            "address",
            "keys",
            "cluster",
        ),
    }
    requests: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """File of requests (JSON lines: custom_id, method, url, body); - reads stdin."""
    results: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[OUT]")] = None
    """File of results, appended to; - writes results and errors to stdout, without resuming."""
    errors: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File for lines that cannot run or fail, with their numbers; by default OUT with .errors in its name."""
    defaults: Annotated[str, tyro.conf.arg(metavar="JSON|FILE")] = ""
    """Fields of bodies that do not name them, such as '{"max_tokens": 64}': an object of JSON, or a file with it."""
    check: bool = False
    """Check every line and run none."""
    sort: Literal["ended", "input"] = "ended"
    """Order of the results: as they end, or put into that of the requests when all have ended."""
    order: Literal["shared", "input"] = "shared"
    """Order in which requests run: those with a common prefix or the same forecast experts together, or as in IN."""
    served_model_name: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="NAME")] = field(
        default_factory=list
    )
    """A name that `model` in a body may have, besides that of the folder; repeat the option for more."""
    address: str = ""
    """Use the engine at this address; options of the engine but batch_invariant do not apply then."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of your keys, for an address over TCP (tcp://HOST:PORT); --model names a folder with the tokenizer."""
    cluster: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = ""
    """Use the cluster on the Ray at this address; auto: that of the last `expertflow cluster up`."""
    replicas: Annotated[tyro.conf.Suppress[int], msgspec.Meta(ge=1)] = 1
    """Replicas of the cluster, once it was joined."""

    def run(self) -> int:
        if not self.cluster:
            return self._run()
        if self.address:
            raise UsageError("is one engine, and --cluster means several", "--address", "Leave one of them out")
        with joined_cluster(self.cluster) as joined:
            return replace(self, cluster="", address=joined.address, replicas=joined.replicas)._run()

    def _run(self) -> int:
        self._check_options()
        with open_input(self.requests) as given:
            if self.check:
                return self._check_lines(given)
            files = JobFiles.of(self.requests, self._required_results(), self.errors)
            with open_job(files, given, self._job_model(), self._bound_options()) as job:
                self._run_job(job, given)
            if self.sort == "input":
                sort_files(files, given.index)
            return WRONG_USAGE if job.ending.failed else DONE

    def _check_options(self) -> None:
        """Check the options before anything is read. Raises UsageError."""
        read_defaults(self.defaults)
        if self.sort == "input" and self.results == STREAM:
            remedy = "Leave it out, or name a file for the results"
            raise UsageError("results on stdout cannot be sorted: they are written as they end", "--sort", remedy)
        if self.address:
            refuse_engine_options(self.engine, self.preset, self.address)

    def _required_results(self) -> Path:
        if self.results is None:
            raise UsageError("no file of results is given", "OUT", "Name one: expertflow batch IN.jsonl OUT.jsonl")
        return self.results

    def _check_lines(self, given: IndexedInput) -> int:
        """Print the faults of all lines; return the exit code."""
        faults, model = 0, self._served(self._facts())
        with closing(model.codec):
            for number, fault in check_lines(given, model, read_defaults(self.defaults)):
                sys.stdout.write(f"{given.name}, line {number:,}: {fault}\n")
                faults += 1
        sys.stderr.write(f"{len(given.index):,} lines, {faults:,} that cannot run\n")
        return WRONG_USAGE if faults else DONE

    def _facts(self) -> Welcome:
        """Return the limits of the model: of the running engine, or as the model's folder states them."""
        if not self.address:
            return stated_facts(resolve_folder(self.engine.model, self.engine.revision))
        with Client(self.address, keys=self.keys, model=self._remote_model()) as client:
            return client.model

    def _remote_model(self) -> str:
        """Return the folder here with the tokenizer of an engine over TCP."""
        return self.engine.model if is_remote(self.address) else ""

    def _job_model(self) -> JobModel:
        folder = Path(self._facts().model)
        return JobModel(folder, (*self.served_model_name, folder.name)[0], self.engine.revision)

    def _served(self, facts: Welcome) -> ServedModel:
        return served_model(facts, self.served_model_name, [self.engine.model] if self.engine.model else [])

    def _bound_options(self) -> dict[str, Option]:
        """Return the options that results depend on, as far as they are known."""
        own = not self.address
        return {
            "defaults": msgspec.json.encode(dict(read_defaults(self.defaults)), order="sorted").decode(),
            "dtype": self.engine.dtype if own else None,
            "generation_settings": self.engine.generation_settings if own else None,
            "batch_invariant": self.engine.batch_invariant if own or self.engine.batch_invariant else None,
        }

    def _run_job(self, job: Job, given: IndexedInput) -> None:
        """Run what is left of a job, with an engine only if there is a request left."""
        progress = BatchProgress(len(given.index), int(given.index.ended.sum()), time.monotonic())
        report_faults(given, job, progress)
        if len(given.index.open_rows):
            with self._engine_address() as address, BatchView() as view:
                asyncio.run(self._run_lines(address, job, given, progress, view))
        sys.stderr.write(f"{progress.summary(time.monotonic())}\n")

    @contextmanager
    def _engine_address(self) -> Iterator[str]:
        if self.address:
            yield self.address
        else:
            with remembered_engine(self.engine) as engine:
                yield engine.address

    async def _run_lines(
        self, address: str, job: Job, given: IndexedInput, progress: BatchProgress, view: BatchView
    ) -> None:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(address, keys=self.keys, model=self._remote_model()))
            progress.started_s = time.monotonic()
            model = self._served(client.model)
            stack.callback(model.codec.close)
            run = BatchRun(
                given=given,
                job=job,
                model=model,
                progress=progress,
                show=view,
                batch_invariant=self.engine.batch_invariant,
                defaults=read_defaults(self.defaults),
                under_way=lines_under_way(client.model.batch_size, _count_engines(address)),
            )
            await run.run(client, self._work_order(given, model))

    def _work_order(self, given: IndexedInput, model: ServedModel) -> Iterator[np.ndarray]:
        if self.order == "input":
            return input_order(given)
        codec = TextCodec(str(model.folder))  # the model's own is used by another thread
        return shared_order(given, codec, find_forecast(model.folder, self.engine.predictor_file), self.replicas)


def _count_engines(address: str) -> int:
    return 1 if is_remote(address) else len(engines_of(Path(run_dir_of(address))))
