"""A submission folder that its own validator passes; tests/test_damaged_entry.py damages it."""
import copy
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from asc.backbone.branches import deployed_form
from asc.core import InputError, fingerprint, read_json, read_yaml, write_json
from asc.data.splits import read_test
from asc.entry import check
from asc.entry.check import examine_package
from asc.entry.folder import check_package, write_package
from asc.entry.recomputed import rebuild_entrants
from asc.model.classifier import create_classifier, load_model
from asc.model.per_device import DeviceAware, save_devices
from asc.size.qat import save_quantised
from asc.size.qdq import calibrate, quantised_classifier
from entries import LABEL, ME, leave_run


def make_run(folder, packed, part, subset, seed):
    "A run of a network whose weights are as they were drawn"
    torch.manual_seed(seed)
    model = create_classifier('cp_mobile_24', scenes=packed[0].scenes).eval()
    return leave_run(folder, packed, part, model, subset, seed)


@pytest.fixture(scope='module')
def entry(packed, tmp_path_factory):
    "Three runs, the folder of a package of the first, and what a package is written with"
    folder = tmp_path_factory.mktemp('entry')
    part = read_test(packed[0]).groupby('scene').head(2)
    runs = [
        make_run(folder/f'run{seed}', packed, part, subset, seed)
        for seed, subset in enumerate((25, 25, 50))
    ]
    options = dict(
        corpus=packed[0], rows=part, store_dir=packed[1].folder.parent, authors=[ME],
        name='Example', abbreviation='ex',
    )
    params = runs[0]/'params.json'
    write_json(params, read_json(params) | dict(recipe=dict(name='long', changed={})))
    package = write_package(runs[:1], out=folder, label=LABEL, **options)
    return SimpleNamespace(
        runs=runs, options=options, names=part.filename.tolist(), folder=package, packed=packed
    )


def test_package_passes(entry):
    assert check_package(entry.folder, entry.names) == []


def test_what_a_failed_attempt_left_is_not_handed_in(entry, tmp_path):
    (tmp_path/f'.{LABEL}.part').mkdir()
    (tmp_path/f'.{LABEL}.part/{LABEL}.output.split_5.csv').write_text('half')
    folder = write_package(entry.runs[:1], out=tmp_path, label=LABEL, **entry.options)
    assert check_package(folder, entry.names) == []
    assert len(list(folder.iterdir())) == 4


def test_splits_and_ensembles(entry, tmp_path):
    "Two runs of one split are an ensemble over the budget; two splits have a table each"
    kw = entry.options
    folder = write_package(entry.runs, out=tmp_path, label=LABEL, **kw)
    assert {p.name for p in folder.glob('*.csv')} == {
        f'{LABEL}.output.split_25.csv', f'{LABEL}.output.split_50.csv'
    }
    problems = check_package(folder, entry.names)
    # the ensemble's size, and the other split's count
    assert len(problems) == 2
    assert any('over the budget of 2024' in p for p in problems)
    one = write_package(
        [entry.runs[0], entry.runs[2]], out=tmp_path, label='Curie_UP_task1_2', **kw
    )
    assert check_package(one, entry.names) == []
    described = read_yaml(one/'Curie_UP_task1_2.meta.yaml')['system']['description']
    assert described['split_adaptations'] == 'recipe long (split_25), none (split_50)'
    assert described['system_adaptations'] == 'none'


def test_the_names_are_compared_once(entry, monkeypatch):
    "A list of 135,730 names: its fingerprint is taken for a table, not for a name"
    taken = []
    monkeypatch.setattr(check, 'fingerprint', lambda names: taken.append(len(names)) or fingerprint(names))
    assert check_package(entry.folder, entry.names) == []
    assert taken == [len(entry.names)]


