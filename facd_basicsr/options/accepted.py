"""Which keys each block accepts, by tables, signatures and sources, for check.py and docs/options_page.py."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.sr_model import SRModel
from basicsr.utils.file_client import FileClient

from facd_basicsr.options import arguments, keys
from facd_basicsr.options.signatures import Key, keys_read, signature_keys

Keys = dict[str, Key]


def top_keys(model: type, is_train: bool) -> Keys:
    """Of the file itself, ``base`` aside, for a model."""
    accepted = {**keys.TOP, **(keys.TOP_TRAIN if is_train else keys.TOP_TEST)}
    read = keys_read(model, 'opt')
    if is_train:
        accepted |= {key: _model_key(key) for key in sorted(read - accepted.keys() - keys.DERIVED)}
    return accepted | {key: _model_key(key) for key in sorted(read - keys.TOP.keys()) if key.startswith('network_')}


def _model_key(key: str) -> Key:
    return keys.TOP_MODEL.get(key, Key((dict,) if key.startswith('network_') else ()))


def dataset_keys(dataset: type, training: bool) -> Keys:
    """Of a set in ``datasets``; ``training``: of ``datasets.train``."""
    required = keys.DATASET_REQUIRED.get(dataset.__name__, set())
    if training:
        required = required | keys.DATASET_REQUIRED_TRAIN.get(dataset.__name__, set())
    read = keys_read(dataset, 'opt') - keys.DERIVED
    own = {key: replace(keys.DATASET_KEYS.get(key, Key()), required=key in required) for key in sorted(read)}
    return {**own, **keys.DATASET, **(keys.DATASET_TRAIN if training else {})}


def io_backends(dataset: type, is_train: bool) -> tuple[str, ...]:
    """The types of ``io_backend`` that a dataset can have."""
    return keys.IO_BACKENDS_TRAIN if is_train and dataset is PairedImageDataset else keys.IO_BACKENDS


def io_backend_keys(backend: str) -> Keys:
    """Of an ``io_backend``, beside ``type``."""
    if backend == 'memory':
        return {}
    # a dataset fills in the LMDB's folders itself
    return signature_keys(FileClient._backends[backend], supplied=('db_paths', 'client_keys'))


def network_keys(network: type) -> Keys:
    """Of ``network_g`` or ``teacher.network``, beside ``type``; a default of ``upscale`` does not count."""
    own = signature_keys(network, known=arguments.NETWORK_KEYS)
    return {name: replace(key, default=...) if name == 'upscale' else key for name, key in own.items()}


def regressor_keys(network: type) -> Keys:
    """Of ``network_r``, beside ``type``: channels are read off the taps."""
    return signature_keys(network, supplied=('num_in_ch', 'num_out_ch'), known=arguments.REGRESSOR_KEYS)


def path_keys(networks: Iterable[str], is_train: bool) -> Keys:
    """Of ``path``, for the ``network_*`` blocks of a file."""
    accepted = dict(keys.PATH)
    for network in networks:
        suffix = network.removeprefix('network_')
        accepted |= {f'{prefix}_{suffix}': key for prefix, key in keys.PATH_NETWORK.items()}
    if not is_train:
        pretrained = keys.PATH_NETWORK['pretrain_network']
        accepted['pretrain_network_g'] = replace(pretrained, types=(str,), required=True)
    return accepted


def train_keys(model: type) -> Keys:
    """Of ``train``, for a model."""
    own = {key: keys.TRAIN_KEYS.get(key, Key()) for key in sorted(keys_read(model, 'train_opt'))}
    if 'distill_opt' in own:
        own |= keys.EXECUTION_TRAIN
    elif model is SRModel:
        own |= keys.EXECUTION
    return {**own, **keys.TRAIN}


def loss_keys(loss: type) -> Keys:
    """Of a loss, beside ``type``."""
    known = {**arguments.LOSS_KEYS, **(arguments.PERCEPTUAL_KEYS if loss is PerceptualLoss else {})}
    return signature_keys(loss, known=known)


def optimizer_keys(optimizer: type) -> Keys:
    """Of ``train.optim_g``, beside ``type``."""
    return signature_keys(optimizer, supplied=('params',), known=arguments.OPTIM_KEYS)


def scheduler_keys(scheduler: type) -> Keys:
    """Of ``train.scheduler``, beside ``type``."""
    return signature_keys(scheduler, supplied=('optimizer',), known=arguments.SCHEDULER_KEYS)


def metric_keys(metric: Callable[..., Any]) -> Keys:
    """Of an entry of ``val.metrics``."""
    own = signature_keys(metric, supplied=('img', 'img2'), known=arguments.METRIC_KEYS)
    return {**own, **keys.METRIC}
