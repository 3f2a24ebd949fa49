"""The exceptions of narrowgauge: one small tree, each message made for the person who can act on it.

A message says what was expected, what came, where (file, node, tensor) and what to do next. The command line
prints it on one line and exits with 1; `NarrowgaugeError` is what a Python caller catches.
"""


class NarrowgaugeError(Exception):
    """Base of every error that the user can act on."""


class ModelError(NarrowgaugeError):
    """A network cannot be read or is not a valid network."""


class DataError(NarrowgaugeError):
    """Samples, labels or preprocessing cannot be read or do not fit the network."""


class StatisticsError(NarrowgaugeError):
    """Statistics cannot be read, do not belong to the network, or hold NaN or infinity where a range is needed."""


class PlanError(NarrowgaugeError):
    """A plan or an encoding is malformed or does not fit the network."""


class TargetError(NarrowgaugeError):
    """A target is unknown, its description is malformed, or it cannot do what was asked."""


class RecipeError(NarrowgaugeError):
    """A recipe is malformed or asks for something unknown."""


class OutputError(NarrowgaugeError):
    """A result cannot be written: the folder exists, is not writable, or the disk is full."""


class ReportError(NarrowgaugeError):
    """A folder or file is none that a report can be made of."""


class RuntimeFailure(NarrowgaugeError):
    """An engine refused to load or to run a network."""


class MissingDependencyError(NarrowgaugeError):
    """An optional package is needed; the message names the command that installs it."""
