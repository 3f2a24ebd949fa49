from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from narrowgauge.data import open_samples  # noqa: E402 - behind the skip
from narrowgauge.errors import ModelError  # noqa: E402
from narrowgauge.importers.pytorch.examples import Call, example_call, with_rows  # noqa: E402
from tests.data.networks import image_input  # noqa: E402

IMAGES = np.arange(5 * 3 * 4 * 4, dtype=np.float64).reshape(5, 3, 4, 4)
LABELS = torch.tensor([4, 3, 2, 1, 0])


class One(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def forward(self, image: Any) -> Any:
        return image


class Two(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def forward(self, ids: Any, mask: Any, scale: float = 1.0) -> Any:
        return ids * mask * scale


class Many(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def forward(self, *tensors: Any) -> Any:
        return tensors


class AnyName(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def forward(self, **tensors: Any) -> Any:
        return tensors


def shapes(call: Call) -> tuple[list[tuple[int, ...]], dict[str, tuple[int, ...]]]:
    return [tuple(one.shape) for one in call.positional], {name: tuple(one.shape) for name, one in call.named.items()}


TENSOR = torch.from_numpy(IMAGES)
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(TENSOR, LABELS), batch_size=2, shuffle=True)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (TENSOR, (5, 3, 4, 4)),
        (IMAGES, (5, 3, 4, 4)),
        ((TENSOR,), (5, 3, 4, 4)),
        ((TENSOR, LABELS), (5, 3, 4, 4)),
        ([TENSOR], (5, 3, 4, 4)),
        ([(IMAGES, LABELS)] * 3, (5, 3, 4, 4)),
        (LOADER, (2, 3, 4, 4)),
        (LOADER.dataset, (1, 3, 4, 4)),
        (torch.utils.data.StackDataset(TENSOR, TENSOR), (1, 3, 4, 4)),
        (torch.utils.data.Subset(TENSOR, [1, 2]), (1, 3, 4, 4)),
        (lambda: iter([(IMAGES[:3], 2)]), (1, 3, 3, 4, 4)),
        (open_samples(IMAGES, image_input(None, 3, 4, 4)), None),
    ],
)
def test_what_one_input_may_come_as(example: Any, expected: tuple[int, ...] | None) -> None:
    state = torch.random.get_rng_state()
    call = example_call(One(), example)
    assert torch.equal(torch.random.get_rng_state(), state)
    if expected is not None:
        assert shapes(call) == ([expected], {})
        assert call.positional[0].dtype == torch.float32


def test_samples_of_a_data_set_by_name_get_a_batch_axis() -> None:
    call = example_call(One(), torch.utils.data.StackDataset(image=TENSOR, mask=TENSOR))
    assert shapes(call) == ([], {"image": (1, 3, 4, 4)})


def test_what_several_inputs_may_come_as() -> None:
    ids, mask = torch.ones(3, 5, dtype=torch.int64), torch.zeros(3, 5)
    both = ([(3, 5), (3, 5)], {})
    assert shapes(example_call(Two(), (ids, mask))) == both
    assert shapes(example_call(Two(), [ids, mask])) == both
    assert shapes(example_call(Two(), [(ids, mask, torch.tensor([1, 2, 3]))])) == both
    assert shapes(example_call(Two(), [((ids, mask), torch.tensor([1, 2, 3]))])) == both
    assert shapes(example_call(Two(), {"ids": ids, "mask": mask, "label": mask})) == (
        [],
        {"ids": (3, 5), "mask": (3, 5)},
    )
    assert example_call(Two(), (ids, mask, 2.0)).positional[2] == 2.0
    assert shapes(example_call(Many(), (ids, mask))) == both
    named = {"ids": ids[0], "mask": mask[0], "label": 3}
    assert shapes(example_call(Two(), [named])) == ([], {"ids": (1, 5), "mask": (1, 5)})
    assert shapes(example_call(AnyName(), [named])) == ([], {"ids": (1, 5), "mask": (1, 5)})


def test_arrays_in_files_and_functions_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.savez(tmp_path / "both.npz", ids=np.ones((2, 3)), mask=np.ones((2, 3)))
    assert shapes(example_call(One(), tmp_path / "images.npy")) == ([(5, 3, 4, 4)], {})
    assert shapes(example_call(Two(), str(tmp_path / "both.npz")))[1] == {"ids": (2, 3), "mask": (2, 3)}
    (tmp_path / "example_feeds.py").write_text("import numpy\ndef feeds():\n    yield {'image': numpy.ones((2, 3))}\n")
    monkeypatch.chdir(tmp_path)
    assert shapes(example_call(One(), "example_feeds:feeds"))[1] == {"image": (2, 3)}


def test_what_gives_no_example_is_refused_with_what_does(tmp_path: Path) -> None:
    for example, message in (
        (None, "got none"),
        (iter([IMAGES]), "only once"),
        (tmp_path, "do not follow from the data"),
        ([], "at least one item"),
        ([object()], "expected an example that its forward"),
        ((1, 2, 3, 4, 5), "expected an example that its forward"),
        (3.5, "got float"),
        (np.array(["a", "b"]), "expected arrays of numbers"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            example_call(One(), example)
        assert "example_inputs=" in str(caught.value) or "numbers" in str(caught.value)


def test_an_iterator_is_not_touched() -> None:
    def feeds() -> Iterator[Any]:
        yield from IMAGES

    data = feeds()
    with pytest.raises(ModelError, match="example inputs beside data"):
        example_call(One(), data)
    assert len(list(data)) == 5


def test_rows_are_cut_or_repeated_to_two() -> None:
    for rows in (1, 2, 5):
        cut = with_rows(Call(positional=(torch.arange(rows), 3), named={"x": {"y": torch.ones(rows, 4)}}))
        assert cut is not None
        assert cut.positional[0].shape == (2,)
        assert cut.positional[1] == 3
        assert cut.named["x"]["y"].shape == (2, 4)
    for tensors in ((torch.ones(2), torch.ones(3)), (torch.ones(0),), (torch.tensor(1.0),), ()):
        assert with_rows(Call(positional=tensors, named={})) is None
