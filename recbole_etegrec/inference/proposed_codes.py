"""Where the decoder would put an item of which it is told the title alone."""

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.sequences import pad_runs
from recbole_etegrec.data.tasks.prompts import read_prompts
from recbole_etegrec.data.tasks.texts import ItemTexts
from recbole_etegrec.decoding import beam_search
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import EncodedHistory, autocast
from recbole_etegrec.runs.tasks import vocabulary_of

TASK = "title_to_codes"


def title_prompts(config: Config, titles: list[str]) -> np.ndarray:
    """The prompt of the task `TASK` for each title, as slots of text; -1 is padding ``[n, P]``."""
    vocabulary, (prompts, _) = vocabulary_of(config), read_prompts(config["prompts"], [TASK])
    prompt = prompts[TASK]
    before, after = vocabulary.encode([prompt.before, prompt.after])
    texts = ItemTexts(titles, vocabulary, config["task_text_tokens"], spaced=prompt.spaced_source)
    rows = [[*vocabulary.begin, *before, *texts[number], *after] for number in range(len(titles))]
    lengths = np.array([len(row) for row in rows])
    padded = pad_runs(np.concatenate(rows) + 1, lengths.cumsum(), lengths, lengths.max())
    return padded - 1


@torch.no_grad()
def read_titles_of(config: Config, model: ETEGRecLlama, titles: list[str]) -> EncodedHistory:
    """Titles in their prompts, run through the decoder: the codes of their items come next."""
    slots = torch.from_numpy(title_prompts(config, titles)).to(model.device)
    prefix = model.mixed_tokens(slots).masked_fill(slots < 0, -1)
    none = torch.zeros(len(titles), 0, dtype=torch.long, device=model.device)
    codes = model.codes(none)
    given = {} if model.recommender.item_head is None else {"items": none}
    return model.recommender.encode_history(codes, none > 0, **given, prefix=prefix)


@torch.no_grad()
def proposed_codes(config: Config, model: ETEGRecLlama, titles: list[str]) -> torch.Tensor:
    """Semantic codes of known items beside which items of these titles should stand.

    Args:
        config: of the run.
        model: it learned the task `TASK`; in evaluation mode.

    Returns:
        The likeliest first ``[n, K, L - 1]``.

    Raises:
        UserError: the model did not learn the task.
    """
    if model.recommender.text is None or not (config["tasks"] or {}).get(TASK):
        raise UserError(
            f"new_item_codes (title): the run did not learn the task {TASK}: train one with it, or "
            "set new_item_codes to tokenizer"
        )
    found, size = [], config["eval_batch_size"]
    with autocast(model.precision, model.device.type):
        for start in range(0, len(titles), size):
            history = read_titles_of(config, model, titles[start : start + size])
            beams = beam_search(model.recommender, model.codes.trie, history, config["num_beams"])
            found.append(model.codes(beams.items)[..., :-1])
    return torch.cat(found)
