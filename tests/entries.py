"""What entries of the tests are made of: a label, an author, and run folders as a training leaves them."""
from asc.core import write_json
from asc.data.choose import data_facts
from asc.entry.files import AUTHOR_TEMPLATE
from asc.model.classifier import save_model
from asc.score.metrics import metrics
from asc.train.clips import ClipData
from asc.train.learner import predictions

LABEL = 'Curie_UP_task1_1'
UNIVERSITY = dict(abbreviation='UP', institute='Université de Paris', department=None, location='Paris')
ME = dict(AUTHOR_TEMPLATE, lastname='Curie', firstname='Marie', email='marie@example.org', affiliation=UNIVERSITY)


def leave_run(folder, packed, part, model, subset, seed=0):
    "A run folder as a training leaves it, of a model and its answers to some clips"
    corpus, store = packed
    save_model(model, folder)
    parameters = dict(subset=subset, pipeline='dcase24', seed=seed)
    facts = data_facts(corpus, store, test=part)
    write_json(folder/'params.json', dict(notebook='train', parameters=parameters, data=facts))
    table = predictions(model, ClipData(store, part, corpus.scenes, corpus.devices))
    write_json(folder/'metrics.json', metrics(table, corpus.scenes))
    return folder
