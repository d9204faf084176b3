"""Everything this package raises on purpose. The command line turns each into one line.

VerifierError
├── ConfigError          the run file, a flag or a folder is wrong; fix it and run again
├── EndpointError        the endpoint cannot be used at all (bad key, unknown model, unreachable)
├── ReferenceMismatch    local weights, tokenizer or calibration are not the pinned ones
├── RenderingError       a chat template is missing, or refuses a conversation
└── MissingDependency    an optional package is needed for this step

A failed request is not an exception: it is a `records.Failure`, recorded and counted.
"""

from __future__ import annotations


class VerifierError(Exception):
    """Base class; its text is one line that says where, what and what to do."""


class ConfigError(VerifierError):
    """The run file, a flag or a folder is wrong."""


class EndpointError(VerifierError):
    """The endpoint cannot be used at all."""


class ReferenceMismatch(VerifierError):
    """Local weights, tokenizer or calibration are not the pinned ones."""


class RenderingError(VerifierError):
    """A chat template is missing, or refuses a conversation."""


class MissingDependency(VerifierError):
    """An optional package is needed for this step."""
