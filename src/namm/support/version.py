"""The library's version, written once; results and journals name it."""

VERSION = "0.1.0"
