"""Looking at what is remembered."""

from namm.inspection.classes import token_classes
from namm.inspection.report import report_page, save_report
from namm.inspection.table import ClassShare, class_shares, plot_classes
from namm.inspection.trace import Inspection, inspect

__all__ = [
    "ClassShare",
    "Inspection",
    "class_shares",
    "inspect",
    "plot_classes",
    "report_page",
    "save_report",
    "token_classes",
]
