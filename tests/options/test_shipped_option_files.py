"""Every option file that the project ships: it builds, and agrees with itself and its twins."""

import copy
import functools
import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from conftest import REPOSITORY

from facd_basicsr.archs import build_without_weights
from facd_basicsr.distill.regressors import build_regressors
from facd_basicsr.distill.taps import Taps
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.options import load_yaml, read_option_file
from facd_basicsr.options.option_check import check_options, stages_of
from facd_basicsr.options.option_files import lineage
from facd_basicsr.runs.run_folder import param_key_of

TRAIN = sorted(REPOSITORY.glob('options/train/**/*.yml')) + sorted(REPOSITORY.glob('demo/*.yml'))
TEST = sorted(REPOSITORY.glob('options/test/**/*.yml'))
OTHERS = [
    path for path in TRAIN + TEST if any(f'_{net}_' in path.stem for net in ('SwinIR', 'SPAN', 'SRVGGNetCompact'))
]
PAPER = [path for path in TRAIN if path.parent.name in ('train', 'ablation') and path not in OTHERS]
FACD = [path for path in TRAIN if path.stem.startswith('FACD_')]
RECIPES = [path for path in TRAIN if path.parent.name == 'recipes']  # tests/test_recipes.py trains them
RIVALS = ('TS', 'FitNet', 'FAKD', 'LFD', 'LSFD', 'CSD', 'FCD')  # each for both networks and every scale, as FACD
LATER = ('FACDB', 'DUKD', 'ECO', 'DCKD', 'MTKD')  # for EDSR, RCAN and SwinIR, x2 and x4
ABLATION = (
    *('IACD_EDSR_x2', 'InfoNCE_EDSR_x2'),  # Tables 5 and 6
    *('FCD_without_L1_T_EDSR_x4', 'FCD_without_L1_GT_EDSR_x4'),  # Table 7
    *('FCD_FAA_EDSR_x2', 'FCD_FAL_EDSR_x2'),  # Table 9
    'FACD_preskip_EDSR_x2',  # the figure in the authors' repository
)
DISTILLED = [path for path in PAPER if path.stem.startswith(RIVALS) or path.parent.name == 'ablation']
INHERITING = [path for path in TRAIN + TEST if '\nbase: ' in path.read_text(encoding='utf-8')]


@functools.cache
def resolved(path: Path) -> dict:
    return read_option_file(str(path))


def load(path: Path) -> dict:
    """The option dict of a file, with all that it inherits."""
    return copy.deepcopy(resolved(path))


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def built(paths: list[Path]) -> list:
    """Parameters of a test that builds networks, where their packages are installed."""
    mark = pytest.mark.skipif('SPAN_spandrel' not in ARCH_REGISTRY, reason='spandrel is not installed')
    return [pytest.param(path, marks=mark) if '_SPAN_' in path.stem else path for path in paths]


def file(method: str, net: str, scale: int) -> Path:
    return REPOSITORY / 'options' / 'train' / f'{method}_{net}_x{scale}.yml'


def test_the_papers_experiments_and_their_baselines_are_there():
    def names(*methods: str) -> set[str]:
        return {f'{method}_{net}_x{scale}' for method in methods for net in ('EDSR', 'RCAN') for scale in (2, 3, 4)}

    train = REPOSITORY / 'options' / 'train'
    alone = {f'TeacherInit_RCAN_x{scale}' for scale in (2, 3, 4)}
    students = ('SwinIR', 'SPAN', 'SRVGGNetCompact')
    methods = ('Student', 'TS', 'FAKD', 'FACD')
    others = {f'{method}_{net}_x{scale}' for method in methods for net in students for scale in (2, 4)}
    later = {f'{method}_{net}_x{scale}' for method in LATER for net in ('EDSR', 'RCAN', 'SwinIR') for scale in (2, 4)}
    later |= {f'{method}_SwinIR_x{scale}' for method in RIVALS for scale in (2, 4)}
    assert {path.stem for path in train.glob('*.yml')} == names('FACD', 'Student', *RIVALS) | alone | others | later
    assert {path.stem for path in train.glob('ablation/*.yml')} == set(ABLATION)
    tested = {name for name in others if name.startswith(('FACD', 'Student'))}
    recipes = {f'{method}_{net}' for method in ('FACD', 'Student') for net in ('EDSR_x2', 'SPAN_x4', 'SRVGG_x4')}
    assert {path.stem for path in RECIPES} == recipes
    assert {path.stem for path in TEST} == names('FACD', 'Student') | tested


