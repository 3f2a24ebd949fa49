"""Networks that others quantized: taken apart into a float network and a `Plan`, nothing lost.

Every form becomes Q/DQ pairs first (`qoperator`, `stored_weights`, `moved_levels`, QONNX's own importer), then every
pair an encoding (`roundings`). A plan has one encoding for a value, and says by which nodes compute in integers who
reads it rounded. Where that is not what the file says (two roundings of a value, one read rounded and unrounded by
float nodes), an Identity stands in the float network for the rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.plan import FloatNode, Mode, Plan
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.edits import (
    all_nodes,
    bypass,
    is_operator,
    name_everything,
    new_node,
    remove_unused,
    sole_consumer,
)
from narrowgauge.graph.quantized import is_qonnx_operator
from narrowgauge.graph.roles import (
    WEIGHT_ROLES,
    activation_inputs,
    bias_addition,
    bias_input,
    float_outputs,
    is_constant,
    is_float,
    weight_inputs,
)
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers import onnx as onnx_importer
from narrowgauge.importers.moved_levels import move_to_real_numbers
from narrowgauge.importers.qoperator import rewrite_qoperators
from narrowgauge.importers.rewriting import Rewriter
from narrowgauge.importers.roundings import Roundings, StoredBias, mark_roundings, steps_of
from narrowgauge.importers.stored_weights import restore_stored_weights
from narrowgauge.importers.widening import NOTE, is_narrow, widen_to_float32
from narrowgauge.passes.fold_constants import fold_constants

_DEFAULT_TARGET = "onnxruntime"

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
"""Operators that run in integers wherever their inputs are, and may write float numbers."""

_ACTIVATION_FUNCTIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "PRelu", "Elu")

_SHAPE_OPERATORS = ("Shape", "Size")
"""They read no numbers, so it is all one to them whether those are rounded."""

_SUMS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "BatchNormalization")
"""Operators whose results are negative as well, unless an activation function stood behind them."""

_RELU6_CAP = 6.0

_Use = tuple[ir.Node, int]  # a node and the number of its input

_BIAS_LAYERS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parted:
    """A quantized network in its two parts.

    Attributes:
        model: The float network: its weights and biases are the real numbers that the integers stood for.
        plan: The encodings, by the float network's names.
        notes: What could not be expressed, one sentence each.
    """

    model: ir.Model
    plan: Plan
    notes: tuple[str, ...]


def take_apart(model: ir.Model, *, target: str = "") -> Parted:
    """Part a quantized ONNX network into the float network and its plan.

    Args:
        model: Q/DQ, QOperator, integer-operator or QONNX form; it is not changed.
        target: name of the target that it was quantized for; "" takes the one that its form is of.

    Returns:
        Parts of which `lowering.qdq.lower_to_qdq` makes a network that computes the same integers.

    Raises:
        ModelError: an operator of integers is not known; the message names the node.
    """
    rewriter = Rewriter(_in_pairs(model))
    if is_narrow(rewriter.model):
        widen_to_float32(rewriter.model)
        rewriter.note(NOTE)
    rewrite_qoperators(rewriter)
    restore_stored_weights(rewriter)
    remove_unused(rewriter.model)
    infer_shapes(rewriter.model)
    fold_constants(rewriter.model)
    move_to_real_numbers(rewriter)
    infer_shapes(rewriter.model)
    roundings = mark_roundings(rewriter)
    infer_shapes(rewriter.model)
    parting = _Parting(rewriter, roundings)
    plan = parting.plan(target or _DEFAULT_TARGET)
    return Parted(model=rewriter.model, plan=plan, notes=tuple(rewriter.notes))


def _in_pairs(model: ir.Model) -> ir.Model:
    """Return a copy at opset 21 or newer, its constants initializers, QONNX's nodes in Q/DQ form."""
    network = onnx_importer.load(model, simplify=False).model
    if any(is_qonnx_operator(node) for node in all_nodes(network)):
        qonnx = importlib.import_module("narrowgauge.importers.qonnx")
        network = onnx_importer.load(qonnx.to_qdq(network), simplify=False).model
    return network


