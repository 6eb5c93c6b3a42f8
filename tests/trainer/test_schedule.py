"""The order of stages: cycles of alternation, then fine-tuning."""

from dataclasses import replace

import pytest

from recbole_etegrec.trainer.schedule import Stage, alternation, finetuning


def alternate(epochs: int, cycle: int, warm: int = 0, joint: bool = False) -> list[Stage]:
    more = {"sia_weight": 0.3, "psa_weight": 0.2, "joint": joint}
    return list(alternation(epochs=epochs, cycle_epochs=cycle, warm_epochs=warm, **more))


def tokenizer_stage(sia: float, psa: float) -> Stage:
    return Stage("alternation", "tokenizer", 0.0, sia, psa, 1.0, rebuild_codes=True)


def recommender_stage(sia: float, psa: float, evaluate: bool) -> Stage:
    return Stage("alternation", "recommender", 1.0, sia, psa, 0.0, False, evaluate)


def test_alternation_takes_turns_when_a_cycle_has_two_epochs():
    expected = [tokenizer_stage(0.3, 0.2), recommender_stage(0.3, 0.2, True)] * 3
    assert alternate(6, 2) == expected


def test_alternation_starts_alignment_late_when_there_are_warm_epochs():
    assert alternate(6, 2, warm=3) == [
        tokenizer_stage(0.0, 0.0),
        recommender_stage(0.0, 0.0, True),
        tokenizer_stage(0.0, 0.0),
        recommender_stage(0.3, 0.2, True),
        tokenizer_stage(0.3, 0.2),
        recommender_stage(0.3, 0.2, True),
    ]


def test_alternation_evaluates_at_the_end_of_a_cycle_when_it_has_four_epochs():
    cycle = [tokenizer_stage(0.3, 0.2)]
    cycle += [recommender_stage(0.3, 0.2, last) for last in (False, False, True)]
    assert alternate(8, 4) == cycle * 2
    # A cycle cut short is evaluated too.
    assert alternate(7, 4) == cycle + [*cycle[:2], recommender_stage(0.3, 0.2, True)]


def test_alternation_trains_the_recommender_alone_when_a_cycle_has_one_epoch():
    assert alternate(3, 1) == [recommender_stage(0.3, 0.2, True)] * 3


def test_alternation_takes_no_turns_when_training_is_joint():
    both = Stage("alternation", "both", 1.0, 0.3, 0.2, 1.0, rebuild_codes=True, evaluate=True)
    assert alternate(6, 2, joint=True) == [both] * 3
    assert (
        alternate(6, 3, joint=True)
        == [
            replace(both, evaluate=False),
            recommender_stage(0.3, 0.2, True),
        ]
        * 2
    )


def test_stage_has_a_part_for_each_module_when_both_learn():
    both = Stage("alternation", "both", 1.0, 0.3, 0.2, 1.0, rebuild_codes=True)
    tokenizer, recommender = both.parts
    assert (tokenizer.trains, recommender.trains) == ("tokenizer", "recommender")
    assert tokenizer.weights == {"sia": 0.3, "psa": 0.2, "quantization": 1.0}
    assert recommender.weights == {"recommendation": 1.0, "sia": 0.3, "psa": 0.2}
    assert tokenizer.parts == (tokenizer,)


def test_schedules_are_empty_when_there_are_no_epochs():
    assert alternate(0, 2) == []
    assert list(finetuning(epochs=0, eval_step=2)) == []


@pytest.mark.parametrize(
    ("epochs", "step", "evaluated"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 1, [1, 2, 3])]
)
def test_finetuning_evaluates_every_few_epochs_and_last_when_it_runs(epochs, step, evaluated):
    stages = list(finetuning(epochs=epochs, eval_step=step))
    assert stages == [
        Stage("finetune", "recommender", 1.0, evaluate=epoch in evaluated)
        for epoch in range(1, epochs + 1)
    ]


def test_alternation_ends_with_new_codes_when_its_last_epoch_is_the_tokenizers():
    assert alternate(1, 2) == [tokenizer_stage(0.3, 0.2)]
    assert alternate(3, 2) == [*alternate(2, 2), tokenizer_stage(0.3, 0.2)]
