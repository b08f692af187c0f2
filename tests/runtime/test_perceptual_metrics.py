import random
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from conftest import changed, picture, save_features, write_yml
from torch.nn import functional as F  # noqa: N812
from torchvision.models import vgg16

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options
from facd_basicsr.options.option_check import check_options
from facd_basicsr.runtime import perceptual_metrics
from facd_basicsr.runtime.metrics import scores

LPIPS_LAYERS = {'alex': (1, 4, 7, 9, 11), 'vgg': (3, 8, 15, 22, 29)}  # of torchvision's features: ReLUs
ADVICE = (
    "accepted: torchvision's alexnet as an address or a path; without a network, bring "
    'https://download.pytorch.org/models/alexnet-owt-7be5be79.pth here and name its path'
)


@pytest.fixture(scope='module')
def dists(tmp_path_factory: pytest.TempPathFactory) -> dict:
    pytest.importorskip('torchmetrics')
    path = save_features(tmp_path_factory.mktemp('dists') / 'vgg16.pth', vgg16)
    return {'type': 'calculate_dists', 'crop_border': 0, 'weights': str(path)}


@pytest.fixture(scope='module')
def images() -> tuple[np.ndarray, np.ndarray]:
    image = picture(0, 48, 64)
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    return image, (image + noise).clip(0, 255).astype(np.uint8)