@pytest.mark.parametrize('path', INHERITING, ids=name)
def test_a_file_with_a_base_says_what_differs_and_no_more(path):
    """Each of its own values differs from the inherited one, but for a block with a type, which is there whole."""
    (_, own), (base, _), *_ = lineage(str(path))

    def check_differs(changes: dict, inherited: dict) -> None:
        for key, value in changes.items():
            if isinstance(value, dict) and 'type' not in value and isinstance(inherited.get(key, {}), dict):
                check_differs(value, inherited.get(key, {}))
            else:
                assert key not in inherited or value != inherited[key], key

    check_differs(own, load(Path(base)))
    assert own['name'] == (f'recipe_{path.stem}' if path in RECIPES else path.stem)


@pytest.mark.parametrize('path', built(TRAIN + TEST), ids=name)
def test_an_option_file_is_accepted_and_its_numbers_agree(path):
    opt = load(path)
    is_train = 'train' in opt
    check_options(opt, is_train)
    scale = opt['scale']
    networks = [opt['network_g']] + ([opt['teacher']['network']] if 'network' in opt.get('teacher', {}) else [])
    assert [network.get('upscale', network.get('scale')) for network in networks] == [scale] * len(networks)
    assert all(metric['crop_border'] == scale for metric in opt['val']['metrics'].values())
    assert opt['val']['metrics']['psnr_y']['test_y_channel'] is True
    assert opt['val']['metrics']['psnr_rgb']['test_y_channel'] is False
    for dataset in opt['datasets'].values():
        if dataset['type'] == 'RealESRGANDataset':  # whose LQ are made
            continue
        lq = Path(dataset['dataroot_lq']).name
        assert f'x{scale}' in lq.lower() or 'demo' in name(path)
        assert Path(dataset['dataroot_lq']).parent == Path(dataset['dataroot_gt']).parent
        files = 'lmdb' if dataset['dataroot_lq'].endswith('.lmdb') else 'disk'
        fast = any(map(path.stem.__contains__, ('fast', 'long', 'weak', '48x12', 'int8'))) or path.parent.name == 'gpu'
        in_memory = files == 'lmdb' and fast
        assert dataset['io_backend']['type'] == ('memory' if in_memory else files)


@pytest.mark.parametrize('path', TRAIN + TEST, ids=name)
def test_the_header_gives_the_exact_command(path):
    header = path.read_text(encoding='utf-8').split('\n\n')[0]
    script = 'test' if path in TEST else 'train'
    command = f'python facd_basicsr/{script}.py -opt {name(path)}'
    assert command in header or (path.name == 'Teacher.yml' and '--train-teacher' in header)


FITTED = [path for path in FACD if path.stem != 'FACD_EDSR16x4_DATlight_x2'] + [
    path
    for path in [*DISTILLED, *(path for path in TRAIN if 'SwinIR' in path.stem or path.stem.startswith(LATER))]
    if path.stem.endswith('x2') and 'taps' in load(path) and 'FCD' not in path.stem and path not in FACD
]
# Channels of DAT-light's features, x2 and x4; tests/distill/test_dat_light.py has the network
DAT_LIGHT = {'layers.0.blocks.5:tokens': 60, 'layers.0.blocks.11:tokens': 60, 'upsample:input': 60}


@functools.cache
def on_meta(network_opt: str) -> torch.nn.Module:
    """Built once for all files, from JSON: RCAN's 200 blocks take a second."""
    return build_without_weights(json.loads(network_opt)).to('meta')


