"""The demo: its notebook, what it says of real clips, and the page as a person uses it, in a real browser."""
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from asc.cli import main
from asc.core import InputError
from asc.data.corpus import load_corpus
from asc.model.classifier import create_classifier, save_model
from asc.use.demo import build_page, practice_models, serve_page, short_names
from asc.use.microphones import compare_devices, explain
from asc.use.devices import read_start, through_device
from asc.load import OpenModel, open_model
from asc.use.predict import predict
import launch

RATE = 44100


def thirds(wave, devices):
    "Log energies of low, middle and high sounds, as if they were logits"
    power = torch.fft.rfft(wave).abs().square()
    bands = (50, 500), (500, 2000), (2000, 20000)
    return torch.stack([power[:, a:b].sum(1) for a, b in bands], 1).log()


def upside_down(wave, devices):
    "The opposite of `thirds`"
    return -thirds(wave, devices)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A run folder, a stereo sound of 2.2 s, an unreadable one, and two impulse responses: one takes the high tone away"
    tmp = tmp_path_factory.mktemp('demo')
    torch.manual_seed(0)
    (tmp/'run').mkdir()
    (tmp/'devices').mkdir()
    save_model(create_classifier('cnn3', 'cnn3', 'easy_cnn3', RATE), tmp/'run')
    t = np.arange(round(2.2*48000))/48000
    sf.write(
        tmp/'tones.wav',
        np.stack([.1*np.sin(2*np.pi*200*t) + .2*np.sin(2*np.pi*6000*t)]*2, 1),
        48000,
    )
    (tmp/'broken.wav').write_bytes(b'RIFF and nothing else')
    sf.write(tmp/'devices/plain.wav', np.eye(1, 64)[0], RATE)
    sf.write(tmp/'devices/muffled.wav', np.hanning(64), RATE, subtype='FLOAT')
    return tmp


def test_notebook(papermill, files, tmp_path):
    "Pictures of one sound through every device, without Gradio"
    options = dict(sound=files/'tones.wav', devices=files/'devices', longest=2, out=tmp_path/'out')
    launch.check(papermill('demo', models=[files/'run'], **options))
    assert {p.name for p in (tmp_path/'out').iterdir()} >= {
        'as_recorded.png', 'plain.png', 'muffled.png', 'devices.csv', 'metrics.json',
        'params.json',
    }
    table = pd.read_csv(tmp_path/'out/devices.csv')
    facts = json.loads((tmp_path/'out/metrics.json').read_text())
    wave, rate, seconds, _ = read_start(files/'tones.wav', 2)
    assert (facts['seconds'], round(seconds, 1), rate) == (2, 2.2, 48000)
    expected = compare_devices({'run': files/'run'}, wave, rate, str(files/'devices'))
    assert table.scene.tolist() == expected.scene.tolist()
    assert np.allclose(table.p, expected.p, atol=1e-5)


def test_decision_is_that_of_predict(shared):
    "On genuine clips of one second, a published system says here what `predict` says of the file"
    clips = sorted((shared/'data/tau-samples').glob('*.wav'))
    model = open_model(shared/'data/weights/cpjku23_c0a7nzin.ckpt')
    table = predict(model, clips)
    for clip, row in zip(clips, table.to_dict('records')):
        e = explain(model, *read_start(clip)[:2], 'device 1')
        assert e.recorded.scene == row['scene']
        assert abs(e.recorded.p - row[row['scene']]) < 1e-4
        assert e.holds == (e.decision.scene == e.recorded.scene)
        assert e.decision.windows == 1


def test_devices_of_a_folder(files):
    "A response of one sample changes nothing, a low-pass takes the high tone away; an empty folder is refused"
    wave, rate, *_ = read_start(files/'tones.wav')
    assert torch.allclose(through_device(wave, rate, 'plain', str(files/'devices')), wave, atol=.02)
    model = OpenModel('thirds', 'module', ['low', 'middle', 'high'], RATE, [], thirds)
    table = compare_devices({'thirds': model}, wave, rate, str(files/'devices')).set_index('device')
    assert table.scene.to_dict() == {'as recorded': 'high', 'plain': 'high', 'muffled': 'low'}
    assert table.index[~table.holds].tolist() == ['muffled']
    (files/'empty').mkdir()
    with pytest.raises(InputError, match='no .wav impulse response'):
        through_device(wave, rate, 'x', str(files/'empty'))


def test_practice_models(synthetic, tmp_path):
    "Both hear, and the quantised one is near the other, but not the same"
    models = practice_models(tmp_path, load_corpus(synthetic), epochs=1)
    x = torch.randn(4, RATE, generator=torch.manual_seed(0))/10
    a, b = (m(x) for m in models.values())
    assert 0 < (a - b).abs().max() < .1 and (tmp_path/'history.csv').is_file()


