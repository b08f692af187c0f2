"""What an option file may say of how networks are run: precision, channels_last, compile, winograd."""

from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.options import keys
from facd_basicsr.options.blocks import check_block


def check_execution(opt: dict[str, Any]) -> None:
    """Checks ``train`` and ``teacher`` of an option dict, whose keys are known.

    Raises:
        UserError: values that do not go together, or a key of regressors that there are not.
    """
    train_opt, teacher_opt = opt['train'], opt.get('teacher', {})
    for where, block in (('train', train_opt), ('teacher', teacher_opt)):
        for key in ('compile', 'compile_r'):
            if block.get(key) is not None:
                check_block(f'{where}.{key}', block[key], keys.COMPILE)
    _check_regressors(train_opt, 'network_r' in opt)
    if teacher_opt.get('winograd'):
        for key, fits in (('precision', 'fp32'), ('compile', None), ('channels_last', False)):
            if teacher_opt.get(key, fits) != fits:
                raise UserError(
                    f'teacher.winograd: true, with {key}: {teacher_opt[key]}; accepted: one of them, for both say how '
                    'convolutions run'
                )


def _check_regressors(train_opt: dict[str, Any], are_there: bool) -> None:
    for key in keys.EXECUTION:
        if f'{key}_r' in train_opt and not are_there:
            raise UserError(f'train.{key}_r: given, but there is no network_r; accepted: no {key}_r')
    precision, precision_r = (train_opt.get(key) for key in ('precision', 'precision_r'))
    # they share a backward, and torch has one setting for all of it
    if precision_r in ('fp32', 'tf32') and precision not in (precision_r, 'bf16', 'fp16'):
        raise UserError(
            f'train.precision_r: {precision_r}; accepted with train.precision: {precision_r}, bf16 or fp16, here '
            f'{precision or "not given"}'
        )
