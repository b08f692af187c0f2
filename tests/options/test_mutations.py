"""Every key of every shipped option file, misspelt, of a wrong type, missing and null: refused by name, or valid."""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY, STUDENT, tiny_test_opt, tiny_train_opt, write_yml

from facd_basicsr.archs import build_without_weights
from facd_basicsr.comparison import plan
from facd_basicsr.errors import UserError
from facd_basicsr.options import build as dry_run_module
from facd_basicsr.options import load_yaml, parser, read_option_file
from facd_basicsr.options.build import dry_run
from facd_basicsr.options.option_check import check_options
from facd_basicsr.test import test as run_test
from facd_basicsr.train import train

OPTIONS = REPOSITORY / 'options'
FILES = sorted([*OPTIONS.glob('train/**/*.yml'), *OPTIONS.glob('test/**/*.yml'), *REPOSITORY.glob('demo/*.yml')])
SHORT = [OPTIONS / name for name in ('train/FACD_EDSR_x2.yml', 'test/FACD_RCAN_x4.yml')]
COMPARISONS = sorted(OPTIONS.glob('compare/*.yml'))
SHORT_COMPARISON = OPTIONS / 'compare/mini_x2_precision.yml'
GONE = '-'
Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutation:
    """One change of one key or list item.

    Attributes:
        kind: ``misspelt``, ``wrong type``, ``missing`` or ``null``.
        location: where it is now, as keys and indices.
        original: where it was.
        value: what stands there now.
        opt: the option dict with the change.
    """

    kind: str
    location: Location
    original: Location
    value: Any
    opt: dict[str, Any]

    def __str__(self) -> str:
        return f'{dotted(self.location)} {self.kind} ({self.value!r})'


def dotted(location: Location) -> str:
    """The name of a key as messages give it: ``taps[0].student``."""
    return ''.join(f'[{key}]' if isinstance(key, int) else f'.{key}' for key in location).removeprefix('.')


