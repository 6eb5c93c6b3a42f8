"""The order of stages in each phase, and of phases in a schedule."""

from dataclasses import replace

import pytest

from recbole_etegrec.config import Config
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.trainer.schedule import SCHEDULES, Phase, Stage, phases_of

WEIGHTS = {"sia_weight": 0.3, "psa_weight": 0.2, "item_head": False}
ALIGNED = {"sia": 0.3, "psa": 0.2}


def phase_of(name: str, **values) -> Phase:
    """A phase by the default config and some values."""
    return SCHEDULES[name](Config("ETEGRecLlama", "tiny", config_dict={**WEIGHTS, **values}))


def alternate(epochs: int, cycle: int, warm: int = 0, phase: str = "alternation") -> list[Stage]:
    values = {"epochs": epochs, "cycle_epochs": cycle, "warm_epochs": warm}
    return list(phase_of(phase, **values).stages)


def tokenizer_stage(aligned: bool = True) -> Stage:
    weights = {**(ALIGNED if aligned else {}), "quantization": 1.0}
    return Stage("alternation", "tokenizer", weights, rebuild_codes=True)


def recommender_stage(evaluate: bool, phase: str = "alternation") -> Stage:
    weights = {"recommendation": 1.0, **ALIGNED}
    return Stage(phase, "recommender", weights, share_codebooks=True, evaluate=evaluate)


BOTH = Stage(
    "joint",
    "both",
    {"recommendation": 1.0, **ALIGNED, "quantization": 1.0},
    rebuild_codes=True,
    evaluate=True,
)


def test_alternation_takes_turns_when_a_cycle_has_two_epochs():
    first, *others = alternate(6, 2)
    assert first == tokenizer_stage(aligned=False)
    assert [first, *others[1:]] == [first, *[tokenizer_stage(), recommender_stage(True)] * 2]
    assert others[0] == recommender_stage(True)


def test_alternation_aligns_the_tokenizer_late_when_there_are_warm_epochs():
    """The recommender learns to be aligned to from its first epoch on."""
    assert alternate(6, 2, warm=3) == [
        tokenizer_stage(aligned=False),
        recommender_stage(True),
        tokenizer_stage(aligned=False),
        recommender_stage(True),
        tokenizer_stage(),
        recommender_stage(True),
    ]


def test_alternation_evaluates_at_the_end_of_a_cycle_when_it_has_four_epochs():
    first = tokenizer_stage(aligned=False)
    rest = [recommender_stage(last) for last in (False, False, True)]
    assert alternate(8, 4) == [first, *rest, tokenizer_stage(), *rest]
    # A cycle cut short is evaluated too.
    cut = [recommender_stage(False), recommender_stage(True)]
    assert alternate(7, 4) == [first, *rest, tokenizer_stage(), *cut]


def test_alternation_trains_the_recommender_alone_when_a_cycle_has_one_epoch():
    assert alternate(3, 1) == [recommender_stage(True)] * 3


def test_alternation_ends_with_new_codes_when_its_last_epoch_is_the_tokenizers():
    assert alternate(1, 2) == [tokenizer_stage(aligned=False)]
    assert alternate(3, 2) == [*alternate(2, 2), tokenizer_stage()]


@pytest.mark.parametrize("update", ["separate", "tokenizer_only"])
def test_alternation_keeps_the_tokenizers_codebooks_when_it_alone_moves_them(update):
    stages = phase_of("alternation", codebook_update=update).stages
    assert not any(stage.share_codebooks for stage in stages)


def test_joint_phase_takes_no_turns():
    first = replace(BOTH, aligns=("recommender",))
    assert alternate(6, 2, phase="joint") == [first, BOTH, BOTH]
    last = recommender_stage(True, phase="joint")
    first, other = (replace(stage, evaluate=False) for stage in (first, BOTH))
    assert alternate(6, 3, phase="joint") == [first, last, other, last]


def test_stage_has_a_part_for_each_module_when_both_learn():
    tokenizer, recommender = BOTH.parts
    assert (tokenizer.trains, recommender.trains) == ("tokenizer", "recommender")
    assert tokenizer.weights == {**ALIGNED, "quantization": 1.0}
    assert recommender.weights == {"recommendation": 1.0, **ALIGNED}
    tokenizer, recommender = replace(BOTH, aligns=("recommender",)).parts
    assert tokenizer.weights == {"quantization": 1.0}
    assert recommender.weights == {"recommendation": 1.0, **ALIGNED}
    assert recommender_stage(True).parts == (recommender_stage(True),)


