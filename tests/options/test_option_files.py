import datetime

import pytest
import yaml
from conftest import write_yml
from hypothesis import given, settings
from hypothesis import strategies as st

from facd_basicsr.comparison.plan import read_comparison
from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options
from facd_basicsr.options.option_files import load_yaml, option_text


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\nb: [1, 2\n', 'opt.yml, line 3'),
        ('train:\n  lr: 1\n  lr: 2\n', r"opt.yml, line 2: the key 'lr' stands twice"),
        ('? [a, b]\n: 1\n', 'opt.yml, line 1: found unhashable key'),
        ('name: 2024-13-45\n', 'opt.yml: month must be in'),
        ('name: !!float abc\n', 'opt.yml: could not convert string to float'),
        ('name: !!bool abc\n', "opt.yml: 'abc'"),
        ('scale: 0x' + 'f' * 99999, 'opt.yml, line 1: a number of more than 1000 bits'),
    ],
)
def test_broken_yaml_is_refused_with_file_and_line(text, message):
    with pytest.raises(UserError, match=message):
        load_yaml(text, 'opt.yml')


def test_numbers_with_an_exponent_are_numbers():
    assert load_yaml('{a: 1e-4, b: 5e3, c: !!float 2e-4, d: 1.5e+2}', '') == {'a': 1e-4, 'b': 5e3, 'c': 2e-4, 'd': 150}


CALLS = (
    'python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [MARKER]]',
    'python/object/new:pathlib.Path [MARKER]',
    'python/object:pathlib.Path {}',
    'python/name:os.system ""',
    'python/module:os ""',
    'python/tuple [1]',
)


@pytest.mark.parametrize('call', CALLS)
def test_yaml_that_would_run_code_is_refused_wherever_it_is_read(call, train_opt, tmp_path):
    marker = tmp_path / 'marker'
    value = '!!' + call.replace('MARKER', str(marker))
    (tmp_path / 'evil.yml').write_text(f'name: a\nscale: {value}\n')
    (tmp_path / 'based.yml').write_text('base: evil.yml\n')
    plain = str(write_yml(train_opt, tmp_path / 'plain.yml'))
    for read, where in (
        (lambda: load_options(str(tmp_path / 'evil.yml'), [], is_train=True), 'evil.yml, line 2'),
        (lambda: load_options(str(tmp_path / 'based.yml'), [], is_train=True), 'evil.yml, line 2'),
        (lambda: load_options(plain, [f'scale={value}'], is_train=True), '--force_yml scale, line 1'),
        (lambda: read_comparison(tmp_path / 'evil.yml'), 'evil.yml, line 2'),
    ):
        with pytest.raises(
            UserError, match=rf'{where}: could not determine a constructor for .*; accepted: plain YAML$'
        ):
            read()
    assert not marker.exists()


def billion_laughs(of: str, aliases: str) -> str:
    """Text of 1 kB that stands for 9^9 values."""
    lines = [f'a0: &a0 {of}']
    for level in range(9):
        lines.append(f'a{level + 1}: &a{level + 1} {aliases.format(", ".join([f"*a{level}"] * 9))}')
    return '\n'.join(lines)


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('a: ' + '[' * 100_000, 'line 1: nested more than 50 deep'),
        ('{a: ' * 1000, 'line 1: nested more than 50 deep'),
        ('- ' * 1000 + 'a', 'line 1: nested more than 50 deep'),
        (billion_laughs('[x, x]', '[{}]'), 'line 6: aliases that stand for more than 100000 values'),
        (billion_laughs('{x: x}', '{{<<: [{}]}}'), 'line 6: aliases that stand for more than 100000 values'),
        ('a: &a [*a]', 'line 1: an alias within what it stands for'),
        ('a: &a {b: *a}', 'line 1: an alias within what it stands for'),
    ],
    ids=['lists', 'blocks', 'dashes', 'aliases', 'merged aliases', 'list in itself', 'block in itself'],
)
def test_yaml_without_end_is_refused_in_a_line(text, problem):
    with pytest.raises(UserError) as error:
        load_yaml(text, 'opt.yml')
    assert str(error.value) == f'opt.yml, {problem}; accepted: plain YAML'


def test_an_alias_stands_for_its_value():
    assert load_yaml('a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}', '') == {
        'a': {'b': 1},
        'c': {'b': 1},
        'd': {'b': 1, 'e': 2},
    }


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
        '\ntrain:\n  layer_weights: [0.5, 0.3]\n  pixel_opt: null\n'
        "other: '1e-4'\n"
    )


def test_basicsrs_yaml_reads_what_is_written():
    opt = {'lr': 1e-8, 'day': datetime.date(2024, 1, 2), 'text': '1e-4', 'nothing': None, 'weights': [0.5, 1e20]}
    assert yaml.safe_load(option_text(opt)) == opt


@settings(max_examples=2 * settings.default.max_examples)
@given(st.text(st.sampled_from('ab1:&*!{}[],-?|>"\'%@#~<= \n\t\x00\ud800'), max_size=40))
def test_any_text_is_read_or_refused_in_a_line(text):
    try:
        load_yaml(text, 'opt.yml')
    except UserError as error:
        assert len(str(error).splitlines()) == 1
