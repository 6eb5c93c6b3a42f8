"""RecBole's parts on the stack that is installed, without ray and with a broken one."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import dok_matrix

from recbole_etegrec.config import compat
from recbole_etegrec.preflight.doctor import report

IMPORTS = """
import sys, types
{setup}
import recbole_etegrec.config
import recbole.trainer, recbole.config, recbole.data, recbole.utils
config = recbole_etegrec.config.Config("SASRec", "ml-100k")
assert "recbole.quick_start" not in sys.modules
"""
BROKEN_RAY = """
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise AttributeError("np.bool8 was removed")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup", ["sys.modules['ray'] = None", BROKEN_RAY], ids=["absent", "broken"]
)
def test_recbole_is_usable_when_ray_is(setup):
    code = IMPORTS.format(setup=setup)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_numpy_names_are_there_when_recbole_reads_them():
    assert isinstance(np.float64(1.5), np.float)
    assert np.zeros(2, dtype=np.bool).dtype == bool
    assert np.array([1], dtype=np.long).dtype.kind == "i"


def test_dok_matrix_update_adds_entries_when_given_a_dictionary():
    matrix = dok_matrix((2, 3), dtype=np.float32)
    matrix._update({(0, 1): 1.0, (1, 2): 2.0})
    assert matrix.toarray().tolist() == [[0, 1, 0], [0, 0, 2]]


def test_report_names_everything_when_data_path_is_absent(tmp_path):
    text = report(str(tmp_path / "nothing"))
    for word in ("torch", "cpu", "ETEGRecLlama", "ml-100k", "none", compat.WORKAROUNDS[0].why):
        assert word in text
