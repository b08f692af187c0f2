"""The baseline: a direct implementation of FACD on BasicSR's SRModel, without this project's modules.

Eager float32, forward hooks for the features, equation (3) by broadcasting, and every term read back for the log in
every step, as in SRModel. It computes the same loss as ``FACDLoss`` (tests/test_benchmarks.py).
"""

from collections import OrderedDict
from copy import deepcopy

import torch
from basicsr.archs import build_network
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn


@MODEL_REGISTRY.register()
class NaiveDistillationModel(SRModel):
    """Reads FACDModel's option file."""

    def init_training_settings(self):
        teacher_opt, train_opt = self.opt['teacher'], self.opt['train']
        self.net_t = self.model_to_device(build_network(deepcopy(teacher_opt['network'])))
        self.load_network(self.net_t, teacher_opt['weights'], True, 'params')
        self.net_t.eval()
        for parameter in self.net_t.parameters():
            parameter.requires_grad = False

        self.feats_s, self.feats_t = {}, {}
        for index, tap in enumerate(self.opt['taps']):
            self.hook(self.net_g, tap['student'], self.feats_s, index)
            self.hook(self.net_t, tap['teacher'], self.feats_t, index)

        self.net_g.train()
        distill_opt = train_opt['distill_opt']
        self.weight, self.layer_weights = distill_opt['lambda'], distill_opt['layer_weights']
        widths = [(self.opt['network_g']['num_feat'], teacher_opt['network']['num_feat'])] * len(self.opt['taps'])
        self.net_r = self.model_to_device(nn.ModuleList([self.regressor(*width) for width in widths]))
        self.ema_decay = 0
        self.setup_optimizers()
        self.setup_schedulers()

    @staticmethod
    def regressor(c_in, c_out):
        layers = [nn.Conv2d(c_in, c_out, 1)]
        for _ in range(4):
            layers += [nn.PReLU(), nn.Conv2d(c_out, c_out, 1)]
        return nn.Sequential(*layers)

    def hook(self, net, path, feats, index):
        net = self.get_bare_model(net)
        if path.endswith(':input'):
            module = net.get_submodule(path.removesuffix(':input'))
            module.register_forward_pre_hook(lambda _, inputs: feats.__setitem__(index, inputs[0]))
        else:
            net.get_submodule(path).register_forward_hook(lambda _, __, output: feats.__setitem__(index, output))

    def setup_optimizers(self):
        optim_opt = dict(self.opt['train']['optim_g'])
        parameters = [*self.net_g.parameters(), *self.net_r.parameters()]
        self.optimizer_g = self.get_optimizer(optim_opt.pop('type'), parameters, **optim_opt)
        self.optimizers.append(self.optimizer_g)

    def optimize_parameters(self, current_iter):
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        with torch.no_grad():
            teacher = self.net_t(self.lq)

        error_s = (self.output.detach() - self.gt).abs().mean((1, 2, 3))
        error_t = (teacher - self.gt).abs().mean((1, 2, 3))
        alpha = (error_s >= error_t).float()
        to_gt = (self.output - self.gt).abs().mean((1, 2, 3))
        to_teacher = (self.output - teacher).abs().mean((1, 2, 3))
        l_sr = 255 * (((2 - alpha) * to_gt + alpha * to_teacher) / 2).mean()

        l_facd = 0
        for index, weight in enumerate(self.layer_weights):
            feat_s, feat_t = self.net_r[index](self.feats_s[index]), self.feats_t[index]
            distance = (feat_s[:, None] - feat_t[None]).abs().mean((2, 3, 4))  # (N, 1, ...) - (1, N, ...) -> (N, N)
            negative = torch.triu(distance, diagonal=1).sum()
            l_facd = l_facd + weight * (alpha * distance.diagonal()).sum() / (negative + 1e-8)
        l_facd = self.weight * l_facd

        (l_sr + l_facd).backward()
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(OrderedDict(l_sr=l_sr, l_facd=l_facd))
