"""The steps of an LSTM in integers: one direction as a Scan.

What comes from the input is one product for all steps, before the Scan. In it a step multiplies the state of 8 bits,
looks the gates up in tables of 16 bits and updates cells of 16 bits, in int32 but for the products of rescales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.engines.fixed_point import Integers
from narrowgauge.core.engines.rescale import IntegerRescale
from narrowgauge.core.engines.tflite_fixed_point import GATE_BITS, GREATEST, LEAST, sigmoid_table, tanh_table
from narrowgauge.core.engines.tflite_recurrent import Gate, GateForm, IntegerLstm, cell_exponent, gate_form
from narrowgauge.errors import PlanError
from narrowgauge.graph.recurrent import Direction
from narrowgauge.lowering.integer.emitter import Result, Site, Source
from narrowgauge.lowering.integer.layers import zero_point_of
from narrowgauge.lowering.integer.rescaling import look_up

_INT64, _INT32 = ir.DataType.INT64, ir.DataType.INT32

TABLE = 2**16
"""Entries of a table of 16-bit levels."""

_LEVEL_BITS, _PRODUCT_BITS = 29, 62
"""Of what comes out of a rescale, and of what goes in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """All gates of a layer side by side: input (where there is one), forget, cell, output.

    Before their activation functions their levels are places in one table: sigmoid, then tanh.

    Attributes:
        gates: one by one.
        forms: of each.
    """

    gates: tuple[Gate, ...]
    forms: tuple[GateForm, ...]

    @property
    def hidden(self) -> int:
        """How many cells there are."""
        return len(self.gates[0].bias)

    @property
    def places(self) -> Integers:
        """Place of the least level of each gate, [gates * hidden]: that of the cell gate is the tanh's."""
        starts = [0] * len(self.gates)
        starts[-2] = TABLE
        return np.repeat(np.array(starts, dtype=np.int64), self.hidden)

    def matrix(self, which: str) -> npt.NDArray[np.int8]:
        """Join the gates' matrices, [inputs, gates * hidden]."""
        return np.concatenate([getattr(gate, which).levels for gate in self.gates]).T.astype(np.int8)

    def rescale(self, which: str) -> IntegerRescale:
        """Join the gates' rescales, which differ in multiplier and shift; of peepholes, the cell gate has none."""
        forms: list[IntegerRescale] = []
        for form in self.forms:
            found: IntegerRescale | None = getattr(form, which) or self.forms[-1].peephole
            assert found is not None
            forms.append(found)
        joined = {
            name: np.repeat(np.array([int(getattr(form, name)) for form in forms], np.int64), self.hidden)
            for name in ("multiplier", "addend", "shift", "below", "above")
        }
        return IntegerRescale(**joined, zero_point=0, low=forms[0].low, high=forms[0].high)

    @property
    def peepholes(self) -> Integers | None:
        """Levels of the peepholes of all gates, [gates * hidden]; zeros of the cell gate's."""
        if self.gates[-1].peephole is None:
            return None
        zeros = np.zeros(self.hidden, np.int64)
        return np.concatenate([zeros if one.peephole is None else one.peephole.levels for one in self.gates])


