import datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.errors import UserError
from facd_basicsr.options.plain_yaml import load_yaml, option_text


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\nb: [1, 2\n', 'opt.yml, line 3'),
        ('train:\n  lr: 1\n  lr: 2\n', r"opt.yml, line 2: the key 'lr' stands twice"),
        ('? [a, b]\n: 1\n', 'opt.yml, line 1: found unhashable key'),
        ('name: 2024-13-45\n', 'opt.yml: month must be in'),
        ('name: !!float abc\n', 'opt.yml: could not convert string to float'),
    ],
)
def test_broken_yaml_is_refused_with_file_and_line(text, message):
    with pytest.raises(UserError, match=message):
        load_yaml(text, 'opt.yml')


def test_numbers_with_an_exponent_are_numbers():
    assert load_yaml('{a: 1e-4, b: 5e3, c: !!float 2e-4, d: 1.5e+2}', '') == {'a': 1e-4, 'b': 5e3, 'c': 2e-4, 'd': 150}


texts = st.text(st.characters(exclude_categories=['Cs']), max_size=8) | st.sampled_from(
    ['~', 'null', 'true', 'no', '1e-4', '1_0', '0x1', '2024-01-02', 'a: b', '- a', '#', 'x # y', '', ' a ', '---', '=']
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.dates()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_written_reads_back_equal(opt):
    read = load_yaml('# a comment\n' + option_text(opt), '')
    assert read.keys() == opt.keys()
    assert repr([read[key] for key in opt]) == repr([*opt.values()])  # repr tells 1 from 1.0 from True


def test_what_is_written_is_in_the_order_and_the_style_of_the_files():
    opt = {
        'taps': [{'student': 'body.4', 'teacher': 'body.9'}],
        'train': {'layer_weights': [0.5, 0.3], 'pixel_opt': None},
        'other': '1e-4',
        'name': 'a',
        'scale': 4,
        'datasets': {},
    }
    assert option_text(opt) == (
        'name: a\nscale: 4\n'
        '\ndatasets: {}\n'
        '\ntaps:\n- {student: body.4, teacher: body.9}\n'
        '\ntrain:\n  layer_weights: [0.5, 0.3]\n  pixel_opt: ~\n'
        "other: '1e-4'\n"
    )


def test_basicsrs_yaml_reads_what_is_written():
    opt = {'lr': 1e-8, 'day': datetime.date(2024, 1, 2), 'text': '1e-4', 'nothing': None, 'weights': [0.5, 1e20]}
    assert yaml.safe_load(option_text(opt)) == opt
