"""From predictions to scores, statistics and tables: against sklearn, by hand, on broken tables, by simulation."""
import json
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as skm

from asc.core import CITIES, DEVICES, SCENES, InputError, write_json
from asc.score.metrics import clips, expected_calibration_error
from asc.score.paper import by_line, runs_table
from asc.score.runs import comparable, find_runs, read_run
from asc.score.differences import intervals_table
from asc.score.spread import crossed
from asc.score.temperature import apply_temperature, fit_temperature
from asc.score.stats import bootstrap
from asc.score.stats import compare
from asc.score.tables import (city_table, class_device_table, class_table, confusion, device_table,
                              summary_table, to_markdown)
from asc.score.metrics import metrics, read_predictions, vote
from asc.score.plots import plot_class_device, plot_confusion, plot_history, plot_reliability
import launch


def made_up(
    seed=0, skill=1., places=6, snippets=2, devices=DEVICES, scenes=SCENES, names=SCENES,
    place=.5, luck=0.,
):
    "Predictions of no system; a location and the seed add noise of deviation `place` and `luck` to the true logit"
    rng = np.random.default_rng([7, seed])
    rows = pd.DataFrame(
        [
            dict(
                filename=f'audio/{s}-{CITIES[l % 10]}-{100 * i + l}-{l}-{k}-{d}.wav',
                scene_label=s,
                device=d,
                city=CITIES[l % 10],
            )
            for i, s in enumerate(scenes)
            for l in range(places)
            for k in range(snippets)
            for d in devices
        ]
    )
    world = np.random.default_rng(1).normal(0, place, len(scenes) * places)
    truth = np.array([names.index(s) for s in rows.scene_label])
    z = rng.normal(size=(len(rows), len(names)))
    z[np.arange(len(z)), truth] += skill + rng.normal(0, luck) + np.repeat(
        world, snippets * len(devices)
    )
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return pd.concat([rows, pd.DataFrame(p, columns=list(names))], axis=1)


@pytest.fixture(scope='module')
def preds():
    "A table of predictions"
    return made_up()


# ---------------------------------------------------------------- scores
def test_against_sklearn(preds):
    m, p = metrics(preds), preds[list(SCENES)].to_numpy()
    y, a = [SCENES.index(s) for s in preds.scene_label], p.argmax(1)
    assert m['accuracy'] == pytest.approx(skm.accuracy_score(y, a), abs=1e-12)
    assert m['macro_accuracy'] == pytest.approx(skm.balanced_accuracy_score(y, a), abs=1e-12)
    assert m['log_loss'] == pytest.approx(skm.log_loss(y, p), abs=1e-12)
    assert np.allclose(confusion(preds), 100 * skm.confusion_matrix(y, a, normalize='true'))
    by_class = [
        skm.log_loss(np.array(y)[np.array(y) == c], p[np.array(y) == c], labels=range(10))
        for c in range(10)
    ]
    assert list(m['class_log_loss'].values()) == pytest.approx(by_class)
    assert m['macro_log_loss'] == pytest.approx(np.mean(by_class))


def test_groups_are_right_clips_over_clips():
    "unequal devices: the group is not the mean of its devices"
    df = pd.concat(
        [made_up(devices=('a',), places=6), made_up(seed=1, devices=('b',), places=2, skill=4.)]
    )
    m, one = metrics(df), clips(df)
    assert m['group_accuracy']['real'] == pytest.approx(one.correct.mean())
    assert abs(m['group_accuracy']['real'] - np.mean([m['device_accuracy'][d] for d in 'ab'])) > .02
    assert np.isnan(m['group_accuracy']['unseen'])
    assert m['group_count'] == {'real': len(df), 'seen': 0, 'unseen': 0}


