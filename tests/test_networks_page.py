"""docs/networks.md says what each network can do."""

import re

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import REPOSITORY, imported_script
from networks import COLUMNS, NETWORKS, YES, Network, outcome

page = imported_script(REPOSITORY / 'docs' / 'networks_page.py')
TEXT = (REPOSITORY / 'docs' / 'networks.md').read_text(encoding='utf-8')
CELLS = page.cells_of(TEXT)

RUNS = [
    pytest.param(network, column, id=f'{network.name} {column}') for network in NETWORKS for column in network.columns
]


def without_numbers(reason: str) -> str:
    """Differences by rounding depend on the machine."""
    return re.sub(r'\d[\d.]*', '#', reason)


@pytest.mark.slow
@pytest.mark.parametrize(('network', 'column'), RUNS)
def test_a_cell_says_what_happens(network, column):
    found = CELLS[network.name][column]
    stale = f'stale: python docs/networks_page.py --into docs/networks.md --only "{network.name}"'
    assert without_numbers(outcome(network, column)) == without_numbers(found), stale


def test_the_page_has_every_network_and_every_column():
    assert [*CELLS] == [network.name for network in NETWORKS]
    assert all([*CELLS[network.name]] == network.columns for network in NETWORKS)
    for column in COLUMNS:
        assert re.search(rf'^\| [^|]*\b{column}\b[^|]* \|', TEXT.partition(page.MARKER)[0], re.MULTILINE), column


def test_a_table_is_read_back_as_it_was_written():
    some = dict.fromkeys([column for column in COLUMNS if column != 'compile'], YES)
    cells = {'A': some, 'B x2': {**dict.fromkeys(COLUMNS, 'a: 1; accepted: 2'), 'ONNX': YES}}
    assert page.cells_of(page.with_table(f'1. x\n{page.MARKER}\n\n{page.END}\n', cells)) == cells
    assert page.cells_of(TEXT.partition(page.MARKER)[0]) == {}


class RefusesLater(torch.nn.Conv2d):
    """Refuses the larger image of the validation: ``facd check`` upscales the smallest."""

    def __init__(self, upscale: int = 1) -> None:
        super().__init__(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[3] == 29:
            raise ValueError('no more')
        return super().forward(x)


class RefusesAll(RefusesLater):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError('never')


@pytest.fixture
def of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (RefusesLater, RefusesAll):
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, cls.__name__, cls)


def test_what_is_refused_before_a_run_is_a_reason_and_in_the_middle_of_it_an_error(of_a_test):
    reason = outcome(Network({'type': 'RefusesAll', 'upscale': 1}, 1), 'student')
    assert reason.startswith('network_g: RefusesAll does not take LQ of 16 x 16 with 3 channels (never); accepted: ')
    with pytest.raises(ValueError, match='no more'):
        outcome(Network({'type': 'RefusesLater', 'upscale': 1}, 1), 'student')
