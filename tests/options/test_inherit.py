import copy
import functools
from pathlib import Path

import pytest
from conftest import write_yml
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.errors import UserError
from facd_basicsr.options.option_files import lineage, load_yaml, merged, option_text, read_option_file
from facd_basicsr.options.parse import load_options

RULES = {
    'a list stands for the block': ({'a': {'x': 1}}, {'a': [{'y': 2}]}, {'a': [{'y': 2}]}),
    'a block stands for the list': ({'a': [{'y': 2}]}, {'a': {'x': 1}}, {'a': {'x': 1}}),
    'a block is merged key by key': ({'a': {'x': 1, 'y': 2}}, {'a': {'y': 3, 'z': 4}}, {'a': {'x': 1, 'y': 3, 'z': 4}}),
    'at any depth': ({'a': {'b': {'x': 1, 'y': 2}}}, {'a': {'b': {'x': 3}}}, {'a': {'b': {'x': 3, 'y': 2}}}),
    'a list is replaced': ({'a': [1, 2, 3]}, {'a': [4]}, {'a': [4]}),
    'a list of blocks too': ({'a': [{'x': 1}, {'x': 2}]}, {'a': [{'y': 3}]}, {'a': [{'y': 3}]}),
    'a scalar is replaced': ({'a': 1}, {'a': 'b'}, {'a': 'b'}),
    'a block by a scalar': ({'a': {'x': 1}}, {'a': 2}, {'a': 2}),
    'a scalar by a block': ({'a': 2}, {'a': {'x': 1}}, {'a': {'x': 1}}),
    'a block of a type of its own replaces': (
        {'loss': {'type': 'FACDLoss', 'lambda': 4, 'adaptive': True}},
        {'loss': {'type': 'FitNetLoss', 'lambda': 1}},
        {'loss': {'type': 'FitNetLoss', 'lambda': 1}},
    ),
    'of the same type as well': ({'a': {'type': 'T', 'x': 1}}, {'a': {'type': 'T'}}, {'a': {'type': 'T'}}),
    'a block without a type keeps the inherited one': (
        {'a': {'type': 'T', 'x': 1}},
        {'a': {'x': 2}},
        {'a': {'type': 'T', 'x': 2}},
    ),
    'a type counts for its own block only': (
        {'a': {'x': 1, 'b': {'type': 'T', 'y': 2}}},
        {'a': {'b': {'type': 'U'}}},
        {'a': {'x': 1, 'b': {'type': 'U'}}},
    ),
    'nothing takes a block out': ({'a': {'x': 1}, 'b': 2}, {'a': None}, {'b': 2}),
    'nothing takes a list out': ({'a': [1], 'b': 2}, {'a': None}, {'b': 2}),
    'nothing takes an empty block out': ({'a': {}}, {'a': None}, {}),
    'nothing takes out inside a block': ({'a': {'x': {'y': 1}, 'z': 2}}, {'a': {'x': None}}, {'a': {'z': 2}}),
    'nothing over a scalar is nothing': ({'a': 1}, {'a': None}, {'a': None}),
    'nothing over nothing is nothing': ({'a': None}, {'a': None}, {'a': None}),
    'a new nothing is nothing': ({}, {'a': None, 'b': {'c': None}}, {'a': None, 'b': {'c': None}}),
    'no change': ({'a': {'x': [1]}}, {'a': {}}, {'a': {'x': [1]}}),
}


@pytest.mark.parametrize(('base', 'changes', 'result'), RULES.values(), ids=RULES)
def test_the_rules_by_hand(base, changes, result):
    assert merged(base, changes) == result


