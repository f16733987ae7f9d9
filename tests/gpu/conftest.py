"""What only a GPU can show. Where there is none, these tests are not collected."""

import sys
from pathlib import Path

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