def test_absent_class_device_and_city_are_null_and_in_no_average(tmp_path):
    df = made_up(scenes=SCENES[:7], devices=('a', 's1'), places=2)
    m = metrics(df)
    assert m['macro_accuracy'] == np.mean([m['class_accuracy'][s] for s in SCENES[:7]])
    assert m['class_count']['tram'] == 0
    assert np.isnan(m['class_accuracy']['tram'])
    assert np.isnan(m['device_log_loss']['s6'])
    write_json(tmp_path/'m.json', m)
    back = json.loads((tmp_path/'m.json').read_text())
    assert back['class_accuracy']['tram'] is None
    assert back['city_accuracy']['vienna'] is None
    for t in (class_table(back), device_table(back), city_table(back)):
        assert '–' in to_markdown(t) and 'nan' not in to_markdown(t)
    assert class_table(back).equals(class_table(df))
    assert class_table(df).loc['macro average', 'accuracy %'] == pytest.approx(
        100 * m['macro_accuracy']
    )
    assert class_device_table(df).loc['tram'].isna().all()
    assert class_device_table(df)['s4'].isna().all()
    for plot in (plot_confusion, plot_class_device, plot_reliability):
        plot(df).savefig(tmp_path/'x.png')


@pytest.mark.parametrize('n', [1, 2])
def test_smallest_tables(n):
    df = made_up().head(n)
    m = metrics(df)
    assert m['n'] == n
    assert 0 <= m['macro_accuracy'] <= 1
    assert 0 <= m['ece'] <= 1
    for f in (
        class_table, device_table, confusion, class_device_table, plot_confusion,
        plot_class_device, plot_reliability, vote,
    ):
        f(df)
    b = bootstrap(df).iloc[0]
    # one place: no interval
    assert b['estimate'] == m['macro_accuracy']
    assert np.isnan(b['low'])


def test_every_digit_is_the_same_whatever_the_order(preds, tmp_path):
    a = repr(metrics(preds))
    shuffled = preds.sample(frac=1, random_state=3)
    shuffled.to_csv(tmp_path/'p.csv', index=False)
    assert repr(metrics(shuffled)) == a == repr(metrics(read_predictions(tmp_path/'p.csv')))
    assert bootstrap(preds).equals(bootstrap(shuffled))
    assert not bootstrap(preds).equals(bootstrap(preds, seed=1))


def test_certain_and_wrong_costs_34_5():
    df = made_up().head(1)
    df[list(SCENES)] = 0.
    df['tram'] = 1.
    assert metrics(df)['log_loss'] == pytest.approx(-np.log(1e-15))
    assert expected_calibration_error(df) == 1


def test_votes_are_means_of_the_snippets(preds):
    v = vote(preds)
    assert len(v) == len(preds) // 2 and v.filename.is_unique
    first = preds[preds.filename.str.fullmatch(r'audio/bus-helsinki-101-1-\d-s2.wav')]
    got = v[v.filename == 'audio/bus-helsinki-101-1-s2.wav']
    assert np.allclose(got[list(SCENES)], first[list(SCENES)].mean())
    m = metrics(preds)
    assert m['recording_accuracy'] == metrics(v)['accuracy']
    assert m['recording_count'] == len(v)
    assert m['recording_accuracy'] > m['accuracy']


@pytest.mark.parametrize('name, recording, location', [
    ('audio/metro_station-paris-7-33-4-s1.wav', 'audio/metro_station-paris-7-33-s1.wav', 'paris-7'),
    ('metro_station-paris-7-33-4-s1.wav', 'metro_station-paris-7-33-s1.wav', 'paris-7'),
    # ten seconds, 2020
    ('audio/metro_station-paris-7-33-s1.wav', 'audio/metro_station-paris-7-33-s1.wav', 'paris-7'),
    ('a-b/metro-paris-7-33-12-s1.wav', 'a-b/metro-paris-7-33-s1.wav', 'paris-7'),
    ('audio/17.wav', 'audio/17.wav', 'audio/17.wav')])
def test_names_tell_recording_and_location(name, recording, location):
    df = made_up().head(1).assign(filename=name, scene_label='metro_station')
    assert clips(df)[['recording', 'location']].iloc[0].tolist() == [recording, location]


