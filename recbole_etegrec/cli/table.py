"""The commands: what each takes, its defaults, and an example of it."""

from recbole_etegrec.cli.arguments import PROGRAM, Command, Flag
from recbole_etegrec.config.files import DEFAULT_DATASET
from recbole_etegrec.config.values import DEFAULT_MODEL
from recbole_etegrec.prepare.kinds import KINDS, Kind

_RUN = ("RUN_DIR", "the directory of a run, such as saved/ETEGRecLlama-ml-100k-20260101-120000")
_OF_RUN = "the run's configuration, which it overrides for this command alone"
_EXCLUDE = Flag(
    "exclude-history", "leave out items of the history", "as the run was tested", lone="True"
)
_HISTORY = Flag("history", "the items of a history, oldest first", value="ITEM,ITEM")
_DATASET = Flag(
    "dataset", "a folder in data_path, or a name of RecBole's list", DEFAULT_DATASET, "NAME"
)
_DATA_PATH = Flag("data_path", "the folder that holds the datasets", "dataset/", "DIR")
_JOBS = Flag("jobs", "how many runs go on at a time, spread over the GPUs", "1", "NUMBER")
_FILES = Flag(
    "config_files", "YAML files or overlays of properties/; later ones win", value='"A B"'
)

RUN = Command(
    "Train and test a model of this plugin or of RecBole.",
    (
        Flag("model", "ETEGRecLlama, ETEGRec, TIGER or one of RecBole's", DEFAULT_MODEL, "NAME"),
        _DATASET,
        _FILES,
        Flag("run_dir", "the directory to write to", "saved/MODEL-DATASET-TIME", "DIR"),
        Flag(
            "resume",
            "go on with the run in this directory; without a value, with that in --run_dir",
            lone="True",
            value="RUN_DIR",
        ),
        Flag("plan", "print how much memory the run would take, and train nothing", lone="True"),
        Flag(
            "check",
            "print whether every part learns, tried on one batch, and train nothing",
            lone="True",
        ),
        _DATA_PATH,
        Flag("seed", "the random seed", "2020", "NUMBER"),
        Flag("topk", "cut-offs of the metrics", "[5,10,20]", "[K,K]"),
        Flag(
            "exclude_history",
            "whether the ranking leaves out items of the history",
            "RecBole's rule",
            "TRUTH",
        ),
    ),
    keys="properties/model/ETEGRecLlama.yaml, of properties/overall.yaml or of RecBole",
    examples=(
        f"{PROGRAM} run",
        f"{PROGRAM} run --model SASRec --dataset Beauty",
        f'{PROGRAM} run --dataset=Beauty --candidates=50 "--topk=[10,50]"',
        f"{PROGRAM} run --resume saved/RUN",
    ),
)

COMPARE = Command(
    "Train several models on one split, and write one table. Start it again to go on.",
    (
        Flag(
            "models",
            "models of the plugin or of RecBole; A+tuned is A with an overlay",
            value="A,B",
        ),
        Flag("seeds", "random seeds; each model runs with each", "2020", "S,S"),
        Flag("runs", "finished runs that go into the table, too", value="DIR,DIR"),
        Flag("ablations", "overlays of properties/ablation/; each adds a row", value="X,Y"),
        _DATASET,
        _JOBS,
        Flag("out", "the directory for runs and tables", "saved/compare-DATASET", "DIR"),
        Flag(
            "exclude_history",
            "True, False, or both to test in both ways",
            "the dataset's, or False",
            "TRUTH",
        ),
        _FILES,
    ),
    keys="a run; each goes to the models that know it",
    instead=(("model", "models"), ("ablation", "ablations")),
    examples=(f"{PROGRAM} compare --models Pop,SASRec,ETEGRecLlama --seeds 2020,2021,2022",),
    more="The exit code is 1 if a run has failed.",
)

REPORT = Command(
    "Write a page with the metrics, curves, codes and recommendations of runs.",
    (
        Flag("out", "the file to write", "report.html in the first directory", "FILE.html"),
        Flag("png", "also write each chart as a PNG", lone="True"),
        Flag("examples", "load the models, for groups of users and examples", "True", "TRUTH"),
    ),
    (("DIR", "the directories of runs, or of whole comparisons"),),
    several="+",
    keys=_OF_RUN,
    examples=(f"{PROGRAM} report saved/RUN saved/OTHER --out report.html",),
)

ENSEMBLE = Command(
    "Join finished runs of one dataset, or train one with each seed and join these.",
    (
        Flag(
            "out",
            "the directory of the ensemble; it is used like that of a run",
            value="DIR",
            required=True,
        ),
        Flag("weights", "weights of the runs", "found on validation", "W,W"),
        Flag("seeds", "random seeds; the model is first trained with each", value="S,S"),
        Flag("model", "the model to train with --seeds", DEFAULT_MODEL, "NAME"),
        _DATASET,
        _JOBS,
        _FILES,
    ),
    (("RUN_DIR", "directories of finished runs; none are needed with --seeds"),),
    several="*",
    keys="a run, with --seeds",
    instead=(("seed", "seeds"),),
    examples=(
        f"{PROGRAM} ensemble saved/RUN saved/OTHER --out saved/both",
        f"{PROGRAM} ensemble --seeds 1,2,3 --out saved/three --dataset Beauty",
    ),
)