def states(
    site: Site, source: Source, result: Result, layer: IntegerLstm, direction: Direction
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Add the Scan of a direction: states as they are kept, [steps, batch, hidden], and the last, [batch, hidden]."""
    gates = tuple(gate for gate in (layer.update, layer.forget, layer.candidate, layer.out) if gate is not None)
    form = _Form(gates=gates, forms=tuple(gate_form(layer, gate) for gate in gates))
    _check_reach(form)
    hidden = layer.hidden_size
    bias = np.concatenate([gate.bias for gate in gates])
    sums = site.add(
        "MatMulInteger", source.value, site.constant(form.matrix("input"), "weights"),
        site.constant(zero_point_of(source), "input_zero_point", np.uint8), type=_INT32,
        shape=ir.Shape([None, None, len(bias)]),
    )  # fmt: skip
    sums = site.add("Add", sums, site.constant(bias, "bias", np.int32))
    # What the steps add is greater by a surplus, and what they look up begins at a place.
    moved = form.places - LEAST - _surplus(form.rescale("recurrence").shift)
    inputs = _rescaled(site, sums, form.rescale("input"), moved)
    state, cells = _zeros(site, source.value, hidden, result.kept(np.array(result.encoding.zero_point, np.int64)))
    body = _body(site, layer, form, result)
    attributes = {"body": body, "num_scan_inputs": 1}
    if direction.reverse:
        attributes |= {"scan_input_directions": [1], "scan_output_directions": [1]}
    outputs = [(ir.DataType.UINT8, ir.Shape([None, hidden])), (_INT32, ir.Shape([None, hidden]))]
    outputs.append((ir.DataType.UINT8, ir.Shape([None, None, hidden])))
    last, _, every = site.add_several("Scan", [state, cells, inputs], attributes, outputs)
    return every, last


def _check_reach(form: _Form) -> None:
    """Refuse sums that 32 bits or products that 62 bits may not hold.

    Raises:
        PlanError: so it is.
    """
    for gate in form.gates:
        for which in ("input", "recurrence"):
            sums = int(np.abs(getattr(gate, which).levels.astype(np.int64)).sum(axis=1).max(initial=0)) * 255
            sums += int(np.abs(gate.bias.astype(np.int64)).max(initial=0))
            rescale = form.rescale(which)
            products = [sums * int(one) for one in rescale.multiplier]
            levels = [one >> int(shift) for one, shift in zip(products, rescale.shift, strict=True)]
            beyond = max(products) >> (_PRODUCT_BITS - 1) or max(levels) >> (_LEVEL_BITS - 1)
            if sums >= 2**31 or beyond:
                raise PlanError("its sums may exceed 32 bits, their products 61 or their levels 28")


def _zeros(
    site: Site, value: ir.Value, hidden: int, zero: npt.NDArray[np.integer]
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Add the state before the first step: real zeros, as levels, for as many samples as there are."""
    batch = site.add("Shape", value, type=_INT64, shape=ir.Shape([1]), start=1, end=2)
    shape = site.add("Concat", batch, site.constant([hidden], "hidden", np.int64), shape=ir.Shape([2]), axis=0)
    extents = ir.Shape([None, hidden])
    state = site.add(
        "Expand", site.constant(zero.reshape(1, 1), "zero"), shape, type=ir.DataType.UINT8, shape=extents
    )  # fmt: skip
    return state, site.add("Expand", site.constant([[0]], "zeros", np.int32), shape, type=_INT32, shape=extents)


def _body(site: Site, layer: IntegerLstm, form: _Form, result: Result) -> ir.Graph:
    """Build one step: (state, cells, what comes from the input) -> (state, cells, state)."""
    hidden, parameters = layer.hidden_size, site.emitter.parameters
    width = hidden * len(form.gates)

    def fed(name: str, kind: ir.DataType, size: int) -> ir.Value:
        return ir.Value(
            name=parameters.name(f"{site.node.name}_{name}"), type=ir.TensorType(kind), shape=ir.Shape([None, size])
        )

    state, cells, inputs = (
        fed("state", ir.DataType.UINT8, hidden),
        fed("cells", _INT32, hidden),
        fed("step", _INT32, width),
    )
    # New nodes are put before the last one, which hands the state out a second time.
    anchor = ir.node("Identity", inputs=[state], name=parameters.name(f"{site.node.name}_out"))
    anchor.outputs[0].name = parameters.name(f"{site.node.name}_states")
    anchor.outputs[0].type, anchor.outputs[0].shape = state.type, state.shape
    body = ir.Graph(
        [state, cells, inputs], [], nodes=[anchor], name=parameters.name(f"{site.node.name}_body"),
        opset_imports=dict(site.emitter.graph.opset_imports),
    )  # fmt: skip
    step = Site(emitter=site.emitter, node=anchor)
    new_state, new_cells = _step(step, layer, form, result, (state, cells, inputs))
    anchor.replace_input_with(0, new_state)
    body.outputs.extend([new_state, new_cells, anchor.outputs[0]])
    return body


def _step(
    site: Site, layer: IntegerLstm, form: _Form, result: Result, given: tuple[ir.Value, ir.Value, ir.Value]
) -> tuple[ir.Value, ir.Value]:
    state, cells, inputs = given
    hidden, exponent = layer.hidden_size, cell_exponent(layer.cell)
    zero = int(result.encoding.zero_point) + result.offset
    sums = site.add(
        "MatMulInteger", state, site.constant(form.matrix("recurrence"), "recurrence"),
        site.constant(zero, "state_zero_point", np.uint8), type=_INT32, shape=inputs.shape,
    )  # fmt: skip
    added = _raised(site, sums, form.rescale("recurrence"))
    places = _between(site, site.add("Add", inputs, added), form.places, form.places + TABLE - 1)
    table = np.concatenate([sigmoid_table(), tanh_table(GATE_BITS)])
    early = hidden * (len(form.gates) - 1)
    if form.peepholes is None:
        gates, out = _split(site, _looked_up(site, places, table), [early, hidden])
    else:  # the output gate looks at the cells as they are then, the others as they were
        places, last = _split(site, places, [early, hidden])
        gates = _looked_up(site, _looking(site, places, cells, form, slice(None, early)), table)
    cells = _new_cells(site, gates, cells, layer, exponent)
    if form.peepholes is not None:
        out = _looked_up(site, _looking(site, last, cells, form, slice(early, None)), table)
    places = site.add("Sub", cells, site.constant(LEAST, "least", np.int32))
    squashed = _looked_up(site, places, tanh_table(15 + exponent))
    kept = _rescaled(site, site.add("Mul", out, squashed), layer.output_rescale, np.int64(result.offset))
    return site.cast(kept, ir.DataType.UINT8), cells


def _new_cells(site: Site, gates: ir.Value, cells: ir.Value, layer: IntegerLstm, exponent: int) -> ir.Value:
    """Add `update * candidate + forget * cells`, each rounded, ties away from zero, then added and saturated."""
    hidden = layer.hidden_size
    if layer.update is None:
        forget, candidate = _split(site, gates, [hidden, hidden])
        one = site.constant(GREATEST, "one", np.int32)
        update = site.add("Sub", one, forget, shape=forget.shape)
        factors = _joined(site, update, forget)
    else:
        factors, candidate = _split(site, gates, [2 * hidden, hidden])
    product = site.add("Mul", factors, _joined(site, candidate, cells))
    shift = np.repeat(np.array([30 + exponent, 15], np.int64), hidden)
    # A negative number is one less before half a unit is added.
    halves = IntegerRescale(
        multiplier=np.ones_like(shift), addend=np.int64(1) << (shift - 1), shift=shift, below=-np.ones_like(shift),
        above=np.zeros_like(shift), zero_point=0, low=LEAST, high=GREATEST,
    )  # fmt: skip
    added, kept = _split(site, _raised(site, product, halves), [hidden, hidden])
    total = site.add("Add", added, kept)
    surplus = int(_surplus(shift[0])) + int(_surplus(shift[-1]))
    total = site.add("Sub", total, site.constant(surplus, "surplus", np.int32))
    clip = layer.clip_level
    return _between(site, total, max(LEAST, -clip) if clip else LEAST, clip or GREATEST)


def _looking(site: Site, places: ir.Value, cells: ir.Value, form: _Form, part: slice) -> ir.Value:
    """Add what some gates see of the cells, to places."""
    assert form.peepholes is not None
    rescale, peepholes, low = form.rescale("peephole"), form.peepholes[part], form.places[part]
    rescale = replace(
        rescale, **{name: getattr(rescale, name)[part] for name in ("multiplier", "addend", "shift", "below", "above")}
    )  # fmt: skip
    count = len(peepholes) // form.hidden
    seen = cells if count == 1 else _joined(site, *[cells] * count)
    product = site.add("Mul", seen, site.constant(peepholes, "peepholes", np.int32))
    total = site.add("Add", places, _rescaled(site, product, rescale, np.int64(0)))
    return _between(site, total, low, low + TABLE - 1)


def _joined(site: Site, *values: ir.Value) -> ir.Value:
    sizes = [value.shape[-1] for value in values if value.shape is not None]
    width = sum(size for size in sizes if isinstance(size, int))
    return site.add("Concat", *values, shape=ir.Shape([None, width]), axis=-1)


def _split(site: Site, value: ir.Value, sizes: list[int]) -> list[ir.Value]:
    outputs = [(_INT32, ir.Shape([None, size])) for size in sizes]
    return site.add_several("Split", [value, site.constant(sizes, "sizes", np.int64)], {"axis": -1}, outputs)


def _looked_up(site: Site, places: ir.Value, table: Integers) -> ir.Value:
    # In 16 bits the table stays in a core's cache.
    return site.cast(look_up(site, table.astype(np.int16), places), _INT32)


def _between(site: Site, value: ir.Value, low: npt.ArrayLike, high: npt.ArrayLike) -> ir.Value:
    value = site.add("Max", value, site.constant(low, "lowest", np.int32))
    return site.add("Min", value, site.constant(high, "highest", np.int32))


def _rescaled(site: Site, value: ir.Value, form: IntegerRescale, moved: Integers | np.int64) -> ir.Value:
    """Add the nodes of a rescale of int32, [..., channels]: levels as int32, and a number added to them."""
    added = np.asarray(form.zero_point - _surplus(form.shift) + moved, dtype=np.int64)
    levels = site.add("Add", _raised(site, value, form), site.constant(added, "moved", np.int32))
    if form.low <= -(2**31):  # not saturated
        return levels
    return _between(site, levels, form.low + moved, form.high + moved)


def _raised(site: Site, value: ir.Value, form: IntegerRescale) -> ir.Value:
    """Add the nodes of a rescale of int32 but for its zero point and ends; what comes out is greater by the surplus.

    ONNX shifts unsigned numbers only, so that a number is added first. Wide products are not cut, but the sign of their
    sum is taken: ONNX Runtime's Max, Min and Sign of int64 are wrong from 2^31 on (measured on 1.31), and a product is
    0 or at least as great as the ends of the inner clip.
    """
    if (form.multiplier == 1).all():  # products of two levels, below 2^31
        product = site.cast(site.add("Add", value, _between(site, value, form.below, form.above)), _INT64)
    else:
        assert (form.below == -form.above).all()
        assert ((form.multiplier >= form.above) | (form.multiplier == 0)).all()
        product = site.add("Mul", site.cast(value, _INT64), site.constant(form.multiplier, "multiplier"))
        unit = site.constant(np.minimum(form.above, form.multiplier), "sign")
        sign = site.cast(site.add("Sign", value), _INT64)
        product = site.add("Add", product, site.add("Mul", sign, unit))
    raised = np.asarray(form.addend + (_surplus(form.shift) << form.shift), dtype=np.int64)
    product = site.add("Add", product, site.constant(raised, "addend", np.int64))
    places = site.constant(np.asarray(form.shift), "shift", np.uint64)
    product = site.add("BitShift", site.cast(product, ir.DataType.UINT64), places, direction="RIGHT")
    return site.cast(product, _INT32)


def _surplus(shift: Integers | np.int64) -> Integers:
    """What `_raised` gives too much: greater than any level, and so little that two of them are within int32."""
    return np.asarray(np.int64(1) << np.minimum(_LEVEL_BITS, _PRODUCT_BITS - np.asarray(shift)), dtype=np.int64)
