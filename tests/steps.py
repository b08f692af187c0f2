"""Steps of a model on random batches, without the loop."""

import torch

from facd_basicsr.models.safe_model import SafeSRModel

N = 4  # samples of a batch


def alone(train_opt: dict) -> dict:
    opt = {key: value for key, value in train_opt.items() if key not in ('teacher', 'taps', 'network_r')}
    opt['train'] = {**opt['train'], 'pixel_opt': {'type': 'MSELoss'}}
    del opt['train']['distill_opt']
    return {**opt, 'model_type': 'SRModel'}


def step(model: SafeSRModel, first: int = 1, last: int = 1) -> None:
    for iteration in range(first, last + 1):
        generator = torch.Generator().manual_seed(iteration)
        colors = torch.rand(N, 3, 1, 1, generator=generator)
        lq, gt = (colors + 0.2 * torch.rand(N, 3, size, size, generator=generator) for size in (8, 16))
        model.update_learning_rate(iteration)
        model.feed_data({'lq': lq, 'gt': gt, 'seed': torch.arange(N)})
        model.optimize_parameters(iteration)
        model.guard.after_step({'lq': lq, 'gt': gt}, iteration)
