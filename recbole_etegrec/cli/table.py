"""The commands: what each takes, its defaults, and an example of it."""

from recbole_etegrec.cli.arguments import PROGRAM, Command, Flag
from recbole_etegrec.config.files import DEFAULT_DATASET
from recbole_etegrec.config.values import DEFAULT_MODEL
from recbole_etegrec.prepare.kinds import KINDS, Kind

_RUN = ("RUN_DIR", "the directory of a run, such as saved/ETEGRecLlama-ml-100k-20260101-120000")
_OF_RUN = "the run's configuration, to be another for this command"
_OUT = "where the file goes"
_EXCLUDE = Flag(
    "exclude-history", "leave out what a user has had already", "as the run was tested", lone="True"
)
_HISTORY = Flag("history", "items that somebody has had, oldest first", value="ITEM,ITEM")
_FILES = Flag(
    "config_files", "YAML files or overlays of properties/, later ones winning", value='"A B"'
)

RUN = Command(
    "Train and test a model of this plugin or of RecBole.",
    (
        Flag("model", "ETEGRecLlama, ETEGRec, TIGER, or any of RecBole", DEFAULT_MODEL, "NAME"),
        Flag("dataset", "its folder in data_path, or a name of RecBole's", DEFAULT_DATASET, "NAME"),
        _FILES,
        Flag("run_dir", "where the run goes", "saved/MODEL-DATASET-TIME", "DIR"),
        Flag(
            "resume",
            "go on with the run of a directory; alone, with the run of --run_dir if it has begun",
            lone="True",
            value="RUN_DIR",
        ),
        Flag("plan", "print the memory it would take, and train nothing", lone="True"),
        Flag("check", "print whether all that must learn does, on one batch", lone="True"),
        Flag("data_path", "the folder of datasets", "dataset/", "DIR"),
        Flag("seed", "of all that is random", "2020", "NUMBER"),
        Flag("topk", "cut-offs of the metrics", "[5,10,20]", "[K,K]"),
        Flag("exclude_history", "whether what a user has had is ranked", "RecBole's rule", "TRUTH"),
    ),
    keys="properties/model/ETEGRecLlama.yaml, of properties/overall.yaml or of RecBole",
    examples=(
        f"{PROGRAM} run",
        f"{PROGRAM} run --model SASRec --dataset Beauty",
        f'{PROGRAM} run --dataset=Beauty --num_beams=50 "--topk=[10,50]"',
        f"{PROGRAM} run --resume saved/RUN",
    ),
)

COMPARE = Command(
    "Train models with each seed on one split, and write one table; again, it goes on.",
    (
        Flag("models", "of the plugin or of RecBole; A+tuned: with an overlay", value="A,B"),
        Flag("seeds", "one run of each model for each", "2020", "S,S"),
        Flag("runs", "runs that have ended, to be put into the table", value="DIR,DIR"),
        Flag("ablations", "overlays of properties/ablation/, each a further row", value="X,Y"),
        Flag("dataset", "its folder in data_path, or a name of RecBole's", DEFAULT_DATASET, "NAME"),
        Flag("jobs", "runs at a time, spread over the GPUs", "1", "NUMBER"),
        Flag("out", "where runs and tables go", "saved/compare-DATASET", "DIR"),
        Flag("exclude_history", "True, False, or both: tested in both ways", "False", "TRUTH"),
        _FILES,
    ),
    keys="a run; each goes to the models that know it",
    instead=(("model", "models"), ("ablation", "ablations")),
    examples=(f"{PROGRAM} compare --models Pop,SASRec,ETEGRecLlama --seeds 2020,2021,2022",),
    more="It ends with exit code 1 where a run has failed.",
)

REPORT = Command(
    "Write a page with the metrics, curves, codes and recommendations of runs.",
    (
        Flag("out", "the page", "report.html in the first directory", "FILE.html"),
        Flag("png", "write each chart as a PNG too", lone="True"),
        Flag("examples", "whether models are loaded, for groups and examples", "True", "TRUTH"),
    ),
    (("DIR", "the directories of runs, or of whole comparisons"),),
    several="+",
    keys=_OF_RUN,
    examples=(f"{PROGRAM} report saved/RUN saved/OTHER --out report.html",),
)

ENSEMBLE = Command(
    "Join finished runs of one dataset, or train a model with each seed and join these.",
    (
        Flag("out", "the directory of the ensemble, which is used like that of a run", value="DIR"),
        Flag("weights", "of the members' scores", "found on validation", "W,W"),
        Flag("seeds", "train the model with each of them first", value="S,S"),
        Flag("model", "that is trained with --seeds", DEFAULT_MODEL, "NAME"),
        Flag("dataset", "that it is trained on", DEFAULT_DATASET, "NAME"),
        Flag("jobs", "runs at a time, spread over the GPUs", "1", "NUMBER"),
        _FILES,
    ),
    (("RUN_DIR", "directories of finished runs; none with --seeds"),),
    several="*",
    keys="a run, with --seeds",
    instead=(("seed", "seeds"),),
    examples=(
        f"{PROGRAM} ensemble saved/RUN saved/OTHER --out saved/both",
        f"{PROGRAM} ensemble --seeds 1,2,3 --out saved/three --dataset Beauty",
    ),
)

CODES = Command(
    "Print how well a run codes its items, or one item's codes and the items near to it.",
    (Flag("item", "the item's token in the data"),),
    (_RUN,),
    keys=_OF_RUN,
    instead=(("items", "item"),),
    examples=(f"{PROGRAM} codes saved/RUN", f"{PROGRAM} codes saved/RUN --item 50"),
)