def locations(block: Any, at: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Every key and every list item, with its value."""
    items = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ()
    for key, value in items:
        yield (*at, key), value
        yield from locations(value, (*at, key))


def with_item(block: Any, location: Location, change: Callable[[Any, Any], Any]) -> Any:
    """A copy of ``block``, of no more than is changed, after ``change(parent, key)`` on the parent of a location."""
    copied = block.copy()
    key, *rest = location
    if rest:
        copied[key] = with_item(block[key], tuple(rest), change)
        return copied
    return change(copied, key)


def set_to(value: Any) -> Callable[[Any, Any], Any]:
    def change(parent: Any, key: Any) -> Any:
        parent[key] = value
        return parent

    return change


def without(parent: dict, key: Any) -> dict:
    del parent[key]
    return parent


def renamed_to(name: str) -> Callable[[dict, str], dict]:
    return lambda parent, key: {name if k == key else k: value for k, value in parent.items()}


def misspelt(name: str) -> str:
    """With its middle letter changed."""
    middle = len(name) // 2
    return name[:middle] + ('q' if name[middle] != 'q' else 'z') + name[middle + 1 :]


WRONG = {
    str: [7, 1.5, True, ['x'], {'x': 'x'}],
    bool: ['true', 1, 0.5, [True], {'x': True}],
    int: ['seven', '2', True, [2], {'x': 2}, 2.5],
    float: ['half', '0.5', True, [0.5], {'x': 0.5}],
    list: ['x', 7, True, {'x': 'x'}],
    dict: ['x', 7, True, ['x']],
    type(None): [7, True, ['x'], {'x': 'x'}],  # all that may be left out with ~ is text, a list or a block
}


def mutations(opt: dict[str, Any]) -> Iterator[Mutation]:
    for location, value in locations(opt):
        *parent, key = location
        if isinstance(key, str):
            name = misspelt(key)
            changed = with_item(opt, location, renamed_to(name))
            yield Mutation('misspelt', (*parent, name), location, value, changed)
            yield Mutation('missing', location, location, GONE, with_item(opt, location, without))
        for wrong in WRONG[type(value)]:
            yield Mutation('wrong type', location, location, wrong, with_item(opt, location, set_to(wrong)))
        if value is not None:
            yield Mutation('null', location, location, None, with_item(opt, location, set_to(None)))


def names(mutation: Mutation) -> list[str]:
    """What a refusal may call the key: a misspelt one that is required may also be the one that is missing.

    In a comparison, what is common to all methods is named in the first that has it, and the baseline by its name. A
    change that is left out there leaves what is inherited, so that another key of its method may be the odd one.
    """
    block, inner = mutation.location[:2], mutation.location[2:]
    if mutation.kind in ('missing', 'null') and inner and block[0] in ('methods', 'test'):
        return [f'{dotted(block)}.', *_names(mutation)]
    return _names(mutation)


def _names(mutation: Mutation) -> list[str]:
    locations, missing = [mutation.location], [mutation.original] * (mutation.kind == 'misspelt')
    if mutation.location[0] == 'common':
        locations, missing = ([('', *location[1:]) for location in them] for them in (locations, missing))
    baseline = [f'baseline: {name!r};' for name in mutation.original[1:] if len(mutation.original) == 2]
    return [*map(dotted, locations), *(f'{dotted(location)}: missing' for location in missing), *baseline]


def is_valid(mutation: Mutation) -> bool:
    """Whether a mutation that is accepted may be.

    A misspelt key may be one whose name is the user's to choose. A wrong type never is right, but where there are two
    right ones: num_gpu is a number or auto, a tap's teacher is a path or a list with one for each, and a fraction is a
    number where the key is not one of counting. What is
    missing or null is left to its default: that networks, loss, optimizer and scheduler are built with it is what
    accepted means here, and that training and testing run with it is tried below.
    """
    location = mutation.location
    if mutation.kind == 'misspelt':
        return location[:-1] == ('val', 'metrics')
    if mutation.kind == 'wrong type':
        paths = location[-3:-2] == ('taps',) and location[-1] == 'teacher' and type(mutation.value) is list
        gpus = location == ('num_gpu',) and type(mutation.value) is int
        return paths or gpus or (location[-1] in ('lambda', 'res_scale') and mutation.value == 2.5)
    return True


def complaint(mutation: Mutation, check_it: Callable[[dict[str, Any]], object]) -> str | None:
    """What is wrong with how a mutation is taken; None if nothing is."""
    try:
        check_it(mutation.opt)
    except UserError as error:
        message = str(error)
        if len(message.splitlines()) != 1 or not any(name in message for name in names(mutation)):
            return f'{mutation}: refused as {message!r}'
    except Exception as error:
        return f'{mutation}: {error!r}'
    else:
        if not is_valid(mutation):
            return f'{mutation}: accepted'
    return None


REASONS: dict[str, Exception | None] = {}  # by network block: why it is not built


@pytest.fixture
def networks_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """RCAN's 200 blocks take a second, even without memory, and thousands of mutations leave them as they are."""

    def built(network_opt: dict[str, Any]) -> None:
        key = repr(network_opt)
        if key not in REASONS:
            try:
                REASONS[key] = build_without_weights(network_opt) and None
            except Exception as error:
                REASONS[key] = error
        if REASONS[key] is not None:
            raise REASONS[key]

    monkeypatch.setattr(dry_run_module, 'build_without_weights', built)


def check_file(path: Path) -> None:
    opt = read_option_file(str(path))

    def check_it(mutated: dict[str, Any]) -> None:
        dry_run(check_options(mutated, 'train' in opt), 'train' in opt)

    check_it(opt)
    complaints = [complaint(mutation, check_it) for mutation in mutations(opt)]
    assert not list(filter(None, complaints))
    assert len(complaints) > 400


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize('path', SHORT, ids=name)
def test_a_mutated_option_file_is_refused_by_the_keys_name_or_valid(path, networks_are_built_once):
    check_file(path)


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in FILES if path not in SHORT], ids=name)
def test_every_mutated_option_file_is_refused_by_the_keys_name_or_valid(path, networks_are_built_once):
    check_file(path)


def test_a_misspelt_base_is_refused_by_its_name():
    for path in FILES:
        own = load_yaml(path.read_text(encoding='utf-8'), '')
        if 'base' in own:
            own[misspelt('base')] = own.pop('base')
            with pytest.raises(UserError, match=r"^baqe: unknown key; did you mean 'base'\?$"):
                check_options(own, is_train='test' not in path.parts)


