"""Families of tasks: documents to read and the questions asked about them."""

from namm.tasks.documents import (
    Document,
    heldout_documents,
    packaged_prose,
    read_documents,
    split_documents,
    standard_library_documents,
)
from namm.tasks.passkey import pass_key
from namm.tasks.registry import GENERATORS
from namm.tasks.sample import Sample

__all__ = [
    "GENERATORS",
    "Document",
    "Sample",
    "heldout_documents",
    "packaged_prose",
    "pass_key",
    "read_documents",
    "split_documents",
    "standard_library_documents",
]
