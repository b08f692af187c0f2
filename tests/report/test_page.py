from xml.etree import ElementTree

from facd_basicsr.report.page import changing_weights, panels, summary
from facd_basicsr.report.svg_curves import TEMPLATES
from facd_basicsr.runs.run_folder import Metrics

POINT = {1: 0.5}


def titles(*names: str, opt: dict | None = None) -> list[str]:
    return [panel.title for panel in panels(Metrics(curves=dict.fromkeys(names, POINT)), opt or {'train': {}})]


def test_the_curves_of_facd_are_told_apart():
    assert titles('lr', 'l_sr', 'l_facd', 'alpha', 'r_1', 'r_2') == [
        'l_sr',
        'l_facd',
        'alpha',
        'r per tap',
        'learning rate',
    ]


def test_terms_that_are_not_known_have_their_own_panels():
    assert titles('lr_1', 'lr_2', 'l_new', 'r', 'gradient') == ['l_new', 'r', 'gradient', 'learning rate']


def test_gradient_shares_are_one_picture_between_0_and_1():
    (loss, panel) = panels(Metrics(curves={'l_sr': POINT, 'share_sr': POINT, 'share_facd': POINT}), {'train': {}})
    assert (loss.title, panel.title, list(panel.lines)) == ('l_sr', 'gradient shares', ['sr', 'facd'])
    assert panel.limits == (0.0, 1.04) and not panel.noisy


def test_validation_comes_first_with_its_units():
    opt = {'train': {}, 'val': {'metrics': {'p': {'type': 'calculate_psnr'}, 's': {'type': 'calculate_ssim'}}}}
    log = Metrics(curves={'l_pix': POINT}, validation={'Set5': {'p': POINT, 's': POINT}, 'Set14': {'p': POINT}})
    found = [(panel.title, panel.unit) for panel in panels(log, opt)]
    assert found == [('p on Set5', 'dB'), ('s on Set5', 's'), ('p on Set14', 'dB'), ('l_pix', 'weighted loss')]


def test_taps_are_named():
    opt = {'train': {}, 'taps': [{'student': 'body.0', 'teacher': 'body.1'}]}
    (panel,) = panels(Metrics(curves={'r_1': POINT, 'r_2': POINT}), opt)
    assert list(panel.lines) == ['r_1: body.0 → body.1', 'r_2']


def test_a_tap_of_two_teachers_names_both_paths():
    opt = {'train': {}, 'taps': [{'student': 'body.0', 'teacher': ['body.1', 'layers.2']}]}
    (panel,) = panels(Metrics(curves={'r_1': POINT}), opt)
    assert list(panel.lines) == ['r_1: body.0 → body.1 and layers.2']


def test_a_loss_says_the_range_of_its_images():
    opt = {'teacher': {}, 'train': {'distill_opt': {'img_range': 255.0}}}
    (image, distillation) = panels(Metrics(curves={'l_sr': POINT, 'l_facd': POINT}), opt)
    assert image.note == 'image loss, of images in [0, 255]'
    assert distillation.note == 'distillation loss, of images in [0, 255]'


def test_html_tables_span_groups_and_escape_cells():
    table = ElementTree.fromstring(
        TEMPLATES.get_template('table.html').module.html_table(
            ['', 'a', 'b'], [['<m>', '1', '2 & 3']], ['', 'Set5', 'Set5'], {(0, 2)}
        )
    )
    head, titles, row = table.iter('tr')
    assert [(cell.text, cell.get('colspan')) for cell in head] == [(None, None), ('Set5', '2')]
    assert [cell.text for cell in titles] == [None, 'a', 'b']
    assert [cell.text or cell.find('b').text for cell in row] == ['<m>', '1', '2 & 3']


def test_every_panel_has_the_borders_of_the_stages_of_the_run():
    opt = {'train': {'stages': [{'iterations': 3}, {'iterations': 5}, {'iterations': 2}]}}
    log = Metrics(curves={'l_pix': POINT, 'lr': POINT}, validation={'Set5': {'p': POINT}})
    assert [panel.borders for panel in panels(log, opt)] == [[3, 8]] * 3
    assert [panel.borders for panel in panels(log, {'train': {}})] == [[]] * 3


def test_weights_that_change_are_drawn_over_the_whole_run_by_schedule_and_from_stage_to_stage():
    falling = {'start': 4, 'end': 0, 'over': 10}
    losses = {'sr': {'type': 'L1Loss', 'loss_weight': 255}, 'facd': {'type': 'FACDLoss', 'lambda': falling}}
    stages = [
        {'iterations': 20},
        {'iterations': 10, 'distill_opt': {'sr': {'loss_weight': 1}, 'facd': {'layer_weights': [1, falling]}}},
    ]
    opt = {'train': {'distill_opt': losses, 'stages': stages}}
    weights = changing_weights(opt)
    assert weights.keys() == {
        'distill_opt.sr.loss_weight',
        'distill_opt.facd.lambda',
        'distill_opt.facd.layer_weights[1]',
    }
    image, distance = weights['distill_opt.sr.loss_weight'], weights['distill_opt.facd.lambda']
    assert list(image) == list(range(1, 31)) and (image[20], image[21]) == (255, 1)
    assert [distance[iteration] for iteration in (1, 5, 10, 20, 21, 30)] == [3.6, 2.0, 0.0, 0.0, 3.6, 0.0]
    (panel,) = panels(Metrics(), opt)
    assert panel.title == 'weights' and panel.borders == [20]
    assert changing_weights({'train': {'total_iter': 5, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 2}}}) == {}


def test_a_schedule_without_stages_is_drawn():
    weight = {'start': 0, 'end': 1, 'over': 1000, 'shape': 'step'}
    opt = {'train': {'total_iter': 2000, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': weight}}}
    (curve,) = changing_weights(opt).values()
    assert curve[980] == 0 and curve[1000] == curve[2000] == 1 and len(curve) == 101


def test_a_run_of_stages_is_said_to_be_taught_by_their_losses_and_in_no_range_that_is_not_theirs():
    facd, fft = {'type': 'FACDLoss', 'img_range': 255}, {'type': 'FFTLoss'}
    stages = [
        {'iterations': 3, 'distill_opt': {'fft': fft, 'facd': facd}},
        {'iterations': 2, 'distill_opt': {'fft': fft}},
    ]
    opt = {
        'network_g': {'type': 'EDSR'}, 'scale': 2, 'teacher': {'weights': 'DAT.pth'},
        'train': {'distill_opt': facd, 'total_iter': 5, 'stages': stages},
    }  # fmt: skip
    metrics = Metrics(curves={'l_fft': POINT})
    assert summary(opt) == 'EDSR, x2, taught by DAT.pth with FFTLoss and FACDLoss'
    assert panels(metrics, opt)[0].note == 'distillation loss'
    del opt['train']['stages']
    assert summary(opt) == 'EDSR, x2, taught by DAT.pth with FACDLoss'
    assert panels(metrics, opt)[0].note == 'distillation loss, of images in [0, 255]'