CODES = Command(
    "Print how well codes tell a run's items apart, or one item's codes and neighbours.",
    (Flag("item", "the item's token in the data"),),
    (_RUN,),
    keys=_OF_RUN,
    instead=(("items", "item"),),
    examples=(f"{PROGRAM} codes saved/RUN", f"{PROGRAM} codes saved/RUN --item 50"),
)

RECOMMEND = Command(
    "Recommend items to users of the dataset, or after a history that you name.",
    (
        Flag("users", "users of the dataset", value="A,B"),
        Flag("users-file", "a file with one user per line", value="FILE"),
        Flag("all", "recommend to all users of the dataset", lone="True"),
        _HISTORY,
        Flag("k", "how many items", "10", "NUMBER"),
        _EXCLUDE,
        Flag("split", "valid or test: use only the history that the evaluator used", value="NAME"),
        Flag("out", "write to a .csv, .jsonl or .parquet file", "prints a table", "FILE"),
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
    "Print how likely each code of a recommended item is, beside the likeliest others.",
    (
        Flag("user", "a user of the dataset"),
        _HISTORY,
        Flag("item", "the item to explain", "the first recommendation"),
        Flag("alternatives", "how many other codes to show for each", "3", "NUMBER"),
        _EXCLUDE,
    ),
    (_RUN,),
    keys=_OF_RUN,
    instead=(("users", "user"), ("k", "alternatives"), ("topk", "alternatives")),
    examples=(f"{PROGRAM} explain saved/RUN --history 50,181 --item 174",),
)

ADD_ITEMS = Command(
    "Add new items to a finished run, so that it recommends them; nothing is trained.",
    (
        Flag(
            "items",
            "the new items, with the columns of the dataset's .item",
            value="FILE.item",
            required=True,
        ),
        Flag("embeddings", "their vectors, if the run's come from a file", value="FILE.npy"),
    ),
    (_RUN,),
    keys=_OF_RUN,
    examples=(f"{PROGRAM} add-items saved/RUN --items new.item",),
)

REMOVE_ITEMS = Command(
    "Remove items that were added to a run.",
    (
        Flag("items", "the items to remove, listed like those that were added", value="FILE.item"),
        Flag("all", "remove all items that were added", lone="True"),
    ),
    (_RUN,),
    keys=_OF_RUN,
    examples=(f"{PROGRAM} remove-items saved/RUN --all",),
)

EXPORT = Command(
    "Write the model of a run into one directory that needs no dataset.",
    (
        Flag("out", "a new directory to write to", value="DIR", required=True),
        Flag("format", "own, or hf for a plain LLaMA of transformers over codes", "own", "NAME"),
    ),
    (_RUN,),
    keys=_OF_RUN,
    examples=(
        f"{PROGRAM} export saved/RUN --out model",
        f"{PROGRAM} export saved/RUN --out llama --format hf",
    ),
)

SERVE = Command(
    "Serve recommendations over HTTP, with a page to try them on, until Ctrl-C.",
    (
        Flag("host", "the address to listen on", "127.0.0.1, this machine only"),
        Flag("port", "the port; 0 takes any that is free", "8000", "NUMBER"),
        Flag("allowed-hosts", "host names that requests may use", "this machine's", "NAME,NAME"),
        _EXCLUDE,
    ),
    (("DIR", "the directory of a run, or of an exported model"),),
    keys=_OF_RUN,
    examples=(f"{PROGRAM} serve saved/RUN --port 8080",),
)

DOCTOR = Command(
    "Print versions, devices, models and datasets.",
    (_DATA_PATH,),
    examples=(f"{PROGRAM} doctor",),
)

CHECK_DATA = Command(
    "Check the files of a dataset, and name file, line and field of each fault.",
    (_DATA_PATH,),
    (("NAME", "the name of a dataset"),),
    keys="a run",
    examples=(f"{PROGRAM} check-data Beauty --data_path dataset",),
)


def _prepare(kind: str, what: Kind) -> Command:
    flags = [
        Flag(
            name,
            text,
            value="FILE" if name in what.files else "TEXT",
            required=name in what.needed,
        )
        for name, text in {**what.needed, **what.optional}.items()
    ]
    out = Flag("out", "the folder of the dataset", value="DIR", required=True)
    overwrite = Flag("overwrite", "replace the dataset if there is one", lone="True")
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
        "prepare": Command(f"Make a dataset from raw files: {', '.join(KINDS)}."),
        "check-data": CHECK_DATA,
        "doctor": DOCTOR,
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