def check_comparison(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As check_file, for a file of options/compare: its bases are read once, and the data need not be there."""
    monkeypatch.setattr(plan, 'read_option_file', functools.cache(read_option_file))
    monkeypatch.setattr(plan, 'check_paths', lambda opt, is_train: None)
    content = load_yaml(path.read_text(encoding='utf-8'), '')
    for block in (content['test'], *content['methods'].values()):
        block['base'] = str((path.parent / block['base']).resolve())
    names = set(content['methods'])

    def check_it(mutated: dict[str, Any]) -> None:
        comparison = plan.read_comparison(write_yml(mutated, folder / 'comparison.yml'))
        for method, opt in comparison.methods.items():
            try:
                dry_run(opt, is_train=True)
            except UserError as error:
                raise UserError(f'methods.{method}.{error}') from error

    def is_fine(mutation: Mutation) -> bool:
        """A method's name is the user's to choose; over an inherited block ~ takes it out."""
        return mutation.location[:-1] == ('methods',) and mutation.kind == 'misspelt'

    check_it(content)
    found = [complaint(mutation, check_it) for mutation in mutations(content) if not is_fine(mutation)]
    assert '\n'.join(filter(None, found)) == ''
    assert len(found) > 8 * len(names)


@pytest.mark.parametrize('path', [SHORT_COMPARISON], ids=name)
def test_a_mutated_comparison_is_refused_by_the_keys_name_or_valid(
    path, tmp_path, monkeypatch, networks_are_built_once
):
    check_comparison(path, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in COMPARISONS if path != SHORT_COMPARISON], ids=name)
def test_every_mutated_comparison_is_refused_by_the_keys_name_or_valid(
    path, tmp_path, monkeypatch, networks_are_built_once
):
    check_comparison(path, tmp_path, monkeypatch)


def filled(opt: dict[str, Any], path: Path) -> dict[str, Any]:
    """An option dict with every key that it lacks of a file; none of the file's sets."""

    def fill(block: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        both = {key: fill(block[key], more[key]) for key in block.keys() & more.keys() if isinstance(block[key], dict)}
        return {**more, **block, **both}

    return {**fill(opt, read_option_file(str(path))), 'datasets': opt['datasets']}


@pytest.fixture
def whole_train_opt(data: Path, teacher_weights: Path) -> dict[str, Any]:
    """Every key of a FACD file, with networks and data so small that it trains in a blink."""
    opt = filled(tiny_train_opt(data, teacher_weights), SHORT[0])
    opt['teacher']['expect'] |= {'psnr_y': 0.0, 'tolerance': 1000.0}  # a random teacher
    opt['train']['total_iter'] = 1
    return opt


def outcomes(opt: dict[str, Any], folder: Path, run: Callable[[Path], object]) -> tuple[set[str], set[str]]:
    """Runs what is accepted of an option dict's mutations: the keys of those that ran, and those refused only then."""
    ran, refused = set(), set()
    for mutation in mutations(opt):
        try:
            check_options(mutation.opt, 'train' in opt)
            dry_run(mutation.opt, 'train' in opt)
        except UserError:
            continue
        name = dotted(mutation.original)
        try:
            run(write_yml(mutation.opt, folder / 'opt.yml'))
            ran.add(name)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and str(mutation.location[0]) in str(error), mutation
            refused.add(name)
        shutil.rmtree(folder)
        folder.mkdir()
    return ran, refused


@pytest.mark.slow
def test_what_is_accepted_of_a_files_mutations_can_be_trained(whole_train_opt, tmp_path):
    def run(path: Path) -> None:
        train(parser().parse_args(['-opt', str(path)]), root=path.parent, console=False)

    ran, refused = outcomes(whole_train_opt, tmp_path, run)
    assert refused == {'teacher.network', 'teacher.network.num_feat', 'teacher.network.num_block'}  # other weights
    assert len(ran) > 30 and {'val', 'train.optim_g.betas', 'network_g.num_feat', 'dist_params'} < ran


def test_what_is_accepted_of_a_files_mutations_can_be_tested(data, tmp_path_factory, tmp_path):
    opt = filled(tiny_test_opt(data), OPTIONS / 'test' / 'FACD_EDSR_x2.yml')
    weights = tmp_path_factory.mktemp('weights') / 'net.pth'
    torch.save({'params': build_network(STUDENT).state_dict()}, weights)
    opt['path']['pretrain_network_g'] = str(weights)

    def run(path: Path) -> None:
        run_test(parser(is_train=False).parse_args(['-opt', str(path)]), root=path.parent, console=False)

    ran, refused = outcomes(opt, tmp_path, run)
    assert refused == {'network_g.num_feat', 'network_g.num_block'}  # other weights
    assert len(ran) > 10 and {'manual_seed', 'val.metrics', 'path.strict_load_g'} < ran