@pytest.mark.parametrize('path', built(FITTED), ids=name)
def test_networks_taps_regressors_and_loss_of_an_option_file_fit_together(path):
    opt = load(path)
    student = on_meta(json.dumps(opt['network_g']))
    teacher = on_meta(json.dumps(opt['teacher']['network'])) if 'network' in opt['teacher'] else None
    of_student, of_teacher = ([tap[key] for tap in opt['taps']] for key in ('student', 'teacher'))
    with torch.device('meta'):
        x = torch.empty(2, 3, 16, 16)
        sr_s, feats_s = Taps(student, of_student, 'student').run(student, x)
        if teacher is None:
            sr_t, feats_t = sr_s, tuple(torch.empty(2, DAT_LIGHT[path], 16, 16) for path in of_teacher)
        else:
            sr_t, feats_t = Taps(teacher, of_teacher, 'teacher').run(teacher, x)
        loss = LossSum(next(stage['train']['distill_opt'] for stage in stages_of(opt).values() if stage['taps']))
        loss.check_widths(feats_s, feats_t)
        regressors = build_regressors(opt.get('network_r'), loss.regressor, feats_s, feats_t)
        feats = feats_s if regressors is None else regressors(feats_s)
    assert sr_s.shape == sr_t.shape == (2, 3, 16 * opt['scale'], 16 * opt['scale'])
    assert [f.shape[2:] for f in feats] == [f.shape[2:] for f in feats_t] == [(16, 16)] * len(of_student)
    if loss.compares_channels:
        assert [f.shape for f in feats] == [f.shape for f in feats_t]
    assert [len(own.layer_weights) for own in loss if own.reads_features] == [len(feats)]


TABLE_2 = {('EDSR', 2): 38.190, ('EDSR', 3): 34.547, ('EDSR', 4): 32.385,
           ('RCAN', 2): 38.271, ('RCAN', 3): 34.758, ('RCAN', 4): 32.638}  # fmt: skip


@pytest.mark.parametrize('path', [path for path in FACD if path in PAPER], ids=name)
def test_the_teacher_is_the_official_one_of_the_files_network_and_scale_and_is_held_to_table_2(path):
    opt = load(path)
    scale, kind = opt['scale'], opt['teacher']['network']['type']
    official = {'EDSR': f'https://cv.snu.ac.kr/research/EDSR/models/edsr_x{scale}-', 'RCAN': f'RCAN_BIX{scale}'}
    assert official[kind] in opt['teacher']['weights']
    assert opt['teacher']['expect']['psnr_y'] == pytest.approx(TABLE_2[kind, scale], abs=0.0051)
    assert opt['datasets'][opt['teacher']['expect']['dataset']]['name'] == 'Set5'


@pytest.mark.parametrize('path', [path for path in TRAIN + TEST if path not in INHERITING], ids=name)
def test_basicsrs_yaml_reads_the_same(path):
    text = path.read_text(encoding='utf-8')
    assert yaml.safe_load(text) == load_yaml(text, name(path)) == load(path)


OTHER_TRAIN = [path for path in OTHERS if path in TRAIN]


@pytest.mark.parametrize('path', OTHER_TRAIN, ids=name)
def test_a_patch_of_another_network_is_whole_windows_of_its_student_and_its_teacher(path):
    opt = load(path)
    student, taught = path.stem.split('_')[1], load(path.with_name(path.name.replace(path.stem.split('_')[0], 'FACD')))
    windows = 8 if student == 'SwinIR' else 32 if 'network' not in taught['teacher'] else 1  # 32: DAT's longer side
    for stage in stages_of(check_options(opt, is_train=True)).values():
        assert stage['datasets']['train']['gt_size'] % (windows * opt['scale']) == 0
    assert opt['datasets']['train'] == taught['datasets']['train']


