"""Every limit of the front door, with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DoorSettings:
    """What a request may cost and how long its parts may take. Nothing here is about one tenant: see `keys`."""

    max_body: int = 8 * 1024 * 1024
    """Bytes of a request's body."""
    max_depth: int = 64
    """Levels of lists and objects in a body; a JSON schema takes two or three a property."""
    body_seconds: float = 30.0
    """Until the whole body is here."""
    connect_seconds: float = 5.0
    """Until the engine's socket accepts a connection."""
    first_byte_seconds: float = 600.0
    """Until the engine says something: waiting for a place, loading an adapter and reading the prompt.

    An answer that isn't streamed comes as a whole, so it has to be complete in this time.
    """
    between_seconds: float = 120.0
    """Between two chunks of a stream, or until the client takes one."""
    concurrent: int = 256
    """Answers being written at once. More than the engine's --max-num-seqs only moves the queue into the engine."""
    share: float = 0.5
    """The part of `concurrent` that one key may hold, so that a flood leaves room for the others; 0 to 1."""
    waiting: int = 256
    """Requests of one key that may wait for a place."""
    waiting_seconds: float = 60.0
    """How long one waits before it is refused with 503."""
    drain: float = 30.0
    """Seconds that running requests get to end in when the server stops."""
    media_urls: bool = False
    """Whether content parts may name URLs that the engine fetches from this machine's network; data: always may."""
    prompt_scores: bool = True
    """Whether log-probabilities of a prompt may be asked for (`prompt_logprobs`, or `echo` with `logprobs`)."""
    max_model_len: int | None = None
    """Tokens of prompt and answer, shown in /v1/models; None: not shown."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What /v1/models says of the base beside its name: `fingerprint`, `dtype`, `engine` and a digest of its `options`."""
