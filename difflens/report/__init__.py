"""Torch-free reading of a run folder: tables, figures and one self-contained report.html."""

from difflens.report.page import write_report
from difflens.report.tables import summary_markdown, summary_table

__all__ = ["summary_markdown", "summary_table", "write_report"]