class _Parting:
    """Decides which nodes compute in integers, and which markers a plan can do without.

    Attributes:
        rewriter: of the marked network.
        found: its markers and constants.
        integer: nodes that compute in integers, the markers that stay among them.
        encodings: of the plan.
        always_rounded: values with an encoding whose numbers nobody sees unrounded.
    """

    def __init__(self, rewriter: Rewriter, found: Roundings) -> None:
        self.rewriter = rewriter
        self.graph: ir.Graph = rewriter.model.graph
        self.found = found
        self.integer: set[ir.Node] = set()
        self.encodings: dict[ir.Value, AnyEncoding] = {}
        self.always_rounded: set[ir.Value] = set()

    def plan(self, target: str) -> Plan:
        self.part_constants()
        self.find_integer_nodes()
        self.take_markers()
        self.return_values()
        self.write_out_functions()
        self.take_constants()
        remove_unused(self.rewriter.model)
        name_everything(self.rewriter.model)
        mode = self.mode()
        self.note_biases()
        return Plan(
            target=target,
            mode=mode,
            encodings=self.named_encodings(),
            float_nodes=tuple(self.float_nodes()),
            float_outputs=tuple(self.float_outputs()) if mode == "static" else (),
            notes=tuple(self.rewriter.notes),
            network=network_digest(self.rewriter.model),
        )

    # --- constants ---

    def part_constants(self) -> None:
        """Give readers that read a constant in different ways, or where a plan does not look, ones of their own."""
        for value, encoding in list(self.found.constants.items()):
            weights, activations, others = self.uses_of(value)
            if weights and activations:
                self.found.constants[self.copy(value, activations)] = encoding
            if others and (weights or activations):
                self.copy(value, others)
            elif others:
                del self.found.constants[value]

    def uses_of(self, value: ir.Value) -> tuple[list[_Use], list[_Use], list[_Use]]:
        """Return who reads a constant as weights, as an activation, and otherwise (bias, parameter, in a body)."""
        weights: list[_Use] = []
        activations: list[_Use] = []
        others: list[_Use] = []
        for node, number in value.uses():
            if node.graph is not self.graph:
                others.append((node, number))
            elif number in weight_inputs(node):
                weights.append((node, number))
            elif number in dict(activation_inputs(node)):
                activations.append((node, number))
            else:
                others.append((node, number))
        return weights, activations, others

    def copy(self, value: ir.Value, uses: Sequence[_Use]) -> ir.Value:
        array = constant_array(value)
        assert array is not None
        own = self.rewriter.constant(self.graph, f"{value.name}_copy", array)
        for node, number in uses:
            node.replace_input_with(number, own)
        return own

    def take_constants(self) -> None:
        for value, encoding in self.found.constants.items():
            if value.uses():
                self.encodings[value] = encoding

    # --- nodes ---

    def find_integer_nodes(self) -> None:
        for marker, encoding in list(self.found.markers.items()):
            if isinstance(encoding, DynamicEncoding):
                self.keep_out_of_bodies(marker)
        for node in self.graph:
            if node in self.found.markers or self.computes_in_integers(node) or self.belongs_to_integers(node):
                self.integer.add(node)

    def keep_out_of_bodies(self, marker: ir.Node) -> None:
        """Let bodies of If and Loop read a value rounded at run time through a node that a plan can name."""
        inner = [use for use in marker.outputs[0].uses() if use.node.graph is not self.graph]
        if not inner:
            return
        name = self.rewriter.name(f"{marker.outputs[0].name}_for_bodies")
        handed = new_node("Identity", marker.outputs, name=name, like=marker.outputs[0])
        marker.append(handed)
        for use in inner:
            use.node.replace_input_with(use.idx, handed.outputs[0])

    def computes_in_integers(self, node: ir.Node) -> bool:
        """Whether a node reads constants of levels, or all that it reads is rounded and so is what it writes."""
        inputs = [value for _, value in activation_inputs(node)]
        weights = [node.inputs[number] for number in weight_inputs(node)]
        if any(value in self.found.constants for value in (*inputs, *weights)):
            return True
        if any(self.rounded_at_run_time(value) for value in inputs):
            return True  # only integer nodes read it rounded
        if not inputs or weights or not all(self.found.rounded(value) for value in inputs):
            return False
        return is_operator(node, *_PRODUCTS) or self.writes_rounded(node)

    def rounded_at_run_time(self, value: ir.Value) -> bool:
        producer = value.producer()
        return producer is not None and isinstance(self.found.markers.get(producer), DynamicEncoding)

    def belongs_to_integers(self, node: ir.Node) -> bool:
        """Whether a node is the bias addition or activation function of an integer one before it."""
        inputs = [value for _, value in activation_inputs(node) if not is_constant(value)]
        before = inputs[0].producer() if len(inputs) == 1 else None
        if before is None or before not in self.integer or before in self.found.markers:
            return False
        if sole_consumer(inputs[0]) is not node:
            return False
        if bias_addition(before) is node:
            return True
        cuts_float = is_operator(node, "Relu", "Clip") and not self.read_by_markers(node)
        return is_operator(node, *_ACTIVATION_FUNCTIONS) and (cuts_float or self.writes_rounded(node))

    def read_by_markers(self, node: ir.Node) -> bool:
        return any(use.node in self.found.markers for value in node.outputs for use in value.uses())

    def writes_rounded(self, node: ir.Node) -> bool:
        """Whether a rounding or an activation function of one's own is all that reads what a node writes."""
        values = float_outputs(node)
        return bool(values) and all(self.only_rounded(value) for value in values)

    def only_rounded(self, value: ir.Value) -> bool:
        readers = [use.node for use in value.uses()]
        if len(readers) == 1 and is_operator(readers[0], *_ACTIVATION_FUNCTIONS):
            return self.writes_rounded(readers[0])
        return bool(readers) and all(reader in self.found.markers for reader in readers)

    # --- markers ---

    def take_markers(self) -> None:
        """Let values carry the encodings of the markers behind them where the plan's rules then say the same."""
        for marker in list(self.found.markers):
            self.take_all_rounded(marker)
        for marker in list(self.found.markers):
            self.take_partly_rounded(marker)
        for marker, encoding in self.found.markers.items():
            self.encodings[marker.outputs[0]] = encoding

    def take_all_rounded(self, marker: ir.Node) -> None:
        """A value that only the marker reads: written in integers, it is rounded for all.

        An input of the network is rounded for integer nodes, so those that read it become such.
        """
        source, result = _ends(marker)
        producer = source.producer()
        if source in self.encodings or source.is_graph_output() or _readers(source) != [marker]:
            return
        if producer is None:
            readers = _readers(result)
            if not result.is_graph_output() and all(node.graph is self.graph for node in readers):
                self.integer.update(readers)
                self.elide(marker)
            return
        if producer.graph is not self.graph:
            return
        if not self.read_in_integers(result):
            if isinstance(self.found.markers[marker], DynamicEncoding) or producer in self.found.markers:
                return
            self.integer.add(producer)
        if producer not in self.found.markers:
            self.elide(marker)
            self.always_rounded.add(source)

    def take_partly_rounded(self, marker: ir.Node) -> None:
        """A value that float nodes read, too: written in float, it is rounded for the integer nodes."""
        source, result = _ends(marker)
        producer = source.producer()
        if source in self.encodings or (producer is not None and producer.graph is not self.graph):
            return
        others = [node for node in _readers(source) if node is not marker]
        if not self.read_in_integers(result) or any(node in self.integer for node in others):
            return
        if producer not in self.integer:
            self.elide(marker)
            return
        dynamic = isinstance(self.found.markers[marker], DynamicEncoding)  # what no float node ever reads
        if dynamic and producer not in self.found.markers and all(node.graph is self.graph for node in others):
            self.elide(marker)

    def read_in_integers(self, value: ir.Value) -> bool:
        """Whether integer nodes of the main graph alone read a value."""
        return not value.is_graph_output() and all(node in self.integer for node in _readers(value))

    def elide(self, marker: ir.Node) -> None:
        source, result = _ends(marker)
        encoding = self.found.markers.pop(marker)
        self.integer.discard(marker)
        result.replace_all_uses_with(source)
        self.graph.remove(marker, safe=True)
        self.encodings[source] = encoding

    def return_values(self) -> None:
        """Let the network return values themselves where an Identity stands between."""
        for value in list(self.graph.outputs):
            node = value.producer()
            if node is None or not is_operator(node, "Identity") or node in self.found.markers:
                continue
            source = node.inputs[0]
            producer = source.producer() if source is not None else None
            if source is None or source not in self.encodings or producer is None or producer not in self.integer:
                continue
            encoding = self.encodings[source]
            if isinstance(encoding, DynamicEncoding):
                continue
            bypass(node)

    def write_out_functions(self) -> None:
        """Write a Relu where integers that begin at 0 did what one would, so that the float network has it, too.

        Quantizers leave out a Relu, or a Clip to 0 and 6, before integers that hold nothing else. Written out again, it
        changes no integer; without it the float network would be another one.
        """
        values = [value for node in list(self.graph) for value in node.outputs if value in self.always_rounded]
        written = [name for value in values for name in [str(value.name)] if self.write_out_function(value)]
        if written:
            layers = "layers" if len(written) > 1 else "layer"
            self.rewriter.note(
                f"behind {len(written)} {layers} (the first writes {written[0]!r}) a Relu, or a Clip to 6, is "
                "written out: there the given network's integers begin at 0, which did the same"
            )

    def write_out_function(self, value: ir.Value) -> bool:
        encoding, producer = self.encodings[value], value.producer()
        if not isinstance(encoding, Encoding) or producer is None or not is_operator(producer, *_SUMS):
            return False
        never = is_operator(producer, "Add") and all(self.never_negative(one) for _, one in activation_inputs(producer))
        if never or (encoding.minimum != 0).any():
            return False
        name, graph = str(value.name), self.graph
        capped = encoding.maximum.size == 1 and abs(float(encoding.maximum) - _RELU6_CAP) < float(encoding.scale) / 2
        bounds = [
            self.rewriter.constant(graph, f"{name}_{end}", np.array(bound, np.float32))
            for end, bound in ((("lowest", 0.0), ("highest", _RELU6_CAP)) if capped else ())
        ]
        operator = "Clip" if capped else "Relu"
        function = ir.node(operator, inputs=[value, *bounds], name=self.rewriter.name(f"{name}_{operator.lower()}"))
        result = function.outputs[0]
        result.type, result.shape = value.type, value.shape
        producer.append(function)
        for use in list(value.uses()):
            if use.node is not function:
                use.node.replace_input_with(use.idx, result)
        for number, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[number] = result
        value.name, result.name = self.rewriter.name(f"{name}_unclipped"), name
        self.encodings[result] = self.encodings.pop(value)
        if producer in self.integer:
            self.integer.add(function)
        return True

    def never_negative(self, value: ir.Value) -> bool:
        """Whether a value is rounded to integers that begin at 0; a layer's weights are never asked about."""
        encoding = self.encodings.get(value)
        return isinstance(encoding, Encoding) and bool((encoding.minimum >= 0).all())

    # --- the plan ---

    def mode(self) -> Mode:
        activations = [encoding for value, encoding in self.encodings.items() if not is_constant(value)]
        dynamic = [isinstance(encoding, DynamicEncoding) for encoding in activations]
        if any(dynamic):
            if not all(dynamic):
                self.rewriter.note(
                    f"{sum(dynamic)} activations are rounded by ranges found at run time and "
                    f"{len(dynamic) - sum(dynamic)} by fixed ones; the plan's mode is dynamic"
                )
            return "dynamic"
        return "static" if activations else "weight-only"

    def named_encodings(self) -> dict[str, AnyEncoding]:
        """Encodings by name: activations in the network's order, then constants."""
        order = [*self.graph.inputs, *(value for node in self.graph for value in node.outputs)]
        values = [*(value for value in order if value in self.encodings)]
        values += [value for value in self.encodings if is_constant(value)]
        return {str(value.name): self.encodings[value] for value in values}

    def float_nodes(self) -> list[FloatNode]:
        return [
            FloatNode(name=str(node.name), operator=node.op_type, reason="it was float in the given network")
            for node in self.graph
            if node not in self.integer and (float_outputs(node) or any(is_float(value) for value in node.inputs))
        ]

    def float_outputs(self) -> list[str]:
        """Values that integer products write in float, behind what belongs to them."""
        found = []
        for node in self.graph:
            if node not in self.integer or not _is_product(node) or node in self.found.markers:
                continue
            value = node.outputs[0]
            after = sole_consumer(value)
            while value not in self.encodings and after is not None and after in self.integer:
                if not (bias_addition(node) is after or is_operator(after, *_ACTIVATION_FUNCTIONS)):
                    break
                value = after.outputs[0]
                after = sole_consumer(value)
            if value not in self.encodings:
                found.append(str(value.name))
        return found

    # --- biases ---

    def note_biases(self) -> None:
        """Say which biases a lowering that rounds them to the product of scales gives other integers than the file."""
        real, moved, coarse = [], [], []
        for node in self.graph:
            if node not in self.integer or not is_operator(node, *_BIAS_LAYERS):
                continue
            unit, bias = self.bias_unit(node)
            if bias is None or not is_constant(bias):
                continue
            stored = self.found.biases.get(bias)
            if stored is None:
                if unit is not None:
                    real.append(str(node.name))
            elif unit is None or not _same_unit(stored, unit):
                moved.append(str(node.name))
            elif not _comes_back(stored, bias):
                coarse.append(str(node.name))
        self.note_layers(
            real, "biases are float numbers in the given network; a target with integer biases rounds them, each by "
            "half a step of the accumulator at most",
        )  # fmt: skip
        self.note_layers(
            moved, "biases have another scale than the product of their input's and weights', or a zero point, in the "
            "given network; they are kept as float numbers",
        )  # fmt: skip
        self.note_layers(
            coarse, "biases have more than 2**22 steps, finer than float32 holds; their integers may differ by a few "
            "of the last ones",
        )  # fmt: skip

    def note_layers(self, names: list[str], text: str) -> None:
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.rewriter.note(f"of {names[0]!r}{others}, {text}")

    def bias_unit(self, node: ir.Node) -> tuple[np.ndarray | None, ir.Value | None]:
        """Return the product of scales that a layer's integer bias counts, None where it has none, and the bias."""
        number = bias_input(node)
        bias = node.inputs[number] if number is not None and number < len(node.inputs) else None
        first = next((value for _, value in activation_inputs(node)), None)
        weights = next((node.inputs[number] for number in weight_inputs(node)), None)
        activation = self.encodings.get(first) if first is not None else None
        encoding = self.encodings.get(weights) if weights is not None else None
        if not isinstance(activation, Encoding) or not isinstance(encoding, Encoding):
            return None, bias
        if not isinstance(activation.granularity, PerTensor):
            return None, bias
        if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
            return None, bias
        return np.asarray(activation.scale * encoding.scale, dtype=np.float32), bias


def _ends(marker: ir.Node) -> tuple[ir.Value, ir.Value]:
    source = marker.inputs[0]
    assert source is not None
    return source, marker.outputs[0]


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that see the numbers of a value."""
    return [use.node for use in value.uses() if not is_operator(use.node, *_SHAPE_OPERATORS)]


def _is_product(node: ir.Node) -> bool:
    return is_operator(node, *_PRODUCTS) or (is_operator(node, *WEIGHT_ROLES) and node.op_type != "Gather")


def _same_unit(stored: StoredBias, unit: np.ndarray) -> bool:
    fits = unit.size == 1 or unit.shape == stored.scale.shape
    return fits and not stored.zero_point.any() and bool(np.all(stored.scale == unit))


def _comes_back(stored: StoredBias, bias: ir.Value) -> bool:
    """Whether rounding a bias's real numbers gives the file's integers."""
    real = constant_array(bias)
    assert real is not None
    return bool(np.array_equal(steps_of(real, stored.scale), stored.levels))