keys = st.sampled_from(['a', 'b', 'c', 'type'])
scalars = st.none() | st.integers(0, 3) | st.sampled_from(['T', 'U'])
opts = st.dictionaries(
    keys,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


@given(opts, opts)
def test_merging_changes_neither_and_shares_nothing(base, changes):
    before = copy.deepcopy((base, changes))
    result = merged(base, changes)
    assert (base, changes) == before

    def spoil(value: object) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            spoil(item)
        if isinstance(value, (dict, list)):
            value.clear()

    spoil(result)
    assert (base, changes) == before


@given(opts)
def test_no_changes_leave_a_file_as_it_is_and_a_file_without_inheritance_is_its_own(opt):
    assert merged(opt, {}) == opt
    assert merged({}, opt) == opt


@given(opts, opts)
def test_every_scalar_and_list_of_the_changes_is_in_the_result_and_no_key_is_from_elsewhere(base, changes):
    result = merged(base, changes)
    assert result.keys() <= base.keys() | changes.keys()
    assert [key for key in result if key in base] == [key for key in base if key in result]  # in the base's order
    for key in base.keys() - changes.keys():
        assert result[key] == base[key]
    for key, value in changes.items():
        if value is not None and not isinstance(value, dict):
            assert result[key] == value


@given(opts, opts)
def test_merging_the_same_changes_again_changes_nothing(base, changes):
    def has_nothing(value: object) -> bool:
        return value is None or (isinstance(value, dict) and any(map(has_nothing, value.values())))

    once = merged(base, changes)
    if not has_nothing(changes):  # a key that was taken out would be set to nothing
        assert merged(once, changes) == once


def written(folder: Path, **files: str) -> Path:
    """Writes files NAME.yml and returns the first."""
    for name, text in files.items():
        (folder / f'{name}.yml').write_text(text, encoding='utf-8')
    return folder / f'{next(iter(files))}.yml'


def test_a_base_is_found_beside_the_file_that_names_it_and_may_have_one_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sub').mkdir()
    written(tmp_path, grandparent='a: 1\nb: {x: 1, y: 2}\n', parent='base: grandparent.yml\nb: {y: 3}\nc: [1]\n')
    child = written(tmp_path / 'sub', child='base: ../parent.yml\na: 2\nc: ~\n', parent='a: wrong\n')
    assert read_option_file(str(child)) == {'a': 2, 'b': {'x': 1, 'y': 3}}
    assert read_option_file('sub/child.yml') == {'a': 2, 'b': {'x': 1, 'y': 3}}
    assert [path for path, _ in lineage('sub/child.yml')] == [
        'sub/child.yml', 'sub/../parent.yml', 'sub/../grandparent.yml'
    ]  # fmt: skip


def test_a_base_may_lie_anywhere(tmp_path):
    elsewhere = written(tmp_path, parent='a: 1\n')
    (tmp_path / 'sub').mkdir()
    assert read_option_file(str(written(tmp_path / 'sub', child=f'base: {elsewhere}\n'))) == {'a': 1}


def test_a_file_without_a_base_is_read_as_it_stands(tmp_path):
    path = written(tmp_path, alone='# words\na: ~\nb: {type: T, c: ~}\n')
    assert read_option_file(str(path)) == {'a': None, 'b': {'type': 'T', 'c': None}}


def test_what_a_run_says_of_its_starts_is_no_option(tmp_path):
    written(tmp_path, options='a: 1\nrun:\n- {iter: 0}\n')
    assert read_option_file(str(tmp_path / 'options.yml')) == {'a': 1}
    assert read_option_file(str(written(tmp_path, child='base: options.yml\n'))) == {'a': 1}


def test_a_base_inside_a_block_is_a_key_like_others(tmp_path):
    assert read_option_file(str(written(tmp_path, alone='a: {base: b.yml}\n'))) == {'a': {'base': 'b.yml'}}


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'a': 'base: a.yml\n'}, r'a.yml: base: a.yml \(.*a.yml\) leads back to itself \(.*a.yml -> .*a.yml\)'),
        (
            {'a': 'base: b.yml\n', 'b': 'base: ../SELF/c.yml\n', 'c': 'base: a.yml\n'},
            r'c.yml: base: a.yml \(.*\) leads back to itself \(.*a.yml -> .*b.yml -> .*c.yml -> .*a.yml\); accepted: ',
        ),
        ({'a': 'base: b.yml\n', 'b': 'base: b.yml\n'}, r'b.yml: base: b.yml \(.*\) leads back to itself'),
        (
            {'a': 'base: absent.yml\n'},
            r'a.yml: base: absent.yml \(.*absent.yml\): No such file .*; accepted: an option',
        ),
        ({'a': 'base: b.yml\n', 'b': 'base: absent.yml\n'}, r'b.yml: base: absent.yml \(.*\): No such file'),
        ({'a': 'base: /absent.yml\n'}, r'a.yml: base: /absent.yml: No such file'),
        ({'a': 'base: .\n'}, r'a.yml: base: \. \(.*\): Is a directory'),
        ({'a': 'base: ""\n'}, r'a.yml: base:  \(.*\): Is a directory'),
        ({'a': 'base: "a\\0b"\n'}, r'a.yml: base: .*: not text'),
        ({'a': 'base: [b.yml]\n'}, r"a.yml: base: \['b.yml'\]; accepted: an option file, relative to the folder"),
        ({'a': 'base: ~\n'}, r'a.yml: base: None; accepted: an option file'),
        ({'a': 'base: 1\n'}, r'a.yml: base: 1; accepted: an option file'),
        ({'a': 'base: b.yml\n', 'b': '[1]\n'}, r'b.yml: holds list; accepted: option keys'),
        ({'a': 'base: b.yml\n', 'b': 'x: !!python/name:os.system\n'}, r'b.yml, line 1: could not determine'),
        ({'a': 'base: b.yml\nbase: c.yml\n'}, r"a.yml, line 1: the key 'base' stands twice"),
    ],
)
def test_a_base_that_can_not_be_is_refused_in_one_line(files, message, tmp_path):
    folder = tmp_path / 'SELF'
    folder.mkdir()
    with pytest.raises(UserError, match=message) as error:
        read_option_file(str(written(folder, **files)))
    assert '\n' not in str(error.value)