PUBLISHED = {  # PSNR-Y on Set5
    'FACD_SwinIR_x2': 38.35, 'FACD_SwinIR_x4': 32.72,  # DIV2K, patches of 48, in Table 2 of SwinIR's paper
    'FACD_SPAN_x2': 38.24, 'FACD_SPAN_x4': 32.57, 'FACD_SRVGGNetCompact_x2': 38.24,  # DAT-light
    'FACD_SRVGGNetCompact_x4': 32.73,  # RRDBNet on DF2K in ESRGAN's paper
}  # fmt: skip


@pytest.mark.parametrize('stem', PUBLISHED)
def test_the_teacher_of_another_network_is_held_to_its_published_psnr(stem):
    opt = load(REPOSITORY / 'options' / 'train' / f'{stem}.yml')
    assert opt['teacher']['expect'] == {'dataset': 'val', 'psnr_y': PUBLISHED[stem], 'tolerance': 0.1}
    assert opt['datasets']['val']['name'] == 'Set5' and f'x{opt["scale"]}' in opt['teacher']['weights'].lower()


@pytest.mark.parametrize('path', [path for path in OTHER_TRAIN if 'SwinIR' in path.stem], ids=name)
def test_swinirs_settings_are_those_that_dukd_and_dckd_share(path):
    opt = load(path)
    student, train = build_without_weights(opt['network_g']), opt['train']
    assert sum(p.numel() for p in student.parameters()) == {2: 1_087_727, 4: 1_235_439}[opt['scale']]
    assert opt['network_g']['depths'] == opt['network_g']['num_heads'] == [6] * 4
    assert (opt['datasets']['train']['gt_size'], opt['datasets']['train']['batch_size_per_gpu']) == (
        48 * opt['scale'],
        16,
    )
    assert (train['total_iter'], train['ema_decay']) == (250_000, 0.999)
    assert train['optim_g'] == {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]}
    if 'teacher' in opt:
        teacher = opt['teacher']['network']
        assert teacher == {**opt['network_g'], 'embed_dim': 180, 'depths': [6] * 6, 'num_heads': [6] * 6}


@pytest.mark.parametrize('path', PAPER, ids=name)
def test_training_settings_are_the_papers(path):
    opt = load(path)
    dataset, train = opt['datasets']['train'], opt['train']
    assert dataset['gt_size'] == 48 * opt['scale']
    assert dataset['batch_size_per_gpu'] == 16
    assert dataset['use_hflip'] and dataset['use_rot']
    assert train['total_iter'] == 600_000
    assert train['optim_g'] == {'type': 'Adam', 'lr': 2e-4, 'betas': [0.9, 0.999]}
    assert train['scheduler']['milestones'] == [150_000, 300_000, 450_000]
    assert train['scheduler']['gamma'] == 0.5
    if path in FACD:
        assert (train['distill_opt']['lambda'], train['distill_opt']['layer_weights']) == (4, [0.5, 0.3, 0.2])


WITHOUT_TWIN = ('DATlight', 'fast', 'preskip', 'weak')


@pytest.mark.parametrize(
    'path', [path for path in FACD if not any(map(path.stem.__contains__, WITHOUT_TWIN))], ids=name
)
def test_a_baseline_differs_from_its_twin_in_the_distillation_only(path):
    facd, alone = load(path), load(path.with_name(path.name.replace('FACD', 'Student')))
    for opt in (facd, alone):
        for key in ('name', 'model_type', 'teacher', 'taps', 'network_r'):
            opt.pop(key, None)
        for block in (opt['train'], *opt['train'].get('stages', ())):
            for key in ('distill_opt', 'pixel_opt', 'taps', 'network_r'):
                block.pop(key, None)
        opt['path'].pop('pretrain_network_r', None)
    assert facd == alone


@pytest.mark.parametrize('path', TEST, ids=name)
def test_a_test_file_tests_what_its_train_file_trains(path):
    train_path = REPOSITORY / 'options' / 'train' / path.relative_to(REPOSITORY / 'options' / 'test')
    test, train = load(path), load(train_path)
    assert test['network_g'] == train['network_g']
    assert test['path']['pretrain_network_g'] == f'experiments/{train["name"]}/models/net_g_latest.pth'
    assert test['path'].get('param_key_g', 'params') == param_key_of(train)
    assert test['val']['metrics'] == train['val']['metrics']
    assert test['name'] == train['name']


