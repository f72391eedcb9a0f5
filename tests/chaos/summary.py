"""Several runs in one table: what must be 0, and how much happened, for each seed and in all."""

from collections.abc import Mapping

from tests.chaos.report import Json, Report

Reports = Mapping[int, Report | None]
"""By seed; None where the run broke off."""


def summary(reports: Reports) -> str:
    """One row for each figure, one column for each seed, totals last."""
    seeds = [str(seed) for seed in reports]
    rows = [("", [*seeds, "all"])]
    for name, figures in _figures(reports).items():
        known = [figure for figure in figures if figure is not None]
        rows.append((name, [*("broken off" if one is None else str(one) for one in figures), str(sum(known))]))
    widths = [max(len(row[1][column]) for row in rows) for column in range(len(seeds) + 1)]
    label = max(len(name) for name, _ in rows)
    return "\n".join(
        f"  {name:{label}}  {'  '.join(f'{cell:>{width}}' for cell, width in zip(cells, widths, strict=True))}"
        for name, cells in rows
    )


def summary_document(reports: Reports) -> Json:
    """The same as JSON, with everything that each run found."""
    return {
        "good": all(report and report.good for report in reports.values()),
        "broken_off": [seed for seed, report in reports.items() if report is None],
        "totals": {
            name: sum(figure for figure in figures if figure is not None) for name, figures in _figures(reports).items()
        },
        "runs": [report.document() for report in reports.values() if report],
    }


def _figures(reports: Reports) -> dict[str, list[int | None]]:
    """By name, in the order of the seeds."""
    names = list(dict.fromkeys(name for report in reports.values() if report for name in _of(report)))
    return {name: [_of(report)[name] if report else None for report in reports.values()] for name in names}


def _of(report: Report) -> dict[str, int]:
    counted = {name: int(value) for name, value in report.facts if value.isdigit() and name != "seed"}
    return {**counted, **report.amounts, **{f"{zero.name} (0)": len(zero.found) for zero in report.zeros}}
