"""Which forms a planned network takes, and what is said where one is missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import TargetError
from narrowgauge.exporters.formats import FORMATS
from narrowgauge.exporters.forms import LOWERED, forms_for
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.lower import has_rule
from narrowgauge.targets.registry import load_target, target_names
from tests.planning.networks import operators, planned, run, seen, sqnr

IMAGES = digits().images
MODEL = load(network_path("digits_conv")).model
STATISTICS = seen(MODEL, IMAGES[:32])


def check_close(model: ir.Model | None) -> None:
    assert model is not None
    assert sqnr(run(MODEL, IMAGES[1200:1300]), run(model, IMAGES[1200:1300])) > 20


@pytest.mark.parametrize("name", target_names())
def test_every_target_has_a_simulation_and_its_own_file_or_a_note(name: str) -> None:
    target = load_target(name)
    forms = forms_for(target, MODEL, planned(MODEL, STATISTICS, name))
    check_close(forms.simulated)
    assert (forms.exported is not None) == (target.formats[:1] in [(form,) for form in LOWERED])
    assert (forms.format is not None) == (target.formats[:1] in [(form,) for form in FORMATS])
    others = [note for note in forms.notes if not note.startswith("the network in integers computes")]
    assert bool(others) == (forms.exported is None and forms.format is None)
    assert (forms.integer is not None) == has_rule(target)
    for form in (forms.exported, forms.integer):
        if form is not None:
            check_close(form)


def test_the_formats_of_a_target_can_be_chosen() -> None:
    target = load_target("onnxruntime")
    plan = planned(MODEL, STATISTICS)
    assert target.formats == ("qdq", "qoperator")
    chosen = {form: operators(forms_for(target, MODEL, plan, form=form).exported) for form in target.formats}
    assert "QuantizeLinear" in chosen["qdq"]
    assert "QLinearConv" not in chosen["qdq"]
    assert "QLinearConv" in chosen["qoperator"]
    with pytest.raises(TargetError, match="expected a format of onnxruntime, one of qdq, qoperator, got 'tflite'"):
        forms_for(target, MODEL, plan, form="tflite")


def test_what_a_target_cannot_run_is_only_simulated() -> None:
    plan = planned(MODEL, STATISTICS, activations=integer_type("int6"))
    forms = forms_for(load_target("onnxruntime"), MODEL, plan)
    assert (forms.exported, forms.integer) == (None, None)
    assert len(forms.notes) == 1
    assert "cannot run this plan, it is only simulated: activations of int6" in forms.notes[0]
    assert np.isfinite(run(forms.simulated, IMAGES[:8])).all()


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_modes_that_need_no_samples(mode: str) -> None:
    forms = forms_for(load_target("onnxruntime"), MODEL, planned(MODEL, None, mode=mode))
    check_close(forms.simulated)
    check_close(forms.exported)
    assert forms.notes == ()
    assert (forms.integer is None) == (mode == "weight-only")


def test_dynamic_plans_have_integers_where_the_engine_s_kernels_are_known() -> None:
    forms = forms_for(load_target("tflite"), MODEL, planned(MODEL, None, "tflite", mode="dynamic"))
    check_close(forms.integer)
    assert forms.notes == ()
    unknown = replace(load_target("onnxruntime"), arithmetic=load_target("pytorch-fbgemm").arithmetic)
    without = forms_for(unknown, MODEL, planned(MODEL, None, mode="dynamic"))
    assert without.integer is None
    (note,) = without.notes
    assert note.startswith("no network in the target's own integers: expected a static plan")


def test_what_the_plan_leaves_float_is_no_note_of_the_network_in_integers() -> None:
    """A product whose target writes real numbers, as every engine of transformers does, is no defect."""
    vit = load(network_path("digits_vit")).model
    forms = forms_for(load_target("openvino"), vit, planned(vit, seen(vit, IMAGES[:16]), "openvino"))
    assert forms.integer is not None
    assert [note for note in forms.notes if "in real numbers" in note] == []


def test_an_operator_that_integers_cannot_compute_is_a_warning_where_all_is_integers() -> None:
    vit = load(network_path("digits_vit")).model
    plan = planned(vit, seen(vit, IMAGES[:16]), "integer-only")
    assert forms_for(load_target("integer-only"), vit, plan).notes == ()
    sums = next(str(node.outputs[0].name) for node in vit.graph if node.op_type == "Add")
    tiny = replace(plan.encodings[sums], scale=plan.encodings[sums].scale * np.float32(2.0**-40))
    (note,) = forms_for(load_target("integer-only"), vit, replace(plan, encodings={**plan.encodings, sums: tiny})).notes
    assert note.startswith("WARNING: the network in integers computes")