def rgb(image: np.ndarray) -> torch.Tensor:
    """BGR uint8 (H, W, 3) -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize('net', ['alex', 'vgg'])
def test_lpips_is_the_weighted_squared_difference_of_unit_features(net, lpips, dists, images):
    from torchmetrics.functional.image import lpips as library

    lpips = lpips if net == 'alex' else {**lpips, 'net': net, 'weights': dists['weights']}
    weights = torch.load(lpips['weights'], weights_only=True)
    linear = torch.load(Path(library.__file__).with_name('lpips_models') / f'{net}.pth', 'cpu', weights_only=True)
    with torch.device('meta'):
        layers = perceptual_metrics.BACKBONES[net](weights=None).features[: LPIPS_LAYERS[net][-1] + 1]
    layers.load_state_dict({key: weights[f'features.{key}'] for key in layers.state_dict()}, assign=True)
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))
    feats = [(2 * rgb(image) - 1 - shift) / scale for image in images]  # images in [-1, 1]
    expected = 0.0
    with torch.no_grad():
        for number, layer in enumerate(layers):
            feats = [layer(feat) for feat in feats]
            if number in LPIPS_LAYERS[net]:
                first, second = (feat / (feat.square().sum(1, keepdim=True) + 1e-8).sqrt() for feat in feats)
                lin = linear[f'lin{LPIPS_LAYERS[net].index(number)}.model.1.weight']
                expected += F.conv2d((first - second) ** 2, lin).mean().item()
    assert expected > 1e-3
    assert scores(*images, {'m': lpips}) == {'m': pytest.approx(expected, rel=1e-5)}
    assert calculate_metric({'img': images[0], 'img2': images[1]}, {**lpips, 'better': 'lower'}) == pytest.approx(
        expected, rel=1e-5
    )


def test_dists_is_that_of_torchmetrics_function(dists, images, monkeypatch):
    from torchmetrics.functional.image import deep_image_structure_and_texture_similarity as library

    weights = torch.load(dists['weights'], weights_only=True)
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in vgg16(weights=None).state_dict().items()}
    weights.pop('classifier.0.bias')
    whole = {key: weights.get(key, torch.zeros(()).expand(shape)) for key, shape in shapes.items()}
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', lambda *_, **__: whole)
    with torch.no_grad():
        expected = float(library(rgb(images[0]), rgb(images[1])))
    assert expected > 1e-3
    assert scores(*images, {'m': dists}) == {'m': pytest.approx(expected, rel=1e-5)}


def test_equal_images_have_none_and_more_noise_has_more(lpips, dists, images):
    blocks = {'lpips': lpips, 'dists': dists}
    image, noisy = images
    less = (image / 2 + noisy / 2).astype(np.uint8)
    none, few, many = (scores(other, image, blocks) for other in (image, less, noisy))
    assert none == pytest.approx({'lpips': 0, 'dists': 0}, abs=1e-6)
    assert all(1e-5 < few[name] < many[name] for name in blocks)


def test_gray_images_are_three_equal_channels_and_the_border_is_left_out(lpips, dists, images):
    blocks = {'lpips': {**lpips, 'crop_border': 4}, 'dists': {**dists, 'crop_border': 4}}
    gray = [image[..., 1] for image in images]
    found = scores(*gray, blocks)
    three = [np.repeat(image[..., None], 3, axis=2) for image in gray]
    assert found == scores(*three, blocks)
    inner = [image[4:-4, 4:-4] for image in three]
    assert found == scores(*inner, {'lpips': lpips, 'dists': dists})


def test_images_that_the_network_has_no_features_of_are_refused(lpips, dists, images):
    for block, least in ((lpips, 31), (dists, 16)):
        fits, too_small = ([image[:size, :size] for image in images] for size in (least, least - 1))
        assert np.isfinite(scores(*fits, {'m': block})['m'])
        message = f'm: {block["type"]} with crop_border: 0 on {least - 1}x{least - 1} pixels; accepted: {least}x{least}'
        with pytest.raises(UserError, match=message):
            scores(*too_small, {'m': block})
    with pytest.raises(
        UserError, match=r'^calculate_lpips: images of \(48, 64, 3\) and \(47, 64, 3\); accepted: equal'
    ):
        scores(images[0], images[1][1:], {'m': lpips})


def test_a_network_is_built_once_is_frozen_and_draws_no_random_number(lpips, images, monkeypatch):
    perceptual_metrics._network.cache_clear()
    built = []
    load = perceptual_metrics.load_features
    monkeypatch.setattr(perceptual_metrics, 'load_features', lambda *args: built.append(args[0]) or load(*args))

    def states() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    before = states()
    for _ in range(2):
        scores(*images, {'m': lpips, 'again': {**lpips, 'crop_border': 2}})
    assert states() == before and len(built) == 1
    network = perceptual_metrics._prepared('m', 'calculate_lpips', 'alex', lpips['weights'])
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_the_options_of_both_are_known(test_opt, lpips):
    test_opt['path']['pretrain_network_g'] = 'net.pth'
    test_opt['val']['metrics'] = {
        'lpips': {'type': 'calculate_lpips', 'crop_border': 4},
        'dists': {'type': 'calculate_dists', 'crop_border': 4},
    }
    complete = check_options(test_opt, is_train=False)['val']['metrics']
    assert complete['lpips'] == {
        **{'type': 'calculate_lpips', 'crop_border': 4},
        **{'net': 'alex', 'weights': None, 'better': 'lower'},
    }
    assert complete['dists'] == {'type': 'calculate_dists', 'crop_border': 4, 'weights': None, 'better': 'lower'}
    for key, value, message in (
        ('lpips.net', 'squeeze', "'squeeze'; accepted: alex, vgg"),
        ('lpips.weights', 3, '3; accepted: text or nothing'),
        ('dists.better', 'higher', "'higher'; accepted: lower"),
    ):
        with pytest.raises(UserError, match=re.escape(f'val.metrics.{key}: {message}')):
            check_options(changed(test_opt, f'val.metrics.{key}', value), is_train=False)


@pytest.fixture
def refusal(train_opt: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Why a train file with LPIPS on these weights is refused before training, in a process that has no network yet."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    perceptual_metrics._network.cache_clear()

    def refused(weights: str | None) -> str:
        block = {'type': 'calculate_lpips', 'crop_border': 0, 'weights': weights}
        train_opt['val']['metrics'] = {'lpips': block}
        path = str(write_yml(train_opt, tmp_path / 'opt.yml'))
        load_options(path, [], is_train=True, with_weights=False)  # what facd check --modules asks for
        with pytest.raises(UserError) as caught:
            load_options(path, [], is_train=True)
        message = str(caught.value)
        assert '\n' not in message
        return message.removeprefix(f'{path}: val.metrics.lpips.')

    return refused


def test_without_the_library_the_line_says_how_to_install_it(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchmetrics.functional.image', None)
    message = refusal(None)
    assert message.startswith('type: calculate_lpips needs torchmetrics (')
    assert message.endswith("); accepted: another metric, or `pip install 'facd_basicsr[perceptual]'`")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of ``tmp_path/site``."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    (tmp_path / 'site').mkdir()
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    with ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / 'site'))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_weights_are_downloaded_once_and_where_they_cannot_be_the_line_says_what_to_do(
    lpips, images, refusal, site, tmp_path
):
    url = f'{site}/alexnet.pth'
    assert refusal(url) == f'weights: {url}: the server answers 404 File not found; {ADVICE}'
    (tmp_path / 'site' / 'alexnet.pth').write_bytes(Path(lpips['weights']).read_bytes())
    found = scores(*images, {'m': {**lpips, 'weights': url}})
    assert found == scores(*images, {'m': lpips})
    (tmp_path / 'site' / 'alexnet.pth').unlink()
    perceptual_metrics._network.cache_clear()
    assert found == scores(*images, {'m': {**lpips, 'weights': url}})  # from torch.hub's folder
    assert [path.name for path in (tmp_path / 'hub').rglob('*') if path.is_file()] == ['alexnet.pth']


def test_weights_that_are_none_of_the_network_are_one_line(refusal, dists, tmp_path):
    assert refusal('absent.pth').startswith('weights: absent.pth cannot be read as a checkpoint of tensors ([Errno 2]')
    message = refusal(dists['weights'])
    assert message.startswith(f'weights: {dists["weights"]} does not fit Sequential: keys ') and message.endswith(
        ADVICE
    )
