"""The fake hierarchy for all tests of the room."""

from tests.qos.fake import fake

__all__ = ["fake"]
