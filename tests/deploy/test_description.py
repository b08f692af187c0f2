import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from conftest import STUDENT

from facd_basicsr.deploy.student import Description, describe_network


@pytest.mark.parametrize(
    ('block', 'stock'),
    [
        (STUDENT, EDSR),
        ({'type': 'RCANStudent', 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 3}, RCAN),
    ],
)
def test_a_student_is_described_as_basicsrs_own_class_with_every_argument(block, stock):
    description = describe_network(block, block['upscale'])
    net = stock(**description.arguments)
    net.load_state_dict(build_network(block).state_dict(), strict=True)
    assert description.architecture == stock.__name__
    assert torch.allclose(net.mean.flatten(), torch.tensor(description.arguments['rgb_mean']))


def test_metadata_brings_back_the_whole_description():
    description = Description(
        'EDSR', {'num_feat': 4, 'rgb_mean': [0.1, 0.2, 0.3]}, 2, 7, 'tiny', 'opt.yml', 'ab12', {'Set5': 30.25}
    )
    metadata = description.as_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert Description.of_metadata({**metadata, 'format': 'pt'}) == description


@pytest.mark.parametrize('metadata', [{}, {'format': 'pt'}, {'architecture': 'EDSR', 'scale': '2'}])
def test_metadata_of_other_programs_describe_nothing(metadata):
    assert Description.of_metadata(metadata) is None


@pytest.mark.parametrize(
    ('key', 'text'),
    [
        ('scale', '"2"'),
        ('scale', '0'),
        ('scale', 'true'),
        ('scale', '2.0'),
        ('arguments', '{'),
        ('arguments', '[' * 100_000),
        ('arguments', '{"type": "SpyNet"}'),
        ('reach', '[]'),
        ('reach', '-1'),
        ('psnr', '1'),
        ('psnr', '{"Set5": "30"}'),
        ('psnr', '{"Set5": NaN}'),
        ('psnr', '{"Set5": 1e999}'),
        ('psnr', '{"Set5": true}'),
        ('psnr', f'{{"Set5": {10**400}}}'),
    ],
)
def test_a_damaged_entry_is_named(key, text):
    metadata = {**Description('EDSR', {}, 2).as_metadata(), key: text}
    with pytest.raises(ValueError, match=f'^{key}: ') as caught:
        Description.of_metadata(metadata)
    assert len(str(caught.value)) < 100
