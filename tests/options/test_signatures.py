from collections.abc import Sequence
from dataclasses import dataclass

from facd_basicsr.losses import DistillLoss, FACDLoss
from facd_basicsr.losses.base import option
from facd_basicsr.models import FACDModel
from facd_basicsr.options.signatures import Key, keys_read, signature_keys


def test_types_come_from_annotations_then_from_defaults():
    def target(a, b: int, c: float = 1, d: Sequence[float] = (), e=1, f=True, g='x', h=(1, 2), i=None, **rest):
        pass

    number = (int, float)
    assert signature_keys(target) == {
        'a': Key(required=True),
        'b': Key((int,), required=True),
        'c': Key(number),
        'd': Key((list,), items=number),
        'e': Key(number),
        'f': Key((bool,)),
        'g': Key((str,)),
        'h': Key((list,), items=number),
        'i': Key(),
    }


def test_supplied_parameters_are_left_out_and_known_ones_replaced():
    def target(params, lr=1):
        pass

    known = {'lr': Key((float,), required=True), 'other': Key()}
    assert signature_keys(target, supplied=('params',), known=known) == {'lr': Key((float,), required=True)}


def test_a_parameter_named_after_a_keyword_is_that_keyword_in_an_option_file():
    keys = signature_keys(FACDLoss)
    assert 'lambda' in keys and 'lambda_' not in keys


def test_a_losss_keys_are_its_options_with_their_bounds_choices_and_meanings():
    @dataclass(eq=False)
    class OwnLoss(DistillLoss):
        min_batch = 2

        lambda_: float = option(1.0, 'a weight', least=0)
        layer_weights: Sequence[float] = option((1.0,), 'of taps', least=0)
        distance: str = option('l1', 'a norm', choices=('l1', 'l2'))
        steps: int = option(1, 'how many', above=0)

        def forward(self, state):
            return {}

    class Derived(OwnLoss):
        """Has the options of its base."""

    number = (int, float)
    expected = {
        'lambda': Key(number, least=0),
        'layer_weights': Key((list,), items=number, least=0),
        'distance': Key((str,), choices=('l1', 'l2')),
        'steps': Key((int,), above=0),
    }
    for loss in (OwnLoss, Derived):
        found = signature_keys(loss)
        assert found == expected
        assert [own.meaning for own in found.values()] == ['a weight', 'of taps', 'a norm', 'how many']
        assert [own.default for own in found.values()] == [1.0, [1.0], 'l1', 1]


def test_keys_are_read_off_subscripts_get_and_in_of_the_named_dict_only():
    class Reader:
        def read(self, opt, other):
            return opt['a'], opt.get('b'), 'c' in opt, self.opt['d'], other['e'], opt['f']['g']

    assert keys_read(Reader, 'opt') == {'a', 'b', 'c', 'd', 'f'}


def test_an_overridden_method_does_not_count():
    class Base:
        def read(self, opt):
            return opt['a']

        def other(self, opt):
            return opt['b']

    class Derived(Base):
        def read(self, opt):
            return opt['c']

    assert keys_read(Base, 'opt') == {'a', 'b'}
    assert keys_read(Derived, 'opt') == {'b', 'c'}
    assert 'distill_opt' in keys_read(FACDModel, 'train_opt')


def test_a_class_has_its_defaults_from_its_signature_and_its_meanings_from_its_docstring():
    class Thing:
        """A thing.

        Args:
            a: the first, which
                continues.
            b, c (int): two of them. Default: 2.
            lambda_: a word of Python's.

        Raises:
            UserError: never.
        """

        def __init__(self, a, b=2, c: int = 3, lambda_: float = 1.0):
            pass

    found = signature_keys(Thing, known={'c': Key((int,), least=1, meaning='the third')})
    assert {key: (own.default, own.meaning) for key, own in found.items()} == {
        'a': (..., 'the first, which continues'),
        'b': (2, 'two of them'),
        'c': (3, 'the third'),
        'lambda': (1.0, "a word of Python's"),
    }
    assert found['c'].least == 1


def test_the_bases_docstrings_say_what_a_classs_own_does_not():
    class Base:
        """A base.

        Args:
            a: the base's first.
            b: the base's second.
        """

        def __init__(self, a=1, b=2):
            pass

    class Derived(Base):
        """A thing.

        Args:
            b: its own second.
        """

    assert {key: own.meaning for key, own in signature_keys(Derived).items()} == {
        'a': "the base's first",
        'b': 'its own second',
    }
