"""``facd convert``: EDSR and RCAN checkpoints in another key layout."""

from pathlib import Path

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from facd_basicsr.distill.layouts import (
    DIV2K_MEAN,
    LAYOUTS,
    SIGNS,
    from_basicsr,
    image_range,
    network_block,
    recognize,
    to_basicsr,
    trained_color_maps,
)
from facd_basicsr.errors import UserError, one_line
from facd_basicsr.files.atomic import atomic_path, make_folder_of
from facd_basicsr.files.state_dicts import load_state_dict

CONVERTED_SUFFIXES = ('.pth', '.pt', '.safetensors')


def convert(source: Path, target: Path, layout: str, img_range: float, rgb_mean: tuple[float, ...]) -> str:
    """Rewrites a checkpoint in another layout and verifies the file.

    Args:
        source: a checkpoint in any layout that :func:`facd_basicsr.distill.layouts.recognize` knows.
        target: a new file. It holds the state dict, in BasicSR's layout below ``params`` unless it is ``.safetensors``.
        layout: of the new file, one of ``LAYOUTS``.
        img_range, rgb_mean: the network's arguments if the source is in BasicSR's layout, which lacks them.

    Returns:
        The lines of the option file's ``network`` block.

    Raises:
        UserError: the source is not an EDSR or RCAN, the target exists, or the layout is for another network.
    """
    if not source.is_file():
        raise UserError(f'IN: no such file: {source}')
    if target.exists():
        raise UserError(f'OUT: {target} exists; accepted: a new file')
    if target.suffix not in CONVERTED_SUFFIXES:
        raise UserError(f'OUT: {target}; accepted: a name that ends in {", ".join(CONVERTED_SUFFIXES)}')
    state_dict = load_state_dict(source, 'IN', SIGNS.values())
    found = recognize(state_dict)
    if found is None:
        raise UserError(f'IN: {source} is neither an EDSR nor an RCAN (first key: {min(state_dict)}); accepted: these')
    source_layout, network = found
    own_layout = {'EDSR': 'edsr-pytorch', 'RCAN': 'rcan'}[network]
    if layout not in ('basicsr', own_layout):
        raise UserError(f'--to: {layout}, but {source} is an {network}; accepted: basicsr, {own_layout}')

    shift, trained = None, trained_color_maps(state_dict)
    if source_layout != 'basicsr':
        state_dict, shift = to_basicsr(state_dict, source_layout, f'IN: {source}')
    block = network_block(state_dict)
    source_of_mean = "  # assumed: not stored in BasicSR's layout" if shift is None else ''
    if trained:
        source_of_mean = '  # with conv_first and conv_last it does what the trained sub_mean and add_mean do'
    if shift is not None:
        img_range = image_range(shift) or img_range  # the checkpoint holds img_range * rgb_mean
        rgb_mean = tuple(round(value, 6) for value in (shift / img_range).tolist())
    if layout != 'basicsr':
        shift = torch.tensor(rgb_mean) * img_range if shift is None else shift
        state_dict = from_basicsr(state_dict, layout, shift, f'IN: {source}')
    _write_verified(state_dict, target, layout)
    block |= {
        'img_range': f'{img_range}{source_of_mean}',
        'rgb_mean': f'{list(rgb_mean)}{source_of_mean}',
        'res_scale': '?  # as in training; not stored in a checkpoint',
    }
    return '\n'.join(f'  {key}: {value}' for key, value in block.items())


def _write_verified(state_dict: dict[str, Tensor], target: Path, layout: str) -> None:
    """Atomic write that is read back and compared before the file gets its name."""
    state_dict = {key: value.contiguous() for key, value in state_dict.items()}
    make_folder_of(target, 'OUT')
    try:
        with atomic_path(target) as partial:
            if target.suffix == '.safetensors':
                save_file(state_dict, partial)
            else:
                torch.save({'params': state_dict} if layout == 'basicsr' else state_dict, partial)
            written = load_state_dict(partial, 'OUT')
            if written.keys() != state_dict.keys() or not all(
                torch.equal(written[key], state_dict[key]) for key in written
            ):
                raise UserError(f'OUT: {target}: verification failed after writing (disk error?)')
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap disk errors
        raise UserError(f'OUT: {target} cannot be written ({one_line(error)})') from error


@click.command()
@click.argument('source', metavar='IN', type=click.Path(path_type=Path))
@click.argument('target', metavar='OUT', type=click.Path(path_type=Path))
@click.option('--to', 'layout', type=click.Choice(LAYOUTS), required=True, help='Layout of OUT.')
@click.option('--img-range', default=255.0, show_default=True, help="Network argument, if IN is in BasicSR's layout.")
@click.option('--rgb-mean', nargs=3, type=float, default=DIV2K_MEAN, show_default=True, help='Likewise, in RGB order.')
def command(source: Path, target: Path, layout: str, img_range: float, rgb_mean: tuple[float, ...]) -> None:
    """Rewrite an EDSR or RCAN checkpoint in another key layout.

    IN may have any usual wrapping (params, params_ema, module., safetensors). Values do not change, but for RCAN's
    trained color maps (docs/teachers.md).

    \b
    Example:
      facd convert edsr_x4-4f62e9ef.pt EDSR_x4.pth --to basicsr
    """
    block = convert(source, target, layout, img_range, rgb_mean)
    click.echo(f'{target}: layout {layout}. In an option file:\nnetwork:\n{block}')