def without(opt: dict, *locations: str) -> dict:
    """A copy without the keys at some dotted locations, where they are."""
    opt = copy.deepcopy(opt)
    for location in locations:
        *parents, leaf = location.split('.')
        functools.reduce(lambda block, key: block.get(key, {}), parents, opt).pop(leaf, None)
    return opt


OF_LATER = [path for path in TRAIN if path.stem.startswith(LATER)]
TAUGHT = [*DISTILLED, *OF_LATER, *(path for path in OTHER_TRAIN if 'teacher' in load(path) and path not in RECIPES)]


@pytest.mark.parametrize('path', TAUGHT, ids=name)
def test_a_method_differs_from_facd_in_the_distillation_only(path):
    *_, net, scale = path.stem.split('_')
    facd = load(REPOSITORY / 'options' / 'train' / f'FACD_{net}_{scale}.yml')
    differing = ('name', 'taps', 'network_r', 'train.distill_opt', *['train.ema_decay'] * path.stem.startswith('DCKD'))
    assert without(load(path), *differing) == without(facd, *differing)
    assert load(path)['name'] == path.stem
    if 'taps' in load(path):
        *taps, last = load(path)['taps']
        assert taps == facd['taps'][:2]
        if path in PAPER:
            point = 'conv_after_body:clone' if 'preskip' in path.stem else 'upsample:input'
            assert last == {'student': point, 'teacher': point}
        else:
            assert last == facd['taps'][2]


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_the_student_that_begins_as_its_teacher_differs_from_the_student_in_that_only(scale):
    opt, alone = load(file('TeacherInit', 'RCAN', scale)), load(file('Student', 'RCAN', scale))
    differing = ('name', 'path.pretrain_network_g', 'path.strict_load_g')
    assert without(opt, *differing) == without(alone, *differing)
    assert f'BIX{scale}-basicsr' in opt['path']['pretrain_network_g'] and opt['path']['strict_load_g'] is False
    with torch.device('meta'):
        student = build_network(opt['network_g']).state_dict()
        teacher = build_network(load(file('FACD', 'RCAN', scale))['teacher']['network']).state_dict()
    assert student.keys() < teacher.keys()
    assert all(value.shape == teacher[key].shape for key, value in student.items())


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_no_weight_of_edsrs_teacher_fits_its_student_so_there_is_no_such_control(scale):
    opt = load(file('FACD', 'EDSR', scale))
    with torch.device('meta'):
        student, teacher = (
            build_network(block).state_dict() for block in (opt['network_g'], opt['teacher']['network'])
        )
    fitting = [key for key, value in student.items() if key in teacher and value.shape == teacher[key].shape]
    assert fitting == ['conv_last.bias']


NOT_THE_DEFAULT = {
    'FCD': {'adaptive': False},
    'FCD_without_L1_T': {'adaptive': False, 'l1_t': False},
    'FCD_without_L1_GT': {'adaptive': False, 'l1_gt': False},
    'FCD_FAA': {'adaptive': False, 'layer_weights': [0.3333, 0.3333, 0.3333]},
    'FCD_FAL': {'adaptive': False, 'layer_weights': [0.2, 0.3, 0.5]},
}
LOSSES = {'TS': 'TeacherSupervisionLoss', 'FCD': 'FACDLoss'}  # of others: METHODLoss


@pytest.mark.parametrize('path', [*DISTILLED, *(path for path in FACD if path in PAPER)], ids=name)
def test_a_loss_has_its_classs_defaults_but_for_what_the_method_is_about(path):
    method = path.stem.rsplit('_', 2)[0]
    distill_opt = load(path)['train']['distill_opt']
    loss = distill_opt.pop('type')
    kind = method.split('_')[0]
    assert loss == LOSSES.get(kind, f'{kind}Loss')
    for key, parameter in inspect.signature(LOSS_REGISTRY.get(loss)).parameters.items():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        assert distill_opt.get(key.rstrip('_'), default) == NOT_THE_DEFAULT.get(method, {}).get(key, default), key


