"""One state dict as trainers wrap it."""

import torch
from torch import Tensor


def prefixed(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state_dict.items()}


LOSS = {'loss.vgg.0.weight': torch.zeros(4, 3, 3, 3), 'loss.vgg.0.bias': torch.full((4,), torch.nan)}
WRAPPED = {
    'BasicSR params': lambda s: {'params': s},
    'BasicSR params_ema': lambda s: {'params_ema': s},
    'bare': lambda s: s,
    'DDP': lambda s: {'params': prefixed(s, 'module.')},
    'traiNNer EMA': lambda s: {'params_ema': {'n_averaged': torch.tensor(9), **prefixed(s, 'module.')}},
    'compiled': lambda s: {'params': prefixed(s, '_orig_mod.')},
    'DDP of compiled': lambda s: prefixed(s, 'module._orig_mod.'),
    'neosr': lambda s: {'params-ema': s, 'params': {key: value + 1 for key, value in s.items()}},
    'a run snapshot': lambda s: {'epoch': 3, 'state_dict': prefixed(s, 'net_g.'), 'optimizer': {'lr': 1e-4}},
    'Lightning': lambda s: {'state_dict': prefixed(s, 'model.'), 'epoch': 3},
    'Lightning beside its loss': lambda s: {'state_dict': {**LOSS, **prefixed(s, 'model.')}, 'epoch': 3},
}
