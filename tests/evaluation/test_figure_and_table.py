import numpy as np

from facd_basicsr.evaluation.figure import MARGIN, largest_error, side_by_side
from facd_basicsr.evaluation.table import text_table


def test_largest_error_finds_the_window_with_the_largest_error():
    error = np.zeros((30, 40))
    error[12:17, 21:26] = 1
    assert largest_error(error, 5) == (12, 21)


def test_side_by_side_shows_each_crop_enlarged_in_its_place_in_rgb():
    blue, red = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    blue[..., 0], red[..., 2] = 255, 255
    picture = side_by_side([[('a', blue), ('b\nc', red)]], zoom=10)
    assert picture.getpixel((MARGIN, MARGIN)) == (0, 0, 255)
    assert picture.getpixel((MARGIN + 40 + MARGIN + 39, MARGIN + 39)) == (255, 0, 0)


def test_text_table_aligns_columns():
    assert text_table(['set', 'psnr'], [['Set5', '37.1'], ['B', '9.25']]) == (
        'set   psnr\n----  ----\nSet5  37.1\nB     9.25'
    )
