"""Steps of the tests' own with what makes them, and `build` for these and for the steps of real stages."""

from functools import partial

from pipeline import init, stages
from pipeline.data import data_makers
from pipeline.storage import store as building
from pipeline.storage.steps import Step
from pipeline.storage.store import HERE, Store

MAKERS: dict = {}


def made_step(name: str, version: int, make, config=None, inputs=None, **more) -> Step:
    """A step whose maker `build` knows."""
    step = Step(name, version, config or {}, inputs or {}, **more)
    MAKERS[step.fingerprint] = make
    return step


def small_inputs(config, make_data) -> dict[str, Step]:
    """What a pretraining reads: data by `make_data`, and the init stage's own network over it."""
    data = made_step("data", 1, make_data, {"seed": config.seed, "vocab_size": config.model.vocab_size})
    return {
        "data": data,
        "init": made_step("init", 1, partial(init._make, config), {"seed": config.seed}, {"data": data}),
    }


def build(step: Step, experiment: str = "test", store: Store = HERE) -> dict:
    return building.build(step, MAKERS, experiment=experiment, store=store)


def build_data(config, experiment: str = "test") -> dict:
    step = stages.data_step(config)
    return building.build(step, data_makers(config, step), experiment=experiment)


def build_init(config, experiment: str = "test") -> dict:
    """Its data is a step of `made_step`, or finished."""
    step = stages.init_step(config)
    MAKERS[step.fingerprint] = partial(init._make, config)
    return build(step, experiment)