RECOMMEND = Command(
    "Rank items for users after all they have done, or after items that are named.",
    (
        Flag("users", "users of the dataset", value="A,B"),
        Flag("users-file", "a file with a user in each line", value="FILE"),
        Flag("all", "all users of the dataset", lone="True"),
        _HISTORY,
        Flag("k", "items for each", "10", "NUMBER"),
        _EXCLUDE,
        Flag("split", "valid or test: after what the evaluator saw", value="NAME"),
        Flag("out", f"{_OUT}: .csv, .jsonl or .parquet; again, it goes on", "a table", "FILE"),
    ),
    (("DIR", "the directory of a run, or of an exported model (which takes --history)"),),
    keys=_OF_RUN,
    instead=(("topk", "k"), ("user", "users"), ("top_k", "k"), ("item", "history")),
    examples=(
        f"{PROGRAM} recommend saved/RUN --users 196,186",
        f"{PROGRAM} recommend saved/RUN --history 50,181,174 --k 5",
        f"{PROGRAM} recommend saved/RUN --all --out top.csv",
    ),
)

EXPLAIN = Command(
    "Print how likely each code of a recommended item is, and the others there were.",
    (
        Flag("user", "a user of the dataset"),
        _HISTORY,
        Flag("item", "the item", "the first recommendation"),
        Flag("alternatives", "other codes shown for each", "3", "NUMBER"),
        _EXCLUDE,
    ),
    (_RUN,),
    keys=_OF_RUN,
    instead=(("users", "user"), ("k", "alternatives"), ("topk", "alternatives")),
    examples=(f"{PROGRAM} explain saved/RUN --history 50,181 --item 174",),
)

ADD_ITEMS = Command(
    "Let a finished run know and recommend items that it was not trained on.",
    (
        Flag("items", "the new items, in the columns of the dataset's .item", value="FILE.item"),
        Flag("embeddings", "their vectors, where the run's are of a file", value="FILE.npy"),
    ),
    (_RUN,),
    keys=_OF_RUN,
    examples=(f"{PROGRAM} add-items saved/RUN --items new.item",),
)

REMOVE_ITEMS = Command(
    "Take items that were added to a run out of it again.",
    (
        Flag("items", "which, in the column of the dataset's .item", value="FILE.item"),
        Flag("all", "all that were added", lone="True"),
    ),
    (_RUN,),
    keys=_OF_RUN,
    examples=(f"{PROGRAM} remove-items saved/RUN --all",),
)

EXPORT = Command(
    "Write the model of a run as one directory that needs no dataset.",
    (
        Flag("out", "a new directory", value="DIR"),
        Flag("format", "own, or hf: a plain LLaMA of transformers over codes", "own", "NAME"),
    ),
    (_RUN,),
    keys=_OF_RUN,
    examples=(
        f"{PROGRAM} export saved/RUN --out model",
        f"{PROGRAM} export saved/RUN --out llama --format hf",
    ),
)

SERVE = Command(
    "Answer requests for recommendations over HTTP, with a page to try them on, until Ctrl-C.",
    (
        Flag("host", "the address to listen on", "127.0.0.1, this machine alone"),
        Flag("port", "0 for any that is free", "8000", "NUMBER"),
        Flag("allowed-hosts", "names that it is called by", "this machine's", "NAME,NAME"),
        _EXCLUDE,
    ),
    (("DIR", "the directory of a run, or of an exported model"),),
    keys=_OF_RUN,
    examples=(f"{PROGRAM} serve saved/RUN --port 8080",),
)

DOCTOR = Command(
    "Print versions, devices, models and datasets.",
    (Flag("data_path", "the folder of datasets", "dataset/", "DIR"),),
    examples=(f"{PROGRAM} doctor",),
)

CHECK_DATA = Command(
    "Read a dataset through, and name file, line and field of what is wrong.",
    (Flag("data_path", "the folder of datasets", "dataset/", "DIR"),),
    (("NAME", "the name of a dataset"),),
    keys="a run",
    examples=(f"{PROGRAM} check-data Beauty --data_path dataset",),
)


def _prepare(kind: str, what: Kind) -> Command:
    flags = [
        Flag(name, text, value="FILE" if name in what.files else "TEXT")
        for name, text in {**what.needed, **what.optional}.items()
    ]
    out = Flag("out", "the folder of the dataset", value="DIR")
    overwrite = Flag("overwrite", "replace a dataset that is there", lone="True")
    example = f"{PROGRAM} prepare {kind} {what.example} --out dataset/Mine"
    return Command(what.summary, (*flags, out, overwrite), examples=(example,))


PREPARE = {kind: _prepare(kind, what) for kind, what in KINDS.items()}

GROUPS: dict[str, dict[str, Command]] = {
    "Train and compare": {"run": RUN, "compare": COMPARE, "ensemble": ENSEMBLE, "report": REPORT},
    "Use a trained model": {
        "recommend": RECOMMEND,
        "explain": EXPLAIN,
        "codes": CODES,
        "serve": SERVE,
        "add-items": ADD_ITEMS,
        "remove-items": REMOVE_ITEMS,
        "export": EXPORT,
    },
    "Data and machine": {
        "prepare": Command(f"Make a dataset of a raw dump: {', '.join(KINDS)}."),
        "check-data": CHECK_DATA,
        "doctor": DOCTOR,
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
