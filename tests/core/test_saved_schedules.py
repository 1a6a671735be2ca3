"""Schedules in files: what ``tomecore tune`` writes and ``schedule.load`` reads."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest

from tomecore import schedule
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic, in_words

FOUND = schedule.Tuned((5, 3, 0, 1), 30, 1.5, "tome", 4e6, "timm:a")
HEAD = '"schema": "tomecore schedule 1"'


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({**FOUND.as_dict(), "search": {"passes": 7}}))
    return path


def test_what_is_written_is_what_is_loaded(path):
    assert (
        json.loads(path.read_text()).items()
        >= {
            "schema": "tomecore schedule 1",
            "r": [5, 3, 0, 1],
            "num_tokens": 30,
            "speedup": 1.5,
            "model": "timm:a",
            "matching": "tome",
        }.items()
    )
    for name in (path, str(path)):
        assert schedule.load(name) == FOUND
    assert isinstance(FOUND, schedule.Schedule)
    assert pickle.loads(pickle.dumps(FOUND)) == FOUND
    assert FOUND(4, 30, 1) == [5, 3, 0, 1]


def test_another_model_and_other_images_are_refused():
    with pytest.raises(ArgumentValueError, match=r"with 4 layers, but this model has 12"):
        FOUND(12, 30, 1)
    with pytest.raises(ArgumentValueError, match=r"for 30 tokens, but 31 enter"):
        FOUND(4, 31, 1)
    with pytest.raises(ArgumentValueError, match=r"layer 0 merges 5 tokens, but .* at most 4 of"):
        FOUND(4, 30, 22)


def handle(width, matching="tome", prefix=1):
    layer = LayerArithmetic(4 * width**2, 8 * width**2, width)
    return SimpleNamespace(
        matching=matching, arithmetic=Arithmetic((layer,) * 4, prefix, 768 * width, 0, 0)
    )


def test_a_model_of_another_size_or_matching_is_refused():
    """Another head is the same model for a schedule, another width is not."""
    needs = handle(96).arithmetic.multiply_adds(30, 0)
    found = schedule.Tuned((5, 3, 0, 1), 30, 1.5, "tome", 1.01 * needs, "timm:a")
    found.check_model(handle(96))
    with pytest.raises(
        ArgumentValueError, match=r"for timm:a, which needs 16\.\d million .* 58\.\d mil"
    ):
        found.check_model(handle(192))
    with pytest.raises(ArgumentValueError, match=r"the matching 'tome', but .* with 'pitome'; use"):
        found.check_model(handle(96, "pitome"))
    schedule.Tuned((5, 3, 0, 1), 30, 1.5).check_model(handle(192, "pitome"))  # written by hand


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (17.58e9, "17.6 billion"),
        (4.2e6, "4.20 million"),
        (99.96e6, "100 million"),
        (999_700_000, "1.00 billion"),
        (351_234, "351,234"),
        (2e12, "2.00 trillion"),
    ],
)
def test_multiply_adds_in_words(number, words):
    assert in_words(number) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"other.json is not JSON \(line 1, column 2\)"),
        ("[1, 2]", r"holds no schedule: it is \[1, 2\], not an object with r and num_tokens"),
        ("null", "it is null, not an object"),
        (f'{{{HEAD}, "r": [1]}}', "it has no num_tokens"),
        ('{"schema": 1, "r": [1]}', "its schema is 1, not 'tomecore schedule 1'"),
        (
            f'{{{HEAD}, "r": 3, "num_tokens": 9, "speedup": 1}}',
            "its r is 3, not a list of integers",
        ),
        (f'{{{HEAD}, "r": [-1], "num_tokens": 9, "speedup": 1}}', r"its r is \[-1\], not a list"),
        (f'{{{HEAD}, "r": [1.5], "num_tokens": 9, "speedup": 1}}', r"its r is \[1.5\], not"),
        (f'{{{HEAD}, "r": [true], "num_tokens": 9, "speedup": 1}}', r"its r is \[true\], not"),
        (f'{{{HEAD}, "r": [1], "num_tokens": 0, "speedup": 1}}', "its num_tokens is 0, not"),
        (f'{{{HEAD}, "r": [1], "num_tokens": 9, "speedup": NaN}}', "its speedup is NaN, not a"),
        (f'{{{HEAD}, "r": [1], "num_tokens": 9, "speedup": 0}}', "its speedup is 0, not a"),
        (
            f'{{{HEAD}, "r": [1], "num_tokens": 9, "speedup": 1e999}}',
            "its speedup is Infinity, not",
        ),
        ("[" * 100_000, "other.json holds JSON that Python cannot read; give a file"),
        (f'{{{HEAD}, "r": [1{"0" * 5000}]}}', "other.json holds JSON that Python cannot read"),
        (
            f'{{{HEAD}, "r": [1], "num_tokens": 9, "speedup": 1, "matching": 3}}',
            "its matching is 3, not text",
        ),
        (
            f'{{{HEAD}, "r": {[900] * 12}, "num_tokens": 197, "speedup": 2}}',
            "layer 0 merges 900 tokens, but it can merge at most 98 of those it gets; give a file",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ArgumentValueError, match=rf"`path`: .*{message}") as caught:
        schedule.load(path)
    said = str(caught.value)
    assert ".." not in said.replace(str(path), "")
    assert "indices" not in said
    with pytest.raises(ArgumentValueError, match=r"`path`: there is no file .*missing\.json; give"):
        schedule.load(tmp_path / "missing.json")


@pytest.mark.parametrize("depth", [980, 985, 988, 990, 991, 992, 993, 994, 995, 1000])
def test_lists_in_lists_are_refused_at_every_depth(tmp_path, depth):
    path = tmp_path / "a.json"
    path.write_text("[" * depth + "]" * depth)
    with pytest.raises(ArgumentValueError, match=r"holds no schedule|that Python cannot read"):
        schedule.load(path)


@pytest.mark.parametrize("name", ["a\0b.json", "a\ud800.json"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(
        ArgumentValueError, match=r"`path`: 'a.*\.json' cannot be read \(.*; give a"
    ):
        schedule.load(name)


def test_a_number_that_no_float_holds_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f'{{{HEAD}, "r": [1], "num_tokens": 9, "speedup": 1{"0" * 400}}}')
    with pytest.raises(ArgumentValueError, match=r"its speedup is 10000.* \.\.\., not a number"):
        schedule.load(path)


@pytest.mark.parametrize("path", [3, None, b"a.json"])
def test_what_is_not_a_path_is_refused(path):
    with pytest.raises(ArgumentTypeError, match=r"`path` must be the name of a file; got"):
        schedule.load(path)