def test_quantised_run_hands_in_int8(entry, tmp_path):
    "The answers and int8 codes of the quantised network, 8 bits in the count; 2022 wants int8 for the first layer, too"
    model = quantised_classifier(load_model(entry.runs[0]))
    x = torch.randn(8, 44100) * .1
    with torch.no_grad(): calibrate(model.backbone, [model.pipeline(x)])
    run = tmp_path/'run'
    shutil.copytree(entry.runs[0], run)
    save_quantised(model, run)
    folder = write_package([run], out=tmp_path, label=LABEL, **entry.options)
    assert check_package(folder, entry.names) == []
    info = json.loads((folder/'info.json').read_text())
    assert info['bits'] == 8
    assert info['complexity']['total_model_size'] == info['Params'] == 61148
    assert info['MACs'] == 29419156
    state = torch.load(folder/f'{LABEL}.model_state_dict.pt', weights_only=True)
    assert sum(v.numel() for v in state.values() if v.dtype == torch.int8) > 58000
    edit_info(lambda i: i.update(year='2022'))(folder)
    assert any('demand int8' in p for p in check_package(folder, entry.names))
    kw = entry.options | dict(rows=entry.options['rows'].head(4))
    with pytest.raises(InputError, match='one precision'):
        write_package([run, entry.runs[1]], out=tmp_path, label='Curie_UP_task1_2', **kw)


BRANCHED = dict(base=8, blocks=(1, 1, 1), strides={}, branches=['3x3', '1x1', '1x3', '3x1'])


def leave_branched_run(folder, form, packed, part):
    "A run with branches, their norms as if trained: a float network, one for a device as well, or in int8"
    torch.manual_seed(1)
    model = create_classifier('cp_mobile_24', scenes=packed[0].scenes, backbone_args=BRANCHED, augment=False).eval()
    for module in model.modules():
        if not isinstance(module, torch.nn.BatchNorm2d): continue
        module.running_mean.normal_(0, .1)
        module.running_var.uniform_(.5, 2)
    leave_run(folder, packed, part, model, 25)
    x = model.pipeline(torch.randn(8, 44100) * .1)
    if form == 'devices':
        other = copy.deepcopy(model.backbone)
        other.stages[0][0].block[1].alpha.data += 1
        save_devices(DeviceAware(model, dict(a=other), packed[0].devices), folder)
    if form == 'integers':
        small = quantised_classifier(model)
        with torch.no_grad(): calibrate(small.backbone, [x])
        save_quantised(small, folder)
    return model, x


@pytest.mark.parametrize('form', ['half', 'devices', 'integers'])
def test_branches_are_fused_before_they_are_handed_in(form, entry, tmp_path):
    "Counted, stored, run and checked is one network without branches; what answers without them answers as with them"
    model, x = leave_branched_run(tmp_path/'run', form, tuple(entry.packed), entry.options['rows'])
    folder = write_package([tmp_path/'run'], out=tmp_path, label=LABEL, year='2025', **entry.options)
    assert examine_package(folder, entry.names) == ([], [])
    info, state = read_json(folder/'info.json'), torch.load(folder/f'{LABEL}.model_state_dict.pt', weights_only=True)
    assert not any('alpha' in name or 'conv1x1' in name for name in state)
    system, = info['systems']['split_25']
    assert system.get('fused', False) is (form != 'integers')
    again = rebuild_entrants(state, [system], folder)[0].backbone
    again = again.device_models['a'] if form == 'devices' else again
    assert form == 'integers' or info['Params'] == sum(p.numel() for p in again.parameters())
    branched, small = model.backbone, deployed_form(model.backbone)
    with torch.no_grad(): assert (small(x) - branched(x)).abs().max() < 1e-5*branched(x).abs().max()
    if form == 'devices':
        edit_info(lambda i: i['systems']['split_25'][0].pop('fused'))(folder)
        assert 'does not fit CPMobile' in check_package(folder, entry.names)[0]


def edit_info(change):
    "A damage: change info.json"
    def damage(folder):
        info = json.loads((folder/'info.json').read_text())
        change(info)
        (folder/'info.json').write_text(json.dumps(info))
    return damage


def test_two_authors_of_one_university(entry, tmp_path):
    "What both name is written twice: the meta file has no references"
    authors = [ME, dict(ME, firstname='Pierre', corresponding=False)]
    folder = write_package(entry.runs[:1], out=tmp_path, label=LABEL, **entry.options | dict(authors=authors))
    assert check_package(folder, entry.names) == []
    assert '&' not in (folder/f'{LABEL}.meta.yaml').read_text(encoding='utf-8')


def test_renamed_folder_is_refused(entry, tmp_path):
    copy = shutil.copytree(entry.folder, tmp_path/'entry')
    assert re.search('is not named', check_package(copy)[0])
    with pytest.raises(InputError, match='no such folder'):
        check_package(tmp_path/'nowhere')
