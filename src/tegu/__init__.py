"""Tegu: a cloud-native Linux operating system, and the toolkit that builds and looks after it.

Each room is a package of its own; `docs/architecture.md` says what each is for and what it may
lean on.
"""

__version__ = "26.11"