def test_options_are_loaded_with_what_they_inherit_and_the_command_line_has_the_last_word(train_opt, tmp_path):
    write_yml(train_opt, tmp_path / 'base.yml')
    child = written(
        tmp_path, child='base: base.yml\nname: child\nscale: 2\ntrain: {total_iter: 9, distill_opt: {lambda: 2}}\n'
    )
    opt = load_options(str(child), ['train:distill_opt:lambda=3', 'datasets:val=~'], is_train=True)
    assert 'base' not in opt and list(opt['datasets']) == ['train']
    assert (opt['name'], opt['train']['total_iter']) == ('child', 9)
    assert (opt['train']['distill_opt']['type'], opt['train']['distill_opt']['lambda']) == ('FACDLoss', 3)
    with pytest.raises(UserError, match=r'child.yml: base: unknown key; did you mean'):
        load_options(str(child), ['base=base.yml'], is_train=True)


def test_an_inherited_set_is_left_out_by_nothing(test_opt, tmp_path):
    test_opt['datasets']['test_2'] = {**test_opt['datasets']['test_1'], 'name': 'other', 'dataroot_gt': 'absent'}
    test_opt['path']['pretrain_network_g'] = str(write_yml(test_opt, tmp_path / 'base.yml'))
    write_yml(test_opt, tmp_path / 'base.yml')
    child = written(tmp_path, child='base: base.yml\ndatasets: {test_2: ~}\n')
    assert list(load_options(str(child), [], is_train=False)['datasets']) == ['test_1']


@given(st.lists(opts, min_size=2, max_size=3))
def test_the_text_of_options_with_a_base_reads_as_the_file_does(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp('files')
    for i, content in enumerate(contents):
        write_yml({'base': f'{i + 1}.yml', **content} if i + 1 < len(contents) else content, folder / f'{i}.yml')
    resolved = read_option_file(str(folder / '0.yml'))
    assert resolved == functools.reduce(merged, reversed(contents))
    assert load_yaml(option_text(resolved), '') == resolved


def test_several_losses_stand_for_the_one_of_the_base_and_are_merged_with_several_by_name():
    one = {'distill_opt': {'type': 'FACDLoss', 'lambda': 4}}
    several = {'distill_opt': {'sr': {'type': 'L1Loss'}, 'facd': {'type': 'FACDLoss'}}}
    assert merged(one, several) == several
    assert merged(several, {'distill_opt': {'sr': {'loss_weight': 2}, 'facd': None}}) == {
        'distill_opt': {'sr': {'type': 'L1Loss', 'loss_weight': 2}}
    }
    assert merged(several, one) == one
    fading = {'distill_opt': {'lambda': {'start': 4, 'end': 0, 'over': 9}}}
    assert merged(one, fading) == {'distill_opt': {'type': 'FACDLoss', **fading['distill_opt']}}
