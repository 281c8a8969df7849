"""How a study ends early: a request that cannot be carried out, or a user who stops it."""

from __future__ import annotations


class UsageError(Exception):
    """A request that cannot be carried out; the message says what to do instead."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it, and nothing is lost
    """The user stopped the study; its finished runs and checkpoints are on disk."""
