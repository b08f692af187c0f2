import numpy as np
import pytest
from PIL import Image, ImageFont

from facd_basicsr.evaluation.figures import (
    FONT_SIZE,
    LINE_HEIGHT,
    PANEL_MARGIN,
    YELLOW,
    enlarge,
    grid,
    marked,
    tinted,
    window_sums,
)
from facd_basicsr.evaluation.tables import latex_table, markdown_table, text_table


def test_a_grid_shows_each_crop_enlarged_in_its_place_in_rgb():
    blue, red = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    blue[..., 0], red[..., 2] = 255, 255
    picture = grid([[('a', enlarge(blue, 10)), ('b\nc', enlarge(red, 10))]])
    assert picture.getpixel((PANEL_MARGIN, PANEL_MARGIN)) == (0, 0, 255)
    assert picture.getpixel((PANEL_MARGIN + 40 + PANEL_MARGIN + 39, PANEL_MARGIN + 39)) == (255, 0, 0)


def test_text_table_aligns_columns():
    assert text_table(['set', 'psnr'], [['Set5', '37.1'], ['B', '9.25']]) == (
        'set   psnr\n----  ----\nSet5  37.1\nB     9.25'
    )


def test_window_sums_equal_sums_worked_by_hand():
    error = np.array([[1, 2, 3], [4, 5, 6]])
    assert np.array_equal(window_sums(error, 2), [[1 + 2 + 4 + 5, 2 + 3 + 5 + 6]])


def test_a_group_of_columns_has_its_title_above_them():
    assert text_table(['m', 'a', 'b'], [['x', '1', '2']], ['', 'Set14', 'Set14']) == (
        '   Set14\nm  a   b\n-  -  --\nx  1   2'
    )


def test_a_column_without_a_group_stands_beside_groups():
    lines = text_table(['m', 'n', 'a', 'b'], [['x', '1', '2', '3']], ['', '', 'S', 'T']).split('\n')
    assert lines == ['      S  T', 'm  n  a  b', '-  -  -  -', 'x  1  2  3']


def test_markdown_table_names_groups_in_its_header_and_escapes_what_would_end_a_cell():
    assert markdown_table(['m', 'a'], [['x|y', '1'], ['z', '2']], ['', 'Set5'], {(1, 1)}) == (
        '| m | Set5 a |\n| --- | ---: |\n| x\\|y | 1 |\n| z | **2** |'
    )


def test_latex_has_delta_in_math_mode():
    assert r'$\Delta$ vs Student' in latex_table(['method', 'Δ vs Student'], [['FACD', '+0.1']])


def test_latex_table_spans_groups_and_escapes_what_latex_reads():
    assert latex_table(['m', 'a', 'b'], [['x_1 & 2%', '1', '2']], ['', 'Set5', 'Set5'], {(0, 2)}).split('\n') == [
        r'\begin{tabular}{lrr}',
        r'\toprule',
        r' & \multicolumn{2}{c}{Set5} \\',
        r'\cmidrule{2-3}',
        r'm & a & b \\',
        r'\midrule',
        r'x\_1 \& 2\% & 1 & \textbf{2} \\',
        r'\bottomrule',
        r'\end{tabular}',
    ]


@pytest.mark.parametrize('caption', ['a_very_long_name_without_spaces\n31.46 dB', 'W' * 40, ''])
def test_no_caption_reaches_its_neighbours_column(caption):
    black = Image.new('RGB', (60, 10))
    picture = np.asarray(grid([[(caption, black), ('', black)]]))
    below = picture[PANEL_MARGIN + 10 :]
    assert (below[:, PANEL_MARGIN + 60 + PANEL_MARGIN :] == 255).all()
    font = ImageFont.load_default(FONT_SIZE)
    lines = (len(below) - PANEL_MARGIN) // LINE_HEIGHT
    assert lines >= font.getlength(caption.replace('\n', '')) / 60  # broken, not cut


def test_rows_of_different_lengths_and_heights_do_not_overlap():
    red, blue = Image.new('RGB', (20, 30), (255, 0, 0)), Image.new('RGB', (40, 10), (0, 0, 255))
    picture = grid([[('a', red), ('b', blue)], [('c', blue)]])
    assert picture.size == (PANEL_MARGIN * 3 + 40 + 40, PANEL_MARGIN * 3 + (30 + LINE_HEIGHT) + (10 + LINE_HEIGHT))
    colors = {color: n for n, color in picture.getcolors(10**4)}
    assert colors[255, 0, 0] == 20 * 30 and colors[0, 0, 255] == 2 * 40 * 10


def test_marked_outlines_the_window_at_the_size_it_is_shown():
    picture = marked(np.full((40, 80, 3), 128, np.uint8), (20, 8, 40, 28), fit=(40, 40))
    assert picture.size == (40, 20)
    assert picture.getpixel((10, 4)) == picture.getpixel((19, 13)) == YELLOW
    assert picture.getpixel((14, 8)) == (128, 128, 128)


def test_tinted_reddens_the_windows_only_and_leaves_the_image_as_it_is():
    image = np.full((4, 8, 3), 100, np.uint8)
    result = tinted(image, [(4, 0, 8, 4)])
    assert (result[:, :4] == 100).all() and (image == 100).all()
    assert tuple(result[0, 4]) == (70, 70, 177)  # BGR, halfway from 100 to (40, 40, 255)
