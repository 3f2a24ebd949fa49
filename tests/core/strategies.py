"""What hypothesis draws for the core: number types, encodings, plans."""

import numpy as np
from hypothesis import strategies as st

from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import FloatNode, Plan

integer_types = st.one_of(
    st.builds(IntegerType, bits=st.integers(2, 16), signed=st.just(True), narrow=st.booleans()),
    st.builds(IntegerType, bits=st.integers(2, 16), signed=st.just(False)),
)

scales = st.floats(2.0**-60, 2.0**60, width=32)

reals = st.floats(-1e6, 1e6, width=32)


def encodings(types: st.SearchStrategy[IntegerType] = integer_types) -> st.SearchStrategy[Encoding]:
    return st.one_of(per_tensor(types), *[_spread(types, kind) for kind in ("axis", "block")])


@st.composite
def per_tensor(draw: st.DrawFn, types: st.SearchStrategy[IntegerType] = integer_types) -> Encoding:
    return _encoding(draw, types, PerTensor(), ())


@st.composite
def _spread(draw: st.DrawFn, types: st.SearchStrategy[IntegerType], kind: str) -> Encoding:
    axis = draw(st.integers(-4, 4))
    if kind == "axis":
        return _encoding(draw, types, PerAxis(axis), (draw(st.integers(0, 4)),))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    return _encoding(draw, types, PerBlock(axis, draw(st.integers(1, 64))), shape)


def _encoding(
    draw: st.DrawFn, types: st.SearchStrategy[IntegerType], granularity: Granularity, shape: tuple[int, ...]
) -> Encoding:
    kind = draw(types)
    size = int(np.prod(shape, dtype=int))
    levels = st.integers(kind.minimum, kind.maximum)
    return Encoding(
        type=kind,
        granularity=granularity,
        scale=np.array(draw(st.lists(scales, min_size=size, max_size=size)), np.float32).reshape(shape),
        zero_point=np.array(draw(st.lists(levels, min_size=size, max_size=size)), np.int32).reshape(shape),
    )


any_encodings: st.SearchStrategy[AnyEncoding] = st.one_of(
    encodings(), st.builds(DynamicEncoding, type=integer_types, symmetric=st.booleans())
)

plans = st.builds(
    Plan,
    target=st.text(max_size=5),
    mode=st.sampled_from(["static", "dynamic", "weight-only"]),
    encodings=st.dictionaries(st.text(max_size=5), any_encodings, max_size=4),
    float_nodes=st.lists(
        st.builds(FloatNode, name=st.text(max_size=5), operator=st.text(max_size=5), reason=st.text(max_size=9))
    ).map(tuple),
    float_outputs=st.lists(st.text(max_size=5)).map(tuple),
    notes=st.lists(st.text(max_size=9)).map(tuple),
    network=st.text(max_size=5),
)
