"""The summary's numbers are those of metrics.json, in every form, and it fits a terminal."""

import io
from typing import Any

import pytest
from rich.console import Console
from sweep_folder import run_metrics

from difflens.report import summary_markdown, summary_table
from difflens.report.measures import fairness
from difflens.report.page import chance_sentence, result_sentence
from difflens.report.tables import summary_lines

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@pytest.fixture
def metrics() -> dict[str, Any]:
    return run_metrics()


def printed(metrics: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary_table(metrics))
    return console.export_text()


def test_cells_are_the_numbers_of_the_json(metrics: dict[str, Any]) -> None:
    cells = {measure.label: measure.cells for measure in summary_lines(metrics)}
    assert cells == {
        "FD, soft ↓": ("0.226", "0.006"),
        "FD, hard ↓": ("0.225", "0.005"),
        "FD by chance": ("0.025", "0.025"),
        "FD², unbiased ↓": ("0.0501", f"{MINUS}0.0021"),
        "female (target 50 %)": (f"34.0 % (30.0{DASH}38.0)", f"50.3 % (46.3{DASH}54.3)"),
        "male (target 50 %)": (f"66.0 % (62.0{DASH}70.0)", f"49.7 % (45.7{DASH}53.7)"),
        "intersectional FD ↓": ("0.400", "0.400"),
        "FID ↓": ("3.21", "3.05"),
        "KID ↓": (DASH, "0.0011 ± 0.0002"),
        "CLIP-I ↑": (DASH, "0.9712"),
        "CLIP-I, (cos + 1) / 2": (DASH, "0.9856"),
        "leakage into age, all / edited": (DASH, "2.1 % / 10.6 %"),
        "leakage into glasses, all / edited": (DASH, f"0.4 % / {DASH}"),
        "images changed": ("0", "82"),
        "editing precision ↑": (DASH, "5.10"),
        "images without a face": ("0", "0"),
        "leakage, worst ↓": (DASH, "2.1 %"),
    }


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_keeps_every_cell_on_its_line(metrics: dict[str, Any], width: int) -> None:
    lines = printed(metrics, width).splitlines()
    assert max(map(len, lines)) <= width
    for measure in summary_lines(metrics):
        assert [line for line in lines if measure.label in line and all(cell in line for cell in measure.cells)]
    assert "second_judge" in "".join(lines) and "abababababab" in "".join(lines)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_ten_methods_fit_without_a_cut(metrics: dict[str, Any], width: int) -> None:
    metrics["rows"] = [{**metrics["rows"][1], "method": f"method{i}", "fd": i / 1000} for i in range(10)]
    text = printed(metrics, width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    words = text.split()
    assert all(f"0.00{i}" in words and f"method{i}" in words for i in range(10)) and words.count("0.0011") == 10


def test_what_nobody_validated_says_so_wherever_it_is_named(metrics: dict[str, Any]) -> None:
    before = summary_markdown(metrics)
    assert "not validated" not in before
    metrics["protocol"]["not_validated"] = "glasses"
    lines = {line.label for line in summary_lines(metrics)}
    assert {"leakage into glasses (not validated), all / edited", "leakage into age, all / edited"} <= lines
    assert "· not validated glasses ·" in summary_markdown(metrics)
    metrics |= {"attribute": "gender+glasses"}
    assert summary_markdown(metrics).startswith("**gender+glasses (not validated) · ")


def test_names_are_text_and_never_markup(metrics: dict[str, Any]) -> None:
    metrics["classes"], metrics["target"] = ["[bold]a|b"], {"[bold]a|b": 1.0}
    metrics["rows"][0]["shares"] = {"[bold]a|b": {"share": 0.5}}
    assert "[bold]a|b (target 100 %)" in printed(metrics)
    assert f"| [bold]a\\|b (target 100 %) | 50.0 % | {DASH} |" in summary_markdown(metrics)


def test_markdown_is_a_rectangular_table(metrics: dict[str, Any]) -> None:
    lines = [line for line in summary_markdown(metrics).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4}
    assert lines[:3] == ["| measure | original | DiffLens |", "| --- | ---: | ---: |", "| FD, hard ↓ | 0.225 | 0.005 |"]
    assert len(lines) == 2 + len(summary_lines(metrics))


def test_the_sentences_follow_the_numbers(metrics: dict[str, Any]) -> None:
    assert result_sentence(metrics) == "gender: FD 0.226 → 0.006 over 512 images; 82 images were changed."
    assert "at or below" in chance_sentence(metrics)
    metrics["rows"][1].update(edited=1, fd_hard=0.0250)
    assert result_sentence(metrics).endswith("; 1 image was changed.")
    assert "above" in chance_sentence(metrics)
    assert result_sentence({}) == "This run has no result yet."


def test_with_prompts_the_mean_of_their_own_fd_is_the_result(metrics: dict[str, Any]) -> None:
    for row, (first, second) in zip(metrics["rows"], ((0.7, 0.5), (0.04, 0.02)), strict=True):
        found = {"a nurse": first, "a doctor": second}
        row["prompts"] = {name: {"fd": fd, "fd_hard": fd + 0.01, "fd_chance": 0.035} for name, fd in found.items()}
    sentence = result_sentence(metrics)
    assert sentence == "gender: FD 0.600 → 0.030, the mean of 2 prompts, over 512 images; 82 images were changed."
    assert "FD 0.040, above the 0.035" in chance_sentence(metrics)
    labels = [measure.label for measure in summary_lines(metrics)]
    cells = {measure.label: measure.cells for measure in summary_lines(metrics)}
    assert cells["FD by chance, mean over prompts"] == ("0.035", "0.035")
    assert cells["FD by chance, prompts pooled"] == ("0.025", "0.025")
    assert {"FD, soft, prompts pooled ↓", "FD, hard, prompts pooled ↓", "FD hard, a nurse"} <= {*labels}
    assert (
        fairness(metrics["rows"][1], "fd_hard") == pytest.approx(0.04) and fairness({"fd_hard": 0.2}, "fd_hard") == 0.2
    )