def test_command_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(
        SystemExit, match=r"asc demo: the page needs Gradio: pip install 'asc\[demo\]'"
    ):
        main(['demo', 'runs/x'])


@pytest.fixture(scope='module')
def served(files):
    "The page at a free port, and a browser whose microphone beeps"
    for package in ('gradio', 'playwright'): pytest.importorskip(package)
    from playwright.sync_api import sync_playwright
    chromium = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    if not chromium: pytest.skip('no chromium here')
    models = {
        'thirds': OpenModel('thirds', 'module', ['low', 'middle', 'high'], RATE, [], thirds),
        'upside down': OpenModel('upside', 'module', ['<b>low', 'middle', 'high'], RATE, [], upside_down),
    }
    page = build_page(models, str(files/'devices'), longest=2)
    url = serve_page(page, free_port(), wait=False)
    with sync_playwright() as pw:
        browser = pw.chromium.launch(
            executable_path=chromium,
            args=[
                '--no-sandbox',
                '--use-fake-ui-for-media-stream',
                '--use-fake-device-for-media-stream',
            ],
        )
        yield url, browser, models
        browser.close()
    page.close()


def free_port():
    "A port that nobody listens on"
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def page(served):
    "The page, freshly loaded; at the end, nothing may have been asked of another machine"
    url, browser, _ = served
    p = browser.new_page()
    requests = []
    faults = []
    p.on('request', lambda r: requests.append(r.url))
    p.on('pageerror', lambda e: faults.append(str(e)))
    p.goto(url)
    p.wait_for_selector('#classify')
    yield p
    assert not [u for u in requests if not u.startswith((url, f'blob:{url}', 'data:'))]
    assert not faults
    p.close()


def says(page, *words):
    "Wait until the page says all of this of the sound"
    from playwright.sync_api import expect
    for w in words:
        expect(page.locator('#verdict')).to_contain_text(w, timeout=30_000)


def test_page(page, served, files):
    "A sound is dropped, classified, heard through another device and by another model"
    _, _, models = served
    wave, rate, *_ = read_start(files/'tones.wav', 2)
    page.click('#classify')
    says(page, 'No sound yet: drop or record one')
    page.set_input_files('#sound input[type=file]', files/'tones.wav')
    says(page, 'Press Classify')
    page.click('#classify')
    says(
        page,
        *explain(models['thirds'], wave, rate).words()[:2],
        'The first 2 of 2 seconds were heard',
    )
    first = page.locator('#picture img').get_attribute('src')
    page.get_by_role('radio', name='muffled').click()
    says(
        page,
        *explain(models['thirds'], wave, rate, 'muffled', str(files/'devices')).words(),
        'Through muffled the decision breaks: as recorded it was high',
    )
    assert page.locator('#picture img').get_attribute('src') != first
    page.get_by_role('radio', name='plain').click()
    says(page, 'Through plain the decision holds')
    page.get_by_role('radio', name='upside down').click()
    says(page, explain(models['upside down'], wave, rate).words()[0])
    page.locator('#heard audio, #heard #waveform').first.wait_for(state='attached')
    page.click('#compare')
    page.wait_for_selector('#every td')
    assert (
        page.locator('#every tbody tr').count() == 3
        and page.locator('#every thead th').all_inner_texts()[1:] == ['thirds', 'upside down']
    )
    sentence = explain(models['thirds'], wave, rate).words()[0]
    assert page.locator('#every td').first.inner_text() == sentence


def test_page_says_what_is_wrong(page, files):
    "A file that is no sound is named, in the place of the decision"
    page.set_input_files('#sound input[type=file]', files/'broken.wav')
    says(page, 'Press Classify')
    page.click('#classify')
    says(page, 'broken.wav: unreadable')
    page.click('#compare')
    page.wait_for_selector('#every .breaks')


def test_page_records(page):
    "What the microphone heard is classified"
    page.click('#sound [aria-label="Record audio"]')
    page.click('#sound .record-button')
    page.wait_for_timeout(1500)
    page.click('#sound .stop-button')
    says(page, 'Press Classify')
    page.click('#classify')
    page.wait_for_selector('#verdict .head', timeout=30_000)


def test_port_is_taken(served):
    url, _, models = served
    with pytest.raises(InputError, match='is taken'):
        serve_page(build_page(models), int(url.strip('/').rsplit(':')[-1]), wait=False)


def test_models_are_refused_before_the_page(files):
    pytest.importorskip('gradio')
    with pytest.raises(InputError, match='no model'): build_page({})
    with pytest.raises(InputError, match='model.json is missing'):
        build_page(short_names([files/'devices']))
