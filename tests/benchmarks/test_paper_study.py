"""The pure parts of the paper's comparison: the order of runs, prompts, figures, ratios, tables, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.benchmarks.models import EXAMPLES
from expertflow.benchmarks.paper_study import study as module
from expertflow.benchmarks.paper_study.cells import BASE, BATCHES, LINKS, SLOTS, Cell, Choice, Run, all_runs
from expertflow.benchmarks.paper_study.figures import cell_of, figures_of, find_pair, share_equal, speed_up
from expertflow.benchmarks.paper_study.measure import Block, Contender, Result, Work, need_bytes_per_s
from expertflow.benchmarks.paper_study.picture import draw_study, lines_along
from expertflow.benchmarks.paper_study.study import Study, write_results
from expertflow.benchmarks.paper_study.systems import CACHE_MOE, EXPERTFLOW, MAIN, NAMES, ORACLE, SYSTEMS
from expertflow.benchmarks.paper_study.tables import page, targets
from expertflow.benchmarks.paper_study.workloads import FORMS, ask, held_out_text, prompts
from expertflow.configs.schema import Config
from expertflow.errors import EngineError
from tokenizers import Tokenizer


def result_of(cell: Cell, seconds: tuple[float, ...] = (2.0, 4.0, 1.0), **more: Any) -> Result:
    """A result of three blocks with 8 tokens each."""
    blocks = [
        Block(workload=name, tokens=8, seconds=each, later_tokens=6, later_seconds=each / 2)
        for name, each in zip("abc", seconds, strict=True)
    ]
    values = Result(
        **cell._asdict(), rate_bytes_per_s=1e9, blocks=blocks, steps=3, hits=30, misses=10, loads=12,
        loaded_bytes=6e9, useful=5, wasted=3, compute_s=4.0, transfer_s=5.0, elapsed_s=sum(seconds), accuracy=0.8,
        way="1 unit", slots_bytes=25, experts_bytes=100, generated=[[1, 2], [3]],
    )  # fmt: skip
    return values | more  # type: ignore[return-value]


def run_of(*results: Result) -> list[Result]:
    """A run with the given results behind one of ExpertFlow in the setting of the first."""
    setting = cell_of(results[0])
    return [result_of(setting._replace(system=EXPERTFLOW)), *results]


def test_the_base_case_comes_first_and_every_cell_is_beside_expertflow_once() -> None:
    runs = all_runs()
    first = [cell.system for run in runs[:2] for cell in run.cells]
    assert set(first) == set(MAIN) and all(run.cells[0] == BASE._replace(system=EXPERTFLOW) for run in runs[:2])
    assert all(len({cell.setting for cell in run.cells}) == 1 and len(run.cells) <= 5 for run in runs)
    others = [cell for run in runs for cell in run.cells[1:]]
    assert len(set(others)) == len(others) == (len(NAMES) - 1) * len(SLOTS) * len(BATCHES) * len(LINKS) * 2
    assert len({run.name for run in runs}) == len(runs), "each has a file of its own"


def test_a_choice_restricts_the_axes_it_names() -> None:
    chosen = [run for run in all_runs() if Choice(systems=[CACHE_MOE], batches=[1]).allows(run)]
    assert chosen and all(CACHE_MOE in run.name and run.cells[0].batch == 1 for run in chosen)
    assert {run.cells[0].slots for run in chosen} == set(SLOTS)


def test_a_system_that_is_not_trained_is_left_out_of_its_run() -> None:
    run = next(run for run in all_runs() if any(cell.system == "ExpertFlow, paper" for cell in run.cells))
    left = run.without(["ExpertFlow, paper"])
    assert left.name == run.name and len(left.cells) == len(run.cells) - 1


@pytest.mark.parametrize("system", SYSTEMS, ids=NAMES)
def test_every_system_is_a_configuration_over_the_link(system: Any) -> None:
    files = {kind: Path(kind) for kind in ("path", "gates", "paper")}
    work = Work(Path("model"), files, tokens=2, warm_tokens=2, settling_tokens=2, rounds=1)
    more = {"oracle_routes": "folder"} if system.name == ORACLE else {}
    config = work.config(BASE._replace(system=system.name), system, "5000B", **more)
    assert isinstance(config, Config) and (config.link, config.tier, config.link_rate) == ("dma", "host", "5000B")
    assert (config.expert_memory, config.batch_size) == ("25%", 8)


@pytest.mark.parametrize("form", FORMS)
def test_prompts_have_the_form_of_their_data_set_and_are_the_same_at_every_call(form: Any) -> None:
    text = held_out_text()
    first = prompts(text, form, 0, 3)
    assert first == prompts(text, form, 0, 3) and len(set(first + prompts(text, form, 1, 3))) == 6
    mark = {"alpaca": "### Response:", "wmt16": "German phrase:", "xsum": "Summarize the above", "aime": "Answer:"}
    assert all(mark[form] in prompt for prompt in first)


def test_a_model_without_a_tokenizer_is_asked_by_token_ids(tmp_path: Path) -> None:
    texts = ask(EXAMPLES / "model", "xsum", 0, 2)
    ids = ask(tmp_path, "xsum", 0, 2)
    assert texts == prompts(held_out_text(), "xsum", 0, 2)
    tokenizer = Tokenizer.from_file(str(EXAMPLES / "model" / "tokenizer.json"))
    assert [tokenizer.encode(str(text)).ids for text in texts] == ids


def test_figures_of_a_cell() -> None:
    figures = figures_of(result_of(BASE))
    assert figures.tokens_per_s.estimate == 4.0 and figures.decoded_per_s.estimate == 6.0
    assert figures.hit_ratio == 0.75
    assert (figures.loads_a_token, figures.wasted_a_token) == (0.5, 0.125)
    assert figures.step_of_bound == pytest.approx(7 / 5) and figures.overlap == pytest.approx((4 + 5 - 7) / 4)
    assert figures.saved_memory == 0.75


def test_a_speed_up_is_the_median_of_the_same_blocks() -> None:
    mine, theirs = result_of(BASE), result_of(BASE, (3.0, 4.0, 3.0))
    assert speed_up(mine, theirs).estimate == 1.5
    other = theirs | {"blocks": list(reversed(theirs["blocks"]))}
    with pytest.raises(ValueError, match="other workloads"):
        speed_up(mine, other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shorter"):
        speed_up(mine, theirs | {"blocks": theirs["blocks"][:1]})  # type: ignore[arg-type]


def test_equal_sequences_are_counted_whole() -> None:
    theirs = result_of(BASE, generated=[[1, 2], [4]])
    assert share_equal(result_of(BASE), theirs) == 0.5


def test_what_on_demand_needs_is_its_bytes_in_the_time_of_its_computing() -> None:
    assert need_bytes_per_s(result_of(BASE)) == 1.5e9


def test_targets_say_what_was_missed() -> None:
    slow = result_of(BASE._replace(system=CACHE_MOE))
    assert "≥ 1.5 | 1.00 (1.00–1.00) | missed" in targets([run_of(slow)])
    slower = result_of(BASE._replace(system=CACHE_MOE), (4.0, 8.0, 2.0))
    assert "≥ 1.5 | 2.00 (2.00–2.00) | met" in targets([run_of(slower)])


def test_ratios_are_of_one_run_only() -> None:
    """ExpertFlow in another run, on a machine that was slower then, is not what a system is compared with."""
    other = [result_of(BASE._replace(system=EXPERTFLOW), (9.0, 9.0, 9.0)), result_of(BASE._replace(system="static"))]
    pair = find_pair([other, run_of(result_of(BASE._replace(system=CACHE_MOE)))], BASE._replace(system=CACHE_MOE))
    assert pair is not None and speed_up(*pair).estimate == 1.0
    assert find_pair([other], BASE._replace(system=CACHE_MOE)) is None


def test_pages_and_picture_are_made_of_what_is_there(tmp_path: Path) -> None:
    runs = [run_of(*(result_of(BASE._replace(system=name, link=link)) for name in MAIN[1:])) for link in (0.5, 1.0)]
    text = page("command", "about", runs, {"a run": "no memory"})
    assert f"\n| {EXPERTFLOW} |" in text and f"\n| × {CACHE_MOE} |" in text and "- a run: no memory" in text
    assert set(lines_along(runs, "link")) == set(MAIN[1:]) and lines_along(runs, "batch") == {}
    draw_study(runs, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 1000
    draw_study(runs[:1], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.fixture
def work() -> Work:
    return Work(Path("model"), {}, tokens=2, warm_tokens=2, settling_tokens=2, rounds=1)


def test_a_study_goes_on_where_it_ended(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a file is not measured again, unless a system is missing; a failure is named and ends nothing."""
    measured: list[Cell] = []

    def measure(contenders: list[Contender], rate: float) -> list[Result]:
        cells = [contender.cell for contender in contenders]
        measured.extend(cells if rate else [])
        if rate and cells[0].batch == 16:
            raise EngineError("stopped", "engine", "Try again")
        return [result_of(cell) for cell in cells]

    monkeypatch.setattr(module, "measure", measure)
    settings = [BASE._replace(batch=batch) for batch in (8, 16, 1)]
    runs = [Run((each._replace(system=EXPERTFLOW), each._replace(system=CACHE_MOE))) for each in settings]
    study = Study(tmp_path, tmp_path, lambda cell: work, lambda text: None)
    write_results(study._file(runs[0]), [result_of(cell) for cell in runs[0].cells])
    study.run(runs, minutes=0)
    assert measured == [*runs[1].cells, *runs[2].cells]
    assert list(study.failures) == [runs[1].name] and len(study.runs()) == 2
    assert study.needs() == {"widened_16": 1.5e9, "widened_1": 1.5e9}
    assert json.loads(study._file(runs[2]).read_text())[0]["batch"] == 1
    wider = Run((*runs[0].cells, runs[0].cells[0]._replace(system="static")))
    study.run([wider], minutes=0)
    assert measured[-3:] == list(wider.cells)
