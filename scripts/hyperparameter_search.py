"""Hyperparameter search: the tables of strategies, pruners and what is searched by default, which a user extends.

A strategy of your own is a function `(seed, space) -> optuna sampler`; a pruner one of `(settings, num_validations) -> optuna
pruner`. Add it here, or name it `package.module:name` in the config.
"""

from collections.abc import Mapping

from nexa_train.tune.search import Tables
from nexa_train.tune.space import Around, a_decade_each_way, up_to_half

STRATEGIES = {
    "random": "nexa_train.tune.samplers:random",
    "tpe": "nexa_train.tune.samplers:tpe",
    "cmaes": "nexa_train.tune.samplers:cmaes",
    "grid": "nexa_train.tune.samplers:every_point",
}

PRUNERS = {
    "asha": "nexa_train.tune.pruners:asha",
    "hyperband": "nexa_train.tune.pruners:hyperband",
}

SPACE: Mapping[str, Around] = {
    "training.optimizer.lr": a_decade_each_way,
    "model.parameters.dropout": up_to_half,
}
"""Of each key: where its values come from, given the config. A key that the model does not have is left out."""

TABLES = Tables(strategies=STRATEGIES, pruners=PRUNERS, space=SPACE)
