"""
Scripts that put no white space between words: where words are counted or compared, each of their characters stands
for one.
"""

import re

# Han and its iteration marks, kana, bopomofo; Thai, Lao, Tibetan, Burmese, Khmer.
UNSPACED = re.compile(
    "[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\uff66-\uff9f\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
)


def words_of(text: str) -> list[str]:
    """
    The words of a text: what stands between white space, and each character of a script that puts none between words.
    """
    return UNSPACED.sub(r" \g<0> ", text).split() if UNSPACED.search(text) else text.split()