def test_another_corpus():
    "names that are not TAU's: the vocabulary is what is there, groups are given"
    names = ['rain', 'wind']
    df = made_up(scenes=names, names=names, devices=('phone', 'zoom'))
    m = metrics(df, groups=dict(seen=('zoom',), unseen=('phone',)))
    assert list(m['class_accuracy']) == names
    assert m['group_accuracy']['seen'] == m['device_accuracy']['zoom']
    assert metrics(df)['group_accuracy'] == {}
    assert 'unseen' in device_table(m).index


def test_unknown_devices_have_a_line_of_their_own():
    df = made_up(devices=('a', 'b'))
    df.loc[df.device == 'b', 'device'] = None
    m = metrics(df)
    assert m['device_count']['unknown'] == len(df) // 2
    assert m['device_count']['b'] == 0
    assert m['group_count']['real'] == len(df) // 2


def test_half_precision_passes():
    df = made_up()
    df[list(SCENES)] = df[list(SCENES)].to_numpy().astype(np.float16)
    assert abs(metrics(df)['accuracy'] - metrics(made_up())['accuracy']) < .01


# ---------------------------------------------------------------- broken input
BROKEN = {
    'no column': (lambda d: d.drop(columns='device'), "no column 'device'"),
    'scene missing': (lambda d: d.drop(columns='tram'), "no column for scene 'tram'"),
    'strange column': (lambda d: d.assign(beach=0.), "column 'beach' is not a scene"),
    'no rows': (lambda d: d.head(0), 'no rows'),
    'twice': (lambda d: pd.concat([d, d.head(1)]), 'row 1081 .*occurs twice'),
    'label': (
        lambda d: d.assign(scene_label=['beach', *d.scene_label[1:]]),
        "row 1 .*scene_label 'beach'",
    ),
    'nan': (lambda d: d.assign(bus=d.bus.where(d.index != 3)), "row 4 .*column 'bus' holds nan"),
    'inf': (
        lambda d: d.assign(bus=d.bus.where(d.index != 3, np.inf)),
        "row 4 .*column 'bus' holds inf",
    ),
    'negative': (
        lambda d: d.assign(bus=d.bus.where(d.index != 3, -.1)),
        "row 4 .*column 'bus' holds -0.1",
    ),
    'text': (
        lambda d: d.assign(bus=d.bus.astype(object).where(d.index != 3, 'x')),
        "row 4 .*column 'bus' holds x",
    ),
    'sum': (lambda d: d.assign(bus=d.bus.where(d.index != 3, 0.)), 'row 4 .*sum to 0'),
    'logits': (lambda d: d.assign(**{s: np.log(d[s]) for s in SCENES}), 'not a probability'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_broken_table_is_named(case, preds, tmp_path):
    break_it, says = BROKEN[case]
    bad = break_it(preds.copy())
    with pytest.raises(InputError, match=says): metrics(bad, SCENES)
    bad.to_csv(tmp_path/'broken.csv', index=False)
    with pytest.raises(InputError, match='broken.csv'):
        read_predictions(tmp_path/'broken.csv', SCENES)


@pytest.mark.parametrize(
    'content', ['', '\x00\x01\x02', 'a,b\n1,2,3,4\n', 'filename,scene_label,device,city,bus\n']
)
def test_not_a_table(content, tmp_path):
    (tmp_path/'p.csv').write_text(content)
    with pytest.raises(InputError, match='p.csv'):
        read_predictions(tmp_path/'p.csv')


def test_missing_file():
    with pytest.raises(InputError, match='there is no such table of predictions'):
        read_predictions('nowhere.csv')


def test_a_city_called_nan_is_a_city(tmp_path):
    df = made_up(places=2).assign(city='nan')
    df.to_csv(tmp_path/'p.csv', index=False)
    assert read_predictions(tmp_path/'p.csv').city.eq('nan').all()


# ---------------------------------------------------------------- tables and pictures
def test_markdown_is_a_table(preds):
    for t in (
        class_table(preds), device_table(preds), city_table(preds), confusion(preds),
        class_device_table(preds),
    ):
        lines = to_markdown(t).splitlines()
        assert len({line.count('|') for line in lines}) == 1
        assert len(lines) == len(t) + 2


def test_bold_cells(preds):
    t = class_table(preds)
    bold = pd.DataFrame(False, t.index, t.columns)
    bold.loc['bus', 'accuracy %'] = True
    md = to_markdown(t, bold=bold)
    assert md.count('**') == 2
    assert f"| bus | **{t.loc['bus', 'accuracy %']:.2f}** |" in md


def test_cells_without_clips_are_dashes_in_pictures():
    df = made_up(scenes=SCENES[:9], devices=('a', 'b'))
    cells = [t.get_text() for t in plot_class_device(df).axes[0].texts]
    # 9 scenes and the mean × a, b and the mean have clips
    assert cells.count('–') == 11 * 10 - 10 * 3
    assert not any('nan' in c for c in cells)
    assert [t.get_text() for t in plot_confusion(df).axes[0].texts].count('–') == 10


def test_intervals_beside_the_tables(preds):
    t, s = device_table(preds, intervals=True), summary_table(preds)
    inside = t.dropna()
    assert (inside['from'] <= inside['accuracy %']).all()
    assert (inside['accuracy %'] <= inside['to']).all()
    assert len(inside) == 13                              # devices, their mean, groups
    assert s.loc['recordings (vote)', 'n'] == s.loc['clips', 'n'] // 2
    assert class_table(preds, intervals=True).loc['macro average', 'from'] == s.loc['clips', 'from']
    with pytest.raises(InputError, match='predictions'):
        class_table(metrics(preds), intervals=True)


def test_history_takes_one_or_two_panels():
    h = pd.DataFrame(
        dict(
            epoch=[1, 2], train_loss=[2., 1.], valid_loss=[2., 1.5], accuracy=[.1, .5],
            lr=[0., 1.],
        )
    )
    assert len(plot_history(h).axes) == 2
    assert len(plot_history(h[['epoch', 'train_loss']]).axes) == 1


def test_no_torch():
    "Tables are made without loading torch or fastai"
    code = 'import sys, asc.score.tables, asc.score.paper; print(*sys.modules)'
    modules = launch.check(launch.run(sys.executable, '-c', code)).stdout.split()
    assert 'torch' not in modules
    assert 'fastai' not in modules


# ---------------------------------------------------------------- statistics
def test_bootstrap_agrees_with_resampling_the_clips():
    "the sums by location against the plain way: draw locations, take their clips, compute the metric"
    df = made_up(places=5, snippets=1, devices=('a', 'b'))
    one, rng = clips(df), np.random.default_rng(0)
    places = {s: [g for _, g in d.groupby('location')] for s, d in one.groupby('scene_label')}
    draws = []
    for _ in range(300):
        accs = [
            pd.concat([ds[i] for i in rng.integers(len(ds), size=len(ds) - 1)]).correct.mean()
            for ds in places.values()
        ]
        draws.append(np.mean(accs))
    b = bootstrap(df).iloc[0]
    low, high = np.quantile(draws, [.025, .975])
    assert b.low == pytest.approx(low, abs=.015)
    assert b.high == pytest.approx(high, abs=.015)


@pytest.mark.parametrize(
    'statistic',
    [
        'accuracy', 'macro_accuracy', 'log_loss', 'macro_log_loss', 'class_accuracy',
        'device_accuracy', 'group_log_loss', 'city_accuracy',
    ],
)
def test_bootstrap_estimates_are_the_metrics(preds, statistic):
    m, b = metrics(preds)[statistic], bootstrap(preds, statistic, n=200)
    if not isinstance(m, dict): m = {statistic: m}
    for k in b.index:
        assert b.loc[k, 'estimate'] == pytest.approx(m[k])
        assert b.loc[k, 'low'] <= m[k] <= b.loc[k, 'high']


def test_bootstrap_covers_the_truth():
    "95 % intervals of the mean of 10 scenes × 8 places hold the true value about 95 times of 100"
    rng, scene = np.random.default_rng(0), np.repeat(SCENES, 8)
    names = [f'audio/{s}-oslo-{i}-0-0-a.wav' for i, s in enumerate(scene)]
    hit, n = 0, 150
    for _ in range(n):
        # the share a place gets right, in a world where the mean is 0.5
        p = np.clip(rng.normal(.5, .15, 80), .05, .95)
        rows = pd.DataFrame(
            dict(filename=names, scene_label=scene, device='a', city='oslo')
        ).loc[np.repeat(np.arange(80), 12)]
        rows['filename'] = [
            f.replace('-0-a.', f'-{k}-a.')
            for f, k in zip(rows.filename, np.tile(np.arange(12), 80))
        ]
        right = rng.random(960) < np.repeat(p, 12)
        probs = np.zeros((960, 10))
        truth = np.array([SCENES.index(s) for s in rows.scene_label])
        probs[np.arange(960), np.where(right, truth, (truth + 1) % 10)] = 1
        b = bootstrap(
            pd.concat(
                [rows.reset_index(drop=True), pd.DataFrame(probs, columns=list(SCENES))], axis=1
            ),
            n=400,
        ).iloc[0]
        hit += b.low <= .5 <= b.high
    assert .88 <= hit / n <= .99


def simulate(n, seeds, places, seed_sd, both_sd, place_sd, paired, over=('seeds', 'locations')):
    "p values of `crossed` for two equal systems"
    rng = np.random.default_rng([seeds, places])
    strata = np.repeat(np.arange(10), places)
    ps = []
    for _ in range(n):
        world = rng.normal(0, place_sd, len(strata))
        a, b = (
            rng.normal(0, seed_sd, (seeds, 1)) + k * world + rng.normal(
                0, both_sd, (seeds, len(strata))
            )
            for k in (.5, -.5)
        )
        runs = [a - b] if paired else [a, b]
        theta = [x.mean(1, keepdims=True) for x in runs]
        _, _, var, df = crossed(
            theta,
            [((x - t) / len(strata))[..., None] for x, t in zip(runs, theta)],
            strata,
            over,
        )
        ps.append(2 * stats.t.sf(abs(a.mean() - b.mean()) / np.sqrt(var[0]), df[0]))
    return np.array(ps)


@pytest.mark.parametrize('paired', [True, False])
@pytest.mark.parametrize('seeds', [2, 3, 5])
@pytest.mark.parametrize('spread', [(0., .1, .1), (.01, .1, .1), (.03, .1, .05), (.05, .05, 0.)])
def test_false_positives_of_the_paired_test(seeds, spread, paired):
    "equal systems are called different at most about 5 times of 100 (600 trials: standard error 0.9)"
    assert (simulate(600, seeds, 14, *spread, paired) < .05).mean() <= .075


def test_seeds_alone_would_be_wrong_about_other_places():
    "Why locations are in the test: with an effect of places and only seeds counted, equal systems differ far too often"
    assert (simulate(300, 5, 14, .002, .02, .1, True, over=['seeds']) < .05).mean() > .3


def test_false_positives_from_tables_to_p():
    "the whole way through `compare`, on tables of predictions of equal systems"
    small = dict(places=4, snippets=2, devices=('a', 's1'), luck=.1)
    p = [
        compare(
            [made_up(seed=100 * i + k, **small) for k in range(3)],
            [made_up(seed=100 * i + 50 + k, **small) for k in range(3)],
        ).p.item()
        for i in range(40)
    ]
    assert np.mean(np.array(p) < .05) <= .15 and np.mean(np.array(p) < .5) > .2


def test_power_at_the_detectable_difference():
    "a true difference as large as `detectable` is found about four times of five"
    rng = np.random.default_rng(0)
    strata = np.repeat(np.arange(10), 14)
    hits = 0
    n = 300
    for _ in range(n):
        a = rng.normal(0, .01, (5, 1)) + rng.normal(0, .1, (5, 140)) + rng.normal(0, .05, 140)
        t = a.mean(1, keepdims=True)
        _, _, var, df = crossed([t], [((a - t) / 140)[..., None]], strata)
        delta = (stats.t.ppf(.975, 8) + stats.t.ppf(.8, 8)) * np.sqrt(
            .01 ** 2 / 5 + .1 ** 2 / 700 + .05 ** 2 / 140
        )
        hits += abs(a.mean() + delta) / np.sqrt(var[0]) > stats.t.ppf(.975, df[0])
    assert .68 <= hits / n <= .95


def test_compare_uses_the_pairing():
    "what is hard for both cancels: the interval of the difference is narrower than that of either"
    a, b = made_up(seed=1, place=1.5), made_up(seed=2, place=1.5, skill=1.3)
    c = compare(b, a, over=['locations']).iloc[0]
    width = bootstrap(a).eval('high - low').item()
    assert c.high - c.low < .8 * width and c.p < .05


def test_compare_by_device():
    runs = [[made_up(seed=10 * k + i, places=3) for i in range(3)] for k in range(2)]
    c = compare(*runs, statistic='device_accuracy')
    assert list(c.index) == list(DEVICES)
    assert c[['low', 'high', 'p', 'detectable']].notna().all(axis=None)
    same = compare(runs[0], runs[0])
    assert same.difference.item() == 0 and same.p.item() == 1


def test_compare_needs_the_same_clips():
    a = made_up()
    with pytest.raises(InputError, match='not evaluated on the same clips; 1 are in one only'):
        compare(a, a.head(len(a) - 1))
    with pytest.raises(InputError, match='unknown statistic'): compare(a, a, 'f1')
    with pytest.raises(InputError, match='paired=False'): compare([a, a], [a])


@pytest.mark.parametrize('T', [.3, 1., 2.5])
def test_temperature_is_recovered(T):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (4000, 10))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    # calibrated by construction
    truth = (p.cumsum(1) > rng.random((4000, 1))).argmax(1)
    rows = pd.DataFrame(
        dict(
            filename=[f'{i}.wav' for i in range(4000)],
            scene_label=[SCENES[t] for t in truth],
            device='a',
            city='oslo',
        )
    )
    good = pd.concat([rows, pd.DataFrame(p, columns=list(SCENES))], axis=1)
    bad = apply_temperature(good, 1 / T)
    assert fit_temperature(bad) == pytest.approx(T, rel=.05)
    assert expected_calibration_error(apply_temperature(bad, fit_temperature(bad))) < .03


def test_temperature_by_hand():
    df = made_up().head(1)
    df[list(SCENES)] = [.8, .2, *[0.] * 8]
    # the root of 4 : 1
    assert apply_temperature(df, 2.)[['airport', 'bus']].iloc[0].tolist() == pytest.approx(
        [2 / 3, 1 / 3], abs=1e-6
    )


def test_temperature_of_a_perfect_table_stays_finite():
    df = made_up()
    df[list(SCENES)] = np.eye(10)[[SCENES.index(s) for s in df.scene_label]]
    assert .05 <= fit_temperature(df) <= 20
    with pytest.raises(InputError): apply_temperature(df, 0)


# ---------------------------------------------------------------- runs
def a_run(folder, seed=0, subset=5, test='x', versions=None, preds=None, **params):
    "A run folder with made-up predictions"
    write_json(
        folder/'params.json',
        dict(
            notebook='train',
            parameters=dict(subset=subset, seed=seed, backbone='net', out=str(folder)) | params,
            data=dict(
                corpus='c',
                scenes=list(SCENES),
                rate=44100,
                lists={
                    k: dict(clips=10, fingerprint=f)
                    for k, f in dict(train=f't{subset}', test=test).items()
                },
            ),
            versions=versions or dict(torch='2.11.0'),
        ),
    )
    write_json(
        folder/'metrics.json',
        metrics(made_up(seed=seed, skill=1 + subset / 100, places=2) if preds is None else preds),
    )
    return folder


def test_runs_table(tmp_path):
    runs = [a_run(tmp_path/f'{s}-{i}', i, s) for s in (5, 100) for i in range(3)]
    t = runs_table(runs)
    m = [read_run(r)['metrics']['macro_accuracy'] for r in runs[:3]]
    assert t.mean.loc['split 5, net', 'macro accuracy'] == pytest.approx(100 * np.mean(m))
    assert t.runs.tolist() == [3, 3]
    assert t.std.loc['split 5, net', 'macro accuracy'] == pytest.approx(100 * np.std(m, ddof=1))
    # rows of different splits are not compared
    assert not t.bold().any(axis=None)
    # the test list is not the official one
    assert 'published' not in t.to_markdown()
    assert 'published' in runs_table(runs, 'device', published='dcase24-baseline').to_markdown()
    assert list(runs_table(runs, 'class').mean.columns) == ['macro accuracy', *SCENES]
    assert find_runs(tmp_path) == sorted(runs)


def test_log_losses_cities_and_the_published_ten_seconds(tmp_path):
    "Every kind of table in both scores, beside what was published on the ten-second test; a dash where nothing was"
    runs = [a_run(tmp_path/f'{i}', i, 100, test='324e1ba9e0e21926') for i in range(2)]
    table = runs_table(runs).to_frame()
    columns = ['runs', 'macro accuracy', 'log loss', 'ece']
    published = 'split 100, sp4asc-focal (published, not measured here)'
    assert table.loc[published, columns].tolist() == [
        '1', '67.10', '0.940', '–'
    ]
    m = [read_run(r)['metrics'] for r in runs]
    for kind, name in (
        ('class', 'tram'), ('device', 's6'), ('group', 'unseen'), ('city', 'helsinki')
    ):
        for score, scale in (('accuracy', 100), ('log_loss', 1)):
            t = runs_table(runs, kind, score=score)
            assert t.mean[name].iloc[0] == pytest.approx(
                scale * np.mean([x[f'{kind}_{score}'][name] for x in m])
            )
            assert ('published' in t.to_markdown()) == (kind in ('class', 'device'))
    assert table.loc['split 100, sp4asc, 30 masked versions (published, not measured here)', 'log loss'] == '0.898'
    folders = [
        (a_run(tmp_path/f'{n}-{i}', i, backbone=n), v + i / 100)
        for n, v in (('good', 1.), ('bad', 2.))
        for i in range(3)
    ]
    for f, v in folders:
        write_json(f/'metrics.json', dict(class_log_loss=dict(bus=v), macro_log_loss=v))
    low = runs_table([f for f, _ in folders], 'class', score='log_loss')
    assert low.bold()['bus'].tolist() == [False, True]  # less is better


def test_lines_and_watching_are_not_systems(tmp_path):
    "Runs that differ in what watched them are one system; a run's lines are rows"
    runs = [
        a_run(tmp_path/f'{i}', i, log=log, resume=bool(i))
        for i, log in enumerate(('', 'wandb'))
    ]
    assert len(runs_table(runs).mean) == 1
    for i, r in enumerate(runs):
        made_up(seed=i, places=2).to_csv(r/'predictions.csv', index=False)
        write_json(
            r/'metrics.json',
            dict(
                read_run(r)['metrics'],
                lines=dict(clips=dict(macro_accuracy=.5 + .1 * i), vote=dict(macro_accuracy=None)),
            ),
        )
    t = runs_table(by_line(runs)).to_frame()
    rows = {'split 5, net, clips': '55.00 ± 7.07', 'split 5, net, vote': '–'}
    assert t['macro accuracy'].to_dict() == rows
    b = bootstrap([made_up(seed=i, places=2) for i in range(2)]).iloc[0]
    estimate, low, high = (f'{100 * value:.2f}' for value in (b.estimate, b.low, b.high))
    interval = intervals_table(runs).loc['split 5, net', 'macro accuracy']
    assert interval == f'{estimate} ({low} … {high})'


def test_runs_that_differ_get_rows_of_their_own(tmp_path):
    runs = [a_run(tmp_path/f'{i}-{lr}', i, lr=lr) for i in range(2) for lr in (.1, .01)]
    assert list(runs_table(runs).mean.index) == ['split 5, net, lr 0.01', 'split 5, net, lr 0.1']


def test_bold_only_beyond_the_seeds(tmp_path):
    rng = np.random.default_rng(0)
    def runs(name, gap, spread, n=4):
        out = []
        for net, mean in (('a', .5), ('b', .5 + gap)):
            for i in range(n):
                f = a_run(tmp_path/f'{name}-{net}-{i}', i, backbone=net)
                write_json(
                    f/'metrics.json',
                    dict(
                        macro_accuracy=mean + spread * rng.normal(),
                        log_loss=1 - mean + spread * rng.normal(),
                    ),
                )
                out.append(f)
        return runs_table(out).bold()
    assert runs('clear', .1, .005).any(axis=None)
    assert not runs('close', .003, .01).any(axis=None)
    # one seed can detect nothing
    assert not runs('single', .1, .005, n=1).any(axis=None)


def test_comparable(tmp_path):
    a = a_run(tmp_path/'a')
    assert comparable(a, a_run(tmp_path/'b', 1)) == []
    assert 'test list' in comparable(a, a_run(tmp_path/'c', test='y'))[0]
    assert 'train list' in comparable(a, a_run(tmp_path/'d', subset=50))[0]
    changed = [dict(read_run(a), git=dict(commit='0a49137c1', diff=d)) for d in ('', '-x')]
    assert comparable(*changed) == ['code: the same commit with different changes on top']
    assert comparable(changed[0], changed[0]) == []
    assert comparable(a, a_run(tmp_path/'e', versions=dict(torch='2.10.0'))) == [
        'torch: version 2.11.0 against 2.10.0'
    ]


def test_broken_runs_are_named(tmp_path):
    a = a_run(tmp_path/'a')
    (a/'metrics.json').unlink()
    with pytest.raises(InputError, match='has not finished'): runs_table([a])
    (a/'metrics.json').write_text('{"half')
    with pytest.raises(InputError, match='cannot be read as JSON'): runs_table([a])
    with pytest.raises(InputError, match='no run'): runs_table([])
    b = a_run(tmp_path/'b')
    with pytest.raises(InputError, match='repeats the seed'): runs_table([b, b])
    with pytest.raises(InputError, match='2 different lists'):
        runs_table([b, a_run(tmp_path/'c', 1, test='y')])


def test_speed_on_a_test_list_of_full_size():
    "29,700 clips, 146 places: scores, 2,000 replicates and a comparison of five seeds in seconds, not minutes"
    import time
    df = made_up(places=15, snippets=22)
    t = time.perf_counter()
    metrics(df)
    bootstrap(df)
    assert len(df) == 29_700 and time.perf_counter() - t < 10


def test_no_interval_from_one_place():
    "With one place a scene nothing is known of other places: the ends are NaN, not the estimate"
    rng = np.random.default_rng(0)
    rows = [
        (f'audio/{s}-lyon-{k}-{k}-{i}-a.wav', s, 'a', 'lyon')
        for k, s in enumerate(['bus', 'tram'])
        for i in range(20)
    ]
    df = pd.DataFrame(rows, columns=['filename', 'scene_label', 'device', 'city'])
    p = rng.uniform(.1, .9, len(df))
    one = df.assign(bus=p, tram=1 - p)
    for what in ('macro_accuracy', 'class_accuracy', 'device_accuracy'):
        assert bootstrap(one, what)[['low', 'high']].isna().all().all()
    more = df.assign(filename=df.filename.str.replace('-1-1-', '-2-2-'), bus=1 - p, tram=p)
    two = pd.concat([one, more[more.scene_label == 'tram']])
    assert bootstrap(two).notna().all().all()
    assert bootstrap(two, 'class_accuracy')['low'].isna().tolist() == [True, False]
