"""scale by statistics: what `convert stats` wrote, and what was made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import case
from converter_plugins.scale import Scale
from safetensors.numpy import save_file

from converter import (
    Array,
    Checkpoint,
    InputError,
    Measured,
    Moments,
    PlanError,
    UsageError,
    convert,
    measure,
    merged,
    open_checkpoint,
    write_measured,
)

BATCH_NORMED = case("tf115_v2_convbn_ema").path


def gives(mean_abs: Array) -> Moments:
    found = Moments.of(len(mean_abs))
    found.add(np.stack([mean_abs, -mean_abs]))
    return found


def written(
    path: Path, units: dict[str, Array], tensors: Mapping[str, tuple[str, ...]] | None = None
) -> Path:
    measured = Measured(
        {(name, "produced"): gives(values) for name, values in units.items()},
        {(name, "produced"): names for name, names in (tensors or {}).items()},
        1,
    )
    return write_measured(path, measured, force=True)


def divided(strategy: Scale, checkpoint: Checkpoint) -> dict[str, Array]:
    """Return how many times smaller each variable is that is changed."""
    found = {}
    for variable in strategy.apply(checkpoint):
        before, after = checkpoint[variable.name].read(), variable.read()
        if (before != after).any():
            found[variable.name] = before / after
    return found


def test_a_layer_is_divided_once_behind_its_normalisation(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(BATCH_NORMED)
    first, second = np.array([2.0, 4, 0, 5, 8, 10]), np.arange(1.0, 9) * 2
    moments = np.full(6, 3.0)
    path = written(
        tmp_path / "s.safetensors",
        {
            **dict.fromkeys(("conv1/kernel", "bn1/gamma", "bn1/beta"), first),
            **dict.fromkeys(("bn1/moving_mean", "bn1/moving_variance"), moments),
            **dict.fromkeys(("conv2/kernel", "conv2/bias", "bn2/beta"), second),
        },
    )
    strategy = Scale(statistics=path)
    found = divided(strategy, checkpoint)
    found = {name: by for name, by in found.items() if "Exponential" not in name}
    # The second has no gains, so that its kernel takes the factors, and the mean with it.
    assert set(found) == {
        *("bn1/gamma", "bn1/beta"),
        *("conv2/kernel", "conv2/bias", "bn2/beta", "bn2/moving_mean"),
    }
    alive = np.where(first > 0, first, 1)
    assert found["bn1/gamma"] == pytest.approx(alive, rel=1e-6)
    assert found["conv2/kernel"] == pytest.approx(np.broadcast_to(second, (3, 3, 6, 8)), rel=1e-6)
    outputs, dead = strategy.notes(checkpoint)
    assert outputs.startswith("changes the outputs: each layer is divided by what it gave")
    assert dead == "1 of 14 units is below the floor 1e-06, and stays"


def test_units_that_are_not_last_are_divided_where_they_are(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(case("tf115_v2_bert_mini").path)
    name = "cls/seq_relationship/output_weights"
    path = written(tmp_path / "s.safetensors", {name: np.array([2.0, 8.0])})
    found = divided(Scale(statistics=path), checkpoint)
    assert name in found
    assert found[name][:, 0] == pytest.approx([2, 8], rel=1e-6)


def test_without_a_graph_tensors_tell_of_layers(tmp_path: Path) -> None:
    values = {
        "d/kernel": np.ones((2, 3), "f4"),
        "d/bias": np.ones(3, "f4"),
        "n/gamma": np.ones(3, "f4"),
        "n/beta": np.ones(3, "f4"),
        "e/weights": np.ones((3, 4), "f4"),
        "n/moving_mean": np.ones(3, "f4"),
    }
    save_file(values, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    by = np.array([2.0, 4.0, 8.0])
    units = dict.fromkeys((*list(values)[:4], "e/weights"), by)
    tensors = {name: ("t",) if name != "e/weights" else ("u",) for name in units}
    path = written(tmp_path / "s.safetensors", units, tensors)
    found = divided(Scale(statistics=path), checkpoint)
    assert set(found) == {"n/gamma", "n/beta", "e/weights"}
    assert found["e/weights"][:, 0].tolist() == by.tolist()
    written(path, {**units, "n/moving_mean": by}, tensors)
    with pytest.raises(PlanError, match="n/moving_mean: only a graph tells which layer"):
        list(Scale(statistics=path).apply(open_checkpoint(checkpoint.path)))


def test_files_about_other_variables_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "s.safetensors", {"conv3/kernel": np.ones(6)})
    with pytest.raises(UsageError, match="none of its 1 statistics is of a variable that is here"):
        list(Scale(statistics=path).apply(open_checkpoint(BATCH_NORMED)))
    written(path, {"conv1/kernel": np.ones(7)})
    with pytest.raises(PlanError, match=r"\[6\], and what was measured has 7 units"):
        list(Scale(statistics=path).apply(open_checkpoint(BATCH_NORMED)))


def test_made_by_hand_moments_are_not_divided_beside_their_kernel(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    both = {"conv1/kernel/mean_abs": np.full(6, 2.0), "bn1/moving_variance/mean_abs": np.ones(6)}
    np.savez(path, **both)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(BATCH_NORMED)
    with pytest.raises(PlanError, match="bn1/moving_variance: it holds moments of what conv1/ker"):
        list(Scale(statistics=path).apply(checkpoint))
    np.savez(path, **{"conv1/kernel/mean_abs": np.full(6, 2.0)})  # type: ignore[arg-type]
    assert set(divided(Scale(statistics=path), checkpoint)) == {"conv1/kernel"}


def test_every_plan_says_whether_the_outputs_stay() -> None:
    checkpoint = open_checkpoint(BATCH_NORMED)
    (note,) = Scale(scale={"conv1/kernel": 2.0}).notes(checkpoint)
    assert note == "changes the outputs, as nothing follows what is chosen by its name"
    (note,) = Scale(scale={"*/Momentum": 2.0}).notes(checkpoint)
    assert note == "keeps the outputs: only slots and averages are multiplied"
    both = Scale(kind={"convolution": 0.5}, scale={"logits/*": 2.0})
    assert [note.partition(" ")[0] for note in both.notes(checkpoint)] == ["changes", "batch"]


def test_one_kind_of_several_may_be_missing() -> None:
    checkpoint = open_checkpoint(BATCH_NORMED)
    notes = list(Scale(kind={"dense": 0.5, "recurrent": 0.5}).notes(checkpoint))
    assert "no layer is recurrent; they are convolution, dense" in notes
    kinds = {"embedding": 0.5, "recurrent": 0.5}
    with pytest.raises(PlanError, match="no layer is embedding or recurrent; they are convol"):
        list(Scale(kind=kinds).apply(checkpoint))


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ({"images": np.ones(2)}, "a dict is no series of batches; give several, or one in a list"),
        ("x.npz", "a str is no series of batches"),
        (3, "a int is no series of batches"),
        ([3.0], "a batch is a float; it must be a dictionary"),
        ([{"images": object()}], "images: a object is no array of numbers"),
        ([{"images": [[1], [2, 3]]}], "images: a list is no array of numbers"),
        ([{"images": np.array([[1, np.nan]])}], r"images: 1 of 2 values of a batch is NaN; leave"),
        ([{"images": 3.0}], r"images: \[\] is given, and the graph takes"),
    ],
)
def test_what_is_no_batch_is_one_line(batches: object, said: str) -> None:
    pytest.importorskip("tensorflow")
    with pytest.raises((UsageError, InputError), match=said):
        measure(open_checkpoint(BATCH_NORMED), batches)  # type: ignore[arg-type]


def test_an_open_checkpoint_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="convert takes the path of a checkpoint"):
        convert(open_checkpoint(BATCH_NORMED), tmp_path / "out")  # type: ignore[arg-type]


def test_what_is_no_statistics_cannot_be_merged() -> None:
    one = Measured({("w", "produced"): gives(np.ones(2))}, {}, 1)
    assert merged(one, one, one)["w", "produced"].count == 6
    with pytest.raises(UsageError, match="a list is no statistics; give"):
        merged([one, one])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there are no statistics"):
        merged()
