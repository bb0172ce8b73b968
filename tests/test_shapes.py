"""Shapes by name: what they mean, that they stay clear of numbers, and that mistakes get a hint."""

import math
import re

import pytest

from clustergauge.errors import UsageError
from kernels import shapes
from kernels.shapes import format_shape, parse_shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama3-8b-qkv", (4096, 6144, 4096)),
        ("llama3-8b-o", (4096, 4096, 4096)),
        ("llama3-8b-gate_up", (4096, 28672, 4096)),
        ("llama3-8b-down", (4096, 4096, 14336)),
        ("llama3-70b-qkv", (4096, 10240, 8192)),
        ("llama3-70b-o", (4096, 8192, 8192)),
        ("llama3-70b-gate_up", (4096, 57344, 8192)),
        ("llama3-70b-down", (4096, 8192, 28672)),
        ("llama3-8b-qkv-m1", (1, 6144, 4096)),
        ("llama3-70b-down-m64", (64, 8192, 28672)),
    ],
)
def test_names_mean_the_products_of_the_models(name, shape):
    assert parse_shape(name) == shape


def test_names_are_all_there_and_fit_an_id():
    assert len(shapes.NAMED) == 2 * 4 * (1 + 5)
    for name, shape in shapes.NAMED.items():
        assert re.fullmatch(r"[a-z][a-z0-9_-]+", name)
        assert parse_shape(format_shape(shape)) == shape
        m = re.search(r"-m(\d+)$", name)
        assert shape[0] == (int(m[1]) if m else 4096)


def test_a_layer_of_a_model_has_the_parameters_it_is_known_for():
    """The products' weights, all layers, with embeddings and head: 8.03 and 70.55 billion (the rest are norms)."""
    for model, layers, hidden, billions in (("llama3-8b", 32, 4096, 8.03), ("llama3-70b", 80, 8192, 70.55)):
        weights = sum(n * k for n, k in shapes.WEIGHTS[model].values())
        assert round((layers * weights + 2 * 128256 * hidden) / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("text", "meant"),
    [("llama3-8b-qvk", "llama3-8b-qkv"), ("llama3-70b-dwn-m64", "llama3-70b-down-m64"), ("?", "llama3-8b-qkv-m16")],
)
def test_a_name_that_is_not_known_gets_the_nearest_one(text, meant):
    with pytest.raises(UsageError, match=rf"not a shape: .* or a name: {meant};"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["LLAMA3-8B-QKV", "llama3-8b-qkv-m2", "llama3-8b-qkv ", "llama3-8b", "llama3-8b-qkv-m01"])
def test_names_are_exact(text):
    with pytest.raises(UsageError, match="not a shape"):
        parse_shape(text)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_what_is_searched_grows_and_is_listed_once(kind):
    searched = [parse_shape(shape) for shape in shapes.SEARCHED[kind]]
    work = [math.prod(shape) for shape in searched]
    assert work == sorted(work)
    assert len(set(searched)) == len(searched)
    assert all(edge % 16 == 0 for shape in searched for edge in shape)
