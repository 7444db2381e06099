"""What a run shows of itself: pictures, one HTML page, tables."""

from scarcely.reports.evidence import Evidence
from scarcely.reports.figures import build_figures
from scarcely.reports.html import write_report
from scarcely.reports.table import mean_std, print_class_count, print_results, results_table

__all__ = [
    "Evidence",
    "build_figures",
    "mean_std",
    "print_class_count",
    "print_results",
    "results_table",
    "write_report",
]