# what the option files of yun224/DUKD have otherwise than RCAN's: pixel_opt.loss_weight, n_gt_sub and zoom_out
RELEASED_DUKD: dict[str, dict[str, object]] = {
    'EDSR_x2': {'pixel_weight': 5, 'crops': 2, 'zoom_out': True},
    'EDSR_x4': {'pixel_weight': 5, 'zoom_out': True},
    'RCAN_x2': {},
    'RCAN_x4': {},
    'SwinIR_x2': {'pixel_weight': 5},
    'SwinIR_x4': {'pixel_weight': 5},
}


@pytest.mark.parametrize('path', OF_LATER, ids=name)
def test_a_later_methods_schedule_is_its_share_of_the_iterations_and_the_rest_its_losss_default_or_as_released(path):
    opt, method = load(path), path.stem.split('_')[0]
    total, distill_opt = opt['train']['total_iter'], opt['train']['distill_opt']
    assert ('taps' in opt) == ('network_r' in opt) == (method == 'FACDB')
    if method == 'FACDB':
        facd = load(path.with_name(path.name.replace('FACDB', 'FACD')))['train']['distill_opt']
        ours = {'lambda': {'start': 32, 'end': 0, 'over': total // 2}, 'negatives': 'per_anchor'}
        assert distill_opt == facd | ours and opt['network_r'] == {'type': 'DeepRegressor', 'num_layer': 1}
    elif method == 'MTKD':
        sr, wavelet = distill_opt.values()
        assert sr == {'type': 'L1Loss', 'target': 'gt', 'loss_weight': 0.1}
        assert wavelet == {'type': 'WaveletLoss', 'target': 'teacher'}
    else:
        alpha = {'alpha': {'start': 0, 'end': 1, 'over': total * 3 // 4}} if method == 'ECO' else {}
        released = RELEASED_DUKD[path.stem[len('DUKD_') :]] if method == 'DUKD' else {}
        assert distill_opt == {'type': f'{method}Loss', **alpha, **released}
    if method == 'DCKD':
        assert opt['train']['ema_decay'] == 0.999


@pytest.mark.parametrize('path', DISTILLED, ids=name)
def test_a_method_has_the_taps_and_regressors_that_its_loss_reads(path):
    opt, method = load(path), path.stem.split('_')[0]
    assert ('taps' in opt) == (method not in ('TS', 'CSD', 'IACD'))
    simple = method == 'FitNet' or (method in ('LFD', 'LSFD') and 'EDSR' in path.stem)
    deep = {'type': 'DeepRegressor', 'num_layer': 5} if method in ('FACD', 'FCD', 'InfoNCE') else None
    assert opt.get('network_r') == ({'type': 'DeepRegressor', 'num_layer': 1} if simple else deep)


KINDS = [(method, net) for method in ('FACD', 'Student', *RIVALS) for net in ('EDSR', 'RCAN')]


@pytest.mark.parametrize(('method', 'kind'), [*KINDS, ('TeacherInit', 'RCAN')])
def test_scales_differ_in_what_depends_on_the_scale_only(method, kind):
    texts = []
    for scale in (2, 3, 4):
        opt = load(file(method, kind, scale))
        opt['datasets']['train'].pop('gt_size')
        opt.pop('scale')
        if 'teacher' in opt:
            opt['teacher'].pop('weights')
            opt['teacher']['expect'].pop('psnr_y')
        for network in (opt['network_g'], opt.get('teacher', {}).get('network', {})):
            network.pop('upscale', None)
        for metric in opt['val']['metrics'].values():
            metric.pop('crop_border')
        texts.append(str(opt).replace(f'x{scale}', 'x').replace(f'X{scale}', 'X'))
    assert texts[0] == texts[1] == texts[2]
