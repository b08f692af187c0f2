"""``facd report`` as a user runs it, and its page in a real Chromium."""

import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, changed, run, tiny_train_opt
from PIL import Image
from runs import run as train

pytest.importorskip('selenium')

from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from facd_basicsr.cli import facd

NAME = '<img src=x onerror="x.y"> &amp; tiny'  # a folder name; unescaped it would cause an error in the console
CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
FLAGS = (
    *('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
)


@pytest.fixture(scope='module')
def folder(data, teacher_weights, tmp_path_factory) -> Path:
    """A finished run of 8 iterations, validated twice."""
    root = tmp_path_factory.mktemp('report')
    opt = changed(tiny_train_opt(data, teacher_weights), 'name', NAME)
    train(changed(opt, 'logger.use_tb_logger', False), root)
    return root / 'experiments' / NAME


@pytest.fixture(scope='module')
def page(folder) -> Path:
    result = CliRunner().invoke(facd, ['report', str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / 'report.html'


@pytest.fixture(scope='module')
def chromium(page, tmp_path_factory):
    """A Chromium with the page from its file."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip('no Chromium here: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}', '--window-size=1200,900'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, Service(DRIVER))  # both paths given: selenium downloads nothing
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium):
    chromium.refresh()
    return chromium


def first_crop(browser):
    views = browser.find_element(By.CSS_SELECTOR, '.views')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', views)
    return views, views.find_element(By.TAG_NAME, 'input')


def cut_of(views) -> float:
    """Visible percentage of the left picture, as rendered."""
    left = views.find_element(By.CSS_SELECTOR, '.view.left')
    return 100 - float(re.search(r'inset\(0px (?:calc\()?([\d.]+)%', left.value_of_css_property('clip-path'))[1])


def shown(views, side: str) -> str:
    """Alt text of the visible picture on a side."""
    view = views.find_element(By.CSS_SELECTOR, f'.view.{side}')
    assert view.is_displayed()
    return view.find_element(By.TAG_NAME, 'img').get_attribute('alt')


def test_the_page_opens_from_its_file_with_an_empty_console(browser):
    assert browser.current_url.startswith('file://')
    assert browser.get_log('browser') == []
    assert browser.find_element(By.TAG_NAME, 'h1').text == NAME
    loaded = browser.execute_script('return performance.getEntriesByType("resource").map((entry) => entry.name)')
    assert [name for name in loaded if not name.startswith('data:')] == []


def test_every_picture_is_rendered(browser):
    script = """
        const [answer] = arguments;
        const width = (image) => image.decode().then(() => image.naturalWidth, () => 0);
        Promise.all([...document.images].map(width)).then(answer);
    """
    widths = browser.execute_async_script(script)
    assert len(widths) >= 2 * 5 and min(widths) > 0
    assert len(browser.find_elements(By.CSS_SELECTOR, '.panel svg polyline')) >= 10


def test_the_slider_moves_by_the_keyboard(browser):
    views, slider = first_crop(browser)
    before = views.screenshot_as_png
    assert cut_of(views) == 50
    slider.send_keys(Keys.HOME)
    assert cut_of(views) == 0
    slider.send_keys(*[Keys.ARROW_RIGHT] * 4)
    assert cut_of(views) == 2
    assert views.screenshot_as_png != before


def test_the_slider_moves_by_the_mouse(browser):
    views, slider = first_crop(browser)
    width = views.size['width']
    ActionChains(browser).move_to_element(slider).click_and_hold().move_by_offset(-width // 4, 0).release().perform()
    assert cut_of(views) == pytest.approx(25, abs=2)


def test_the_slider_moves_by_touch(browser):
    views, _ = first_crop(browser)
    box = browser.execute_script('return arguments[0].getBoundingClientRect().toJSON()', views)

    def touch(kind: str, *shares: float) -> None:
        points = [{'x': box['x'] + share * box['width'], 'y': box['y'] + box['height'] / 2} for share in shares]
        browser.execute_cdp_cmd('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})

    touch('touchStart', 0.5)
    touch('touchMove', 0.65)
    touch('touchMove', 0.8)
    touch('touchEnd')
    assert cut_of(views) == pytest.approx(80, abs=2)


def test_the_pictures_on_both_sides_can_be_chosen(browser):
    crops = browser.find_elements(By.CSS_SELECTOR, '.views')
    sides = {side: Select(browser.find_element(By.ID, side)) for side in ('left', 'right')}
    assert [option.text for option in sides['left'].options] == ['bicubic', 'student', 'teacher', 'HR']
    assert ': bicubic' in shown(crops[0], 'left') and ': student' in shown(crops[0], 'right')
    sides['left'].select_by_visible_text('teacher')
    sides['right'].select_by_visible_text('HR')
    for views in crops:
        assert ': teacher' in shown(views, 'left') and ': HR' in shown(views, 'right')
        assert sum(view.is_displayed() for view in views.find_elements(By.CLASS_NAME, 'view')) == 2


def test_a_curve_shows_the_value_under_the_pointer(browser):
    panel = browser.find_element(By.CSS_SELECTOR, '.panel')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', panel)
    value = panel.find_element(By.CLASS_NAME, 'last')
    last = value.text
    assert last.endswith(' at 8')
    first_mark = panel.find_element(By.TAG_NAME, 'circle')
    ActionChains(browser).move_to_element(first_mark).perform()
    assert value.text.endswith(' at 4')
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, 'footer')).perform()
    assert value.text == last


def test_the_page_fits_a_phone_and_has_a_dark_mode(browser):
    def background() -> str:
        return browser.find_element(By.TAG_NAME, 'body').value_of_css_property('background-color')

    light = background()
    phone = {'width': 360, 'height': 800, 'deviceScaleFactor': 1, 'mobile': True}
    dark = {'features': [{'name': 'prefers-color-scheme', 'value': 'dark'}]}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', phone)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dark)
    try:
        assert browser.execute_script('return document.documentElement.scrollWidth') == 360
        assert background() != light
    finally:
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': []})
        browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_the_page_is_self_contained(page):
    text = page.read_text(encoding='utf-8')
    sources = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]*)', text.replace('&lt;img src', ''))
    assert len(sources) > 10 and all(source.startswith('data:') for source in sources)
    assert '@import' not in text and 'url(' not in text and NAME not in text
    assert page.stat().st_size < 3 * 2**20


def test_every_picture_is_intact(page):
    pictures = re.findall(r'data:image/png;base64,([^"]+)"', page.read_text(encoding='utf-8'))
    assert len(pictures) >= 2 * 5
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).load()  # a browser would show a truncated one too


def test_the_page_has_options_and_environment(page):
    text = page.read_text(encoding='utf-8')
    for text_part in (
        'batch_size_per_gpu: 3',
        'warmup_iter: -1',
        'torchvision',
        'Machine',
        'SHA-256',
        '8 of 8 iterations',
    ):
        assert text_part in text


def test_the_command_writes_to_the_given_file(folder, tmp_path):
    done = run('-m', 'facd_basicsr.cli', 'report', folder, '--out', tmp_path / 'page.html', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'{tmp_path / "page.html"}: ')
    assert (tmp_path / 'page.html').read_text(encoding='utf-8').rstrip().endswith('</html>')
    assert [path.name for path in tmp_path.iterdir()] == ['page.html']


def test_a_report_is_replaced_and_other_files_are_not(folder, tmp_path):
    page, other = tmp_path / 'page.html', tmp_path / 'thesis.html'
    other.write_text('<!DOCTYPE html>\n<title>mine</title>')
    for _ in range(2):
        result = CliRunner().invoke(facd, ['report', str(folder), '--out', str(page), '--no-table'])
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(facd, ['report', str(folder), '--out', str(other)])
    assert f'--out: {other} exists and is not a report; accepted: a new file, or a report' in str(result.exception)
    assert other.read_text().endswith('mine</title>')


def test_without_the_table_no_network_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.tools.report.results_of', None)
    result = CliRunner().invoke(
        facd, ['report', str(folder), '--no-table', '--out', str(tmp_path / 'new' / 'page.html')]
    )
    text = (tmp_path / 'new' / 'page.html').read_text(encoding='utf-8')
    assert result.exit_code == 0 and 'No table and no crops: --no-table.' in text and text.count('<svg') == 8


@pytest.mark.skipif(not Path('/proc/version').is_file(), reason='no unwritable folder')
def test_a_target_that_can_not_be_written_is_found_before_networks_are_run(folder, monkeypatch):
    monkeypatch.setattr('facd_basicsr.tools.report.results_of', None)
    result = CliRunner().invoke(facd, ['report', str(folder), '--out', '/proc/page.html'])
    assert re.fullmatch(r'--out: /proc/page.html cannot be written \(.*\); accepted: .*', str(result.exception))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone'], 'RUN_DIR: no such folder: gone'),
        (['.', '--out', '.'], '--out: . is a folder; accepted: a file name'),
    ],
)
def test_user_errors_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(facd, ['report', *arguments])
    assert message in str(result.exception) and '\n' not in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_has_the_parts_of_the_page(tmp_path):
    build = [sys.executable, 'setup.py', '-q', 'egg_info', '-e', tmp_path, 'build_py', '-d', tmp_path / 'lib']
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    source = REPOSITORY / 'facd_basicsr' / 'report'
    shipped = {path.name for path in (tmp_path / 'lib' / 'facd_basicsr' / 'report').iterdir()}
    assert {path.name for path in source.iterdir() if path.is_file()} <= shipped