def test_phases_have_no_stages_when_there_are_no_epochs():
    none = {"tokenizer_epochs": 0, "epochs": 0, "finetune_epochs": 0}
    assert [phase_of(name, **none).stages for name in ("pretraining", "alternation", "final")] == [
        (),
        (),
        (),
    ]
    assert phase_of("pretraining", tokenizer="rqkmeans").stages == ()


def test_pretraining_revives_codes_after_each_epoch_but_the_last_when_it_runs():
    phase = phase_of("pretraining", tokenizer_epochs=41)
    assert (phase.loader, phase.warmup, phase.course) == ("items", 0, "cosine")
    assert [stage.revive for stage in phase.stages] == [True] * 40 + [False]
    saved = [epoch for epoch, stage in enumerate(phase.stages, 1) if stage.save]
    assert saved == [20, 40]
    assert not any(stage.clip or stage.rebuild_codes or stage.evaluate for stage in phase.stages)
    assert all(stage.weights == {"quantization": 1.0} for stage in phase.stages)


@pytest.mark.parametrize(
    ("epochs", "step", "evaluated"),
    [(6, 2, {2, 4, 6}), (5, 2, {2, 4, 5}), (3, 1, {1, 2, 3})],
)
def test_final_phase_evaluates_every_few_epochs_and_last_when_it_runs(epochs, step, evaluated):
    phase = phase_of("final", finetune_epochs=epochs, eval_step=step)
    assert list(phase.stages) == [
        Stage("final", "recommender", {"recommendation": 1.0}, evaluate=epoch in evaluated)
        for epoch in range(1, epochs + 1)
    ]
    assert (phase.course, phase.starts_from) == ("cosine", "best")
    assert phase_of("final", finetune_from="last").starts_from == "last"


def test_polish_keeps_alignment_at_a_tenth_of_the_rate_when_none_is_given():
    values = {"learning_rate": 0.003, "finetune_epochs": 2, "finetune_from": "last"}
    phase = phase_of("polish", **values)
    assert all(stage.weights == {"recommendation": 1.0, **ALIGNED} for stage in phase.stages)
    assert phase.learning_rates["recommender"] == pytest.approx(0.0003)
    assert (len(phase.stages), phase.course, phase.starts_from) == (2, "cosine", "last")
    given = phase_of("polish", finetune_learning_rate=0.002)
    assert given.learning_rates == {"recommender": 0.002}


def test_alignment_with_fixed_vectors_trains_the_recommender_to_the_end():
    weights = {"sia_weight": 0.0, "psa_weight": 0.0, "psa_fixed_weight": 0.05}
    for name in ("alternation", "final", "polish"):
        for stage in phase_of(name, **weights).stages:
            assert ("psa_fixed" in stage.weights) == (stage.trains == "recommender")


def test_final_phase_learns_as_fast_as_alternation_when_no_rate_of_its_own_is_given():
    assert phase_of("final", learning_rate=0.003).learning_rates == {"recommender": 0.003}
    given = {"learning_rate": 0.003, "finetune_learning_rate": 0.001}
    assert phase_of("final", **given).learning_rates == {"recommender": 0.001}


def test_run_has_the_phases_that_its_schedule_names():
    config = Config("ETEGRecLlama", "tiny", config_dict={"schedule": ["pretraining", "joint"]})
    assert [phase.name for phase in phases_of(config)] == ["pretraining", "joint"]
    assert [phase.name for phase in phases_of(Config("TIGER", "tiny"))] == ["pretraining", "final"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "final"}, "schedule .final. must be a list of phases: pretraining, alternat"),
        ({"schedule": []}, "must be a list of"),
        ({"schedule": ["finale"]}, "schedule .finale. must name phases .*did you mean 'final'"),
        ({"schedule": ["final", "final"]}, "names final more than once"),
        ({"schedule": ["joint"], "cycle_epochs": 1}, "schedule .joint. .* cycle_epochs >= 2"),
        (
            {"schedule": ["final_from_scratch"], "finetune_epochs": 0},
            "schedule .final_from_scratch. .* finetune_epochs >= 1",
        ),
    ],
)
def test_config_is_refused_when_its_schedule_cannot_be(values, message):
    with pytest.raises(UserError, match=message):
        check_rules(Config("ETEGRecLlama", "tiny", config_dict=values))
