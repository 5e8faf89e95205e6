import dataclasses

import pytest

from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.formats.wflw import WFLW_ATTRIBUTES
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.reported_results import METRICS, reported_table

RANGES = {"nme": (2, 10), "fr10": (0, 10), "auc10": (0.4, 0.8)}


@pytest.fixture(params=["wflw", "300w"])
def table(request, synthetic98):
    return reported_table(dataclasses.replace(open_dataset(synthetic98), name=request.param))


@pytest.fixture
def w300(synthetic68):
    return dataclasses.replace(open_dataset(synthetic68), name="300w")


def test_results_have_method_source_and_year(table):
    for row in table.rows:
        assert row.method
        assert row.source
        assert 2018 <= row.year <= 2026, row
        assert row.figures, row
    assert len({row.method for row in table.rows}) == len(table.rows)
    years = [row.year for row in table.rows]
    assert years == sorted(years)


def test_values_are_of_known_sets_and_plausible(table):
    for row in table.rows:
        assert set(row.figures) <= set(table.num_faces)
        for figures in row.figures.values():
            assert figures
            for metric, value in figures.items():
                low, high = RANGES[metric]
                assert low <= value <= high, row
    assert set(RANGES) == set(METRICS)


def test_nme_of_a_set_is_between_those_of_its_parts(table):
    """Detects swapped columns: full is the union of common and challenge."""
    parts, whole = (("common", "challenge"), "full")
    if table.dataset == "wflw":
        parts, whole = WFLW_ATTRIBUTES, "test"
    rows = [row.figures for row in table.rows if set(parts) <= set(row.figures)]
    assert len(rows) >= 4
    for figures in rows:
        nme = [figures[part]["nme"] for part in parts]
        assert min(nme) < figures[whole]["nme"] < max(nme)
        if table.dataset == "300w":
            sizes = [table.num_faces[part] for part in parts]
            mean = sum(n * e for n, e in zip(sizes, nme, strict=True)) / sum(sizes)
            assert figures[whole]["nme"] == pytest.approx(mean, abs=0.02)


def test_sizes_are_those_of_the_official_lists(w300):
    sizes = reported_table(w300).num_faces
    assert sizes["full"] == sizes["common"] + sizes["challenge"] == 689


def stages(nme):
    return {"heatmap": {"nme": nme}, "graph": {"nme": nme}}


@pytest.mark.parametrize(
    ("split", "measured"),
    [
        ("common", {"common": 1}),
        ("full", {"common": 2, "challenge": 3, "full": 1}),
        ("challenge+common", {"common": 2, "challenge": 3, "full": 1}),
        ("common+test", {"common": 2, "test": 4}),
        ("validation", {}),
        ("train+test", {"test": 4}),
    ],
)
def test_measured_sets_are_those_of_the_table(w300, split, measured):
    subsets = {"common": 2, "challenge": 3, "test": 4, "train": 5, "helen/test": 6}
    result = {
        "num_faces": 10,
        "stages": stages(1),
        "subsets": {name: {"num_faces": 5, **stages(nme)} for name, nme in subsets.items()},
    }
    sets = reported_table(w300).measured_sets(w300, split, result)
    assert {name: faces["heatmap"]["nme"] for name, faces in sets.items()} == measured


@pytest.mark.parametrize(("split", "count"), [("test", 7), ("train", 0)])
def test_attributes_are_sets_of_the_test_split_only(synthetic98, split, count):
    dataset = dataclasses.replace(open_dataset(synthetic98), name="wflw")
    subsets = {name: {"num_faces": 3, **stages(2)} for name in WFLW_ATTRIBUTES}
    result = {"num_faces": 10, "stages": stages(1), "subsets": subsets}
    assert len(reported_table(dataset).measured_sets(dataset, split, result)) == count


def test_dataset_without_reported_results_is_an_error(synthetic98):
    with pytest.raises(InputError, match="synthetic data, and there are reported results for wflw"):
        reported_table(open_dataset(synthetic98))
