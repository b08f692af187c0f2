import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
from basicsr.utils.options import dict2str
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.runs.train_log import as_run, changes, parsed

KEYS = st.from_regex(r'[a-z_]{1,8}', fullmatch=True)
TEXTS = st.from_regex(r'[ -~]{0,12}', fullmatch=True)
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.lists(st.integers(), max_size=3)
)
OPTIONS = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=4),
    lambda inner: st.dictionaries(KEYS, inner | VALUES, max_size=4),
    max_leaves=8,
)


@given(OPTIONS)
def test_options_that_were_run_as_the_file_has_them_are_read_back(opt):
    assert as_run(opt, parsed(dict2str(opt))) == opt


def test_what_the_command_line_changed_is_found():
    file = {'name': 'a', 'train': {'total_iter': 10, 'lr': 1e-3}, 'path': {}, 'gone': 1}
    run = {'name': 'a', 'train': {'total_iter': 20, 'lr': 1e-3, 'new': [1, 2]}, 'path': {'log': '/x'}, 'rank': 0}
    opt = as_run(file, parsed(dict2str(run)))
    assert changes(file, opt) == [('train.total_iter', 10, 20), ('train.new', ..., [1, 2]), ('gone', 1, ...)]


def test_what_options_fill_in_is_no_change():
    file = {'scale': 2, 'datasets': {'val': {'name': 'v'}}, 'path': {'resume_state': None}}
    run = {
        'scale': 2,
        'datasets': {'val': {'name': 'v', 'phase': 'val', 'scale': 2}},
        'path': {'resume_state': None, 'models': '/x/models'},
        'world_size': 1,
    }
    assert changes(file, as_run(file, parsed(dict2str(run)))) == []


def test_a_value_with_line_breaks_keeps_its_first_line():
    assert parsed(dict2str({'note': 'one\ntwo', 'scale': 2})) == {'note': 'one', 'scale': '2'}


def test_types_are_guessed_where_the_file_has_another_value():
    opt = as_run({'seed': None, 'x': '1'}, parsed(dict2str({'seed': 7, 'x': '1', 'name': 'my run', 'ratio': 1e-4})))
    assert opt == {'seed': 7, 'x': '1', 'name': 'my run', 'ratio': 1e-4}
