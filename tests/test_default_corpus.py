"The corpus that a run takes by itself shows what the tables are for; a temperature says where it cannot be trusted."
import numpy as np
import pandas as pd
import pytest

from asc.core import CITIES, DEVICES, SCENES
from asc.data.choose import WORLD
from asc.data.corpus import load_corpus
from asc.data.layouts import META
from asc.data.splits import carve_valid, check_disjoint, read_split, read_test
from asc.data.synthetic import _write_lists, plan
from asc.score.metrics import expected_calibration_error
from asc.score.doubts import interval_remark
from asc.score.stats import bootstrap
from asc.score.tables import city_table, class_table, device_table
from asc.score.temperature import apply_temperature, fit_temperature, temperature_remark


@pytest.fixture(scope='module')
def lists(tmp_path_factory):
    "Training, validation and test list of the default corpus, without its sounds"
    folder = tmp_path_factory.mktemp('world')
    _write_lists(folder, plan(**WORLD))
    corpus = load_corpus(folder)
    train, valid = carve_valid(read_split(corpus, 100), .1)
    return train, valid, read_test(corpus)


def answers(rows, seed=0):
    "Made-up answers for the clips of a list"
    p = np.random.default_rng(seed).dirichlet(np.ones(len(SCENES)), len(rows))
    labels = dict(filename=rows.filename, scene_label=rows.scene, device=rows.device, city=rows.city)
    return pd.concat([pd.DataFrame(labels), pd.DataFrame(p, columns=list(SCENES))], axis=1)


def test_validation_holds_every_scene_and_training_device(lists):
    train, valid, test = lists
    check_disjoint(train=train, valid=valid, test=test)
    assert set(valid.scene) == set(train.scene) == set(SCENES)
    assert set(valid.device) == set(train.device) == set(DEVICES[:6])
    assert .1 <= len(valid)/(len(train) + len(valid)) <= .2


def test_every_table_has_its_intervals(lists):
    _, _, test = lists
    assert set(test.city) == set(CITIES) and set(test.device) == set(DEVICES)
    preds = answers(test)
    assert interval_remark(preds) == 'Intervals over 2 locations a scene are too narrow; 5 are few.'
    for table in (class_table, device_table, city_table):
        assert table(preds, intervals=True).notna().all(axis=None)


def test_one_place_a_scene_is_the_reason():
    rows = pd.DataFrame([(f'audio/{s}-oulu-{i}-1-{k}-a.wav', s, 'a', 'oulu') for i,
                         s in enumerate(SCENES) for k in range(5)],
                        columns=['filename', 'scene', 'device', 'city'])
    preds = answers(rows)
    assert interval_remark(preds) == 'No intervals: the test list has one location a scene.'
    assert bootstrap(preds)['low'].isna().all()


def answered(n, skill, devices, seed):
    "Answers of a network with a skill for each device"
    rng = np.random.default_rng(seed)
    truth, device = rng.integers(10, size=n), rng.integers(len(devices), size=n)
    logits = rng.normal(size=(n, 10)) + np.eye(10)[truth]*np.array(skill)[device][:, None]
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    rows = pd.DataFrame(dict(filename=[f'{i}.wav' for i in range(n)], scene_label=np.array(SCENES)[truth],
                             device=np.array(list(devices))[device], city='oulu'))
    return pd.concat([rows, pd.DataFrame(p, columns=list(SCENES))], axis=1)


def test_temperature_of_one_device_is_remarked():
    "Fitted where the network is good it makes the test worse, and that is said; fitted on all devices nothing is said"
    test = answered(3000, [3, 1, 1], 'abc', 1)
    one, all_of_them = answered(1000, [3], 'a', 2), answered(1000, [3, 1, 1], 'abc', 3)
    errors = [expected_calibration_error(apply_temperature(test, fit_temperature(v))) for v in (one, all_of_them)]
    assert errors[0] > expected_calibration_error(test) > errors[1]
    said = temperature_remark(fit_temperature(one), one, test)
    assert 'lacks 2 of 3 devices (b, c)' in said and temperature_remark(1, all_of_them, test) == ''


@pytest.mark.parametrize('valid,words', [
    (lambda v: v.head(20), 'fitted on 20 clips'), (lambda v: v[v.scene_label != 'bus'], 'no clip of bus'),
    (lambda v: v[v[list(SCENES)].to_numpy().argmax(1) == v.scene_label.map(SCENES.index)], 'every answer on the')])
def test_what_a_validation_list_lacks(valid, words):
    test = answered(3000, [2], 'a', 1)
    assert words in temperature_remark(1, valid(answered(1000, [2], 'a', 2)), test)
