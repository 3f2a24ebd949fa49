"""A refusal: a rewrite or a quantization that was not done, and why, as data for the report."""

from dataclasses import dataclass

REFUSAL = "narrowgauge.refusal"
"""Key of a node's metadata in a written network: why the node is left as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A node that was left as it was.

    Attributes:
        node: The node's name.
        operator: Its operator, such as "BatchNormalization".
        reason: Why, as a clause a user understands ("its input is padded with zeros").
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.reason}"
