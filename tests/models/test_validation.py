import logging
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import METRIC_REGISTRY, MODEL_REGISTRY
from conftest import METRICS, STUDENT, picture, write_yml
from hypothesis import given
from hypothesis import strategies as st
from runs import run as train

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.seeded_dataset import NamingDataset
from facd_basicsr.engine.logs import BEST
from facd_basicsr.errors import Stopped, UserError
from facd_basicsr.models import validation
from facd_basicsr.models.safe_model import SafeModel, build_model
from facd_basicsr.options import parser
from facd_basicsr.runs.run_folder import read_run_folder
from facd_basicsr.runtime.metrics import scores
from facd_basicsr.test import test as run_test

SIZES = [(48, 40), (32, 56), (48, 40), (40, 40), (48, 40), (32, 56)]  # of GT
# dB of one image of 2,000 pixels, where each that is rounded to the next of the 8 bits counts 5e-5
ROUNDING = 3e-4
WIDE = {**STUDENT, 'num_feat': 64, 'num_block': 2}
RCAN = {'type': 'RCANStudent', 'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2, 'upscale': 2}


class Curves(dict):
    """What TensorBoard is told."""

    def add_scalar(self, tag: str, value: float, iteration: int) -> None:
        self[tag, iteration] = value


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp('set')
    for folder in ('GT', 'LQ'):
        (root / folder).mkdir()
    for i, (height, width) in enumerate(SIZES):
        gt = picture(i, height, width)
        cv2.imwrite(str(root / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(root / 'LQ' / f'{i}.png'), bicubic_lr(gt, 2))
    return {'dataroot_gt': str(root / 'GT'), 'dataroot_lq': str(root / 'LQ')}


@pytest.fixture
def opt(folders: dict[str, str], tmp_path: Path) -> dict:
    """What a model of test.py is built of; its weights are the same each time."""
    torch.manual_seed(0)
    return {
        'name': 'tiny',
        'model_type': 'SRModel',
        'scale': 2,
        'num_gpu': 0,
        'is_train': False,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'network_g': WIDE,
        'path': {'visualization': str(tmp_path)},
        'val': {'save_img': True, 'suffix': None, 'metrics': METRICS, 'tile': None, 'pbar': False},
    }


@pytest.fixture
def loader(folders: dict[str, str]) -> torch.utils.data.DataLoader:
    return loader_of({'type': 'PairedImageDataset', **folders})


def loader_of(dataset: dict) -> torch.utils.data.DataLoader:
    dataset_opt = {'name': 'pictures', **dataset, 'io_backend': {'type': 'disk'}, 'phase': 'val', 'scale': 2}
    return build_dataloader(NamingDataset(build_ordered_dataset(dataset_opt)), dataset_opt)


def written(folder: Path) -> dict[str, np.ndarray]:
    """The images below a folder, which are removed."""
    images = {}
    for path in sorted(folder.rglob('*.png')):
        images[str(path.relative_to(folder))] = cv2.imread(str(path)).astype(int)
        path.unlink()
    return images


@pytest.mark.parametrize('is_train', [False, True])
@pytest.mark.parametrize('network', [STUDENT, WIDE, RCAN])
def test_a_validation_is_basicsrs(opt, loader, tmp_path, monkeypatch, network, is_train):
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger('basicsr'), 'info', lines.append)
    model = build_model({**opt, 'network_g': network})
    model.opt['is_train'] = is_train
    found, expected = {}, {}
    for outcome, validate in ((expected, SRModel.nondist_validation), (found, SafeModel.validation)):
        lines.clear()
        model.best_metric_results, curves = {}, Curves()
        validate(model, loader, 7, curves, True)
        outcome |= {'figures': dict(model.metric_results), 'best': model.best_metric_results, 'lines': [*lines]}
        outcome |= {'curves': dict(curves), 'images': written(tmp_path)}
    assert found['lines'] == expected['lines'] and len(found['lines']) == 1
    assert found['figures'] == pytest.approx(expected['figures'], abs=1e-4)
    assert found['curves'] == pytest.approx(expected['curves'], abs=1e-4)
    for metric, best in expected['best']['pictures'].items():
        assert found['best']['pictures'][metric] == {**best, 'val': pytest.approx(best['val'], abs=1e-4)}
    assert found['images'].keys() == expected['images'].keys() and len(found['images']) == len(SIZES)
    assert all(np.abs(image - expected['images'][name]).max() <= 1 for name, image in found['images'].items())
    assert model.net_g.training and not {'lq', 'gt', 'output'} & vars(model).keys()


def by_image(model: SafeModel, loader: torch.utils.data.DataLoader) -> np.ndarray:
    found = validation.validate(model, loader, 0, False, lambda: False)
    return np.array([list(values.values()) for values in found])


def test_images_of_one_shape_in_a_batch_have_the_figures_that_they_have_alone(opt, loader, monkeypatch):
    model = build_model(opt)
    alone = by_image(model, loader)
    assert alone.shape == (len(SIZES), len(METRICS)) and len(np.unique(alone[:, 0])) == len(SIZES)
    batches = []
    monkeypatch.setattr(
        validation, '_by_shape', lambda samples, pixels, group=validation._by_shape: group(samples, 960)
    )
    model.net_g.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    assert by_image(model, loader) == pytest.approx(alone, abs=ROUNDING)
    assert batches == [2, 1, 2, 1]  # 24 x 20 of which two are 960 pixels, 16 x 28, 20 x 20


@given(sizes=st.lists(st.sampled_from([(4, 6), (6, 4), (5, 5)]), max_size=40), pixels=st.integers(0, 100))
def test_every_image_is_in_one_group_of_its_shape_and_no_group_is_too_large(sizes, pixels):
    samples = [{'lq': torch.zeros(1, 3, *size), 'gt': torch.zeros(1, 3, 8, 8)} for size in sizes]
    groups = list(validation._by_shape(iter(samples), pixels))
    assert sorted(index for group in groups for index, _ in group) == list(range(len(sizes)))
    for group in groups:
        assert {sample['lq'].shape for _, sample in group} == {(1, 3, *sizes[group[0][0]])}
        assert len(group) == 1 or sum(sample['lq'][0, 0].numel() for _, sample in group) <= pixels
        assert max(index for index, _ in group) - min(index for index, _ in group) < validation.WINDOW


@pytest.mark.parametrize('network', [STUDENT, WIDE])
def test_figures_of_tiles_are_those_of_whole_images(opt, loader, network):
    opt |= {'network_g': network}
    whole, tiles = build_model(opt), build_model({**opt, 'val': {**opt['val'], 'tile': 16}})
    tiles.net_g.load_state_dict(whole.net_g.state_dict())
    assert (whole.reach, tiles.reach) == (0, 10 if network is STUDENT else 8)
    assert by_image(tiles, loader) == pytest.approx(by_image(whole, loader), abs=ROUNDING)
    tiles.reach = 0  # with seams, to see that these were tiles
    assert by_image(tiles, loader) != pytest.approx(by_image(whole, loader), abs=ROUNDING)


def test_tiles_are_refused_when_the_network_or_the_model_does_not_work_in_them(opt):
    opt['val']['tile'] = 16
    with pytest.raises(
        UserError,
        match=r'^val.tile: RCANStudent looks at the whole image, or farther than 512 pixels in body.0.*; accepted',
    ):
        build_model({**opt, 'network_g': RCAN})
    for method in ('test', 'nondist_validation'):
        MODEL_REGISTRY._obj_map['Own'] = type('Own', (SRModel,), {method: lambda self, *_: None})
        try:
            with pytest.raises(UserError, match=r'^val.tile: 16 for Own which has its own test\(\); accepted: no val'):
                build_model({**opt, 'model_type': 'Own'})
        finally:
            del MODEL_REGISTRY._obj_map['Own']


def test_a_model_that_tests_in_its_own_way_is_validated_by_it(opt, loader):
    class Flipped(SRModel):
        def test(self) -> None:
            super().test()
            self.output = self.output.flip(3)

    model = build_model(opt)
    MODEL_REGISTRY._obj_map['Flipped'] = Flipped
    try:
        flipped = build_model({**opt, 'model_type': 'Flipped'})
    finally:
        del MODEL_REGISTRY._obj_map['Flipped']
    flipped.net_g.load_state_dict(model.net_g.state_dict())
    flipped.validation(loader, 0, None, False)
    own = dict(flipped.metric_results)
    SRModel.nondist_validation(flipped, loader, 0, None, False)
    assert own == pytest.approx(flipped.metric_results, abs=1e-12)
    model.validation(loader, 0, None, False)
    assert own != pytest.approx(model.metric_results, abs=1e-3)


def test_the_average_is_validated_if_there_is_one(opt, loader):
    model = build_model(opt)
    model.net_g_ema = build_model(opt).net_g
    average = by_image(model, loader)
    model.net_g = model.net_g_ema
    del model.net_g_ema
    assert np.array_equal(average, by_image(model, loader))


def test_a_set_without_gt_is_saved_and_scored_by_metrics_that_need_none(opt, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'brightness', lambda img: img.mean())
    opt['val']['metrics'] = {**METRICS, 'own': {'type': 'brightness', 'better': 'higher'}}
    model = build_model(opt)
    model.gt = torch.zeros(1, 3, 8, 8)  # of the last training batch
    model.validation(loader_of({'type': 'SingleImageDataset', 'dataroot_lq': folders['dataroot_lq']}), 0, None, True)
    images = written(tmp_path)
    assert list(images) == [f'pictures/{i}_tiny.png' for i in range(len(SIZES))]
    brightness = np.mean([image.mean() for image in images.values()])
    assert model.metric_results == {'own': pytest.approx(brightness)}


def test_test_py_tests_a_set_of_lq_images_beside_one_of_pairs(test_opt, tmp_path):
    (tmp_path / 'LQ').mkdir()
    cv2.imwrite(str(tmp_path / 'LQ' / 'a.png'), picture(0, 48, 96))
    single = {'name': 'photographs', 'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path / 'LQ')}
    test_opt['datasets']['test_2'] = {**single, 'io_backend': {'type': 'disk'}}
    niqe = {'type': 'calculate_niqe', 'crop_border': 0}
    test_opt['val']['metrics'] = {'psnr_y': METRICS['psnr_y'], 'niqe': niqe}
    opt = {**test_opt, 'is_train': False, 'dist': False, 'rank': 0, 'path': {}, 'val': None}
    test_opt['path'] = {'pretrain_network_g': str(tmp_path / 'net.pth')}
    torch.save({'params': build_model(opt).net_g.state_dict()}, tmp_path / 'net.pth')

    def found() -> dict:
        args = parser(is_train=False).parse_args(['-opt', str(write_yml(test_opt, tmp_path / 'opt.yml'))])
        return run_test(args, root=tmp_path)

    # two blocks of 96 x 96 in 96 x 192, none in the pairs' 32 x 48
    with pytest.raises(UserError, match=r'val.metrics.niqe: datasets.test_1: 0.png: calculate_niqe .* on 48x32 pixels'):
        found()
    test_opt['val']['metrics']['niqe'] = {'type': 'brightness', 'better': 'higher'}
    METRIC_REGISTRY._obj_map['brightness'] = lambda img: img.mean()
    try:
        assert {name: list(values) for name, values in found().items()} == {
            'pictures': ['psnr_y', 'niqe'],
            'photographs': ['niqe'],
        }
    finally:
        del METRIC_REGISTRY._obj_map['brightness']
    (log,) = (tmp_path / 'results').rglob('test_*.log')
    assert re.search(r'\nphotographs +- +\d', log.read_text(encoding='utf-8'))
    test_opt['datasets'] = {'test_1': test_opt['datasets']['test_2']}
    test_opt['val']['metrics']['niqe'] = niqe
    assert list(found()['photographs']) == ['niqe']


def test_lpips_is_validated_in_training_and_keeps_the_best_and_changes_no_weight(train_opt, lpips, tmp_path):
    weights = {}
    for name, metrics in (('without', None), ('with', {'lpips': lpips, **METRICS})):
        train_opt['val'] = {'val_freq': 2, 'save_img': False, 'metrics': metrics}
        train_opt['logger']['keep_best'] = metrics is not None
        train(train_opt, tmp_path / name)
        weights[name] = torch.load(tmp_path / name / 'experiments/tiny/models/net_g_latest.pth')['params']
    assert all(torch.equal(value, weights['with'][key]) for key, value in weights['without'].items())
    run = read_run_folder(tmp_path / 'with' / 'experiments' / 'tiny')
    curve = run.metrics.validation['val']['lpips']
    assert list(curve) == [2, 4, 6, 8] and len(set(curve.values())) == 4
    best = min(curve, key=curve.get)  # lower is better
    assert [event.iteration for event in run.metrics.events if event.event == BEST][-1] == best


def test_test_py_has_lpips_of_the_images_that_it_saves(test_opt, data, lpips, tmp_path):
    test_opt['val'] |= {'save_img': True, 'metrics': {'lpips': lpips, **METRICS}}
    opt = {**test_opt, 'is_train': False, 'dist': False, 'rank': 0, 'path': {}, 'val': None}
    test_opt['path'] = {'pretrain_network_g': str(tmp_path / 'net.pth')}
    torch.save({'params': build_model(opt).net_g.state_dict()}, tmp_path / 'net.pth')
    args = parser(is_train=False).parse_args(['-opt', str(write_yml(test_opt, tmp_path / 'opt.yml'))])
    found = run_test(args, root=tmp_path)['pictures']
    assert list(found) == ['lpips', *METRICS]
    pairs = [(path, data / 'GT' / f'{path.stem[0]}.png') for path in tmp_path.rglob('visualization/pictures/*.png')]
    by_image = [scores(*(cv2.imread(str(path)) for path in pair), {'m': lpips})['m'] for pair in pairs]
    assert len(by_image) == 2 and found['lpips'] == pytest.approx(np.mean(by_image), rel=1e-6)


def test_an_image_that_can_not_be_read_is_named_and_the_network_is_put_back(opt, folders, tmp_path):
    model = build_model(opt)
    network = model.net_g
    for folder in ('GT', 'LQ'):
        (tmp_path / folder).mkdir()
        for i in range(3):
            image = Path(folders['dataroot_gt' if folder == 'GT' else 'dataroot_lq'], f'{i}.png').read_bytes()
            (tmp_path / folder / f'{i}.png').write_bytes(image)
    loader = loader_of(
        {'type': 'PairedImageDataset', 'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    )
    (tmp_path / 'LQ' / '2.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'2\.png'):
        model.validation(loader, 0, None, False)
    assert model.net_g is network


def test_a_stopped_validation_leaves_no_figures(opt, loader):
    model = build_model(opt)
    asked = iter([False, False, False, True])
    with pytest.raises(Stopped):
        model.validation(loader, 0, None, stop=lambda: next(asked, True))
    assert 'metric_results' not in vars(model) and model.net_g.training


def test_a_bar_counts_the_images_if_asked_for(opt, loader, capsys):
    build_model(opt).validation(loader, 0, None, False)
    assert capsys.readouterr().err == ''
    opt['val']['pbar'] = True
    build_model(opt).validation(loader, 0, None, False)
    assert 'Test 5: 6 of 6 in ' in capsys.readouterr().err


def test_test_py_takes_tiles_and_refuses_them_in_one_line(test_opt, tmp_path):
    test_opt['val']['tile'] = 16
    for network in (STUDENT, RCAN):
        model = build_model(
            {**test_opt, 'network_g': network, 'is_train': False, 'dist': False, 'rank': 0, 'path': {}, 'val': None}
        )
        test_opt |= {'network_g': network, 'path': {'pretrain_network_g': str(tmp_path / 'net.pth')}}
        torch.save({'params': model.net_g.state_dict()}, tmp_path / 'net.pth')
        args = parser(is_train=False).parse_args(['-opt', str(write_yml(test_opt, tmp_path / 'opt.yml'))])
        if network is STUDENT:
            assert run_test(args, root=tmp_path, console=False)['pictures'].keys() == METRICS.keys()
        else:
            with pytest.raises(
                UserError, match=rf'^{tmp_path}/opt.yml: val.tile: RCANStudent looks at the whole image, or'
            ):
                run_test(args, root=tmp_path, console=False)
