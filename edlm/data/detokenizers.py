"""Text as it was written out of text as data sets hold it: words apart from punctuation, marks for what was taken out.

The rules are those of the published zero-shot figures (Sahoo et al. 2024), each a fact about its set, applied in order.
One of theirs is left out, which is meant for apostrophes before digits and never matches; and where two matches of a
rule share a space both are made, of which theirs miss the second.
"""

import re
from collections.abc import Callable

Detokenizer = Callable[[str], str]
_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def wikitext(text: str) -> str:
    """WikiText's raw text: ` @-@ ` within words and numbers, spaces around punctuation and inside brackets."""
    return _WIKITEXT(text)


def ptb(text: str) -> str:
    """A sentence of the Penn Treebank: contractions apart, `N` for every number, `<unk>` for rare words."""
    return _PTB(text.strip())


def lm1b(text: str) -> str:
    """A sentence of the One Billion Words: punctuation, quotations and currencies apart."""
    return _LM1B(text.strip())


def lambada(text: str) -> str:
    """A passage of LAMBADA: straight quotation marks, and the line break that is put in front of it."""
    return "\n" + _LAMBADA(text).strip()


def scientific_papers(text: str) -> str:
    """An article of PubMed or arXiv: the rules of WikiText, then those of the One Billion Words."""
    return _LM1B(wikitext(text))


def _tight(match: re.Match[str]) -> str:
    """A bracket or quotation without the spaces inside its two marks."""
    return match[0][0] + match[0][1:-1].strip() + match[0][-1]


def _in_turn(*rules: _Rule) -> Detokenizer:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def detokenize(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return detokenize


_WIKITEXT = _in_turn(
    ("s '", "s'"),
    (" @([-,.])@ ", r"\1"),
    (" ([:;.!?,])(?= )", r"\1"),
    *((pattern, _tight) for pattern in (r"\([^)]*\)", r"\[[^\]]*\]", r"\{[^}]*\}", '"[^"]*"', "'[^']*'")),
    ("=(?: =)+", lambda match: match[0].replace(" ", "")),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N(?= )", " 1"),
    (" 's", "'s"),
)
_PTB = _in_turn(
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\\/", "/"),
    (" N(?= )", " 1"),
    (r"([$#]) 1", r"\g<1>1"),
    ("<unk>", "?"),
)
_LM1B = _in_turn(
    ("(https?) : / / ", r"\1://"),
    (r" '(?=\w)", "'"),
    (r"(?<= )(\w+) \.(?= |$)", r"\1."),
    (r" ([?!])(?= |$)", r"\1"),
    (" ([,:;])(?= )", r"\1"),
    (" / ", "/"),
    ('" ([^"]+) "', r'"\1"'),
    ("' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"([$£]) ", r"\1"),
)
_LAMBADA = _in_turn(("[“”]", '"'))
