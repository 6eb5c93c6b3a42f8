"""The plan against the memory that a step really takes, as torch's own profiler sees it."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaModel

from recbole_etegrec.data import item_vectors
from recbole_etegrec.data.tasks import TASKS
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.model import MODELS
from recbole_etegrec.preflight.memory_plan import GIB, MemoryPlan
from recbole_etegrec.runs.tasks import give_tasks
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import small_config, small_data
from tests.recommender.base_models import saved_with_texts

# Large enough that what is counted outweighs what is not.
HEADED = ("fused", "head")  # rankings that need an item head
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "init_std": 0.02,
    "eval_batch_size": 16,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a LLaMA of the width above."""
    folder = tmp_path_factory.mktemp("base")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(vocab_size=64, **{key: WIDE[key] for key in sizes})).save_pretrained(
        folder
    )
    return str(folder)


def planned(config):
    """The plan of a config, its model without weights, and its loaders."""
    loaders = small_data(config)[1]
    embedding = torch.from_numpy(item_vectors(config, loaders.train._dataset).embedding)
    return MemoryPlan(config, loaders.train, embedding.shape[1]), loaders


def tensor_bytes(module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def measured(work, held: int) -> int:
    """The most bytes alive during some work, with as many held before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    now = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert events
    return held + peak


def optimizer_bytes(engine) -> int:
    states = (optimizer.state.values() for optimizer in engine.optimizers.values())
    return sum(t.numel() * t.element_size() for s in states for p in s for t in p.values())


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [1024, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("model", "tuning", "precision", "head"),
    [
        ("ETEGRecLlama", "full", "fp32", False),
        ("ETEGRecLlama", "full", "fp32", True),
        ("ETEGRecLlama", "lora", "fp32", False),
        ("ETEGRecLlama", "lora", "bf16", False),
        ("ETEGRec", "full", "fp32", False),
    ],
)
def test_plan_is_within_a_twentieth_of_the_measured_peak_when_training(
    tiny_data, tmp_path, base, model, tuning, precision, head, checkpointing, max_tokens
):
    values = {"base_model": base, "tuning": tuning} if tuning == "lora" else {}
    config = small_config(
        tiny_data,
        model=model,
        **(WIDE | values),
        precision=precision,
        item_head=head,
        gradient_checkpointing=checkpointing,
        max_tokens=max_tokens,
        epochs=0,
    )
    plan, loaders = planned(config)
    model = MODELS[model](config, loaders.train._dataset)
    engine = Engine(config, model, RunDirectory(tmp_path))
    weights = {"recommendation": 1.0, "item": 0.3} if head else {"recommendation": 1.0}
    stage = Stage("final", "recommender", weights)
    engine.freeze_all_but("recommender")
    batch = loaders.train.largest_micro_batch()
    micro_batches = [batch] * min(batch.micro_batches, 2)
    engine.step(micro_batches, stage)  # the optimizer has its states from now on
    held = tensor_bytes(model) + optimizer_bytes(engine)
    peak = measured(lambda: engine.step(micro_batches, stage), held)
    tokenizer = 2 * sum(4 * p.numel() for p in model.tokenizer.parameters())
    # The plan counts the tokenizer's optimizer too, which has not stepped here.
    assert plan.training.total - tokenizer == pytest.approx(peak, rel=0.05)
    assert plan.training.checkpointing == checkpointing


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "checkpointing"), [("lora", False), ("full", True)])
def test_plan_is_within_a_twentieth_of_the_measured_peak_when_there_are_tasks(
    texts_data, tmp_path, tuning, checkpointing
):
    wide = {key: WIDE[key] for key in WIDE if key in LlamaConfig().to_dict()}
    base = saved_with_texts(tmp_path, vocab_size=8192, num_key_value_heads=4, **wide)
    tasks = dict.fromkeys(TASKS, 1.0)
    values = {"base_model": base, "tuning": tuning, "tasks": tasks, "task_tokens": 2048}
    config = small_config(
        texts_data, **WIDE, **values, gradient_checkpointing=checkpointing, user_codes=2, epochs=0
    )
    loaders = small_data(config)[1]
    give_tasks(config, loaders.train)
    embedding = torch.from_numpy(item_vectors(config, loaders.train._dataset).embedding)
    plan = MemoryPlan(config, loaders.train, embedding.shape[1])
    model = MODELS["ETEGRecLlama"](config, loaders.train._dataset)
    engine = Engine(config, model, RunDirectory(tmp_path))
    stage = Stage("final", "recommender", {"recommendation": 1.0, **tasks})
    engine.freeze_all_but("recommender")
    batch = loaders.train.largest_micro_batch()
    engine.step([batch], stage)
    held = tensor_bytes(model) + optimizer_bytes(engine)
    peak = measured(lambda: engine.step([batch], stage), held)
    tokenizer = 2 * sum(4 * p.numel() for p in model.tokenizer.parameters())
    assert plan.training.total - tokenizer == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("model", "ranking"),
    [
        (model, ranking)
        for model in MODELS
        for ranking in RANKERS
        if model == "ETEGRecLlama" or ranking not in HEADED
    ],
)
def test_plan_is_within_a_twentieth_of_the_measured_peak_when_ranking(model, ranking, tiny_data):
    values = {"ranking": ranking, "item_head": ranking in HEADED}
    config = small_config(tiny_data, model=model, **WIDE, **values)
    plan, loaders = planned(config)
    model = MODELS[model](config, loaders.train._dataset)
    user = max(range(1, 60), key=lambda row: int(loaders.test._dataset[row]["item_length"]))
    longest = int(loaders.test._dataset[user]["item_length"])
    assert longest == plan.longest
    rows = loaders.test._dataset[torch.full((16,), user)]
    model.ranker.prepare()
    peak = measured(lambda: model.full_sort_predict(rows), tensor_bytes(model))
    assert plan.evaluation.total - plan.optimizer == pytest.approx(peak, rel=0.05)
    assert evaluate(model, loaders.test, loaders.train._dataset, config)


@pytest.mark.slow
def test_plan_loads_no_weights_when_the_base_model_is_large(tiny_data):
    config = small_config(
        tiny_data,
        base_model="meta-llama/Llama-2-7b-hf",
        tuning="lora",
        precision="bf16",
        gradient_checkpointing=True,
        memory_gib=31,
        code_num=256,
    )
    plan, _ = planned(config)
    # 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 + 2 x 4096 weights, and a norm, in two bytes.
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    frozen = 2 * (32 * layer + 4096)
    assert plan.weights["decoder, frozen"] == pytest.approx(frozen, rel=1e-4)
    assert plan.weights["adapters (LoRA)"] == 4 * 32 * 4 * 2 * 64 * 4096
    # A token's keys and values: 2 x 32 layers x 4096 x 2 bytes.
    assert plan.evaluation.history == 50 * 4 * 2 * 32 * 4096 * 2
    assert plan.training.total < 31 * GIB
    plan.check()
    assert "adapters (LoRA)" in str(plan)


@pytest.mark.slow
def test_plan_of_4_bits_is_smaller_than_of_16_when_quantized(tiny_data):
    values = {"base_model": "meta-llama/Llama-2-7b-hf", "precision": "bf16", "memory_gib": 31}
    sixteen, _ = planned(small_config(tiny_data, tuning="lora", **values))
    four, _ = planned(small_config(tiny_data, tuning="qlora", **values))
    ratio = four.weights["decoder, frozen"] / sixteen.weights["decoder, frozen"]
    assert ratio == pytest.approx(0.258, abs=0.005)  # 4.127 bits for 16


@pytest.mark.slow
def test_plan_refuses_with_a_knob_that_makes_it_fit_when_memory_is_short(tiny_data):
    config = small_config(tiny_data, **WIDE)
    plan, _ = planned(config)
    between = (plan.training.total + plan.training_of(True).total) / 2 / GIB
    plan.config["memory_gib"] = between
    with pytest.raises(UserError, match="too little for training.*gradient_checkpointing to True"):
        plan.check()
    plan.config["memory_gib"] = 1.05 * plan.training_of(True, 4).total / GIB
    with pytest.raises(UserError, match="gradient_accumulation_steps to [24]"):
        plan.check()
    plan.config["memory_gib"] = 1e-5
    with pytest.raises(UserError, match="too little for training.*lower hidden_size"):
        plan.check()


def test_plan_refuses_with_a_batch_that_fits_when_evaluation_is_too_large(tiny_data):
    config = small_config(tiny_data, **WIDE, max_tokens=256, gradient_checkpointing=True)
    plan, _ = planned(config)
    assert plan.evaluation.total > plan.training.total
    plan.config["memory_gib"] = (plan.evaluation.total - 1) / GIB
    with pytest.raises(UserError, match="too little for evaluation.*eval_batch_size to 8"):
        plan.check()


@pytest.mark.slow
def test_plan_names_no_key_without_effect_when_a_base_model_is_too_large(tiny_data):
    values = {"base_model": "meta-llama/Llama-2-7b-hf", "precision": "bf16", "memory_gib": 8}
    for tuning, advice in {
        "lora": "set tuning to qlora and gradient_accumulation_steps to",
        "frozen": "take a smaller base_model",
    }.items():
        plan, _ = planned(small_config(tiny_data, tuning=tuning, max_tokens=408, **values))
        with pytest.raises(UserError, match=f"too little for training.*: {advice}"):
            plan.check()


def test_plan_counts_the_users_of_a_batch_when_evaluation_is_sampled(tiny_data):
    values = {**WIDE, "eval_args": {"mode": "uni10"}, "eval_batch_size": 5}
    plan, loaders = planned(small_config(tiny_data, **values))
    (interaction, rows, *_), *_ = loaders.test
    assert plan.evaluation.users == len(rows.unique())
    few, _ = planned(small_config(tiny_data, **{**values, "eval_args": {"mode": "uni2"}}))
    assert plan.evaluation.total > few.evaluation.total


def test_plan_refuses_when_there_are_fewer_tuples_than_items(tiny_data):
    with pytest.raises(UserError, match=r"code_num \(2\) and code_length \(3\) .* 40 items"):
        planned(small_config(tiny_data, code_num=2, code_length=3))


def test_plan_counts_a_share_of_the_decoder_when_it_is_sharded(tiny_data, monkeypatch):
    config = small_config(tiny_data, **WIDE)
    whole, _ = planned(config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(
        "recbole_etegrec.preflight.memory_plan.PartialState",
        lambda: SimpleNamespace(num_processes=4),
    )
    share, _ = planned(config)
    assert share.weights["decoder, learning"] == whole.weights["decoder, learning"] // 4
    assert share.weights["heads"] == whole.weights["heads"]
    assert whole.gradients / 4 < share.gradients < whole.gradients / 2
    assert share.training.total < whole.training.total
